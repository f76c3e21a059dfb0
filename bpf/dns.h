/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Questions that the kernel answers by itself.
 */
#ifndef DNSGUARD_DNS_H
#define DNSGUARD_DNS_H

#include "maps.h"
#include "packet.h"

/* Turns a plain UDP question into its answer and sends it back: then returns the verdict of that. TC_ACT_UNSPEC, with
 * the packet as it came, when the question has to go up. */
static __always_inline int answer(struct __sk_buff *skb, const struct packet *packet, __u32 source)
{
	return TC_ACT_UNSPEC;
}

#endif
