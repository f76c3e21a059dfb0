/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * What the program and user space share: every map's key and value, and the numbers that stand in them.
 *
 * `src/dnsguard/enforce/bpf/layout.py` says the same in Python; a test compares the two through the object's BTF.
 * Numbers are in host order unless a name ends in `_be`. Times are nanoseconds of CLOCK_MONOTONIC. Every struct is
 * written without holes, since the kernel compares keys octet by octet. A change here is another LAYOUT.
 */
#ifndef DNSGUARD_LAYOUT_H
#define DNSGUARD_LAYOUT_H

#include <linux/bpf.h>
#include <linux/types.h>

#define LAYOUT 2

#define MOST_RULES 64
#define TIERS 3
#define SECOND_NS 1000000000ULL

/* An address: 4 or 6, and its octets in network order; those of IPv4 are the first four, zeroes follow. */
struct address {
	__u32 family;
	__u8 octets[16];
};

/* pairs: who a packet is from. A source is a number that no other (link, address) ever had. */
struct pair_key {
	__u32 link;
	struct address address;
};

#define PAIR_EXCLUDED 1 /* never intercepted nor enforced */

struct pair {
	__u64 program;
	__u32 source;
	__u32 flags;
};

/* leases: (source, scope, peer) -> the moment it ends. A scope is the first 64 bits of its name's SHA-256. */
struct lease_key {
	__u64 scope;
	__u32 source;
	struct address peer;
};

/* programs: what a pod's rules do; rule n is bit n, in the order they are evaluated. */
struct program {
	__u64 accept;
	__u64 pass;			/* neither accept nor pass: Deny */
	__u64 any_port;			/* rules for every port of every protocol */
	__u64 leased;			/* rules that carry a scope */
	__u64 tiers[TIERS];		/* which rules are a tier's */
	__u64 scopes[MOST_RULES];
	__u32 default_accept;
	__u32 pad;
};

/* ports: (program, protocol, port) -> the rules that hold it; a prefix of the port's bits. */
struct port_key {
	__u32 prefix_bits;		/* PORT_BITS and as many of the port's */
	__u32 protocol;
	__u64 program;
	__u16 port_be;
	__u16 pad[3];
};

#define PORT_BITS 96

/* blocks: (program, network) -> the rules that hold it, those of every wider network among them. */
struct block_key {
	__u32 prefix_bits;		/* BLOCK_BITS and as many of the address's */
	__u32 family;
	__u64 program;
	__u8 octets[16];
};

#define BLOCK_BITS 96

/* flows: as the pod sees them. Of ICMP the identifier is the pod's port, and the peer's is 2 * request type, plus 1
 * when the peer asks. Of protocols without ports both are 0. */
struct flow_key {
	__u32 source;
	__u32 protocol;
	__u16 pod_port;
	__u16 peer_port;
	struct address peer;
};

#define FLOW_POD 1			/* the pod has sent, and was let */
#define FLOW_PEER 2			/* the peer has sent: the flow is open */
#define FLOW_POD_DONE 4			/* TCP: the pod has sent a FIN, or a RST */
#define FLOW_CUT 8			/* nothing passes, either way */
#define FLOW_PEER_DONE 16		/* TCP: so has the peer, whose RST may be forged and counts as a FIN */

struct flow {
	__u64 ends_ns;			/* put off by every packet */
	__u32 state;
	__u32 link;			/* whose share it counts against */
};

/* Indexes into settings.idle_ns: how long a flow is remembered without a packet. */
enum idle {
	IDLE_TCP_NEW,
	IDLE_TCP,
	IDLE_TCP_ASKED,
	IDLE_TCP_CLOSING,
	IDLE_TCP_CLOSED,
	IDLE_UDP_NEW,
	IDLE_UDP,
	IDLE_SCTP,
	IDLE_ICMP,
	IDLE_OTHER,
	IDLE_CUT,
	IDLES,
};

/* fragments: the verdict of a packet's first fragment, for those that follow. One slot in 64 for each source. */
struct fragment_key {
	__u32 source;
	__u32 slot;			/* id % FRAGMENTS */
};

#define FRAGMENTS 64

struct fragment {
	__u64 ends_ns;
	__u32 id;
	__u32 protocol;
	struct address peer;
	__u32 pad;
};

/* settings: one entry, written at the start, and when Audit begins or ends. */
struct settings {
	__u64 idle_ns[IDLES];
	__u64 query_ns;			/* a query that goes up costs so much of the pod's time: 1 s / rate */
	__u64 query_burst_ns;		/* and so much may be owed */
	__u64 report_ns;		/* the same for reports of dropped packets; 0: none */
	__u64 report_burst_ns;
	__u32 flows_per_pod;
	__u32 intercept_any;		/* else only to the addresses in `intercepted` */
	__u32 audit;			/* what no rule accepts goes on: nftables counts and reports it */
	__u32 pad;
};

/* links: what a pod link has used. Two packets at once may both be let where one was due. */
struct link {
	__u64 queries_until_ns;
	__u64 reports_until_ns;
};

/* flow_counts: by link. Made is counted here, freed by user space in `flows_freed`: used is the difference. */

/* counts: how often something happened on a link. `rule` is NO_RULE but for a drop by rule. */
struct count_key {
	__u32 link;
	__u16 what;
	__u16 rule;
};

#define NO_RULE 0xffff

/* What is counted, and why a packet is dropped. The names of reasons are those of nftables' counters. */
enum what {
	ANSWERED,			/* by the kernel */
	ANSWERED_DENIED,		/* by the kernel: a denial */
	ASKED,				/* went up to the daemon */
	DROP_SOURCE,			/* its source cannot be routed to the link */
	DROP_UNKNOWN,			/* (link, source) is no pair, or has no program */
	DROP_LISTENER,			/* a query, and nobody vouches for the listener */
	DROP_QUERIES,			/* a query beyond the pod's rate */
	DROP_DEFAULT,			/* no rule accepts */
	DROP_RULE,			/* a Deny rule decides */
	DROP_CUT,			/* of a flow that was cut */
	DROP_INBOUND,			/* towards a pod: TCP of no flow that is no SYN */
	DROP_MALFORMED,			/* cannot be read */
	DROP_VLAN,			/* tagged */
	DROP_FRAGMENT,			/* its first fragment did not come, or was not let */
	DROP_MULTICAST,			/* reports that nobody on a routed link needs */
	WHATS,
};

/* reports (ring buffer): one dropped packet, for `packets` of its kind since the last report of it. */
struct report {
	__u64 packets;
	__u32 link;
	struct address source;
	struct address peer;
	__u32 protocol;
	__u16 port;
	__u16 what;
	__u16 rule;
	__u16 pad[5];
};

/* drops: kinds of dropped packets. A kind that is pushed out loses its place here, never its count in `counts`. */
struct drop_key {
	__u32 link;
	struct address peer;
	__u32 protocol;
	__u16 port;
	__u16 what;
};

struct drop {
	__u64 packets;			/* since the last report */
	__u64 reported_ns;
};

/* answers: what the kernel may tell a pod by itself. The name is in lower case, zeroes follow it. */
#define ANSWER_NAME 128
#define ANSWER_DATA 512
#define ANSWER_TTLS 16

struct answer_key {
	__u32 source;
	__u16 type;
	__u16 length;			/* of the name */
	__u8 name[ANSWER_NAME];
};

#define ANSWER_DENIED 1			/* counted as a denial */

struct answer {
	__u64 until_ns;			/* it may be told before this */
	__u64 ttl_ends_ns;		/* the TTL shown is what is left to here; 0: it is `ttl` */
	__u32 ttl;
	__u32 flags;
	__u16 header_be;		/* flags of the reply, but for RD */
	__u16 answers_be;
	__u16 authority_be;
	__u16 records;			/* octets of data that are records */
	__u16 edns;			/* octets behind them: the OPT of a reply to a question that had one */
	__u16 ttls;
	__u16 ttl_at[ANSWER_TTLS];	/* where in data a TTL stands */
	__u32 sum_records;		/* one's complement sums of data as it will stand in the packet, TTLs as zero, */
	__u32 sum_edns;			/* of 16-bit words in host order */
	__u16 hits;			/* told since it was written, for prefetching; wraps */
	__u16 pad;
	__u64 serial;			/* no other entry ever had it */
	__u8 data[ANSWER_DATA];
};

#endif
