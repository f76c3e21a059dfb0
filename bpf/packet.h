/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * A frame is read once, into what every decision needs. What cannot be read whole is not guessed at: `read_packet`
 * says so, and the packet goes no further.
 */
#ifndef DNSGUARD_PACKET_H
#define DNSGUARD_PACKET_H

#include "layout.h"

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

#define IP4_MORE 0x2000
#define IP4_OFFSET 0x1fff
#define OPTION_LOOSE_ROUTE 131
#define OPTION_STRICT_ROUTE 137
#define OPTION_OCTETS 40

#define MOST_EXTENSIONS 8
#define PROTOCOL_SCTP 132
#define PROTOCOL_ICMP6 58
#define SCTP_HEADER 12
#define SCTP_INIT 1
#define DCCP_HEADER 12

struct icmp_query {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be16 identifier;
	__be16 sequence;
};

enum reading {
	READ_OK,
	READ_OTHER,	/* no IP packet */
	READ_MALFORMED, /* cut short, or made to be misread */
};

struct packet {
	struct address source;
	struct address target;
	__u32 protocol;
	__u32 transport;	/* offset of the transport header from the start of the frame */
	__u32 end;		/* offset behind the packet; the frame may be longer */
	__u32 fragment;		/* identification, when it is one */
	__u16 source_port;
	__u16 target_port;	/* 0 where the protocol has none */
	__u8 tcp_flags;
	__u8 type;		/* ICMP's; of SCTP that of the first chunk */
	__u8 is_fragment;
	__u8 is_later;		/* a fragment that has no transport header */
	__u8 plain;		/* no option, extension header or fragment */
	__u8 hop_limit;
	__u16 identifier;	/* of an ICMP query */
};

static __always_inline int is_same(const struct address *one, const struct address *other)
{
	const __u32 *a = (const __u32 *)one, *b = (const __u32 *)other;

	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3] && a[4] == b[4];
}

static __always_inline int read_options4(struct __sk_buff *skb, __u32 at, __u32 end)
{
	__u32 next = at;

	/* A node that accepts source routes sends them on to another address than the one that is decided on. */
	for (int octet = 0; octet < OPTION_OCTETS; octet++) {
		__u8 option[2] = {};

		if (at + octet >= end)
			break;
		if (at + octet != next)
			continue;
		if (bpf_skb_load_bytes(skb, at + octet, option, 1))
			return READ_MALFORMED;
		if (option[0] == 0)
			break;
		if (option[0] == 1) {
			next++;
			continue;
		}
		if (option[0] == OPTION_LOOSE_ROUTE || option[0] == OPTION_STRICT_ROUTE)
			return READ_MALFORMED;
		if (at + octet + 1 >= end || bpf_skb_load_bytes(skb, at + octet + 1, option + 1, 1) || option[1] < 2)
			return READ_MALFORMED;
		next += option[1];
	}
	return READ_OK;
}

static __always_inline int read_ip4(struct __sk_buff *skb, struct packet *packet)
{
	struct iphdr ip;
	__u32 header, length, fragment;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)))
		return READ_MALFORMED;
	header = ip.ihl * 4;
	length = bpf_ntohs(ip.tot_len);
	if (!length && skb->gso_segs) /* more than fits the field, to be cut up behind this */
		length = skb->len - ETH_HLEN;
	if (ip.version != 4 || header < sizeof(ip) || length < header || ETH_HLEN + length > skb->len)
		return READ_MALFORMED;
	packet->source.family = packet->target.family = 4;
	__builtin_memcpy(packet->source.octets, &ip.saddr, 4);
	__builtin_memcpy(packet->target.octets, &ip.daddr, 4);
	packet->protocol = ip.protocol;
	packet->hop_limit = ip.ttl;
	packet->transport = ETH_HLEN + header;
	packet->end = ETH_HLEN + length;
	fragment = bpf_ntohs(ip.frag_off);
	packet->is_fragment = (fragment & (IP4_MORE | IP4_OFFSET)) != 0;
	packet->is_later = (fragment & IP4_OFFSET) != 0;
	packet->fragment = bpf_ntohs(ip.id);
	packet->plain = header == sizeof(ip) && !packet->is_fragment;
	/* One that would write over the first one's header (RFC 3128). */
	if (packet->is_later && (ip.protocol == IPPROTO_TCP || ip.protocol == PROTOCOL_SCTP) &&
	    (fragment & IP4_OFFSET) * 8 < sizeof(struct tcphdr))
		return READ_MALFORMED;
	if (header > sizeof(ip))
		return read_options4(skb, ETH_HLEN + sizeof(ip), packet->transport);
	return READ_OK;
}

/* The extension headers before the transport's (RFC 8200 section 4). */
static __always_inline int read_extensions(struct __sk_buff *skb, struct packet *packet, __u32 next)
{
	__u32 at = ETH_HLEN + sizeof(struct ipv6hdr);
	int fragmented = 0;

	for (int number = 0; number <= MOST_EXTENSIONS; number++) {
		__u8 header[8] = {};

		switch (next) {
		case IPPROTO_HOPOPTS:
		case IPPROTO_DSTOPTS:
		case IPPROTO_ROUTING:
		case IPPROTO_FRAGMENT:
		case IPPROTO_AH:
			break;
		default:
			packet->protocol = next;
			packet->transport = at;
			return at <= packet->end ? READ_OK : READ_MALFORMED;
		}
		packet->plain = 0;
		if (at + 8 > packet->end || bpf_skb_load_bytes(skb, at, header, 8))
			return READ_MALFORMED;
		/* A route that goes on is sent to another address than the one that is decided on. */
		if (next == IPPROTO_ROUTING && header[3])
			return READ_MALFORMED;
		if (next == IPPROTO_FRAGMENT) {
			__u32 offset = (header[2] << 8 | header[3]) & 0xfff8;

			/* The protocol that a later one names is whatever its sender likes: whichever it is, none so small comes
			 * of a link of 1280 octets. */
			if (fragmented++ || (offset && offset < sizeof(struct tcphdr)))
				return READ_MALFORMED;
			__builtin_memcpy(&packet->fragment, header + 4, 4);
			packet->is_fragment = offset || header[3] & 1;
			if (offset) {
				packet->is_later = 1;
				packet->protocol = header[0];
				packet->transport = at + 8;
				return READ_OK;
			}
			at += 8;
		} else if (next == IPPROTO_AH) {
			at += (header[1] + 2) * 4;
		} else {
			at += (header[1] + 1) * 8;
		}
		next = header[0];
	}
	return READ_MALFORMED;
}

static __always_inline int read_ip6(struct __sk_buff *skb, struct packet *packet)
{
	struct ipv6hdr ip;
	__u32 length;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)))
		return READ_MALFORMED;
	length = sizeof(ip) + bpf_ntohs(ip.payload_len);
	/* A payload length of 0 is a jumbogram or a GSO packet of more than 64 KiB: as long as it is. */
	if (length == sizeof(ip))
		length = skb->len - ETH_HLEN;
	if (ip.version != 6 || ETH_HLEN + length > skb->len)
		return READ_MALFORMED;
	packet->source.family = packet->target.family = 6;
	__builtin_memcpy(packet->source.octets, &ip.saddr, 16);
	__builtin_memcpy(packet->target.octets, &ip.daddr, 16);
	packet->hop_limit = ip.hop_limit;
	packet->end = ETH_HLEN + length;
	packet->plain = 1;
	return read_extensions(skb, packet, ip.nexthdr);
}

static __always_inline int read_tcp(struct __sk_buff *skb, struct packet *packet)
{
	struct tcphdr tcp;

	if (packet->transport + sizeof(tcp) > packet->end || bpf_skb_load_bytes(skb, packet->transport, &tcp, sizeof(tcp)))
		return READ_MALFORMED;
	if (tcp.doff * 4 < sizeof(tcp) || packet->transport + tcp.doff * 4 > packet->end)
		return READ_MALFORMED;
	packet->source_port = bpf_ntohs(tcp.source);
	packet->target_port = bpf_ntohs(tcp.dest);
	packet->tcp_flags = ((__u8 *)&tcp)[13];
	return READ_OK;
}

/* Protocols whose header begins with two ports, and what more of it has to be there. */
static __always_inline int read_ports(struct __sk_buff *skb, struct packet *packet, __u32 header)
{
	__be16 read[2];

	if (packet->transport + header > packet->end || bpf_skb_load_bytes(skb, packet->transport, read, sizeof(read)))
		return READ_MALFORMED;
	packet->source_port = bpf_ntohs(read[0]);
	packet->target_port = bpf_ntohs(read[1]);
	return READ_OK;
}

static __always_inline int read_sctp(struct __sk_buff *skb, struct packet *packet)
{
	if (bpf_skb_load_bytes(skb, packet->transport + SCTP_HEADER, &packet->type, 1))
		return READ_MALFORMED;
	return read_ports(skb, packet, SCTP_HEADER + 1);
}

static __always_inline int read_icmp(struct __sk_buff *skb, struct packet *packet)
{
	struct icmp_query icmp;

	if (packet->transport + sizeof(icmp) > packet->end ||
	    bpf_skb_load_bytes(skb, packet->transport, &icmp, sizeof(icmp)))
		return READ_MALFORMED;
	packet->type = icmp.type;
	packet->identifier = bpf_ntohs(icmp.identifier);
	return READ_OK;
}

static __always_inline int read_transport(struct __sk_buff *skb, struct packet *packet)
{
	switch (packet->protocol) {
	case IPPROTO_TCP:
		return read_tcp(skb, packet);
	case IPPROTO_UDP:
	case IPPROTO_UDPLITE:
		return read_ports(skb, packet, sizeof(struct udphdr));
	case IPPROTO_DCCP:
		return read_ports(skb, packet, DCCP_HEADER);
	case PROTOCOL_SCTP:
		return read_sctp(skb, packet);
	case IPPROTO_ICMP:
	case PROTOCOL_ICMP6:
		return read_icmp(skb, packet);
	}
	return READ_OK;
}

/* The packet at hand. Kept in a map and read by a global function, so that the verifier looks at the reading once and
 * not again for each way on from it: together they are more than it has patience for. */
FIXED(PERCPU_ARRAY, packets, struct packet, 1);

static __always_inline struct packet *this_packet(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&packets, &zero);
}

/* Reads the frame into `this_packet()`. */
__noinline int read_packet(struct __sk_buff *skb)
{
	struct packet *packet = this_packet();
	int reading;

	if (!packet)
		return READ_MALFORMED;
	__builtin_memset(packet, 0, sizeof(*packet));
	if (skb->protocol == bpf_htons(ETH_P_IP))
		reading = read_ip4(skb, packet);
	else if (skb->protocol == bpf_htons(ETH_P_IPV6))
		reading = read_ip6(skb, packet);
	else
		return READ_OTHER;
	if (reading != READ_OK || packet->is_later)
		return reading;
	return read_transport(skb, packet);
}

#endif
