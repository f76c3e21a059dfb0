/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * The second line, at the host's end of a pod's link.
 *
 *     from_pod   frame -> readable? -> who sends? -> a query: answer it, or let it up
 *                                                 -> else: part of an open flow, or decided by the pod's program
 *     to_pod     frame -> unreadable, of a flow that was cut, or TCP out of nowhere? dropped; else the flow is remembered
 *
 * In Audit nothing is dropped but forged sources and what cannot be read.
 *
 * TC_ACT_UNSPEC lets a packet go on to whatever filters come after this one; nothing here overrules them.
 */
#include "layout.h"

#include "decide.h"
#include "dns.h"
#include "flow.h"
#include "fragment.h"
#include "local.h"
#include "maps.h"
#include "packet.h"
#include "query.h"
#include "report.h"
#include "source.h"

static __always_inline int drop_from_pod(struct __sk_buff *skb, const struct packet *packet, __u16 what, __u16 rule)
{
	return drop(skb, packet, what, rule, 1);
}

/* Drops what the policy does not let, or the limits; but not in Audit. */
static __always_inline int deny_from_pod(struct __sk_buff *skb, const struct packet *packet, __u16 what, __u16 rule)
{
	return is_audit() ? TC_ACT_UNSPEC : drop_from_pod(skb, packet, what, rule);
}

/* A query. `pair` is 0 when its source is not known yet: the daemon waits for its route, and nftables looks it up. But
 * fragments and options the node's stack answers before that, with an error that quotes them, to whatever source. */
static __always_inline int let_up(struct __sk_buff *skb, const struct packet *packet, const struct pair *pair, __u64 now)
{
	if (is_link_local6(&packet->source) || (!pair && !packet->plain))
		return drop_from_pod(skb, packet, DROP_SOURCE, NO_RULE);
	if (pair && packet->protocol == IPPROTO_UDP && packet->plain) {
		int verdict = answer(skb, packet, pair->source, now);

		if (verdict != TC_ACT_UNSPEC)
			return verdict;
	}
	if (!is_vouched_for(now) && !is_audit())
		return drop_from_pod(skb, packet, DROP_LISTENER, NO_RULE);
	if (packet->protocol == IPPROTO_UDP || is_first(packet)) {
		if (!has_query(skb, now) && !is_audit())
			return drop_from_pod(skb, packet, DROP_QUERIES, NO_RULE);
		count(skb->ifindex, ASKED, NO_RULE);
	}
	if (packet->is_fragment && pair)
		let_fragments(packet, pair->source, now);
	return TC_ACT_UNSPEC;
}

static __always_inline int decide_from_pod(struct __sk_buff *skb, const struct packet *packet, const struct pair *pair)
{
	int decided = decide(pair, packet, &packet->target, packet->target_port);

	if (decided == ACCEPTED)
		return TC_ACT_UNSPEC;
	if (decided == NO_PROGRAM)
		return deny_from_pod(skb, packet, DROP_UNKNOWN, NO_RULE);
	if (decided == DENIED_BY_DEFAULT)
		return deny_from_pod(skb, packet, DROP_DEFAULT, NO_RULE);
	return deny_from_pod(skb, packet, DROP_RULE, decided - 1);
}

static __always_inline int egress(struct __sk_buff *skb, const struct packet *packet, const struct pair *pair, __u64 now)
{
	struct flow_key key = {};
	struct flow *flow = 0;
	int has_flow = flow_of(packet, pair->source, 1, &key);
	int verdict;

	if (has_flow)
		flow = living_flow(&key, now);
	if (is_cut(flow, now))
		return deny_from_pod(skb, packet, DROP_CUT, NO_RULE); /* and it stays cut */
	if (flow && flow->state & FLOW_PEER && !is_first(packet) && is_sound(packet)) {
		remember(skb, packet, &key, flow, now, 1);
		return TC_ACT_UNSPEC;
	}
	if (!has_flow && is_about_open_flow(skb, packet, pair->source, now))
		return TC_ACT_UNSPEC;
	verdict = decide_from_pod(skb, packet, pair);
	if (verdict == TC_ACT_UNSPEC && has_flow)
		remember(skb, packet, &key, flow, now, 1);
	else if (flow && flow->state & FLOW_DONE && is_first(packet))
		flow->ends_ns = now; /* the pod has done with it, and may not begin it anew */
	return verdict;
}

SEC("tc")
int from_pod(struct __sk_buff *skb)
{
	struct pair_key key = { .link = skb->ifindex };
	struct packet *packet = this_packet();
	struct pair *pair;
	int reading, verdict;
	__u64 now;

	if (skb->protocol == bpf_htons(ETH_P_ARP) && !skb->vlan_present)
		return TC_ACT_UNSPEC;
	if (!packet)
		return TC_ACT_SHOT;
	reading = read_packet(skb);
	key.address = packet->source;
	pair = bpf_map_lookup_elem(&pairs, &key);
	if (pair && pair->flags & PAIR_EXCLUDED)
		return TC_ACT_UNSPEC;
	if (skb->vlan_present)
		return drop_from_pod(skb, packet, DROP_VLAN, NO_RULE);
	if (reading != READ_OK)
		return drop_from_pod(skb, packet, DROP_MALFORMED, NO_RULE);
	now = bpf_ktime_get_ns();
	if (is_neighbour_discovery(packet, pair != 0) || is_dhcp(packet, pair != 0))
		return TC_ACT_UNSPEC;
	if (is_multicast_report(packet))
		return drop_from_pod(skb, packet, DROP_MULTICAST, NO_RULE);
	if (is_query(packet))
		return let_up(skb, packet, pair, now);
	if (!pair)
		return is_audit() && packet->plain && !is_forged(skb) ?
			       TC_ACT_UNSPEC :
			       drop_from_pod(skb, packet, DROP_UNKNOWN, NO_RULE);
	if (packet->is_later)
		return was_first_let(packet, pair->source, now) ?
			       TC_ACT_UNSPEC :
			       deny_from_pod(skb, packet, DROP_FRAGMENT, NO_RULE);
	verdict = egress(skb, packet, pair, now);
	if (verdict == TC_ACT_UNSPEC && packet->is_fragment)
		let_fragments(packet, pair->source, now);
	return verdict;
}

/* TCP that is no SYN and of no flow that is known: one that the pod may begin may also go on, without room for it. */
static __always_inline int may_go_on(const struct packet *packet, const struct pair *pair)
{
	return decide(pair, packet, &packet->source, packet->source_port) == ACCEPTED;
}

SEC("tc")
int to_pod(struct __sk_buff *skb)
{
	struct pair_key key = { .link = skb->ifindex };
	struct flow_key flow_key = {};
	struct packet *packet = this_packet();
	struct pair *pair;
	struct flow *flow;
	int reading;
	__u64 now;

	if (!packet)
		return TC_ACT_UNSPEC;
	reading = read_packet(skb);
	key.address = packet->target;
	pair = bpf_map_lookup_elem(&pairs, &key);
	if (!pair || pair->flags & PAIR_EXCLUDED)
		return TC_ACT_UNSPEC;
	if (reading != READ_OK)
		return drop(skb, packet, DROP_MALFORMED, NO_RULE, 0);
	if (packet->is_later || is_reply(packet))
		return TC_ACT_UNSPEC;
	if (!flow_of(packet, pair->source, 0, &flow_key))
		return TC_ACT_UNSPEC;
	now = bpf_ktime_get_ns();
	flow = living_flow(&flow_key, now);
	if (is_cut(flow, now))
		return is_audit() ? TC_ACT_UNSPEC : drop(skb, packet, DROP_CUT, NO_RULE, 0);
	if (!flow && packet->protocol == IPPROTO_TCP && !is_first(packet))
		return may_go_on(packet, pair) || is_audit() ? TC_ACT_UNSPEC :
							       drop(skb, packet, DROP_INBOUND, NO_RULE, 0);
	remember(skb, packet, &flow_key, flow, now, 0);
	return TC_ACT_UNSPEC;
}

char _license[] SEC("license") = "GPL";
