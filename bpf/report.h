/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * What happened is counted, all of it; of what is dropped, some is told at once.
 *
 * A kind of dropped packets (link, peer, protocol, port, reason) is told by its first packet, then at most once a
 * second, and each link has a budget of such reports. What is not told stays with its kind for its next report. A kind
 * that comes while its link may not report gets no place in `drops`: a scan of ports pushes out nobody's, and costs a
 * look-up. `counts` misses nothing.
 */
#ifndef DNSGUARD_REPORT_H
#define DNSGUARD_REPORT_H

#include "maps.h"
#include "packet.h"

static __always_inline void count(__u32 link, __u16 what, __u16 rule)
{
	struct count_key key = { .link = link, .what = what, .rule = rule };
	__u64 first = 1, *counted;

	counted = bpf_map_lookup_elem(&counts, &key);
	if (!counted) {
		if (!bpf_map_update_elem(&counts, &key, &first, BPF_NOEXIST))
			return;
		/* Another CPU was first, or there is no room. */
		counted = bpf_map_lookup_elem(&counts, &key);
	}
	if (counted)
		__sync_fetch_and_add(counted, 1);
}

/* What the link has used; 0 when there is no room for it. */
static __always_inline struct link *used_by(__u32 link)
{
	struct link fresh = {}, *used;

	used = bpf_map_lookup_elem(&links, &link);
	if (used)
		return used;
	bpf_map_update_elem(&links, &link, &fresh, BPF_NOEXIST);
	return bpf_map_lookup_elem(&links, &link);
}

/* Takes one report out of the link's budget. */
static __always_inline int may_report(__u32 link, __u64 now)
{
	struct settings *set;
	struct link *used;
	__u32 zero = 0;
	__u64 until;

	set = bpf_map_lookup_elem(&settings, &zero);
	if (!set || !set->report_ns)
		return 0;
	used = used_by(link);
	if (!used)
		return 0;
	until = used->reports_until_ns;
	if (until < now)
		until = now;
	if (until - now > set->report_burst_ns)
		return 0;
	used->reports_until_ns = until + set->report_ns;
	return 1;
}

/* The kind, with this packet in it, when it is due to be told; else 0. */
static __always_inline struct drop *due_drop(const struct drop_key *key, __u64 now)
{
	struct drop fresh = { .reported_ns = now }, *kind;

	kind = bpf_map_lookup_elem(&drops, key);
	if (kind) {
		__sync_fetch_and_add(&kind->packets, 1);
		if (kind->reported_ns + SECOND_NS > now || !may_report(key->link, now))
			return 0;
		kind->reported_ns = now;
		return kind;
	}
	if (!may_report(key->link, now))
		return 0;
	bpf_map_update_elem(&drops, key, &fresh, BPF_NOEXIST);
	kind = bpf_map_lookup_elem(&drops, key);
	if (kind)
		__sync_fetch_and_add(&kind->packets, 1);
	return kind;
}

static __always_inline void tell_drop(const struct drop_key *key, const struct address *source, __u16 rule)
{
	struct report *report;
	struct drop *kind;
	__u64 packets;

	kind = due_drop(key, bpf_ktime_get_ns());
	if (!kind)
		return;
	/* Two CPUs may tell the same packets. What was told twice is owed below zero, and the next report is as much
	 * smaller: before 5.12 there is no exchange. */
	packets = kind->packets;
	if ((__s64)packets <= 0)
		return;
	report = bpf_ringbuf_reserve(&reports, sizeof(*report), 0);
	if (!report)
		return;
	__builtin_memset(report, 0, sizeof(*report));
	report->packets = packets;
	report->link = key->link;
	report->source = *source;
	report->peer = key->peer;
	report->protocol = key->protocol;
	report->port = key->port;
	report->what = key->what;
	report->rule = rule;
	bpf_ringbuf_submit(report, 0);
	__sync_fetch_and_add(&kind->packets, -packets);
}

/* In Audit what no rule accepts goes on, and so does a query for which there is no listener or no rate left. nftables,
 * which lets it through for the same reason, counts it and tells of it; a second count would be one too many. */
__noinline int is_audit(void)
{
	__u32 zero = 0;
	struct settings *set = bpf_map_lookup_elem(&settings, &zero);

	return set && set->audit;
}

/* Counts the packet and tells of it, as seen from the pod: the peer and its port, whichever way the packet went. An
 * address that was not read is of family 0. */
static __noinline int drop(struct __sk_buff *skb, const struct packet *packet, __u16 what, __u16 rule, int outbound)
{
	struct drop_key key = { .link = skb->ifindex, .protocol = packet->protocol, .what = what };

	count(key.link, what, rule);
	if (what == DROP_MULTICAST)
		return TC_ACT_SHOT;
	key.peer = outbound ? packet->target : packet->source;
	key.port = outbound ? packet->target_port : packet->source_port;
	tell_drop(&key, outbound ? &packet->source : &packet->target, rule);
	return TC_ACT_SHOT;
}

#endif
