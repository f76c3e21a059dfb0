"""What leaves a pod, packet by packet through the real program: each case beside one that differs in one thing."""

from __future__ import annotations

import struct

import pytest

from dnsguard.core.model import Address
from dnsguard.enforce.bpf.layout import PAIR_EXCLUDED, What
from tests.node.ebpf.rig import (
    BLOCKED_IN,
    BLOCKED_IN6,
    OTHER,
    OTHER6,
    OWN6,
    PEER,
    PEER6,
    POD,
    POD6,
    SOURCE,
    SOURCE6,
    Rig,
    Verdict,
    address,
)
from tests.node.nftables_lab import ACK, SYN, checksum, ip, tcp, udp

PASS, DROP = Verdict.PASS, Verdict.DROP
FE80, ALL_NODES, UNSPECIFIED = address("fe80::5"), address("ff02::1"), address("::")
ANYWHERE, BROADCAST = address("0.0.0.0"), address("255.255.255.255")

SYN_443 = tcp(40000, 443, SYN)
EXTENSION = bytes(6)
"""Of an extension header of eight octets, behind its next header and length: padding, all of it."""


def ip4(data: bytes, *, protocol: int = 6, options: bytes = b"", fragment: int = 0, length: int | None = None) -> bytes:
    """From POD to PEER, with a header of its own making."""
    words = 5 + len(options) // 4
    total = words * 4 + len(data) if length is None else length
    head = struct.pack(">BBHHHBBH", 0x40 | words, 0, total, 77, fragment, 64, protocol, 0) + POD + PEER + options
    return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + data


def ip6(data: bytes, *headers: tuple[int, bytes], protocol: int = 6) -> bytes:
    """From POD6 to PEER6, with extension headers (kind, octets behind the next header)."""
    kinds = [kind for kind, _ in headers] + [protocol]
    chain = b"".join(bytes([kinds[n + 1]]) + octets for n, (_, octets) in enumerate(headers))
    return struct.pack(">IHBB", 6 << 28, len(chain + data), kinds[0], 64) + POD6 + PEER6 + chain + data


@pytest.mark.parametrize(
    ("packet", "verdict"),
    [
        (ip(POD, PEER, 6, SYN_443), PASS),
        (ip(POD, OTHER, 6, SYN_443), DROP),
        (ip(POD, PEER, 6, tcp(40000, 444, SYN)), DROP),
        (ip(POD, PEER, 17, udp(40000, 443)), DROP),
        (ip(POD, PEER, 1, b"\x08\0\0\0\0\1\0\1"), DROP),
        (ip(POD, BLOCKED_IN, 1, b"\x08\0\0\0\0\1\0\1"), PASS),
        (ip(POD, BLOCKED_IN, 17, udp(40000, 9999)), PASS),
        (ip(POD, BLOCKED_IN, 253, b"anything"), PASS),
        (ip(POD, PEER, 253, b"anything"), DROP),
        (ip(POD6, PEER6, 6, SYN_443), PASS),
        (ip(POD6, OTHER6, 6, SYN_443), DROP),
        (ip(POD6, BLOCKED_IN6, 132, bytes(12) + b"\1" + bytes(15)), PASS),
        (ip(POD6, PEER6, 132, bytes(2) + b"\1\xbb" + bytes(8) + b"\1" + bytes(15)), DROP),
    ],
)
def test_the_lowest_rule_that_holds_port_and_address_decides(rig: Rig, packet: bytes, verdict: Verdict) -> None:
    assert rig.from_pod(packet) is verdict


def test_a_lease_opens_until_its_end_and_no_longer(rig: Rig) -> None:
    assert rig.from_pod(ip(POD, PEER, 6, SYN_443)) is PASS
    rig.end_lease(SOURCE, PEER)
    assert rig.from_pod(ip(POD, PEER, 6, SYN_443)) is DROP
    assert rig.counted(What.DROP_DEFAULT) == 1


def test_a_lease_is_of_one_source(rig: Rig) -> None:
    sibling = address("10.244.0.6")
    rig.pair(sibling, 9)
    assert rig.from_pod(ip(sibling, PEER, 6, SYN_443)) is DROP


def test_an_address_of_another_link_is_unknown_on_this_one(rig: Rig) -> None:
    forged = address("10.244.0.6")
    rig.pair(forged, 9, link=2)
    rig.lease(9, PEER)
    assert rig.from_pod(ip(forged, PEER, 6, SYN_443)) is DROP
    assert rig.counted(What.DROP_UNKNOWN) == 1


def test_an_excluded_pair_is_not_looked_at(rig: Rig) -> None:
    assert rig.from_pod(ip(POD, OTHER, 6, SYN_443)) is DROP
    rig.pair(POD, SOURCE, flags=PAIR_EXCLUDED)
    assert rig.from_pod(ip(POD, OTHER, 6, SYN_443)) is PASS


def test_a_pair_whose_program_is_not_there_is_dropped(rig: Rig) -> None:
    rig.pair(POD, SOURCE, program=1)
    assert rig.from_pod(ip(POD, BLOCKED_IN, 6, SYN_443)) is DROP


# ---- what cannot be read


@pytest.mark.parametrize(
    ("packet", "verdict"),
    [
        (ip4(SYN_443, options=b"\1\1\1\1"), PASS),
        (ip4(SYN_443, options=b"\x94\4\0\0"), PASS),  # router alert
        (ip4(SYN_443, options=b"\x83\3\4\1"), DROP),  # loose source route
        (ip4(SYN_443, options=b"\1\x89\3\4"), DROP),  # strict source route
        (ip4(SYN_443, options=b"\1\1\7\1"), DROP),  # an option of one octet that says it has a length
        (ip4(SYN_443, options=b"\1\1\1\7"), DROP),  # one whose length would be the TCP header's first octet
        (ip4(SYN_443, options=b"\0\x83\3\4"), PASS),  # behind the end of the list
        (ip4(SYN_443, options=b"\1" * 40), PASS),
        (ip4(SYN_443[:19]), DROP),
        (ip4(SYN_443, length=39), DROP),
        (ip4(SYN_443, length=41), DROP),
        (ip4(SYN_443, length=19), DROP),
        (ip4(SYN_443) + b"padding", PASS),
        (ip4(SYN_443[:12] + b"\x40" + SYN_443[13:]), DROP),  # a TCP header of four words
        (ip4(udp(40000, 443)[:7], protocol=17), DROP),
        (b"\x44" + ip4(SYN_443)[1:], DROP),
        (b"\x65" + ip4(SYN_443)[1:], DROP),
    ],
)
def test_ipv4_is_read_whole_or_dropped(rig: Rig, packet: bytes, verdict: Verdict) -> None:
    assert rig.from_pod(packet, kind=0x0800) is verdict


@pytest.mark.parametrize(
    ("packet", "verdict"),
    [
        (ip6(SYN_443), PASS),
        (ip6(SYN_443, (0, b"\0" + EXTENSION)), PASS),
        (ip6(SYN_443, (60, b"\0" + EXTENSION), (0, b"\0" + EXTENSION)), PASS),
        (ip6(SYN_443, (60, b"\1" + bytes(14))), PASS),
        (ip6(SYN_443, (43, b"\0\0\0" + bytes(4))), PASS),
        (ip6(SYN_443, (43, b"\0\0\1" + bytes(4))), DROP),  # a route that goes on
        (ip6(SYN_443, (60, b"\x10" + EXTENSION)), DROP),  # longer than the packet
        (ip6(SYN_443, *[(60, b"\0" + EXTENSION)] * 8), PASS),
        (ip6(SYN_443, *[(60, b"\0" + EXTENSION)] * 9), DROP),
        (ip6(SYN_443, (51, b"\4" + bytes(22))), PASS),  # authentication
        (ip6(b"", protocol=59), DROP),
        (ip6(SYN_443[:19]), DROP),
        (ip6(SYN_443, (44, b"\0\0\0" + b"\0\0\0\1")), PASS),  # the only fragment
        (ip6(SYN_443, (44, b"\0\0\0" + b"\0\0\0\1"), (44, b"\0\0\0" + b"\0\0\0\1")), DROP),
    ],
)
def test_ipv6_is_read_behind_its_extension_headers_or_dropped(rig: Rig, packet: bytes, verdict: Verdict) -> None:
    assert rig.from_pod(packet, kind=0x86DD) is verdict


@pytest.mark.parametrize(
    ("kind", "verdict"), [(0x0806, PASS), (0x0800, DROP), (0x8847, DROP), (0x88CC, DROP), (0x8863, DROP)]
)
def test_of_all_that_is_not_ip_only_arp_passes(rig: Rig, kind: int, verdict: Verdict) -> None:
    assert rig.from_pod(bytes(46), kind=kind) is verdict


def test_a_tagged_frame_is_dropped(rig: Rig) -> None:
    assert rig.from_pod(struct.pack(">HH", 5, 0x0800) + ip(POD, PEER, 6, SYN_443), kind=0x8100) is DROP


# ---- fragments


def test_a_later_fragment_goes_where_the_first_was_let(rig: Rig) -> None:
    later = ip4(bytes(64), fragment=10)
    assert rig.from_pod(later) is DROP
    assert rig.from_pod(ip4(SYN_443 + bytes(60), fragment=0x2000)) is PASS
    assert rig.from_pod(later) is PASS
    assert rig.counted(What.DROP_FRAGMENT) == 1


def test_a_later_fragment_does_not_open_what_its_first_could_not(rig: Rig) -> None:
    assert rig.from_pod(ip4(tcp(40000, 444, SYN) + bytes(60), fragment=0x2000)) is DROP
    assert rig.from_pod(ip4(bytes(64), fragment=10)) is DROP


def test_a_fragment_that_would_write_over_the_first_ones_header_is_dropped(rig: Rig) -> None:
    assert rig.from_pod(ip4(SYN_443 + bytes(60), fragment=0x2000)) is PASS
    assert rig.from_pod(ip4(bytes(64), fragment=0x2001)) is DROP
    assert rig.from_pod(ip4(bytes(64), fragment=0x2003)) is PASS


def test_an_ipv6_fragment_that_would_write_over_the_first_ones_header_is_dropped(rig: Rig) -> None:
    assert rig.from_pod(ip6(SYN_443 + bytes(4), (44, b"\0\0\1" + b"\0\0\0\7"))) is PASS
    for protocol in (6, 59):
        assert rig.from_pod(ip6(bytes(8), (44, b"\0\0\x08" + b"\0\0\0\7"), protocol=protocol)) is DROP
        assert rig.from_pod(ip6(bytes(8), (44, b"\0\0\x18" + b"\0\0\0\7"), protocol=protocol)) is PASS


def test_a_first_fragment_without_its_whole_header_is_dropped(rig: Rig) -> None:
    assert rig.from_pod(ip4(SYN_443[:16], fragment=0x2000)) is DROP


def test_an_ipv6_fragment_goes_where_the_first_was_let(rig: Rig) -> None:
    first, later = ip6(SYN_443, (44, b"\0\0\1" + b"\0\0\0\7")), ip6(bytes(8), (44, b"\0\0\x18" + b"\0\0\0\7"))
    stranger = ip6(bytes(8), (44, b"\0\0\x18" + b"\0\0\0\x08"))
    assert rig.from_pod(later) is DROP
    assert rig.from_pod(first) is PASS
    assert rig.from_pod(later) is PASS
    assert rig.from_pod(stranger) is DROP


# ---- what a link needs


def ndp(source: Address, target: Address, *, kind: int = 135, hop_limit: int = 255) -> bytes:
    return ip(source, target, 58, bytes([kind, 0, 0, 0]) + bytes(20), hop_limit=hop_limit)


@pytest.mark.parametrize(
    ("packet", "verdict"),
    [
        (ndp(FE80, ALL_NODES), PASS),
        (ndp(UNSPECIFIED, ALL_NODES), PASS),
        (ndp(FE80, ALL_NODES, kind=133), PASS),
        (ndp(FE80, ALL_NODES, kind=136), PASS),
        (ndp(FE80, ALL_NODES, kind=134), DROP),  # an advertisement of a router
        (ndp(FE80, ALL_NODES, hop_limit=254), DROP),
        (ndp(POD6, OWN6), PASS),
        (ndp(POD6, PEER6), DROP),
        (ndp(OTHER6, ALL_NODES), DROP),  # not the pod's address
        (ndp(FE80, PEER6), DROP),
        (ndp(FE80, ALL_NODES, kind=143), DROP),  # a multicast report
        (ip(ANYWHERE, BROADCAST, 17, udp(68, 67)), PASS),
        (ip(ANYWHERE, BROADCAST, 17, udp(68, 68)), DROP),
        (ip(POD, BROADCAST, 17, udp(68, 67)), PASS),
        (ip(POD, PEER, 17, udp(68, 67)), DROP),
        (ip(POD, address("198.51.100.1"), 17, udp(68, 67)), PASS),
        (ip(FE80, address("ff02::1:2"), 17, udp(546, 547)), PASS),
        (ip(POD6, address("ff02::1:2"), 17, udp(546, 547)), DROP),
    ],
)
def test_neighbour_discovery_and_dhcp_pass_to_the_link_and_the_node_only(
    rig: Rig, packet: bytes, verdict: Verdict
) -> None:
    assert rig.from_pod(packet) is verdict


# ---- queries


@pytest.mark.parametrize("protocol", [6, 17])
def test_a_query_goes_up_while_somebody_vouches_for_its_interception(rig: Rig, protocol: int) -> None:
    query = ip(POD, OTHER, protocol, tcp(40000, 53, SYN) if protocol == 6 else udp(40000, 53, b"question"))
    assert rig.from_pod(query) is PASS
    rig.vouch(0)
    assert rig.from_pod(query) is DROP
    assert (rig.counted(What.ASKED), rig.counted(What.DROP_LISTENER)) == (1, 1)


def test_a_query_of_an_unknown_source_goes_up_but_not_of_a_link_local_one(rig: Rig) -> None:
    assert rig.from_pod(ip(address("10.9.9.9"), OTHER, 17, udp(40000, 53, b"question"))) is PASS
    assert rig.from_pod(ip(FE80, OTHER6, 17, udp(40000, 53, b"question"))) is DROP


@pytest.mark.parametrize(
    ("known", "asks"),
    [
        (POD6, ip6(udp(40000, 53, b"question"), (0, b"\0\xbe\4" + bytes(4)), protocol=17)),
        (POD6, ip6(udp(40000, 53, b"question"), (44, b"\0\0\1" + bytes(4)), protocol=17)),
        (POD, ip4(udp(40000, 53, b"question"), options=b"\1\1\1\1", protocol=17)),
        (POD, ip4(udp(40000, 53, b"question"), fragment=0x2000, protocol=17)),
    ],
    ids=["hop-by-hop options", "an IPv6 fragment", "IPv4 options", "an IPv4 fragment"],
)
def test_a_query_of_an_unknown_source_goes_up_only_with_plain_headers(rig: Rig, known: Address, asks: bytes) -> None:
    """The node answers others with an error, which quotes the packet, before nftables looks at the source's route."""
    unknown = address("10.9.9.9") if known is POD else address("2001:db8:bad::1")
    assert rig.from_pod(asks) is PASS
    assert rig.from_pod(asks.replace(known, unknown)) is DROP
    assert rig.counted(What.DROP_SOURCE) == 1


def test_port_53_of_an_address_that_is_not_intercepted_is_an_ordinary_one(rig: Rig) -> None:
    rig.intercept_only(OTHER)
    assert rig.from_pod(ip(POD, OTHER, 17, udp(40000, 53))) is PASS
    assert rig.from_pod(ip(POD, PEER, 17, udp(40000, 53))) is DROP
    assert rig.from_pod(ip(POD, BLOCKED_IN, 17, udp(40000, 53))) is PASS


def test_queries_beyond_the_pods_rate_do_not_go_up(rig: Rig) -> None:
    rig.query_rate(per_second=1, burst=3)
    query = ip(POD, OTHER, 17, udp(40000, 53, b"question"))
    verdicts = [rig.from_pod(query) for _ in range(10)]
    assert verdicts == [PASS] * 4 + [DROP] * 6
    assert rig.counted(What.DROP_QUERIES) == 6


def test_queries_that_come_as_one_packet_count_as_many(rig: Rig) -> None:
    """With UDP_SEGMENT a pod hands over up to 128 datagrams at once, and the daemon gets each."""
    rig.query_rate(per_second=1, burst=10)
    queries = ip(POD, OTHER, 17, udp(40000, 53, bytes(30) * 20))
    assert [rig.from_pod(queries, segment=30) for _ in range(2)] == [PASS, DROP]
    rig.forget_rates()
    assert [rig.from_pod(queries) for _ in range(12)] == [PASS] * 11 + [DROP]


def test_one_pods_queries_take_nothing_from_anothers(rig: Rig) -> None:
    rig.query_rate(per_second=1, burst=0)
    query = ip(POD, OTHER, 17, udp(40000, 53, b"question"))
    assert [rig.from_pod(query) for _ in range(2)] == [PASS, DROP]
    rig.forget_rates()
    assert rig.from_pod(query) is PASS


# ---- flows


def test_a_later_segment_needs_an_open_flow_or_a_lease(rig: Rig) -> None:
    later, reply = ip(POD, PEER, 6, tcp(40000, 443, ACK)), ip(PEER, POD, 6, tcp(443, 40000, SYN | ACK))
    assert rig.from_pod(ip(POD, PEER, 6, SYN_443)) is PASS
    assert rig.to_pod(reply) is PASS
    rig.end_lease(SOURCE, PEER)
    assert rig.from_pod(later) is PASS
    assert rig.from_pod(ip(POD, PEER, 6, tcp(40001, 443, ACK))) is DROP


def test_a_flow_that_was_never_answered_is_not_open(rig: Rig) -> None:
    assert rig.from_pod(ip(POD, PEER, 6, SYN_443)) is PASS
    rig.end_lease(SOURCE, PEER)
    assert rig.from_pod(ip(POD, PEER, 6, tcp(40000, 443, ACK))) is DROP


def test_a_syn_is_decided_anew_on_an_open_flows_tuple(rig: Rig) -> None:
    assert rig.from_pod(ip(POD, PEER, 6, SYN_443)) is PASS
    assert rig.to_pod(ip(PEER, POD, 6, tcp(443, 40000, SYN | ACK))) is PASS
    rig.end_lease(SOURCE, PEER)
    assert rig.from_pod(ip(POD, PEER, 6, SYN_443)) is DROP


def test_a_datagram_opens_its_flow_only_when_answered(rig: Rig) -> None:
    out, back = ip(POD6, BLOCKED_IN6, 17, udp(40000, 443)), ip(BLOCKED_IN6, POD6, 17, udp(443, 40000))
    assert rig.from_pod(out) is PASS
    rig.close_blocks()
    assert rig.from_pod(out) is DROP
    assert rig.to_pod(back) is PASS
    assert rig.from_pod(out) is PASS


def test_what_a_peer_begins_the_pod_may_answer(rig: Rig) -> None:
    answer = ip(POD, OTHER, 6, tcp(80, 50000, SYN | ACK))
    assert rig.from_pod(answer) is DROP
    assert rig.to_pod(ip(OTHER, POD, 6, tcp(50000, 80, SYN))) is PASS
    assert rig.from_pod(answer) is PASS


def test_towards_a_pod_tcp_begins_with_a_syn(rig: Rig) -> None:
    assert rig.to_pod(ip(OTHER, POD, 6, tcp(50000, 80, ACK))) is DROP
    assert rig.counted(What.DROP_INBOUND) == 1
    assert rig.to_pod(ip(PEER, POD, 6, tcp(443, 40000, ACK))) is PASS  # the pod may begin it


def test_an_echo_may_be_answered_and_not_asked_back(rig: Rig) -> None:
    request, reply = b"\x08\0\0\0\0\x05\0\1", b"\0\0\0\0\0\x05\0\1"
    assert rig.from_pod(ip(POD, OTHER, 1, reply)) is DROP
    assert rig.to_pod(ip(OTHER, POD, 1, request)) is PASS
    assert rig.from_pod(ip(POD, OTHER, 1, reply)) is PASS
    assert rig.from_pod(ip(POD, OTHER, 1, request)) is DROP
    assert rig.from_pod(ip(POD, OTHER, 1, b"\0\0\0\0\0\x06\0\1")) is DROP


@pytest.mark.parametrize(
    ("own", "peer", "protocol", "error"),
    [(POD, OTHER, 1, b"\3\3"), (POD6, OTHER6, 58, b"\1\4"), (POD6, OTHER6, 58, b"\2\0")],
)
def test_an_icmp_error_goes_to_the_peer_of_an_open_flow_about_that_flow(
    rig: Rig, own: Address, peer: Address, protocol: int, error: bytes
) -> None:
    quoted = ip(peer, own, 17, udp(5000, 6000, b"data"))
    about = ip(own, peer, protocol, error + bytes(6) + quoted)
    elsewhere = ip(own, PEER if own is POD else PEER6, protocol, error + bytes(6) + quoted)
    other_flow = ip(own, peer, protocol, error + bytes(6) + ip(peer, own, 17, udp(5001, 6000, b"data")))
    assert rig.from_pod(about) is DROP
    assert rig.to_pod(quoted) is PASS
    assert rig.from_pod(about) is PASS
    assert rig.from_pod(elsewhere) is DROP
    assert rig.from_pod(other_flow) is DROP
    assert rig.from_pod(about[:-8]) is DROP


def test_an_intercepted_query_opens_no_flow(rig: Rig) -> None:
    reply = ip(OTHER, POD, 17, udp(53, 40000, b"answer"))
    assert rig.from_pod(ip(POD, OTHER, 17, udp(40000, 53, b"question"))) is PASS
    assert rig.to_pod(reply) is PASS
    assert rig.flows() == 0
    assert rig.from_pod(ip(POD, OTHER, 1, b"\3\3" + bytes(6) + reply)) is DROP


def test_a_flow_ends_when_it_was_silent_too_long(rig: Rig) -> None:
    assert rig.to_pod(ip(OTHER, POD, 17, udp(5000, 6000))) is PASS
    assert rig.from_pod(ip(POD, OTHER, 17, udp(6000, 5000))) is PASS
    rig.end_flows()
    assert rig.from_pod(ip(POD, OTHER, 17, udp(6000, 5000))) is DROP


def test_without_room_for_flows_packets_are_decided_one_by_one(rig: Rig) -> None:
    rig.flows_per_pod(2)
    for port in (1, 2, 3):
        assert rig.from_pod(ip(POD, PEER, 6, tcp(port, 443, SYN))) is PASS
        assert rig.to_pod(ip(PEER, POD, 6, tcp(443, port, SYN | ACK))) is PASS
    assert rig.flows() == 2
    assert rig.from_pod(ip(POD, PEER, 6, tcp(3, 443, ACK))) is PASS
    rig.end_lease(SOURCE, PEER)
    assert [rig.from_pod(ip(POD, PEER, 6, tcp(port, 443, ACK))) for port in (1, 2, 3)] == [PASS, PASS, DROP]


@pytest.mark.parametrize("source", [SOURCE, SOURCE6])
def test_a_cut_flow_passes_neither_way_until_it_is_silent(rig: Rig, source: int) -> None:
    own, peer = (POD, PEER) if source == SOURCE else (POD6, PEER6)
    out, back = ip(own, peer, 6, SYN_443), ip(peer, own, 6, tcp(443, 40000, SYN | ACK))
    assert (rig.from_pod(out), rig.to_pod(back)) == (PASS, PASS)
    rig.cut(source, 6, 40000, 443, peer)
    assert (rig.from_pod(out), rig.to_pod(back)) == (DROP, DROP)
    assert rig.counted(What.DROP_CUT) == 2
    rig.end_flows()
    assert rig.from_pod(out) is PASS
