/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * A source that is no pair's: in Audit it goes on, unless it is forged, that is, routed to another link or to none. Only
 * with plain headers, for the same reason as a query.
 */
#ifndef DNSGUARD_SOURCE_H
#define DNSGUARD_SOURCE_H

#include "local.h"
#include "packet.h"

#define FAMILY_INET 2
#define FAMILY_INET6 10

/* Whether the source of `this_packet()` belongs elsewhere. What the kernel does not say here (before 5.13 it does not
 * where a route leads whose neighbour it does not know) is nftables' to find out. */
__noinline int is_forged(struct __sk_buff *skb)
{
	struct bpf_fib_lookup route = { .ifindex = skb->ifindex };
	struct packet *packet = this_packet();

	if (!packet)
		return 1;
	if (is_link_local6(&packet->source)) /* every link has a route there */
		return 0;
	if (packet->source.family == 4) {
		route.family = FAMILY_INET;
		__builtin_memcpy(&route.ipv4_dst, packet->source.octets, 4);
	} else {
		route.family = FAMILY_INET6;
		__builtin_memcpy(route.ipv6_dst, packet->source.octets, 16);
	}
	switch (bpf_fib_lookup(skb, &route, sizeof(route), 0)) {
	case BPF_FIB_LKUP_RET_SUCCESS:
	case BPF_FIB_LKUP_RET_NO_NEIGH:
	case BPF_FIB_LKUP_RET_FRAG_NEEDED:
		return route.ifindex != skb->ifindex;
	case BPF_FIB_LKUP_RET_BLACKHOLE:
	case BPF_FIB_LKUP_RET_UNREACHABLE:
	case BPF_FIB_LKUP_RET_PROHIBIT:
	case BPF_FIB_LKUP_RET_NOT_FWDED:
		return 1;
	}
	return 0;
}

#endif
