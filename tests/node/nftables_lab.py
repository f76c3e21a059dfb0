"""Two pods, a node and a world in network namespaces of their own, and packets made by hand to send between them.

The node reaches everything through its uplink, so any address is somewhere in the world. Packets are written as
frames onto a pod's end of its link, with whatever source they like. Whether one was let through is known without
waiting: an ARP request goes after it on the same link and the same CPU, and by its answer the packet has arrived, or
never will.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import select
import socket
import struct
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path

from dnsguard.core.model import Address, LinkIndex, Packet
from dnsguard.enforce.denials import Denial
from dnsguard.enforce.nftables import Layout, NftEnforcer

PREFIX = "dgnft"
NODE_MAC, POD_MAC, WORLD_MAC, UPLINK_MAC = (bytes([2, 0, 0, 0, 0, n]) for n in (1, 2, 3, 4))
GATEWAY = "169.254.1.1"
LISTEN_PORT = 15353
TCP, UDP, SYN, ACK, RST, SYN_ACK = 6, 17, 2, 16, 4, 18
_ALL_PROTOCOLS = 3
_AT_ONCE = 100
"""Frames that fit a socket's receive buffer with room to spare."""
_libc = ctypes.CDLL(None, use_errno=True)


def addr(text: str) -> Address:
    return Address(ip_address(text).packed)


POD, POD6 = addr("10.244.0.5"), addr("fd00:10:244::5")
OTHER, OTHER6 = addr("10.244.0.6"), addr("fd00:10:244::6")
PEER, PEER6 = addr("192.0.2.80"), addr("2001:db8::80")


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """This thread, in that namespace."""
    with ExitStack() as stack:
        own = stack.enter_context(Path("/proc/thread-self/ns/net").open())
        other = stack.enter_context(Path(f"/run/netns/{namespace}").open())
        _enter(other.fileno())
        try:
            yield
        finally:
            _enter(own.fileno())


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, 0x40000000):
        raise OSError(ctypes.get_errno(), "setns")


def sweep() -> None:
    """Delete the namespaces of runs that were killed."""
    for path in Path("/run/netns").glob(f"{PREFIX}*"):
        pid = path.name.removeprefix(PREFIX).split("-")[0]
        if not Path(f"/proc/{pid}").exists():
            subprocess.run(["ip", "netns", "del", path.name], check=False)


class Lab:
    """`close` deletes the namespaces."""

    _numbers = itertools.count(1)

    def __init__(self) -> None:
        sweep()
        self._stack = ExitStack()
        self._nonces = itertools.count(1)
        number = next(self._numbers)
        self.node, self.pod, self.other, self.world = (
            f"{PREFIX}{os.getpid()}-{number}{which}" for which in ("n", "p", "o", "w")
        )
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def _build(self) -> None:
        for namespace in (self.node, self.pod, self.other, self.world):
            self._ip(f"netns add {namespace}")
            self._stack.callback(self._ip, f"netns del {namespace}")
            self._ip("link set lo up", namespace)
        for link, mac, end in (
            ("vetha", NODE_MAC, self.pod),
            ("vethb", NODE_MAC, self.other),
            ("uplink", UPLINK_MAC, self.world),
        ):
            self._ip(f"link add {link} address {mac.hex(':')} type veth peer name eth0 netns {end}", self.node)
        self._sysctls()
        for namespace, mac in ((self.pod, POD_MAC), (self.other, POD_MAC), (self.world, WORLD_MAC)):
            self._ip(f"link set eth0 address {mac.hex(':')} addrgenmode none", namespace)
            self._ip("link set eth0 up", namespace)
        for link, address, address6 in (("vetha", POD, POD6), ("vethb", OTHER, OTHER6)):
            self._ip(f"link set {link} up", self.node)
            for each in (address, address6):
                text = str(ip_address(each))
                self._ip(f"route add {text} dev {link}", self.node)
                self._ip(f"neigh replace {text} lladdr {POD_MAC.hex(':')} dev {link}", self.node)
            self._ip(f"-6 addr add fe80::1/64 dev {link} nodad", self.node)
        self._uplink()
        self.frames = {name: self._frames(name) for name in (self.pod, self.other, self.world)}

    def _sysctls(self) -> None:
        with inside(self.node):
            for path, value in (
                ("net/ipv4/ip_forward", "1"),
                ("net/ipv6/conf/all/forwarding", "1"),
                ("net/ipv4/conf/all/rp_filter", "0"),
                ("net/ipv4/conf/vetha/rp_filter", "0"),
                ("net/ipv4/conf/uplink/rp_filter", "0"),
            ):
                Path("/proc/sys", path).write_text(value)

    def _uplink(self) -> None:
        self._ip("link set uplink up", self.node)
        self._ip(f"addr add {GATEWAY}/32 dev lo", self.node)
        self._ip("addr add 198.51.100.1/24 dev uplink", self.node)
        self._ip("addr add 2001:db8:f::1/64 dev uplink nodad", self.node)
        for gateway in ("198.51.100.2", "2001:db8:f::2"):
            self._ip(f"neigh replace {gateway} lladdr {WORLD_MAC.hex(':')} dev uplink", self.node)
            self._ip(f"route add default via {gateway}", self.node)

    def intercept_routes(self) -> None:
        """The rule and route by which a marked packet reaches a socket of the node."""
        for family in ("-4", "-6"):
            self._ip(f"{family} rule add fwmark 0x1000/0x1000 lookup 5353 priority 5", self.node)
            self._ip(f"{family} route add local default dev lo table 5353", self.node)

    def _ip(self, arguments: str, namespace: str | None = None) -> None:
        where = ["nsenter", f"--net=/run/netns/{namespace}"] if namespace else []
        subprocess.run([*where, "ip", *arguments.split()], check=True, timeout=20)

    def ip(self, arguments: str) -> None:
        """Run `ip` on the node."""
        self._ip(arguments, self.node)

    def nft(self, commands: str, *, check: bool = True) -> str:
        """Run `nft` on the node, as another process would."""
        where = ["nsenter", f"--net=/run/netns/{self.node}", "nft", "-f", "-"]
        return subprocess.run(where, input=commands, text=True, check=check, capture_output=True, timeout=30).stdout

    def link(self, name: str = "vetha") -> LinkIndex:
        with inside(self.node):
            return LinkIndex(socket.if_nametoindex(name))

    def _frames(self, namespace: str) -> socket.socket:
        with inside(namespace):
            port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_PROTOCOLS))
        port.bind(("eth0", _ALL_PROTOCOLS))
        port.setblocking(False)
        self._stack.callback(port.close)
        return port

    def through(self, packet: bytes, *, start: str | None = None, end: str | None = None) -> bool:
        """Whether an IP packet that leaves the pod (or `start`) reaches the world (or `end`).

        It is recognised by its last eight octets; give it `nonce()` as payload.
        """
        receiver = self.frames[end or self.world]
        _drain(receiver)
        self.send(packet, start)
        while True:
            try:
                frame = receiver.recv(65536)
            except BlockingIOError:
                return False
            if frame.rstrip(b"\0").endswith(packet[-8:].rstrip(b"\0")):
                return True

    def send(self, packet: bytes, start: str | None = None) -> None:
        """Put a packet on the link, and return when the node has done with it."""
        port = self.frames[start or self.pod]
        _drain(port)
        with _on_one_cpu():
            port.send(self._frame(packet, start))
            self._done_with(start)

    def arriving(self, packets: Sequence[tuple[str, bytes]]) -> list[bool]:
        """Send many (namespace, IP packet), one right behind the other: which of them reach the world? Each must
        have a nonce of its own as payload."""
        seen: set[bytes] = set()
        starts = {start for start, _ in packets}
        for end in (*starts, self.world):
            _drain(self.frames[end])
        with _on_one_cpu():
            for begin in range(0, len(packets), _AT_ONCE):
                for start, packet in packets[begin : begin + _AT_ONCE]:
                    self.frames[start].send(self._frame(packet, start))
                for start in starts:
                    self._done_with(start)
                seen.update(frame.rstrip(b"\0")[-8:] for frame in waiting(self.frames[self.world]))
        return [packet[-8:] in seen for _, packet in packets]

    def _frame(self, packet: bytes, start: str | None) -> bytes:
        source, target = (WORLD_MAC, UPLINK_MAC) if start == self.world else (POD_MAC, NODE_MAC)
        return target + source + (b"\x08\x00" if packet[0] >> 4 == 4 else b"\x86\xdd") + packet

    def _done_with(self, start: str | None) -> None:
        """Return when the node has done with what was sent from there."""
        port = self.frames[start or self.pod]
        port.send(_arp_request(WORLD_MAC if start == self.world else POD_MAC))
        _await_arp(port)

    def nonce(self) -> bytes:
        return b"\xa5" + struct.pack(">IH", os.getpid(), next(self._nonces) & 0xFFFF) + b"\x5a"

    def first(self, packet: Packet) -> bytes:
        """The first packet of a new flow, from a port not used before."""
        port = 20000 + next(self._nonces) % 40000
        data = transport(packet, port, self.nonce())
        return ip(packet.source, packet.destination, packet.protocol, data)

    def decide(self, packet: Packet, start: str | None = None) -> bool:
        """Whether the first packet of a new flow is let through, by sending one."""
        return self.through(self.first(packet), start=start)

    def close(self) -> None:
        with suppress(subprocess.CalledProcessError):
            self._stack.close()


@contextmanager
def _on_one_cpu() -> Iterator[None]:
    """There, packets keep their order."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _drain(port: socket.socket) -> None:
    for _ in waiting(port):
        pass


def waiting(port: socket.socket) -> Iterator[bytes]:
    """The frames that have arrived."""
    with suppress(BlockingIOError):
        while True:
            yield port.recv(65536)


def _arp_request(source: bytes) -> bytes:
    ask = struct.pack(">HHBBH", 1, 0x800, 6, 4, 1) + source + bytes(4) + bytes(6) + socket.inet_aton(GATEWAY)
    return b"\xff" * 6 + source + b"\x08\x06" + ask


def _await_arp(port: socket.socket) -> None:
    deadline = time.monotonic() + 5
    while select.select([port], [], [], max(0.0, deadline - time.monotonic()))[0]:
        with suppress(BlockingIOError):
            frame = port.recv(65536)
            if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\x02":
                return
    raise TimeoutError("the node answers no ARP")


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f">{len(data) // 2}H", data[: len(data) & ~1])) + (data[-1] << 8 if len(data) & 1 else 0)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ip(source: Address, destination: Address, protocol: int, data: bytes, *, hop_limit: int = 64) -> bytes:
    """An IP packet with the transport's checksum filled in."""
    data = _summed(source, destination, protocol, data)
    if len(source) == 16:
        return struct.pack(">IHBB", 6 << 28, len(data), protocol, hop_limit) + source + destination + data
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(data), 0, 0, hop_limit, protocol, 0) + source + destination
    return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + data


def _summed(source: Address, destination: Address, protocol: int, data: bytes) -> bytes:
    place = {TCP: 16, UDP: 6, 1: 2, 58: 2}.get(protocol)
    if place is None:
        return data
    pseudo = b"" if protocol == 1 else source + destination + struct.pack(">II", len(data), protocol)
    return data[:place] + struct.pack(">H", checksum(pseudo + data)) + data[place + 2 :]


def transport(packet: Packet, port: int, payload: bytes) -> bytes:
    """A SYN, a datagram, an SCTP INIT, an echo request, or the payload alone."""
    if packet.protocol == TCP:
        return tcp(port, packet.port, SYN, payload)
    if packet.protocol == UDP:
        return udp(port, packet.port, payload)
    if packet.protocol == 132:
        head = struct.pack(">HHI", port, packet.port, 0)
        init = struct.pack(">BBHIIHHI", 1, 0, 28, 1, 65535, 1, 1, 1) + payload
        return head + struct.pack("<I", crc32c(head + bytes(4) + init)) + init
    if packet.protocol in (1, 58):
        return struct.pack(">BBHHH", 8 if packet.protocol == 1 else 128, 0, 0, port, 1) + payload
    return payload


def _remainder(octet: int) -> int:
    for _ in range(8):
        octet = octet >> 1 ^ (0x82F63B78 if octet & 1 else 0)
    return octet


_REMAINDERS = tuple(map(_remainder, range(256)))


def crc32c(data: bytes) -> int:
    value = 0xFFFFFFFF
    for octet in data:
        value = value >> 8 ^ _REMAINDERS[(value ^ octet) & 0xFF]
    return value ^ 0xFFFFFFFF


def tcp(source: int, destination: int, flags: int, payload: bytes = b"", *, seq: int = 1000, ack: int = 0) -> bytes:
    return struct.pack(">HHIIBBHHH", source, destination, seq, ack, 5 << 4, flags, 65535, 0, 0) + payload


def udp(source: int, destination: int, payload: bytes = b"") -> bytes:
    return struct.pack(">HHHH", source, destination, 8 + len(payload), 0) + payload


class Subject:
    """An NftEnforcer that runs inside a lab's node, and real packets to try it with: the pod's link is
    `lab.link()`, its addresses are POD and POD6; the other pod's `lab.link("vethb")`, OTHER and OTHER6."""

    def __init__(self, lab: Lab, enforcer: NftEnforcer, records: Records) -> None:
        self.lab = lab
        self.enforcer = enforcer
        self.acknowledged = records.acknowledged
        self.damage = records.damage
        self.denials = records.denials

    async def decide(self, packet: Packet) -> bool:
        """Whether a new flow is let through; it enters by the link that its source belongs to."""
        return self.lab.decide(packet, self.lab.other if packet.source in (OTHER, OTHER6) else None)

    def close(self) -> Awaitable[None]:
        return self.enforcer.close()


class Records:
    """What an enforcer has reported."""

    def __init__(self) -> None:
        self.acknowledged: list[tuple[int, dict[int, str]]] = []
        self.damage: list[str] = []
        self.denials: list[Denial] = []


LAYOUT = Layout(("veth*",), leases=4000, flows=1000, pods=100, log_rate=100)


async def start(lab: Lab, layout: Layout = LAYOUT, *, own: bool | None = None) -> Subject:
    records = Records()
    acknowledge: Callable[..., None] = lambda upto, refused: records.acknowledged.append((upto, dict(refused)))  # noqa: E731
    with inside(lab.node):
        enforcer = await NftEnforcer.create(layout, acknowledge, records.damage.append, records.denials.append, own=own)
    return Subject(lab, enforcer, records)
