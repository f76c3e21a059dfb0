"""The node's connection tracking: which flows a pod began, and forgetting them.

Needs CAP_NET_ADMIN, and is bound to the network namespace it was made in. All work is done in a thread of its own; a
dump of the whole table keeps in memory only the flows that were asked for. Raises KernelError when the kernel refuses.

The messages are read by hand: the source address has a fixed place in each, so an entry that nobody asked for costs
0.3 us and not the 100 us of a general decoder.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from dnsguard.core.errors import KernelError
from dnsguard.core.model import ICMP_REQUESTS, Address, Flow

T = TypeVar("T")

_NETFILTER = 12
_NEW, _GET, _DELETE = 0x100, 0x101, 0x102
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_ERROR, _DONE = 2, 3
_ORIG, _REPLY = 1, 2
_NESTED = 0x8000
_SOURCE = 32
"""Octets from the start of a message to the source address: its header 16, nfgenmsg 4, and the headers of
CTA_TUPLE_ORIG, CTA_TUPLE_IP and CTA_IP_V4_SRC or CTA_IP_V6_SRC, 4 each (ctnetlink_fill_info)."""
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_BURST = 256
_PATIENCE = 10
_LENGTHS = ({4}, {16})

Tuple = tuple[int, Address, int, Address, int]
"""Protocol, source and its port, destination and its port; of ICMP the identifier stands for the source port."""


class Conntrack:
    """Implements `engine.contracts.Flows`. ICMP flows have their identifier as `pod_port` and 0 as `peer_port`."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETFILTER)
        self._socket.bind((0, 0))
        self._socket.settimeout(_PATIENCE)
        self._sequence = 0
        self._thread = ThreadPoolExecutor(1, "dnsguard-conntrack")

    def begun_by(self, addresses: Collection[Address]) -> Awaitable[Sequence[Flow]]:
        wanted = frozenset(addresses)
        return self._in_thread(lambda: self._begun_by(wanted))

    def begun_towards(self, addresses: Collection[Address]) -> Awaitable[Sequence[Flow]]:
        """The open flows whose first packet came to one of `addresses`, each as its owner sees it."""
        wanted = frozenset(addresses)
        return self._in_thread(lambda: self._begun_towards(wanted))

    def delete(self, flows: Iterable[Flow]) -> Awaitable[None]:
        doomed = tuple(flows)
        return self._in_thread(lambda: self._delete(doomed))

    def forget(self, addresses: Collection[Address]) -> Awaitable[None]:
        doomed = frozenset(addresses)
        return self._in_thread(lambda: self._delete(self._involving(doomed)))

    async def close(self) -> None:
        """Finish what was asked for, then end the thread."""
        await self._in_thread(self._socket.close)
        self._thread.shutdown(wait=False)

    def _in_thread(self, call: Callable[[], T]) -> Awaitable[T]:
        return asyncio.get_running_loop().run_in_executor(self._thread, call)

    def _begun_by(self, wanted: frozenset[Address]) -> list[Flow]:
        return list(dict.fromkeys(flow for family in _families(wanted) for flow in self._dump(family, wanted)))

    def _begun_towards(self, wanted: frozenset[Address]) -> list[Flow]:
        return [
            flow
            for family in _families(wanted)
            for flow in self._entries(family, lambda entry: any(bytes(one) in entry for one in wanted), read_inbound)
            if flow.pod in wanted
        ]

    def _dump(self, family: int, wanted: frozenset[Address]) -> Iterator[Flow]:
        end = _SOURCE + (4 if family == socket.AF_INET else 16)
        return self._entries(family, lambda entry: entry[_SOURCE:end] in wanted)

    def _involving(self, wanted: frozenset[Address]) -> list[Flow]:
        """Every flow with one of these addresses at either end, before or after NAT."""
        return [
            flow
            for family in _families(wanted)
            for flow in self._entries(family, lambda entry: any(bytes(address) in entry for address in wanted))
            if not wanted.isdisjoint((flow.pod, flow.peer, flow.reply_peer))
        ]

    def _entries(
        self, family: int, chosen: Callable[[bytes], bool], read: Callable[[bytes], Iterator[Flow]] | None = None
    ) -> Iterator[Flow]:
        """The flows whose message, headers included, is `chosen`."""
        read = read or read_flow
        self._send(_GET, _DUMP, family, b"")
        while True:
            data = self._socket.recv(1 << 17)
            offset = 0
            while offset + 16 <= len(data):
                length, kind, _, sequence, _ = _HEADER.unpack_from(data, offset)
                if length < 16:
                    break
                if sequence == self._sequence and kind == _DONE:
                    return
                if sequence == self._sequence and kind == _ERROR:
                    raise _refusal("to list flows", data, offset)
                if kind == _NEW and chosen(data[offset : offset + length]):
                    yield from read(data[offset + 20 : offset + length])
                offset += length + 3 & ~3

    def _delete(self, flows: Sequence[Flow]) -> None:
        requests = [request for flow in flows for request in _tuples(flow)]
        for start in range(0, len(requests), _BURST):  # the answers to one burst fit into the socket's buffer
            burst = requests[start : start + _BURST]
            with self._at_once():
                try:
                    self._delete_together(burst)
                except OSError as error:
                    if error.errno not in (errno.ENOBUFS, errno.EAGAIN):
                        raise
                    self._drain()  # the kernel gives no more answers until it is empty
                    for request in burst:  # what was done is done; of some the answer was lost
                        self._delete_together([request])

    @contextlib.contextmanager
    def _at_once(self) -> Iterator[None]:
        """The kernel does what is asked within the sending: an answer is there afterwards, or never."""
        self._socket.setblocking(False)
        try:
            yield
        finally:
            self._socket.settimeout(_PATIENCE)

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.recv(4096)

    def _delete_together(self, burst: Sequence[tuple[int, bytes]]) -> None:
        first = self._sequence + 1
        for family, body in burst:
            self._send(_DELETE, _ACK, family, body)
        for _ in burst:
            self._acknowledged(first)

    def _send(self, kind: int, flags: int, family: int, body: bytes) -> None:
        self._sequence += 1
        head = _HEADER.pack(20 + len(body), kind, flags | _REQUEST, self._sequence, 0)
        self._socket.send(head + struct.pack("BBH", family, 0, 0) + body)

    def _acknowledged(self, first: int) -> None:
        while True:
            data = self._socket.recv(4096)
            _, kind, _, sequence, _ = _HEADER.unpack_from(data)
            if kind == _ERROR and sequence >= first:
                break
        number = -struct.unpack_from("=i", data, 16)[0]
        if number not in (0, errno.ENOENT):
            raise _refusal("to forget a flow", data, 0)


def read_flow(attributes: bytes) -> Iterator[Flow]:
    """The flow that a conntrack entry describes; nothing when the kernel left something out."""
    found = dict(_each(attributes))
    original, answer = _read_tuple(found.get(_ORIG, b"")), _read_tuple(found.get(_REPLY, b""))
    if original and answer and len(original[1]) == len(answer[1]):
        protocol, pod, pod_port, peer, peer_port = original
        yield Flow(protocol, pod, pod_port, peer, peer_port, answer[1], 0 if protocol in ICMP_REQUESTS else answer[2])


def read_inbound(attributes: bytes) -> Iterator[Flow]:
    """The same entry as the one sees it who answers: the pod, when its peer began the flow, behind all NAT."""
    answer = _read_tuple(dict(_each(attributes)).get(_REPLY, b""))
    if answer:
        protocol, pod, pod_port, peer, peer_port = answer
        yield Flow(protocol, pod, pod_port, peer, peer_port, peer, peer_port)


def _families(addresses: Iterable[Address]) -> list[int]:
    return sorted({socket.AF_INET if len(address) == 4 else socket.AF_INET6 for address in addresses})


def _read_tuple(data: bytes) -> Tuple | None:
    parts = dict(_each(data))
    address, protocol = dict(_each(parts.get(1, b""))), dict(_each(parts.get(2, b"")))
    source = address.get(1) or address.get(3)
    destination = address.get(2) or address.get(4)
    if source is None or destination is None or {len(source), len(destination)} not in _LENGTHS or not protocol.get(1):
        return None
    number = protocol[1][0]
    own = protocol.get({1: 4, 58: 7}.get(number, 2), bytes(2))
    return number, Address(source), int.from_bytes(own[:2], "big"), Address(destination), _port(protocol)


def _port(protocol: dict[int, bytes]) -> int:
    return int.from_bytes(protocol.get(3, bytes(2))[:2], "big")


def _tuples(flow: Flow) -> Iterator[tuple[int, bytes]]:
    """The family and the CTA_TUPLE_ORIG of the entry, or of the entries that it may be."""
    v4 = len(flow.pod) == 4
    source, destination = (1, 2) if v4 else (3, 4)
    addresses = _attribute(source, flow.pod) + _attribute(destination, flow.peer)
    for protocol in _protocols(flow):
        body = _attribute(1 | _NESTED, addresses) + _attribute(2 | _NESTED, protocol)
        yield socket.AF_INET if v4 else socket.AF_INET6, _attribute(_ORIG | _NESTED, body)


def _protocols(flow: Flow) -> Iterator[bytes]:
    number = _attribute(1, bytes([flow.protocol]))
    if flow.protocol not in ICMP_REQUESTS:
        ports = struct.pack(">HH", flow.pod_port, flow.peer_port)
        yield number + _attribute(2, ports[:2]) + _attribute(3, ports[2:])
        return
    identifier, kind, code = (4, 5, 6) if flow.protocol == 1 else (7, 8, 9)
    for request in ICMP_REQUESTS[flow.protocol]:
        packed = _attribute(identifier, struct.pack(">H", flow.pod_port)) + _attribute(kind, bytes([request]))
        yield number + packed + _attribute(code, b"\0")


def _attribute(kind: int, data: bytes) -> bytes:
    return _ATTRIBUTE.pack(4 + len(data), kind) + data + bytes(-len(data) & 3)


def _each(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4:
            return
        yield kind & 0x3FFF, data[offset + 4 : offset + length]
        offset += length + 3 & ~3


def _refusal(asked: str, data: bytes, offset: int) -> KernelError:
    number = -int.from_bytes(data[offset + 16 : offset + 20], sys.byteorder, signed=True)
    return KernelError(f"conntrack refused {asked}: {errno.errorcode.get(number, number)}")
