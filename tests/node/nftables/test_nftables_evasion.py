"""What a hostile pod tries: packets that look like part of an open flow, or whose ports are hard to find."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from ipaddress import ip_network
from pathlib import Path

import pytest

from dnsguard.core.model import Action, Address, Program, ProgramRule, Tier
from dnsguard.engine.contracts import Desired, Write
from tests.node.nftables.test_nftables_decision import HOUR, WEB, leasing
from tests.node.nftables.test_nftables_flows import Conversation, end_lease, icmp_error, lease
from tests.node.nftables_lab import (
    ACK,
    PEER,
    PEER6,
    POD,
    POD6,
    RST,
    SYN,
    TCP,
    UDP,
    Lab,
    Subject,
    addr,
    checksum,
    crc32c,
    inside,
    ip,
    tcp,
    udp,
    waiting,
)  # fmt: skip

pytestmark = pytest.mark.node
SCTP = 132
BOTH = pytest.mark.parametrize(("pod", "peer"), [(POD, PEER), (POD6, PEER6)])


# ---- flows that are not open


@BOTH
async def test_an_icmp_error_about_a_flow_that_nobody_answered_passes_no_longer_than_its_lease(
    subject: Subject, pod: Address, peer: Address
) -> None:
    await lease(subject)
    lab = subject.lab
    talk = Conversation(lab, pod, peer)
    assert talk.pod_udp()
    await end_lease(subject, pod, peer)
    assert not talk.pod_udp()
    inner = ip(peer, pod, UDP, udp(443, 40001, bytes(32)))
    protocol, kind = (1, 3) if pod == POD else (58, 1)
    assert not lab.through(ip(pod, peer, protocol, icmp_error(kind, 0, inner, lab)))


@BOTH
async def test_an_icmp_error_about_a_flow_that_was_answered_passes(
    subject: Subject, pod: Address, peer: Address
) -> None:
    await lease(subject)
    lab = subject.lab
    talk = Conversation(lab, pod, peer)
    assert talk.pod_udp() and talk.peer_udp()
    await end_lease(subject, pod, peer)
    inner = ip(peer, pod, UDP, udp(443, 40001, bytes(32)))
    protocol, kind = (1, 3) if pod == POD else (58, 1)
    assert lab.through(ip(pod, peer, protocol, icmp_error(kind, 0, inner, lab)))


def sctp(source: int, destination: int, tag: int, kind: int, body: bytes) -> bytes:
    """One chunk, RFC 9260 3.1 and 3.2, with the checksum."""
    chunk = struct.pack(">BBH", kind, 0, 4 + len(body)) + body
    head = struct.pack(">HHI", source, destination, tag)
    return head + struct.pack("<I", crc32c(head + bytes(4) + chunk)) + chunk


@BOTH
async def test_an_sctp_association_is_decided_anew_on_the_ports_of_an_open_one(
    subject: Subject, pod: Address, peer: Address
) -> None:
    await lease(subject)
    lab = subject.lab
    init = struct.pack(">IIHHI", 7, 65535, 1, 1, 1)

    def pod_says(tag: int, kind: int, body: bytes) -> bool:
        return lab.through(ip(pod, peer, SCTP, sctp(4000, 443, tag, kind, body + lab.nonce())))

    def peer_says(tag: int, kind: int, body: bytes) -> bool:
        packet = ip(peer, pod, SCTP, sctp(443, 4000, tag, kind, body + lab.nonce()))
        return lab.through(packet, start=lab.world, end=lab.pod)

    assert pod_says(0, 1, init)
    assert peer_says(7, 2, struct.pack(">IIHHI", 9, 65535, 1, 1, 1))
    assert pod_says(9, 10, bytes(8))
    assert peer_says(7, 11, b"")
    await end_lease(subject, pod, peer)
    assert pod_says(9, 0, bytes(12))
    assert not pod_says(0, 1, init)


@BOTH
async def test_a_pod_cannot_answer_its_own_flow_by_forging_its_peer(
    subject: Subject, pod: Address, peer: Address
) -> None:
    await lease(subject)
    lab = subject.lab
    talk = Conversation(lab, pod, peer)
    assert talk.pod_udp()
    for start in (lab.pod, lab.other):
        lab.send(ip(peer, pod, UDP, udp(443, 40001, lab.nonce())), start)
    await end_lease(subject, pod, peer)
    assert not talk.pod_udp()


@BOTH
async def test_a_forged_reset_does_not_end_the_flow_of_another_pod(
    subject: Subject, pod: Address, peer: Address
) -> None:
    await lease(subject)
    lab = subject.lab
    talk = Conversation(lab, pod, peer)
    talk.open_tcp()
    lab.send(ip(peer, pod, TCP, tcp(443, 40001, RST | ACK, lab.nonce(), seq=5009, ack=1017)), lab.other)
    await end_lease(subject, pod, peer)
    assert talk.pod_tcp(ACK, 1017, 5009)
    assert b"CLOSE" not in conntrack(lab)


def conntrack(lab: Lab) -> bytes:
    with inside(lab.node):
        return Path("/proc/thread-self/net/nf_conntrack").read_bytes()


async def test_a_source_route_does_not_carry_a_packet_past_the_address_that_was_decided(subject: Subject) -> None:
    lab = subject.lab
    node = addr("198.51.100.1")
    with inside(lab.node):
        for path in ("all", "vetha"):
            Path(f"/proc/sys/net/ipv4/conf/{path}/accept_source_route").write_text("1")
    program = Program("p_00000000c0de", (ProgramRule(Tier.POD, Action.ACCEPT, (), (ip_network("198.51.100.1/32"),)),))
    await subject.enforcer.apply(Desired((program,), {(lab.link(), POD): program.name}))
    data = udp(40000, 443, lab.nonce())
    for kind in (131, 137):
        option = bytes([kind, 7, 4]) + PEER + b"\0"
        head = struct.pack(">BBHHHBBH", 0x47, 0, 28 + len(data), 0, 0, 64, UDP, 0) + POD + node + option
        packet = head[:10] + struct.pack(">H", checksum(head)) + head[12:] + data
        assert not lab.through(packet)


@pytest.mark.parametrize(("left", "passes"), [(0, True), (1, False)])
async def test_an_ipv6_route_that_goes_on_does_not_carry_a_packet_past_the_address_that_was_decided(
    subject: Subject, left: int, passes: bool
) -> None:
    await web(subject)
    routing = (43, bytes([0, 253, left]) + bytes(4))  # RFC 4727: a type for experiments
    assert subject.lab.through(extended([routing], 443, subject.lab)) is passes


# ---- ports that are hard to find


async def web(subject: Subject) -> None:
    program = leasing(WEB)
    link = subject.lab.link()
    writes = [Write("tcp_443", POD + PEER, HOUR), Write("tcp_443", POD6 + PEER6, HOUR)]
    await subject.enforcer.apply(Desired((program,), {(link, POD): program.name, (link, POD6): program.name}), writes)


def extended(headers: list[tuple[int, bytes]], port: int, lab: Lab) -> bytes:
    """A SYN behind these IPv6 extension headers, as (number, octets without the first)."""
    segment = ip(POD6, PEER6, TCP, tcp(40000, port, SYN, lab.nonce()))[40:]
    following, data = TCP, segment
    for number, rest in reversed(headers):
        following, data = number, bytes([following]) + rest + data
    return struct.pack(">IHBB", 6 << 28, len(data), following, 64) + POD6 + PEER6 + data


PADDED = b"\0\1\4\0\0\0\0"
EXTENSIONS = {
    "hop by hop": [(0, PADDED)],
    "destination options": [(60, PADDED)],
    "both": [(0, PADDED), (60, PADDED)],
    "long options": [(60, b"\x02\1\x14" + bytes(20))],
    "an atomic fragment": [(44, b"\0\0\0\0\0\0\1")],
    "options behind an atomic fragment": [(44, b"\0\0\0\0\0\0\2"), (60, PADDED)],
}


@pytest.mark.parametrize("headers", EXTENSIONS.values(), ids=EXTENSIONS.keys())
async def test_ports_behind_extension_headers_are_found(subject: Subject, headers: list[tuple[int, bytes]]) -> None:
    await web(subject)
    assert subject.lab.through(extended(headers, 443, subject.lab))
    assert not subject.lab.through(extended(headers, 444, subject.lab))


def fragments4(segment: bytes, number: int) -> list[bytes]:
    """A TCP segment from the pod to its peer in IPv4 fragments of eight octets."""
    found = []
    for start in range(0, len(segment), 8):
        piece = segment[start : start + 8]
        more = 0x2000 if start + 8 < len(segment) else 0
        head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(piece), number, more | start // 8, 64, TCP, 0) + POD + PEER
        found.append(head[:10] + struct.pack(">H", checksum(head)) + head[12:] + piece)
    return found


def fragments6(segment: bytes, number: int) -> list[bytes]:
    """The same in IPv6 (RFC 8200, 4.5), where the first has to hold the whole header (RFC 7112)."""
    found = []
    for start in range(0, len(segment), 24):
        more = 1 if start + 24 < len(segment) else 0
        piece = struct.pack(">BBHI", TCP, 0, start | more, number) + segment[start : start + 24]
        found.append(struct.pack(">IHBB", 6 << 28, len(piece), 44, 64) + POD6 + PEER6 + piece)
    return found


Cut = Callable[[bytes, int], list[bytes]]
CUTS = pytest.mark.parametrize(("cut", "length"), [(fragments4, 20), (fragments6, 40)], ids=["ipv4", "ipv6"])


def segment(length: int, port: int, lab: Lab) -> bytes:
    """A SYN with its checksum, behind an IP header of that length, padded to whole fragments."""
    pod, peer = (POD, PEER) if length == 20 else (POD6, PEER6)
    return ip(pod, peer, TCP, tcp(40000, port, SYN, bytes(44) + lab.nonce()))[length:]


def arriving(lab: Lab, pieces: Iterable[bytes], data: bytes) -> list[bytes]:
    """What reaches the world of these, among it the end of `data`."""
    receiver = lab.frames[lab.world]
    list(waiting(receiver))
    for piece in pieces:
        lab.send(piece)
    return [frame for frame in waiting(receiver) if data[-8:] in frame]


@CUTS
async def test_a_packet_in_fragments_is_decided_whole(subject: Subject, cut: Cut, length: int) -> None:
    await web(subject)
    for number, (port, passes) in enumerate(((443, True), (444, False))):
        data = segment(length, port, subject.lab)
        assert bool(arriving(subject.lab, cut(data, number), data)) == passes
        assert bool(arriving(subject.lab, cut(data, 10 + number)[::-1], data)) == passes


@CUTS
async def test_a_later_fragment_that_looks_like_a_beginning_passes_alone_no_more_than_in_order(
    subject: Subject, cut: Cut, length: int
) -> None:
    await web(subject)
    data = segment(length, 444, subject.lab)
    begin = len(cut(data, 0)[0]) - length - (8 if length == 40 else 0)
    posing = data[:begin] + struct.pack(">HHI", 40000, 443, 1) + data[begin + 8 :]
    pieces = cut(posing, 7)
    assert not arriving(subject.lab, pieces[1:], posing)
    assert not arriving(subject.lab, pieces[:1], posing)


@CUTS
async def test_of_fragments_that_overlap_what_arrives_has_the_port_that_was_decided(
    subject: Subject, cut: Cut, length: int
) -> None:
    await web(subject)
    lab = subject.lab
    data = segment(length, 443, lab)
    for number in range(len(cut(data, 0))):
        right = cut(data, number)
        other = cut(data[:2] + struct.pack(">H", 444) + data[4:], number)[0]
        for frame in arriving(lab, [*right[:number], other, *right[number:]], data):
            assert struct.pack(">HH", 40000, 444) not in frame
