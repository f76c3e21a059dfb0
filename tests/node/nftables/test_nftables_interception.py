"""What happens to a pod's DNS, to the listener's port, and to what a link needs to work at all."""

from __future__ import annotations

import asyncio
import select
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest

from dnsguard.core.model import Action, Address, Packet, Program, Protocol
from dnsguard.engine.contracts import Desired
from tests.node.nftables_lab import (
    LAYOUT,
    LISTEN_PORT,
    OTHER,
    PEER,
    PEER6,
    POD,
    POD6,
    SYN,
    TCP,
    UDP,
    Lab,
    Subject,
    addr,
    checksum,
    inside,
    ip,
    start,
    tcp,
    udp,
)  # fmt: skip

pytestmark = pytest.mark.node
REPLY_MARK = 0x2000
IP_TRANSPARENT, IPV6_TRANSPARENT, IP_PKTINFO, IPV6_RECVPKTINFO, IPV6_PKTINFO = 19, 75, 8, 49, 50
ALLOW_ALL = Program("p_all", (), Action.ACCEPT)


class Listener:
    """UDP and TCP sockets as the daemon has them: transparent, on every address, marked."""

    def __init__(self, lab: Lab) -> None:
        self._stack = ExitStack()
        with inside(lab.node):
            self.udp = {family: self._open(family, socket.SOCK_DGRAM) for family in (socket.AF_INET, socket.AF_INET6)}
            self.tcp = {family: self._open(family, socket.SOCK_STREAM) for family in (socket.AF_INET, socket.AF_INET6)}

    def _open(self, family: int, kind: int) -> socket.socket:
        port = self._stack.enter_context(socket.socket(family, kind))
        if family == socket.AF_INET:
            port.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
            if kind == socket.SOCK_DGRAM:
                port.setsockopt(socket.SOL_IP, IP_PKTINFO, 1)
        else:
            port.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            port.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
            if kind == socket.SOCK_DGRAM:
                port.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)
        port.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, REPLY_MARK)
        port.bind(("", LISTEN_PORT))
        if kind == socket.SOCK_STREAM:
            port.listen()
        port.settimeout(2)
        return port

    def echo(self, family: int) -> bytes:
        """Answer the next datagram from the address it was sent to; returns it."""
        port = self.udp[family]
        data, control, _, peer = port.recvmsg(512, 256)
        port.sendmsg([b"answer"], control, 0, peer)
        return data

    def heard(self) -> bool:
        """Whether a datagram or a connection is waiting."""
        return bool(select.select([*self.udp.values(), *self.tcp.values()], [], [], 0)[0])

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def listener(lab: Lab) -> Iterator[Listener]:
    lab.intercept_routes()
    listener = Listener(lab)
    yield listener
    listener.close()


async def allow_everything(subject: Subject) -> None:
    link, other = subject.lab.link(), subject.lab.link("vethb")
    pairs = {(link, POD): "p_all", (link, POD6): "p_all", (other, OTHER): "p_all"}
    await subject.enforcer.apply(Desired((ALLOW_ALL,), pairs))


def query(lab: Lab, pod: bytes, server: bytes, protocol: int = UDP) -> bytes:
    data = udp(40000, 53, lab.nonce()) if protocol == UDP else tcp(40000, 53, SYN, lab.nonce())
    return ip(pod, server, protocol, data)  # type: ignore[arg-type]


class Client:
    """A pod's own network stack, to talk as its programs do."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        for command in (
            "addr add 10.244.0.5/32 dev eth0",
            "route add 169.254.1.1 dev eth0 scope link",
            "route add default via 169.254.1.1",
            "-6 addr add fd00:10:244::5/128 dev eth0 nodad",
            "-6 route add default via fe80::1 dev eth0",
        ):
            lab._ip(command, lab.pod)

    def socket(self, family: int, kind: int) -> socket.socket:
        with inside(self._lab.pod):
            port = socket.socket(family, kind)
        port.settimeout(2)
        return port


@pytest.mark.parametrize(
    ("family", "server"),
    [(socket.AF_INET, "8.8.8.8"), (socket.AF_INET, "169.254.1.1"), (socket.AF_INET6, "2001:4860:4860::8888")],
)
async def test_a_connected_client_is_answered_from_the_address_it_asked(
    subject: Subject, listener: Listener, family: int, server: str
) -> None:
    await allow_everything(subject)
    with Client(subject.lab).socket(family, socket.SOCK_DGRAM) as client:
        client.connect((server, 53))
        client.send(b"query")
        assert listener.echo(family) == b"query"
        assert client.recv(64) == b"answer"


@pytest.mark.parametrize(("family", "server"), [(socket.AF_INET, "8.8.8.8"), (socket.AF_INET6, "2001:4860:4860::8888")])
async def test_a_tcp_query_is_answered_from_the_address_it_asked(
    subject: Subject, listener: Listener, family: int, server: str
) -> None:
    await allow_everything(subject)
    with Client(subject.lab).socket(family, socket.SOCK_STREAM) as client:
        client.connect((server, 53))
        accepted, _ = listener.tcp[family].accept()
        with accepted:
            client.send(b"query")
            assert accepted.recv(64) == b"query"
            accepted.send(b"answer")
            assert client.recv(64) == b"answer"


async def test_a_query_makes_no_connection_tracking_entry_and_meets_no_dnat(
    subject: Subject, listener: Listener
) -> None:
    await allow_everything(subject)
    subject.lab.nft(
        "table ip kube { chain nat { type nat hook prerouting priority -100;"
        " ip daddr 10.96.0.10 meta l4proto {tcp, udp} th dport 53 dnat to 10.244.0.9:53\n }\n"
        " chain out { type filter hook output priority 0;"
        " ct state new meta mark & 0x2000 == 0x2000 counter drop\n }\n}"
    )
    client = Client(subject.lab)
    with client.socket(socket.AF_INET, socket.SOCK_DGRAM) as port:
        port.connect(("10.96.0.10", 53))
        port.send(b"query")
        listener.echo(socket.AF_INET)
        assert port.recv(64) == b"answer"
    with client.socket(socket.AF_INET, socket.SOCK_STREAM) as port:
        port.connect(("10.96.0.10", 53))
        assert port.getpeername() == ("10.96.0.10", 53)


@pytest.mark.parametrize("protocol", [UDP, TCP])
@pytest.mark.parametrize(("pod", "server"), [(POD, PEER), (POD6, PEER6)])
async def test_without_a_listener_a_query_goes_nowhere(
    subject: Subject, pod: bytes, server: bytes, protocol: int
) -> None:
    await allow_everything(subject)
    assert not subject.lab.through(query(subject.lab, pod, server, protocol))
    await until(lambda: [each.reason for each in subject.denials] == ["listener"])
    assert await counted(subject, "listener") == 1


@pytest.mark.parametrize(("source", "server"), [("10.244.0.6", "8.8.8.8"), ("fd00:10:244::6", "2001:db8::1")])
async def test_a_query_from_a_source_that_is_not_routed_to_its_link_is_dropped(
    subject: Subject, listener: Listener, source: str, server: str
) -> None:
    await allow_everything(subject)
    subject.lab.send(query(subject.lab, addr(source), addr(server)))
    assert not listener.heard()
    await until(lambda: [each.reason for each in subject.denials] == ["source"])
    assert await counted(subject, "source") == 1


async def test_a_query_from_a_routed_source_without_a_program_is_heard(subject: Subject, listener: Listener) -> None:
    await subject.enforcer.apply(Desired())
    subject.lab.send(query(subject.lab, POD, PEER))
    assert listener.heard()


async def test_a_query_of_an_excluded_pod_goes_its_own_way(subject: Subject, listener: Listener) -> None:
    link = subject.lab.link()
    await subject.enforcer.apply(Desired((), {}, frozenset({(link, POD), (link, POD6)})))
    subject.lab.nft("table inet t { chain c { type filter hook forward priority 0; ct state untracked drop\n }\n}")
    for pod, server in ((POD, PEER), (POD6, PEER6)):
        assert subject.lab.through(query(subject.lab, pod, server))
    assert not listener.heard()


async def test_with_a_list_only_listed_servers_are_intercepted(lab: Lab, listener: Listener) -> None:
    subject = await start(lab, replace(LAYOUT, intercept=(PEER, PEER6)))
    try:
        await allow_everything(subject)
        assert lab.through(query(lab, POD, addr("192.0.2.81")))
        assert lab.through(query(lab, POD6, addr("2001:db8::81")))
        assert not listener.heard()
        for pod, server, family in ((POD, PEER, socket.AF_INET), (POD6, PEER6, socket.AF_INET6)):
            lab.send(query(lab, pod, server))
            assert listener.udp[family].recv(64)
    finally:
        await subject.close()


@pytest.mark.parametrize("protocol", [UDP, TCP])
async def test_the_listening_port_is_closed_to_the_world_the_pods_and_the_node(
    subject: Subject, listener: Listener, protocol: int
) -> None:
    await allow_everything(subject)
    lab = subject.lab
    data = udp(40000, LISTEN_PORT, lab.nonce()) if protocol == UDP else tcp(40000, LISTEN_PORT, SYN)
    lab.send(ip(POD, addr("198.51.100.1"), protocol, data))
    lab.frames[lab.world].send(
        bytes([2, 0, 0, 0, 0, 4, 2, 0, 0, 0, 0, 3, 8, 0]) + ip(PEER, addr("198.51.100.1"), protocol, data)
    )
    with inside(lab.node), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as local:
        local.sendto(b"hello", ("127.0.0.1", LISTEN_PORT))
    lab.send(query(lab, POD, PEER))  # what is heard now came before
    assert listener.udp[socket.AF_INET].recv(64)[:1] == b"\xa5"
    assert not listener.heard()


async def test_neighbours_and_address_assignment_are_let_through_to_the_node_only(subject: Subject) -> None:
    await subject.enforcer.apply(Desired())
    lab = subject.lab
    arrived = Arrivals(lab)
    link_local, unspecified = addr("fe80::5"), addr("::")
    for kind in (133, 135, 136):
        assert arrived(ip(link_local, addr("ff02::1:ff00:1"), 58, nd(kind), hop_limit=255))
        assert arrived(ip(link_local, addr("fe80::1"), 58, nd(kind), hop_limit=255))
        assert arrived(ip(link_local, addr("2001:db8:f::1"), 58, nd(kind), hop_limit=255))
        assert not arrived(ip(link_local, addr("fe80::1"), 58, nd(kind), hop_limit=64))
        assert not arrived(ip(link_local, PEER6, 58, nd(kind), hop_limit=255))
    assert arrived(ip(unspecified, addr("ff02::1:ff00:1"), 58, nd(135), hop_limit=255))
    assert not arrived(ip(link_local, addr("fe80::1"), 58, nd(134), hop_limit=255))  # a pod is no router
    everyone, nobody = addr("255.255.255.255"), addr("0.0.0.0")
    assert arrived(ip(nobody, everyone, UDP, udp(68, 67)))
    assert arrived(ip(POD, addr("198.51.100.1"), UDP, udp(68, 67)))
    assert not arrived(ip(POD, PEER, UDP, udp(68, 67)))
    assert arrived(ip(link_local, addr("ff02::1:2"), UDP, udp(546, 547)))
    assert not arrived(ip(link_local, PEER6, UDP, udp(546, 547)))


async def test_a_forged_source_gets_no_packet_that_the_node_might_answer_with_an_error(subject: Subject) -> None:
    await subject.enforcer.apply(Desired())
    lab = subject.lab
    arrived = Arrivals(lab)
    forged = addr("2001:db8:bad::1")
    assert not arrived(ip(addr("192.0.2.66"), addr("198.51.100.1"), UDP, udp(68, 67)))
    assert not arrived(ip(forged, addr("fe80::1"), UDP, udp(546, 547)))
    for kind in (133, 135, 136):
        assert not arrived(ip(forged, addr("fe80::1"), 58, nd(kind), hop_limit=255))
        assert not arrived(ip(forged, addr("2001:db8:f::1"), 58, nd(kind), hop_limit=255))
        assert arrived(ip(POD6, addr("fe80::1"), 58, nd(kind), hop_limit=255))


async def test_a_fragment_of_a_forged_source_waits_for_no_others(subject: Subject) -> None:
    """When they do not come, the kernel tells the source, and quotes what it has."""
    await subject.enforcer.apply(Desired())
    lab = subject.lab
    datagram = udp(40000, 53, bytes(40))
    for source, target in ((POD, PEER), (POD6, PEER6)):
        lab.send(first_fragment(source, target, datagram))
    assert "packets" not in lab.nft("list set inet dnsguard dropped_source")
    for source, target in ((addr("192.0.2.66"), PEER), (addr("2001:db8:bad::1"), PEER6)):
        lab.send(first_fragment(source, target, datagram))
    assert "packets 2 " in lab.nft("list set inet dnsguard dropped_source")


def first_fragment(source: Address, target: Address, datagram: bytes) -> bytes:
    if len(source) == 16:
        return ip(source, target, 44, bytes([UDP]) + b"\0\0\1" + b"\0\0\0\x07" + datagram)  # type: ignore[arg-type]
    packet = bytearray(ip(source, target, UDP, datagram))
    packet[6:8], packet[10:12] = b"\x20\0", bytes(2)
    packet[10:12] = checksum(bytes(packet[:20])).to_bytes(2, "big")
    return bytes(packet)


def nd(kind: int) -> bytes:
    return struct.pack(">BBHI", kind, 0, 0, 0) + (bytes(16) if kind != 133 else b"")


class Arrivals:
    """Counts, in a table of the test's own behind dnsguard's, what the node was left with of a pod's packets."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        lab.nft(
            "table inet seen { counter c { }\n chain a { type filter hook prerouting priority 0; iifname vetha"
            " counter name c\n }\n}"
        )
        self._count = 0

    def __call__(self, packet: bytes) -> bool:
        self._lab.send(packet)
        text = self._lab.nft("list counter inet seen c")
        before, self._count = self._count, int(text.split("packets ")[1].split()[0])
        return self._count == before + 1


async def counted(subject: Subject, reason: str) -> int:
    link = subject.lab.link()
    return sum(each.packets for each in await subject.enforcer.dropped() if (each.reason, each.link) == (reason, link))


async def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_denied_packet_is_counted_and_reported_with_its_pod_and_rule(subject: Subject) -> None:
    from tests.node.nftables.test_nftables_decision import blocks

    program = Program("p_deny", (blocks(Action.DENY, "192.0.2.80/32"), blocks(Action.DENY, "2001:db8::/64")))
    link = subject.lab.link()
    await subject.enforcer.apply(Desired((program,), {(link, POD): "p_deny", (link, POD6): "p_deny"}))
    for packet in (
        Packet(POD, PEER, Protocol.TCP, 81),
        Packet(POD6, PEER6, Protocol.UDP, 82),
        Packet(POD, addr("203.0.113.1"), Protocol.TCP, 83),
        Packet(POD6, addr("2001:db8:1::1"), Protocol.TCP, 84),
        Packet(OTHER, PEER, Protocol.TCP, 85),
    ):
        assert not subject.lab.decide(packet)
    await until(lambda: len(subject.denials) == 5)
    reported = [(each.link, each.pod, each.protocol, each.port, each.reason, each.rule) for each in subject.denials]
    assert reported == [
        (link, POD, 6, 81, "rule", 0),
        (link, POD6, 17, 82, "rule", 1),
        (link, POD, 6, 83, "default", None),
        (link, POD6, 6, 84, "default", None),
        (link, OTHER, 6, 85, "unknown", None),
    ]
    counts = {
        (each.reason, each.rule, each.pod or each.link): each.packets for each in await subject.enforcer.dropped()
    }
    assert counts == {
        ("rule", 0, POD): 1,
        ("rule", 1, POD6): 1,
        ("default", None, POD): 1,
        ("default", None, POD6): 1,
        ("unknown", None, link): 1,
    }


async def test_multicast_reports_of_a_pods_stack_are_dropped_without_an_event(subject: Subject) -> None:
    await subject.enforcer.apply(Desired())
    arrived = Arrivals(subject.lab)
    for kind in (131, 132, 143):
        assert not arrived(ip(addr("fe80::5"), addr("ff02::16"), 58, nd(kind), hop_limit=1))
    assert not await subject.enforcer.dropped()


async def test_a_cut_packet_is_counted_and_reported(subject: Subject) -> None:
    from dnsguard.core.model import Flow

    await allow_everything(subject)
    await subject.enforcer.cut([Flow(UDP, POD, 40000, PEER, 99, PEER, 99)])
    assert not subject.lab.through(ip(POD, PEER, UDP, udp(40000, 99, subject.lab.nonce())))
    await until(lambda: [each.reason for each in subject.denials] == ["cut"])
    assert await counted(subject, "cut") == 1


async def test_reports_are_limited_for_each_link_and_counters_are_not(lab: Lab) -> None:
    subject = await start(lab, replace(LAYOUT, log_rate=1))
    try:
        await subject.enforcer.apply(Desired())
        for _ in range(20):
            lab.send(lab.first(Packet(POD, PEER, Protocol.TCP, 80)))
        lab.send(lab.first(Packet(OTHER, PEER, Protocol.TCP, 80)), lab.other)
        await until(lambda: any(each.pod == OTHER for each in subject.denials))
        assert 2 <= sum(each.pod == POD for each in subject.denials) < 10
        assert await counted(subject, "unknown") == 20
    finally:
        await subject.close()


async def test_reports_that_overflow_are_counted_and_those_that_come_after_are_read(lab: Lab) -> None:
    subject = await start(lab, replace(LAYOUT, log_rate=1_000_000))
    try:
        await subject.enforcer.apply(Desired())
        reader = vars(vars(subject.enforcer)["_denials"])["_socket"]
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        for _ in range(200):  # meanwhile nobody reads
            lab.send(lab.first(Packet(POD, PEER, Protocol.TCP, 80)))
        await until(lambda: subject.enforcer.reports_lost > 0)
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
        lab.send(lab.first(Packet(POD, PEER, Protocol.TCP, 81)))
        await until(lambda: any(each.port == 81 for each in subject.denials))
        assert await counted(subject, "unknown") == 201
    finally:
        await subject.close()
