/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Questions that the kernel answers by itself.
 *
 * A packet is either turned into the reply that user space would have sent, octet for octet, or goes up as it came:
 * whatever is not the plainest form of a question, is not known, or has ended. The name is looked up in lower case and
 * echoed as it was sent. The checksum is changed by what changed in the packet and never made anew: a damaged question
 * stays damaged, and one whose sum is left to the hardware stays so.
 */
#ifndef DNSGUARD_DNS_H
#define DNSGUARD_DNS_H

#include "checksum.h"
#include "maps.h"
#include "packet.h"
#include "report.h"

#define LONGEST_NAME 127
#define CLASS_IN 1
#define TYPE_OPT 41

/* QR, opcode, AA, TC and CD: a question that has any of them is for user space. */
#define DNS_UNUSUAL 0xfe10
#define DNS_RD 0x0100
#define OPT_DO 0x8000

/* Without EDNS a client takes so much, and with it what it says, if that is more. */
#define SMALLEST_REPLY 512

#define REPLY_HOPS 64
#define IP4_PLAIN 0x4500	/* version, header length, no service class */
#define IP4_DONT_FRAGMENT 0x4000
#define IP6_PLAIN 0x60000000

struct dns {
	__be16 id;
	__be16 flags;
	__be16 questions;
	__be16 answers;
	__be16 authority;
	__be16 extra;
};

struct question_head {
	struct udphdr udp;
	struct dns dns;
};

struct type_class {
	__be16 type;
	__be16 class;
};

struct opt {
	__u8 owner;
	__u8 type[2];
	__u8 size[2];
	__u8 extended_rcode;	/* means nothing in a question */
	__u8 version;
	__u8 flags[2];
	__u8 length[2];
	__u8 pad;
};

#define OPT_OCTETS 11

/* Where the parts of a question stand, and what of them the reply depends on. */
struct question {
	__u32 behind;		/* offset of what follows the question section */
	__u32 most;		/* octets of the message that the client takes */
	__u32 name;		/* octets of it */
	__u32 opt_sum;		/* of the OPT, as if at an even offset */
	__be16 flags;
	__be16 udp_length;
	__u8 edns;
};

/* What becomes of it. */
struct reply {
	__u32 data;		/* octets behind the question section */
	__u32 udp_length;
	__u32 difference;	/* by which the sum of the message changes */
	__be32 ttl;
	__be16 flags;
	__be16 answers;
	__be16 authority;
};

static __always_inline int read_head(struct __sk_buff *skb, const struct packet *packet, struct question *question)
{
	struct question_head head;

	if (bpf_skb_load_bytes(skb, packet->transport, &head, sizeof(head)))
		return 0;
	/* The frame ends where the packet does, and the packet where its datagram does. */
	if (packet->transport + bpf_ntohs(head.udp.len) != packet->end || skb->len != packet->end)
		return 0;
	if (!head.udp.check && packet->source.family == 6)
		return 0;
	if (head.dns.flags & bpf_htons(DNS_UNUSUAL) || head.dns.questions != bpf_htons(1))
		return 0;
	if (head.dns.answers || head.dns.authority || head.dns.extra & ~bpf_htons(1))
		return 0;
	question->flags = head.dns.flags;
	question->udp_length = head.udp.len;
	question->edns = head.dns.extra != 0;
	return 1;
}

static __always_inline int read_opt(struct __sk_buff *skb, struct question *question)
{
	struct opt opt = {};
	__u32 size;

	question->most = SMALLEST_REPLY;
	question->opt_sum = 0;
	if (!question->edns)
		return 1;
	if (bpf_skb_load_bytes(skb, question->behind, &opt, OPT_OCTETS))
		return 0;
	if (opt.owner || opt.type[0] || opt.type[1] != TYPE_OPT || opt.version || opt.length[0] || opt.length[1])
		return 0;
	if (opt.flags[0] & OPT_DO >> 8)
		return 0;
	size = opt.size[0] << 8 | opt.size[1];
	if (size > SMALLEST_REPLY)
		question->most = size;
	/* Words that are not always 0: type and size begin at odd offsets of the record. */
	question->opt_sum = bpf_htons(TYPE_OPT << 8 | opt.size[0]) + bpf_htons(opt.size[1] << 8 | opt.extended_rcode) +
			    bpf_htons(opt.flags[0]) + bpf_htons(opt.flags[1] << 8);
	return 1;
}

typedef __u64 __attribute__((may_alias)) eight_octets;

/* Eight octets at once: adding to an octet's lower seven bits carries into its eighth when it is large enough. */
static __always_inline __u64 lower(__u64 octets)
{
	const __u64 each = 0x0101010101010101ULL, eighths = 0x80 * each;
	__u64 sevens = octets & ~eighths;
	__u64 from_a = sevens + (0x80 - 'A') * each;
	__u64 above_z = sevens + (0x7f - 'Z') * each;

	return octets | (~octets & (from_a ^ above_z) & eighths) >> 2;
}

static __always_inline void fold(struct answer_key *key)
{
	eight_octets *words = (eight_octets *)key->name;

	/* A length octet is never folded: it is at most 63, and A is 65. */
#pragma clang loop unroll(disable)
	for (int word = 0; word < ANSWER_NAME / 8; word++) {
		if (word * 8 >= key->length)
			break;
		words[word] = lower(words[word]);
	}
}

/* A helper's length as the verifier wants it: the limits are looked at right before the call, in a whole register, and
 * in 5.10 one is not seen to be above 0 but as one more than something. */
static __always_inline __u64 seen(__u64 but_one)
{
	asm volatile("" : "+r"(but_one));
	return but_one;
}

/* How long the name must be follows from the packet's length: nothing may stand behind it but what is known. Whether
 * its labels fill that length needs no look: they do in every name that is known, and one that differs is not found. */
static __always_inline int read_name(struct __sk_buff *skb, const struct packet *packet, struct question *question,
				     struct answer_key *key)
{
	__u32 start = packet->transport + sizeof(struct question_head);
	__u32 around = start + sizeof(struct type_class) + (question->edns ? OPT_OCTETS : 0);
	struct type_class asked;
	__u64 length, but_one;

	if (packet->end <= around)
		return 0;
	length = packet->end - around;
	question->behind = start + length + sizeof(asked);
	question->name = length;
	__builtin_memset(key, 0, sizeof(*key));
	key->length = length;
	if (bpf_skb_load_bytes(skb, start + length, &asked, sizeof(asked)) || asked.class != bpf_htons(CLASS_IN))
		return 0;
	key->type = bpf_ntohs(asked.type);
	but_one = seen(length - 1);
	if (but_one > LONGEST_NAME - 1 || bpf_skb_load_bytes(skb, start, key->name, but_one + 1))
		return 0;
	fold(key);
	return 1;
}

/* The TTL to show: 0 when the entry has ended, or has less than a second left. */
static __always_inline __u32 ttl_shown(const struct answer *found, __u64 now)
{
	if (now >= found->until_ns)
		return 0;
	if (!found->ttl_ends_ns)
		return found->ttl;
	return found->ttl_ends_ns > now ? (found->ttl_ends_ns - now) / SECOND_NS : 0;
}

/* The reply, unless it is larger than the client takes. */
static __always_inline int plan(const struct question *question, const struct answer *found, struct reply *reply)
{
	__u32 message = sizeof(struct dns) + question->name + sizeof(struct type_class);

	reply->data = found->records + (question->edns ? found->edns : 0);
	if (reply->data > ANSWER_DATA || message + reply->data > question->most)
		return 0;
	reply->udp_length = sizeof(struct udphdr) + message + reply->data;
	reply->flags = found->header_be | (question->flags & bpf_htons(DNS_RD));
	reply->answers = found->answers_be;
	reply->authority = found->authority_be;
	reply->difference = sum_change(question->flags, reply->flags) + reply->answers + reply->authority +
			    sum_fold(found->sum_records);
	if (question->edns) {
		__u32 gone = question->name & 1 ? sum_moved(question->opt_sum) : sum_fold(question->opt_sum);

		reply->difference += sum_change(gone, 0) + sum_fold(found->sum_edns);
	}
	return 1;
}

static __always_inline int write_data(struct __sk_buff *skb, const struct question *question,
				      const struct answer *found, const struct reply *reply)
{
	__u64 but_one = seen((__u64)reply->data - 1);

	if (!reply->data)
		return 1;
	return but_one < ANSWER_DATA && !bpf_skb_store_bytes(skb, question->behind, found->data, but_one + 1, 0);
}

static __always_inline int write_ttls(struct __sk_buff *skb, const struct question *question,
				      const struct answer *found, struct reply *reply)
{
	__u32 even = sum_fold(sum_word32(reply->ttl));
	__u32 odd = sum_moved(even);

#pragma clang loop unroll(disable)
	for (int number = 0; number < ANSWER_TTLS; number++) {
		__u32 at;

		if (number >= found->ttls)
			break;
		at = found->ttl_at[number];
		if (bpf_skb_store_bytes(skb, question->behind + at, &reply->ttl, sizeof(reply->ttl), 0))
			return 0;
		reply->difference += (question->name + at) & 1 ? odd : even;
	}
	return 1;
}

static __always_inline void turn_link(struct ethhdr *link)
{
	__u8 source[ETH_ALEN];

	__builtin_memcpy(source, link->h_source, ETH_ALEN);
	__builtin_memcpy(link->h_source, link->h_dest, ETH_ALEN);
	__builtin_memcpy(link->h_dest, source, ETH_ALEN);
}

/* A datagram that is never fragmented needs no identification (RFC 6864). */
static __always_inline void turn_ip4(struct iphdr *ip, const struct reply *reply)
{
	__be16 length = bpf_htons(sizeof(*ip) + reply->udp_length);
	__be32 source = ip->saddr, target = ip->daddr;
	__u32 sum = bpf_htons(IP4_PLAIN) + length + bpf_htons(IP4_DONT_FRAGMENT) +
		    bpf_htons(REPLY_HOPS << 8 | IPPROTO_UDP) + sum_word32(source) + sum_word32(target);

	*(__be16 *)ip = bpf_htons(IP4_PLAIN);
	ip->tot_len = length;
	ip->id = 0;
	ip->frag_off = bpf_htons(IP4_DONT_FRAGMENT);
	ip->ttl = REPLY_HOPS;
	ip->check = ~sum_fold(sum);
	ip->saddr = target;
	ip->daddr = source;
}

static __always_inline void turn_ip6(struct ipv6hdr *ip, const struct reply *reply)
{
	struct in6_addr source = ip->saddr;

	*(__be32 *)ip = bpf_htonl(IP6_PLAIN);
	ip->payload_len = bpf_htons(reply->udp_length);
	ip->hop_limit = REPLY_HOPS;
	ip->saddr = ip->daddr;
	ip->daddr = source;
}

static __always_inline void turn_message(struct question_head *head, const struct reply *reply)
{
	__be16 port = head->udp.source;

	head->udp.source = head->udp.dest;
	head->udp.dest = port;
	head->udp.len = bpf_htons(reply->udp_length);
	head->dns.flags = reply->flags;
	head->dns.answers = reply->answers;
	head->dns.authority = reply->authority;
}

static __always_inline int write_headers(struct __sk_buff *skb, const struct packet *packet, const struct reply *reply)
{
	void *start = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	void *network = start + ETH_HLEN;

	if (packet->source.family == 4) {
		if (network + sizeof(struct iphdr) + sizeof(struct question_head) > end)
			return 0;
		turn_ip4(network, reply);
		turn_message(network + sizeof(struct iphdr), reply);
	} else {
		if (network + sizeof(struct ipv6hdr) + sizeof(struct question_head) > end)
			return 0;
		turn_ip6(network, reply);
		turn_message(network + sizeof(struct ipv6hdr), reply);
	}
	turn_link(start);
	return 1;
}

/* Addresses and ports have only changed places. The length stands twice under the sum: in the pseudo header, which is
 * all that a sum left to the hardware holds, and in the header. */
static __always_inline int write_sum(struct __sk_buff *skb, const struct packet *packet,
				     const struct question *question, const struct reply *reply)
{
	__u32 at = packet->transport + __builtin_offsetof(struct udphdr, check);
	__u32 longer = sum_change(question->udp_length, bpf_htons(reply->udp_length));

	if (bpf_l4_csum_replace(skb, at, 0, sum_fold(longer), BPF_F_PSEUDO_HDR | BPF_F_MARK_MANGLED_0))
		return 0;
	return !bpf_l4_csum_replace(skb, at, 0, sum_fold(longer + reply->difference), BPF_F_MARK_MANGLED_0);
}

static __always_inline int write_reply(struct __sk_buff *skb, const struct packet *packet,
				       const struct question *question, const struct answer *found,
				       struct reply *reply)
{
	return write_data(skb, question, found, reply) && write_ttls(skb, question, found, reply) &&
	       write_headers(skb, packet, reply) && write_sum(skb, packet, question, reply);
}

/* The memory of an entry that is taken out may become another's at once (since 6.1), while it is being read. */
static __always_inline int is_still(const struct answer_key *key, __u64 serial)
{
	const struct answer *found = bpf_map_lookup_elem(&answers, key);

	return found && found->serial == serial;
}

/* Straight to the pod where that can be. On its way out by the link the reply would meet the filters of others, who have
 * not seen the question, and may drop what they hold for unasked. */
static __always_inline int send_back(__u32 link)
{
	return bpf_map_lookup_elem(&peers, &link) ? bpf_redirect_peer(link, 0) : bpf_redirect(link, 0);
}

/* Turns a plain UDP packet to port 53 into its answer and sends it back: then returns the verdict of that. TC_ACT_UNSPEC,
 * with the packet as it came, when the question has to go up. */
static __always_inline int answer(struct __sk_buff *skb, const struct packet *packet, __u32 source, __u64 now)
{
	struct question question;
	struct reply reply;
	struct answer_key *key;
	struct answer *found;
	__u32 first = 0;
	__u64 serial;

	key = bpf_map_lookup_elem(&scratch, &first);
	if (!key || !read_head(skb, packet, &question) || !read_name(skb, packet, &question, key) ||
	    !read_opt(skb, &question))
		return TC_ACT_UNSPEC;
	key->source = source;
	found = bpf_map_lookup_elem(&answers, key);
	if (!found)
		return TC_ACT_UNSPEC;
	serial = *(volatile __u64 *)&found->serial;
	reply.ttl = bpf_htonl(ttl_shown(found, now));
	if (!reply.ttl || !plan(&question, found, &reply))
		return TC_ACT_UNSPEC;
	/* When it cannot be made as long as the reply it is still the question. */
	if (bpf_skb_change_tail(skb, question.behind + reply.data, 0))
		return TC_ACT_UNSPEC;
	if (!write_reply(skb, packet, &question, found, &reply) || !is_still(key, serial))
		return TC_ACT_SHOT;
	found->hits++;
	count(skb->ifindex, found->flags & ANSWER_DENIED ? ANSWERED_DENIED : ANSWERED, NO_RULE);
	return send_back(skb->ifindex);
}

#endif
