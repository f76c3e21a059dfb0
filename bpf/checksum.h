/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * One's complement sums (RFC 1071) of 16-bit words as they stand in memory, whatever the machine's order.
 */
#ifndef DNSGUARD_CHECKSUM_H
#define DNSGUARD_CHECKSUM_H

#include <linux/types.h>

static __always_inline __u32 sum_fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* The same octets, one further on: every word's octets change places, and so do the sum's (RFC 1071 section 2B). */
static __always_inline __u32 sum_moved(__u32 sum)
{
	return __builtin_bswap16(sum_fold(sum));
}

/* What to add to a sum when a word becomes another. */
static __always_inline __u32 sum_change(__u16 from, __u16 to)
{
	return (__u16)~from + (__u32)to;
}

static __always_inline __u32 sum_word32(__u32 word)
{
	return (word & 0xffff) + (word >> 16);
}

#endif
