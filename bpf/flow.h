/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Open flows. One that a pod begins is open once its peer has answered; until then every packet is decided anew. One
 * that a peer begins is open at once, but a TCP flow begins with a SYN. What was cut passes in neither direction.
 */
#ifndef DNSGUARD_FLOW_H
#define DNSGUARD_FLOW_H

#include "layout.h"
#include "maps.h"
#include "packet.h"

/* Refreshing a flow's end more often than this would only make processors fight for its cache line. */
#define REFRESH_NS (SECOND_NS / 4)

/* The first octets of a transport header, as an ICMP error quotes it. */
struct quoted_transport {
	union {
		__be16 ports[4];
		struct icmp_query icmp;
	};
};

static __always_inline int has_ports(__u32 protocol)
{
	switch (protocol) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_UDPLITE:
	case IPPROTO_DCCP:
	case PROTOCOL_SCTP:
		return 1;
	}
	return 0;
}

static __always_inline int is_icmp(const struct packet *packet)
{
	return (packet->protocol == IPPROTO_ICMP && packet->source.family == 4) ||
	       (packet->protocol == PROTOCOL_ICMP6 && packet->source.family == 6);
}

static __always_inline int is_icmp_error(__u32 family, __u8 type)
{
	if (family == 4)
		return type == 3 || type == 11 || type == 12;
	return type >= 1 && type <= 4;
}

/* 2 * the type of the request that begins such a flow, plus 1 for the answer to it; 0 for any other ICMP. */
static __always_inline __u16 icmp_query(__u32 family, __u8 type)
{
	if (family == 6)
		return type == 128 ? 256 : type == 129 ? 257 : 0;
	switch (type) {
	case 8:
	case 13:
	case 15:
	case 17:
		return 2 * type;
	case 0:
		return 2 * 8 + 1;
	case 14:
	case 16:
	case 18:
		return 2 * (type - 1) + 1;
	}
	return 0;
}

/* A packet that begins a flow, whatever was on its tuple before. */
static __always_inline int is_first(const struct packet *packet)
{
	if (packet->protocol == IPPROTO_TCP)
		return (packet->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
	return packet->protocol == PROTOCOL_SCTP && packet->type == SCTP_INIT;
}

/* Combinations of flags that connection tracking knows. A packet with others belongs to no flow. */
static __always_inline int is_sound(const struct packet *packet)
{
	if (packet->protocol != IPPROTO_TCP)
		return 1;
	switch (packet->tcp_flags & (TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK)) {
	case TCP_SYN:
	case TCP_SYN | TCP_ACK:
	case TCP_ACK:
	case TCP_FIN | TCP_ACK:
	case TCP_RST:
	case TCP_RST | TCP_ACK:
		return 1;
	}
	return 0;
}

/* Whether a packet that belongs to no known flow begins one, by what connection tracking begins one with: of TCP, what is
 * underway is taken up by an ACK alone, and only the pod's. */
static __always_inline int begins_flow(const struct packet *packet, const struct flow_key *key, int outbound)
{
	if (packet->protocol == IPPROTO_TCP)
		return is_sound(packet) &&
		       (is_first(packet) ||
			(outbound && !(packet->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST))));
	if (packet->protocol == PROTOCOL_SCTP)
		return is_first(packet);
	/* An answer to nothing begins none. */
	return !is_icmp(packet) || (key->peer_port & 1) == !outbound;
}

/* The key of the packet's flow; 0 when it belongs to none, like an ICMP error. */
static __always_inline int flow_of(const struct packet *packet, __u32 source, int outbound, struct flow_key *key)
{
	key->source = source;
	key->protocol = packet->protocol;
	key->peer = outbound ? packet->target : packet->source;
	key->pod_port = outbound ? packet->source_port : packet->target_port;
	key->peer_port = outbound ? packet->target_port : packet->source_port;
	if (is_icmp(packet)) {
		__u16 query = icmp_query(packet->source.family, packet->type);

		if (!query)
			return 0;
		key->pod_port = packet->identifier;
		/* Even when the pod asks: its requests, and the answers that come to it. */
		key->peer_port = outbound ? query : query ^ 1;
	}
	return 1;
}

#define FLOW_DONE (FLOW_POD_DONE | FLOW_PEER_DONE)

/* Flows that are over, or that nobody has answered, make room soon: of these there may be as many as anybody likes. */
static __always_inline int idle_of_tcp(__u32 state)
{
	if ((state & FLOW_DONE) == FLOW_DONE)
		return IDLE_TCP_CLOSED;
	if (state & FLOW_DONE)
		return IDLE_TCP_CLOSING;
	if (!(state & FLOW_POD))
		return IDLE_TCP_ASKED;
	return state & FLOW_PEER ? IDLE_TCP : IDLE_TCP_NEW;
}

static __always_inline int idle_of(const struct flow_key *key, __u32 state)
{
	switch (key->protocol) {
	case IPPROTO_TCP:
		return idle_of_tcp(state);
	case IPPROTO_UDP:
	case IPPROTO_UDPLITE:
		return state & FLOW_PEER && state & FLOW_POD ? IDLE_UDP : IDLE_UDP_NEW;
	case PROTOCOL_SCTP:
		return IDLE_SCTP;
	case IPPROTO_ICMP:
	case PROTOCOL_ICMP6:
		return IDLE_ICMP;
	}
	return IDLE_OTHER;
}

static __always_inline __u64 idle_ns(int idle)
{
	__u32 zero = 0;
	struct settings *set = bpf_map_lookup_elem(&settings, &zero);

	return set && idle >= 0 && idle < IDLES ? set->idle_ns[idle] : 0;
}

static __always_inline struct flow *living_flow(const struct flow_key *key, __u64 now)
{
	struct flow *flow = bpf_map_lookup_elem(&flows, key);

	return flow && now < flow->ends_ns ? flow : 0;
}

static __always_inline void put_off(struct flow *flow, __u64 ends_ns)
{
	if (ends_ns > flow->ends_ns + REFRESH_NS || ends_ns < flow->ends_ns)
		flow->ends_ns = ends_ns;
}

/* Whether the flow was cut. Each packet makes the cut last longer. */
static __always_inline int is_cut(struct flow *flow, __u64 now)
{
	if (!flow || !(flow->state & FLOW_CUT))
		return 0;
	put_off(flow, now + idle_ns(IDLE_CUT));
	return 1;
}

/* Only the pod's own packets begin a flow anew that is there: a peer's may be forged by anybody. */
static __always_inline __u32 state_after(const struct packet *packet, __u32 state, int outbound)
{
	if (outbound && is_first(packet))
		state = 0;
	state |= outbound ? FLOW_POD : FLOW_PEER;
	if (packet->protocol != IPPROTO_TCP)
		return state;
	if (packet->tcp_flags & (TCP_FIN | TCP_RST))
		return outbound && packet->tcp_flags & TCP_RST ? state | FLOW_DONE :
		       outbound				       ? state | FLOW_POD_DONE :
								 state | FLOW_PEER_DONE;
	if (outbound && packet->tcp_flags & TCP_SYN)
		return state & ~FLOW_DONE;
	return state;
}

/* A reset before both have spoken ends the flow at once; nothing was open, and nothing is closing. */
static __always_inline int is_refused(const struct packet *packet, __u32 state)
{
	return packet->protocol == IPPROTO_TCP && packet->tcp_flags & TCP_RST &&
	       (state & (FLOW_POD | FLOW_PEER)) != (FLOW_POD | FLOW_PEER);
}

/* Whether the pod has room for one flow more. Without it packets go on being decided one by one. */
static __always_inline int has_room(__u32 link)
{
	__u64 *made = bpf_map_lookup_elem(&flows_made, &link);
	__u64 *freed = bpf_map_lookup_elem(&flows_freed, &link);
	__u32 zero = 0;
	struct settings *set = bpf_map_lookup_elem(&settings, &zero);

	return set && (!made || *made - (freed ? *freed : 0) < set->flows_per_pod);
}

static __always_inline void count_made(__u32 link)
{
	__u64 *made = bpf_map_lookup_elem(&flows_made, &link);
	__u64 one = 1;

	if (made)
		__sync_fetch_and_add(made, 1);
	else
		bpf_map_update_elem(&flows_made, &link, &one, BPF_NOEXIST);
}

/* Keep the flow that this packet, which was let, belongs to. `flow` is what living_flow said. */
static __always_inline void remember(struct __sk_buff *skb, const struct packet *packet, const struct flow_key *key,
				     struct flow *flow, __u64 now, int outbound)
{
	struct flow fresh = { .link = skb->ifindex };

	if (!(flow ? is_sound(packet) : begins_flow(packet, key, outbound)))
		return;
	if (flow && is_refused(packet, flow->state)) {
		flow->ends_ns = now;
		return;
	}
	if (flow) {
		__u32 state = state_after(packet, flow->state, outbound);

		if (state != flow->state)
			flow->state = state;
		put_off(flow, now + idle_ns(idle_of(key, state)));
		return;
	}
	fresh.state = state_after(packet, 0, outbound);
	fresh.ends_ns = now + idle_ns(idle_of(key, fresh.state));
	flow = bpf_map_lookup_elem(&flows, key);
	if (flow) { /* one that has ended, and was not swept yet */
		if (now < flow->ends_ns)
			return; /* cut this moment */
		flow->state = fresh.state;
		flow->ends_ns = fresh.ends_ns;
		return;
	}
	if (has_room(fresh.link) && !bpf_map_update_elem(&flows, key, &fresh, BPF_NOEXIST))
		count_made(fresh.link);
}

/* The packet that an ICMP error quotes, at least eight octets of its transport header (RFC 792). */
static __always_inline int read_quoted(struct __sk_buff *skb, const struct packet *error, struct packet *quoted)
{
	__u32 at = error->transport + sizeof(struct icmp_query);
	struct quoted_transport transport;

	quoted->source.family = quoted->target.family = error->source.family;
	if (error->source.family == 4) {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)) || ip.version != 4 || ip.frag_off & bpf_htons(IP4_OFFSET))
			return READ_MALFORMED;
		__builtin_memcpy(quoted->source.octets, &ip.saddr, 4);
		__builtin_memcpy(quoted->target.octets, &ip.daddr, 4);
		quoted->protocol = ip.protocol;
		at += ip.ihl * 4;
	} else {
		struct ipv6hdr ip;

		if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)) || ip.version != 6)
			return READ_MALFORMED;
		__builtin_memcpy(quoted->source.octets, &ip.saddr, 16);
		__builtin_memcpy(quoted->target.octets, &ip.daddr, 16);
		quoted->protocol = ip.nexthdr;
		at += sizeof(ip);
	}
	if (at + sizeof(transport) > error->end || bpf_skb_load_bytes(skb, at, &transport, sizeof(transport)))
		return READ_MALFORMED;
	if (is_icmp(quoted)) {
		quoted->type = transport.icmp.type;
		quoted->identifier = bpf_ntohs(transport.icmp.identifier);
	} else if (has_ports(quoted->protocol)) {
		quoted->source_port = bpf_ntohs(transport.ports[0]);
		quoted->target_port = bpf_ntohs(transport.ports[1]);
	}
	return READ_OK;
}

/* The flow of the packet that an ICMP error of the pod quotes. Only about one that is open, and only to its peer. */
static __always_inline int is_about_open_flow(struct __sk_buff *skb, const struct packet *error, __u32 source, __u64 now)
{
	struct packet quoted = {};
	struct flow_key key = {};
	struct flow *flow;

	if (!is_icmp(error) || !is_icmp_error(error->source.family, error->type) || read_quoted(skb, error, &quoted))
		return 0;
	/* What the pod quotes was sent to it, by the one that it tells. */
	if (!is_same(&quoted.source, &error->target) || !is_same(&quoted.target, &error->source))
		return 0;
	if (!flow_of(&quoted, source, 0, &key))
		return 0;
	flow = living_flow(&key, now);
	return flow && flow->state & FLOW_PEER && !is_cut(flow, now);
}

#endif
