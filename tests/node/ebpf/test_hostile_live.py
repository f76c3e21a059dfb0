"""Frames that a hostile pod puts on its link, with nothing but eBPF between it and the world."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Callable

import pytest

from dnsguard.core.model import Address
from dnsguard.engine.contracts import Desired, Write
from tests.contract.ebpf import BpfSubject
from tests.node.ebpf.live import at_work
from tests.node.nftables.test_nftables_decision import HOUR, WEB, leasing
from tests.node.nftables_lab import (
    ACK,
    NODE_MAC,
    OTHER,
    OTHER6,
    PEER,
    PEER6,
    POD,
    POD6,
    SYN,
    TCP,
    UDP,
    Lab,
    addr,
    checksum,
    inside,
    ip,
    tcp,
    udp,
    waiting,
)  # fmt: skip
from tests.node.nftables_lab import POD_MAC as OWN_MAC

STRANGER_MAC = bytes((2, 0, 0, 0, 0, 99))
IP4, IP6 = b"\x08\x00", b"\x86\xdd"
_SOL_PACKET, _PACKET_VNET_HDR = 263, 15
_NEEDS_CSUM, _GSO_TCP4, _GSO_TCP6, _GSO_UDP = 1, 1, 4, 5


@pytest.fixture
async def subject() -> AsyncIterator[BpfSubject]:
    """Either of the pod's addresses may reach its peer on TCP 443."""
    async with at_work(beside_nftables=False) as subject:
        program, link = leasing(WEB), subject.lab.link()
        pairs = {(link, own): program.name for own in (POD, POD6)}
        pairs |= {(subject.lab.link("vethb"), own): program.name for own in (OTHER, OTHER6)}
        writes = [Write("tcp_443", own, HOUR) for own in (POD + PEER, POD6 + PEER6, OTHER + PEER, OTHER6 + PEER6)]
        await subject.enforcer.apply(Desired((program,), pairs), writes)
        yield subject


def arrives(lab: Lab, frame: bytes, nonce: bytes, port: socket.socket | None = None) -> bool:
    """Whether a frame of the pod's brings these octets to the world."""
    world = lab.frames[lab.world]
    list(waiting(world))
    (port or lab.frames[lab.pod]).send(frame)
    lab.send(ip(POD, PEER, UDP, udp(1, 1)))  # dropped, and answered for: what was before it has arrived or will not
    return any(nonce in each for each in waiting(world))


def web(nonce: bytes, port: int = 443, source: Address = POD, target: Address = PEER) -> bytes:
    return ip(source, target, TCP, tcp(40000, port, SYN, nonce))


def framed(kind: bytes, packet: bytes, target: bytes = NODE_MAC) -> bytes:
    return target + OWN_MAC + kind + packet


def test_the_lab_sees_what_arrives_and_what_does_not(subject: BpfSubject) -> None:
    lab = subject.lab
    for kind, source, target in ((IP4, POD, PEER), (IP6, POD6, PEER6)):
        for port, passes in ((443, True), (444, False)):
            nonce = lab.nonce()
            assert arrives(lab, framed(kind, web(nonce, port, source, target)), nonce) == passes


TAGS = {
    "priority": b"\x81\x00\x20\x00",
    "vlan 5": b"\x81\x00\x00\x05",
    "service tag": b"\x88\xa8\x00\x00",
    "two tags": b"\x88\xa8\x00\x00\x81\x00\x00\x00",
    "two priorities": b"\x81\x00\x20\x00\x81\x00\x20\x00",
}


@pytest.mark.parametrize("tag", TAGS.values(), ids=TAGS.keys())
@pytest.mark.parametrize("family", [4, 6])
async def test_no_tagged_frame_passes(subject: BpfSubject, tag: bytes, family: int) -> None:
    kind, source, target = (IP4, POD, PEER) if family == 4 else (IP6, POD6, PEER6)
    nonce = subject.lab.nonce()
    assert not arrives(subject.lab, framed(tag + kind, web(nonce, 443, source, target)), nonce)
    for port in (443, 444):
        assert not arrives(subject.lab, framed(tag + kind, web(nonce, port, source, target)), nonce)


async def test_a_priority_tag_is_no_way_past_a_node_that_takes_it_off(subject: BpfSubject) -> None:
    """The node's stack does: a frame of an excluded pod arrives."""
    lab, nonce = subject.lab, subject.lab.nonce()
    await subject.enforcer.apply(Desired((), {}, frozenset({(lab.link(), POD)})))
    assert arrives(lab, framed(TAGS["priority"] + IP4, web(nonce, 444)), nonce)


KINDS = {"MPLS": 0x8847, "PPPoE discovery": 0x8863, "PPPoE session": 0x8864, "LLDP": 0x88CC, "loopback": 0x9000}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
async def test_no_frame_of_another_kind_passes(subject: BpfSubject, kind: int) -> None:
    nonce = subject.lab.nonce()
    header = b"\x00\x01\x01\x40" if kind == 0x8847 else b"\x11\x00\x00\x01\x00\x40\x00\x21"
    assert not arrives(subject.lab, framed(struct.pack(">H", kind), header + web(nonce)), nonce)
    assert dropped(subject) >= 1


def dropped(subject: BpfSubject) -> int:
    return sum(int.from_bytes(value, "little") for _, value in subject.maps["counts"].items())


@pytest.mark.parametrize("length", [0, 1, 10, 19, 20, 24, 32, 33, 39])
@pytest.mark.parametrize(("kind", "source", "target"), [(IP4, POD, PEER), (IP6, POD6, PEER6)], ids=["ipv4", "ipv6"])
async def test_a_header_that_is_cut_short_is_dropped_and_does_no_harm(
    subject: BpfSubject, length: int, kind: bytes, source: Address, target: Address
) -> None:
    lab, nonce = subject.lab, subject.lab.nonce()
    before = dropped(subject)
    lab.frames[lab.pod].send(framed(kind, web(nonce, 443, source, target)[:length]))
    assert arrives(lab, framed(IP4, web(nonce)), nonce)
    assert dropped(subject) > before


def with_option(packet: bytes, option: bytes) -> bytes:
    head = bytes([0x45 + len(option) // 4]) + packet[1:2] + struct.pack(">H", len(packet) + len(option)) + packet[4:10]
    head += b"\0\0" + packet[12:20] + option
    return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + packet[20:]


@pytest.mark.parametrize(
    ("option", "passes"),
    [
        (b"\1\1\1\1", True),
        (b"\x94\4\0\0", True),
        (b"\x83\7\4" + PEER + b"\0", False),
        (b"\x89\7\4" + PEER + b"\0", False),
        (b"\1\1\1\7", False),
    ],
)
async def test_ports_behind_options_are_found_and_source_routes_dropped(
    subject: BpfSubject, option: bytes, passes: bool
) -> None:
    lab = subject.lab
    for port in (443, 444):
        nonce = lab.nonce()
        frame = framed(IP4, with_option(web(nonce, port), option))
        assert arrives(lab, frame, nonce) == (passes and port == 443)


async def test_a_frame_to_a_strangers_mac_goes_nowhere(subject: BpfSubject) -> None:
    nonce = subject.lab.nonce()
    assert not arrives(subject.lab, framed(IP4, web(nonce), STRANGER_MAC), nonce)


@pytest.mark.parametrize(
    ("kind", "source", "target"),
    [
        (IP4, OTHER, PEER),
        (IP6, OTHER6, PEER6),
        (IP4, addr("127.0.0.1"), PEER),
        (IP4, addr("0.0.0.0"), PEER),
        (IP6, addr("::ffff:10.244.0.5"), PEER6),
        (IP6, addr("::ffff:10.244.0.5"), addr("::ffff:192.0.2.80")),
        (IP6, POD6, addr("::ffff:192.0.2.80")),
        (IP6, POD6, addr("64:ff9b::192.0.2.80")),
        (IP6, addr("fe80::5"), PEER6),
        (IP6, addr("::"), PEER6),
    ],
)
async def test_no_packet_of_a_source_or_to_a_target_that_only_resembles_a_leased_one_passes(
    subject: BpfSubject, kind: bytes, source: Address, target: Address
) -> None:
    nonce = subject.lab.nonce()
    assert not arrives(subject.lab, framed(kind, web(nonce, 443, source, target)), nonce)


async def test_the_same_packet_in_a_frame_of_the_other_family_is_dropped(subject: BpfSubject) -> None:
    nonce = subject.lab.nonce()
    assert not arrives(subject.lab, framed(IP6, web(nonce)), nonce)
    assert not arrives(subject.lab, framed(IP4, web(nonce, 443, POD6, PEER6)), nonce)


# ---- fragments


def fragment4(data: bytes, offset: int, *, more: bool, number: int = 7) -> bytes:
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(data), number, more << 13 | offset // 8, 64, TCP, 0) + POD + PEER
    return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + data


def fragment6(data: bytes, offset: int, *, more: bool, number: int = 7) -> bytes:
    piece = struct.pack(">BBHI", TCP, 0, offset | more, number) + data
    return struct.pack(">IHBB", 6 << 28, len(piece), 44, 64) + POD6 + PEER6 + piece


Fragment = Callable[..., bytes]
FAMILIES = pytest.mark.parametrize(("kind", "fragment"), [(IP4, fragment4), (IP6, fragment6)], ids=["ipv4", "ipv6"])


@FAMILIES
async def test_of_fragments_only_those_behind_a_whole_header_that_was_let_arrive(
    subject: BpfSubject, kind: bytes, fragment: Fragment
) -> None:
    lab = subject.lab

    def said(data: bytes, offset: int, more: bool, number: int) -> bool:
        return arrives(lab, framed(kind, fragment(data, offset, more=more, number=number)), data[-8:])

    def head(port: int) -> bytes:
        return tcp(40000, port, SYN)

    assert not said(head(443)[:8], 0, True, 1), "a first one that is too small"
    assert not said(bytes(8) + lab.nonce(), 24, False, 1), "what follows it"
    assert not said(bytes(8) + lab.nonce(), 24, False, 2), "a later one before its first"
    assert not said(head(444) + bytes(4) + lab.nonce(), 0, True, 3), "a first one that may not pass"
    assert not said(bytes(8) + lab.nonce(), 32, False, 3)
    assert said(head(443) + bytes(4) + lab.nonce(), 0, True, 4), "one that may"
    assert not said(head(444) + bytes(4) + lab.nonce(), 0, True, 4), "another first one of the same packet"
    assert not said(head(443)[8:] + lab.nonce(), 8, True, 4), "one that would write over the header"
    assert said(bytes(8) + lab.nonce(), 32, False, 4)


async def test_an_atomic_fragment_is_decided_by_its_ports(subject: BpfSubject) -> None:
    lab = subject.lab
    for port, passes in ((443, True), (444, False)):
        nonce = lab.nonce()
        segment = web(nonce, port, POD6, PEER6)[40:]
        assert arrives(lab, framed(IP6, fragment6(segment, 0, more=False)), nonce) == passes


# ---- packets that are cut up behind the link


def super_frames(lab: Lab) -> socket.socket:
    """A socket of the pod whose frames begin with a virtio_net_hdr."""
    with inside(lab.pod):
        port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    port.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    port.bind(("eth0", 0))
    return port


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("family", [4, 6])
async def test_a_super_packet_is_decided_as_what_it_is_cut_into(
    subject: BpfSubject, protocol: int, family: int
) -> None:
    lab = subject.lab
    source, target = (POD, PEER) if family == 4 else (POD6, PEER6)
    start = 34 if family == 4 else 54
    gso = _GSO_UDP if protocol == UDP else _GSO_TCP4 if family == 4 else _GSO_TCP6
    size, place = (8, 6) if protocol == UDP else (20, 16)
    header = struct.pack("=BBHHHH", _NEEDS_CSUM, gso, start + size, 1200, start, place)
    with super_frames(lab) as port:
        for number, passes in ((443, protocol == TCP), (444, False)):
            nonce = lab.nonce()
            data = bytes(40_000) + nonce
            segment = tcp(40000, number, ACK, data) if protocol == TCP else udp(40000, number, data)
            frame = framed(IP4 if family == 4 else IP6, ip(source, target, protocol, segment))
            assert arrives(lab, header + frame, nonce, port) == passes
