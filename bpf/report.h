/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
#ifndef DNSGUARD_REPORT_H
#define DNSGUARD_REPORT_H
#include "maps.h"
#include "packet.h"
static __always_inline void count(__u32 link, __u16 what, __u16 rule)
{
	struct count_key key = { .link = link, .what = what, .rule = rule };
	__u64 *packets = bpf_map_lookup_elem(&counts, &key), one = 1;
	if (packets) __sync_fetch_and_add(packets, 1);
	else bpf_map_update_elem(&counts, &key, &one, BPF_NOEXIST);
}
static __always_inline int drop(struct __sk_buff *skb, const struct packet *packet, __u16 what, __u16 rule, int outbound)
{
	count(skb->ifindex, what, rule);
	return TC_ACT_SHOT;
}
#endif
