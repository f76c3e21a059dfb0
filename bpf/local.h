/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * What a link needs before a pod on it can say anything: neighbour discovery and DHCP. To addresses of the link and of
 * the node only: anything else would be sent on, with whatever a pod puts into it.
 */
#ifndef DNSGUARD_LOCAL_H
#define DNSGUARD_LOCAL_H

#include "layout.h"
#include "maps.h"
#include "packet.h"

static __always_inline int is_link_local6(const struct address *address)
{
	return address->family == 6 && address->octets[0] == 0xfe && (address->octets[1] & 0xc0) == 0x80;
}

static __always_inline int is_link_multicast6(const struct address *address)
{
	return address->family == 6 && address->octets[0] == 0xff && address->octets[1] == 0x02;
}

static __always_inline int is_unspecified6(const struct address *address)
{
	const struct address unspecified = { .family = 6 };

	return is_same(address, &unspecified);
}

static __always_inline int is_own(const struct address *address)
{
	return bpf_map_lookup_elem(&own, address) != 0;
}

static __always_inline int stays_here(const struct address *address)
{
	return is_link_local6(address) || is_link_multicast6(address) || is_own(address);
}

/* Solicitations and advertisements with a hop limit that no router lets through (RFC 4861 section 6 and 7). */
static __always_inline int is_neighbour_discovery(const struct packet *packet, int known)
{
	if (packet->protocol != PROTOCOL_ICMP6 || packet->source.family != 6 || packet->is_fragment)
		return 0;
	if ((packet->type != 133 && packet->type != 135 && packet->type != 136) || packet->hop_limit != 255)
		return 0;
	return (known || is_unspecified6(&packet->source) || is_link_local6(&packet->source)) &&
	       stays_here(&packet->target);
}

static __always_inline int is_broadcast4(const struct address *address)
{
	const struct address broadcast = { .family = 4, .octets = { 255, 255, 255, 255 } };

	return is_same(address, &broadcast);
}

static __always_inline int is_dhcp(const struct packet *packet, int known)
{
	if (packet->protocol != IPPROTO_UDP || packet->is_fragment)
		return 0;
	if (packet->source.family == 4)
		return packet->source_port == 68 && packet->target_port == 67 &&
		       (is_broadcast4(&packet->target) || (known && is_own(&packet->target)));
	return packet->source_port == 546 && packet->target_port == 547 && is_link_local6(&packet->source) &&
	       (is_link_local6(&packet->target) || is_link_multicast6(&packet->target));
}

/* Every pod's stack sends these when its link comes up; on a routed link nobody needs them. */
static __always_inline int is_multicast_report(const struct packet *packet)
{
	return packet->protocol == PROTOCOL_ICMP6 && packet->source.family == 6 && !packet->is_later &&
	       (packet->type == 131 || packet->type == 132 || packet->type == 143);
}

#endif
