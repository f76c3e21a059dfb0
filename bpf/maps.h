/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * The maps. Sizes are those of a build; user space sets each to what the configuration says before it loads them.
 *
 * Hash maps that refuse when they are full, never LRU, wherever an entry lets something pass: an entry that is pushed
 * out would close an address that a pod was told of. Entries end by the time in them; user space sweeps.
 */
#ifndef DNSGUARD_MAPS_H
#define DNSGUARD_MAPS_H

#include "layout.h"

#include <bpf/bpf_helpers.h>

/* Takes memory for the entries it has: most maps have room for far more than they ever hold. */
#define GROWING(kind, name, of_key, of_value, most)            \
	struct {                                               \
		__uint(type, BPF_MAP_TYPE_##kind);             \
		__uint(max_entries, most);                     \
		__uint(map_flags, BPF_F_NO_PREALLOC);          \
		__type(key, of_key);                           \
		__type(value, of_value);                       \
	} name SEC(".maps")

#define FIXED(kind, name, of_value, entries)                   \
	struct {                                               \
		__uint(type, BPF_MAP_TYPE_##kind);             \
		__uint(max_entries, entries);                  \
		__type(key, __u32);                            \
		__type(value, of_value);                       \
	} name SEC(".maps")

/* (link, source) -> its program and number. Most: four addresses for each of tables.pods. */
GROWING(HASH, pairs, struct pair_key, struct pair, 4096);

/* (scope, source number, peer) -> when it ends, in ns. Most: tables.leases and a quarter, for those that have ended. */
GROWING(HASH, leases, struct lease_key, __u64, 131072);

/* The number in a program's name -> its rules. Most: two for each of tables.pods, an old and a new one. */
GROWING(HASH, programs, __u64, struct program, 2048);

/* (program, protocol, port) and (program, network) -> rules, as bits. Most: of blocks twice tables.prefixes. */
GROWING(LPM_TRIE, ports, struct port_key, __u64, 65536);
GROWING(LPM_TRIE, blocks, struct block_key, __u64, 131072);

/* A flow as its pod sees it -> when it ends, and what was seen of it. Most: tables.flows; limits.flowsPerPod a link. */
GROWING(HASH, flows, struct flow_key, struct flow, 262144);

/* (source number, slot) -> a packet whose first fragment was let. Most: FRAGMENTS a source. */
GROWING(HASH, fragments, struct fragment_key, struct fragment, 65536);

FIXED(ARRAY, settings, struct settings, 1);

/* User space's own: the last number that was given to a source, which outlives the pairs, and what answers are made
 * by. */
FIXED(ARRAY, state, __u64, 2);

/* Until when queries may go up: the daemon vouches, a few seconds ahead, that they are intercepted. */
FIXED(ARRAY, dns_open_until_ns, __u64, 1);

/* Addresses whose port 53 is intercepted, unless all are. */
GROWING(HASH, intercepted, struct address, __u32, 1024);

/* The node's own addresses: to them neighbour discovery and DHCP may go. */
GROWING(HASH, own, struct address, __u32, 4096);

/* By link: what it has used of its rates; whether its other end is in reach of bpf_redirect_peer; flows made on it by
 * the kernel and taken out by user space, ever. Most: two for each of tables.pods. */
GROWING(HASH, links, __u32, struct link, 4096);
GROWING(HASH, peers, __u32, __u32, 4096);
GROWING(HASH, flows_made, __u32, __u64, 4096);
GROWING(HASH, flows_freed, __u32, __u64, 4096);

/* (link, what, rule) -> packets. */
GROWING(HASH, counts, struct count_key, __u64, 65536);

/* A kind of dropped packets -> how many were not told yet. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct drop_key);
	__type(value, struct drop);
} drops SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 262144); /* octets */
} reports SEC(".maps");

/* (source number, type, name) -> the reply. Most: tables.answers; limits.kernelAnswersPerPod a source. */
GROWING(HASH, answers, struct answer_key, struct answer, 65536);

/* Room to put a question together: a key does not fit the stack beside the rest. */
FIXED(PERCPU_ARRAY, scratch, struct answer_key, 1);

#endif
