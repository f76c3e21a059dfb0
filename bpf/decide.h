/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * The decision on the first packet of a flow, as `core/compile.decide` makes it: the lowest rule that holds both the
 * port and the peer's address decides; a Pass leaves its tier.
 */
#ifndef DNSGUARD_DECIDE_H
#define DNSGUARD_DECIDE_H

#include "layout.h"
#include "maps.h"
#include "packet.h"

#define ACCEPTED 0
#define DENIED_BY_DEFAULT (-1)
#define NO_PROGRAM (-2)
/* Any other value is the number of the Deny rule, plus 1. */

/* A flow's first packet: who asks to reach whom. */
struct first {
	__u64 program;
	__u64 now;
	__u32 source;
	__u32 protocol;
	struct address peer;
	__u16 port;
	__u16 pad;
};

static __always_inline __u64 rules_of_port(const struct first *first)
{
	struct port_key key = {
		.prefix_bits = PORT_BITS + 16,
		.protocol = first->protocol,
		.program = first->program,
		.port_be = bpf_htons(first->port),
	};
	__u64 *rules;

	if (first->protocol != IPPROTO_TCP && first->protocol != IPPROTO_UDP && first->protocol != PROTOCOL_SCTP)
		return 0;
	rules = bpf_map_lookup_elem(&ports, &key);
	return rules ? *rules : 0;
}

static __always_inline __u64 rules_of_block(const struct first *first)
{
	struct block_key key = {
		.prefix_bits = BLOCK_BITS + (first->peer.family == 4 ? 32 : 128),
		.family = first->peer.family,
		.program = first->program,
	};
	__u64 *rules;

	__builtin_memcpy(key.octets, first->peer.octets, sizeof(key.octets));
	rules = bpf_map_lookup_elem(&blocks, &key);
	return rules ? *rules : 0;
}

static __always_inline int is_leased(const struct first *first, __u64 scope)
{
	struct lease_key key = { .scope = scope, .source = first->source, .peer = first->peer };
	__u64 *ends_ns = bpf_map_lookup_elem(&leases, &key);

	return ends_ns && first->now < *ends_ns;
}

static __always_inline __u64 without_tier(const struct program *program, __u64 rules, __u64 rule)
{
	for (int tier = 0; tier < TIERS; tier++)
		if (program->tiers[tier] & rule)
			rules &= ~program->tiers[tier];
	return rules;
}

/* The question, for the same reason as with `this_packet`. */
FIXED(PERCPU_ARRAY, firsts, struct first, 1);

/* Decides on the entry of `firsts`. */
__noinline int decide_first(void)
{
	__u32 zero = 0;
	struct first *first = bpf_map_lookup_elem(&firsts, &zero);
	struct program *program;
	__u64 candidates, blocked;

	if (!first)
		return NO_PROGRAM;
	program = bpf_map_lookup_elem(&programs, &first->program);
	if (!program)
		return NO_PROGRAM;
	candidates = program->any_port | rules_of_port(first);
	blocked = candidates ? rules_of_block(first) : 0;
	candidates &= blocked | program->leased;
	for (int number = 0; number < MOST_RULES; number++) {
		__u64 rule = 1ULL << number;

		if (!(candidates >> number))
			break;
		if (!(candidates & rule))
			continue;
		if (!(blocked & rule) && !is_leased(first, program->scopes[number]))
			continue;
		if (program->accept & rule)
			return ACCEPTED;
		if (!(program->pass & rule))
			return number + 1;
		candidates = without_tier(program, candidates, rule);
	}
	return program->default_accept ? ACCEPTED : DENIED_BY_DEFAULT;
}

/* Whether a source may reach `peer` at `port`, by its program. */
static __always_inline int decide(const struct pair *pair, const struct packet *packet,
				  const struct address *peer, __u16 port)
{
	__u32 zero = 0;
	struct first *first = bpf_map_lookup_elem(&firsts, &zero);

	if (!first)
		return NO_PROGRAM;
	first->program = pair->program;
	first->now = bpf_ktime_get_ns();
	first->source = pair->source;
	first->protocol = packet->protocol;
	first->peer = *peer;
	first->port = port;
	return decide_first();
}

#endif
