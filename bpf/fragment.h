/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Fragments behind the first have no ports: they go where the first one was let, and nowhere else. Each source
 * remembers as many packets in fragments as there are slots, so that it only ever pushes out its own.
 */
#ifndef DNSGUARD_FRAGMENT_H
#define DNSGUARD_FRAGMENT_H

#include "layout.h"
#include "maps.h"
#include "packet.h"

#define FRAGMENT_NS (30 * SECOND_NS)

static __always_inline struct fragment_key fragment_slot(const struct packet *packet, __u32 source)
{
	struct fragment_key key = { .source = source, .slot = packet->fragment % FRAGMENTS };

	return key;
}

/* IPv6 tells its fragments apart without the protocol, which each of them may name otherwise (RFC 8200 section 4.5). */
static __always_inline __u32 fragment_protocol(const struct packet *packet)
{
	return packet->source.family == 4 ? packet->protocol : 0;
}

static __always_inline void let_fragments(const struct packet *packet, __u32 source, __u64 now)
{
	struct fragment_key key = fragment_slot(packet, source);
	struct fragment first = {
		.ends_ns = now + FRAGMENT_NS,
		.id = packet->fragment,
		.protocol = fragment_protocol(packet),
		.peer = packet->target,
	};

	bpf_map_update_elem(&fragments, &key, &first, BPF_ANY);
}

static __always_inline int was_first_let(const struct packet *packet, __u32 source, __u64 now)
{
	struct fragment_key key = fragment_slot(packet, source);
	struct fragment *first = bpf_map_lookup_elem(&fragments, &key);

	return first && now < first->ends_ns && first->id == packet->fragment &&
	       first->protocol == fragment_protocol(packet) &&
	       is_same(&first->peer, &packet->target);
}

#endif
