/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * The second line, at the pod's link: who sends, what it may reach, and what the kernel answers by itself.
 */
#include "dns.h"
#include "maps.h"
#include "packet.h"

SEC("tc")
int from_pod(struct __sk_buff *skb)
{
	struct packet packet;

	if (read_packet(skb, &packet) != READ_OK)
		return TC_ACT_UNSPEC;
	return answer(skb, &packet, 0);
}

SEC("tc")
int to_pod(struct __sk_buff *skb)
{
	return TC_ACT_UNSPEC;
}

char _license[] SEC("license") = "GPL";
