/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Which packets are intercepted queries, and when they may go up to the daemon.
 */
#ifndef DNSGUARD_QUERY_H
#define DNSGUARD_QUERY_H

#include "flow.h"
#include "layout.h"
#include "maps.h"
#include "packet.h"
#include "report.h"

#define DNS_PORT 53

static __always_inline int is_intercepted(const struct address *server)
{
	__u32 zero = 0;
	struct settings *set = bpf_map_lookup_elem(&settings, &zero);

	return set && (set->intercept_any || bpf_map_lookup_elem(&intercepted, server));
}

static __always_inline int is_dns(const struct packet *packet)
{
	return (packet->protocol == IPPROTO_UDP || packet->protocol == IPPROTO_TCP) && !packet->is_later;
}

static __always_inline int is_query(const struct packet *packet)
{
	return is_dns(packet) && packet->target_port == DNS_PORT && is_intercepted(&packet->target);
}

/* What the daemon sends back: it is part of no flow of the pod's. */
static __always_inline int is_reply(const struct packet *packet)
{
	return is_dns(packet) && packet->source_port == DNS_PORT && is_intercepted(&packet->source);
}

/* Whether somebody has said lately that what goes up is intercepted. */
static __always_inline int is_vouched_for(__u64 now)
{
	__u32 zero = 0;
	__u64 *until_ns = bpf_map_lookup_elem(&dns_open_until_ns, &zero);

	return until_ns && now < *until_ns;
}

/* How many datagrams a packet is cut into behind this (UDP_SEGMENT), at most one more. */
static __always_inline __u32 datagrams(const struct __sk_buff *skb)
{
	return skb->gso_size ? skb->len / skb->gso_size + 1 : 1;
}

/* A packet's queries out of the link's share. A token bucket that keeps only when it will be full again. */
static __always_inline int has_query(const struct __sk_buff *skb, __u64 now)
{
	__u32 zero = 0;
	struct settings *set = bpf_map_lookup_elem(&settings, &zero);
	struct link *link;
	__u64 full;

	if (!set)
		return 0;
	link = used_by(skb->ifindex);
	if (!link)
		return 0;
	full = link->queries_until_ns > now ? link->queries_until_ns : now;
	if (full - now > set->query_burst_ns)
		return 0;
	link->queries_until_ns = full + set->query_ns * datagrams(skb);
	return 1;
}

#endif
