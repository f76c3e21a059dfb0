"""Dropped packets as the kernel reports them: NFLOG messages as they happen, and counters when asked.

Needs the NFLOG group to itself. The kernel limits the messages of each pod link, and buffers up to twenty of them or
a tenth of a second; what is not reported is counted all the same. Payloads are the pods' own bytes: every reader here
takes any bytes.
"""

from __future__ import annotations

import asyncio
import errno
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from dnsguard.core.errors import KernelError
from dnsguard.core.model import WITH_PORTS, Address, LinkIndex
from dnsguard.enforce.denials import Denial, Dropped, OnDenial
from dnsguard.enforce.nftables import elements, netlink
from dnsguard.enforce.nftables.endings import LINK_REASONS
from dnsguard.enforce.nftables.session import Session

_ULOG = 4
_PACKET, _CONFIG = 0, 1
_BIND = 1
_COPY_PACKET = 2
_COPIED = 128
_READS = 32
_PREFIX = "dnsguard "
_EXTENSIONS = (0, 43, 60)
"""IPv6 headers that stand before the transport's: hop-by-hop, routing, destination options."""
_FRAGMENT = 44


class DenialReader:
    """Reads the group from its making until `close`. Raises KernelError when another process has the group."""

    def __init__(self, group: int, on_denial: OnDenial) -> None:
        self._on_denial = on_denial
        self.lost = 0
        """Times that the kernel had to throw messages away because this process was slow."""
        self._loop = asyncio.get_running_loop()
        self._socket = netlink.netfilter_socket()
        try:
            self._bind(group)
        except BaseException:
            self._socket.close()
            raise
        self._socket.setblocking(False)
        self._loop.add_reader(self._socket.fileno(), self._readable)

    def close(self) -> None:
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    def _bind(self, group: int) -> None:
        self._socket.bind((0, 0))
        self._socket.settimeout(5)
        self._configure(group, netlink.attribute(1, bytes([_BIND])))
        self._configure(group, netlink.attribute(2, struct.pack(">IBx", _COPIED, _COPY_PACKET)))
        self._configure(group, netlink.attribute(4, struct.pack(">I", 10)))  # hundredths of a second
        self._configure(group, netlink.attribute(5, struct.pack(">I", 20)))  # messages

    def _configure(self, group: int, body: bytes) -> None:
        kind = _ULOG << 8 | _CONFIG
        flags = netlink.REQUEST | netlink.ACK
        self._socket.send(netlink.message(kind, flags, 1, netlink.generic(0, group) + body))
        for message in netlink.messages(self._socket.recv(65536)):
            if message.kind != netlink.ERROR:
                continue
            number = netlink.error_number(message.payload)
            if number in (errno.EBUSY, errno.EPERM):
                raise KernelError(f"NFLOG group {group} belongs to another process: choose another nflogGroup")
            if number:
                raise KernelError(f"NFLOG group {group} was refused: {errno.errorcode.get(number, number)}")

    def _readable(self) -> None:
        for _ in range(_READS):
            try:
                data = self._socket.recv(65536)
            except BlockingIOError:
                return
            except OSError:  # ENOBUFS
                self.lost += 1
                continue
            for denial in denials(data):
                self._on_denial(denial)


def denials(data: bytes) -> Iterator[Denial]:
    """The denials in one datagram of NFLOG messages; what is none of ours or not readable is passed over."""
    for message in netlink.messages(data):
        if message.kind == _ULOG << 8 | _PACKET:
            found = netlink.attributes(message.payload, 4)
            denial = _denial(netlink.string(found.get(10, b"")), found.get(4, b""), found.get(9, b""))
            if denial:
                yield denial


def _denial(prefix: str, link: bytes, packet: bytes) -> Denial | None:
    addresses = read_addresses(packet)
    if addresses is None or not prefix.startswith(_PREFIX):
        return None
    pod, peer, protocol, port = addresses
    reason, rule = reason_of(prefix.removeprefix(_PREFIX))
    begins = not answers_only(packet)
    return Denial(LinkIndex(int.from_bytes(link, "big")), pod, peer, protocol, port, reason, rule, begins=begins)


def reason_of(why: str) -> tuple[str, int | None]:
    """The last word of a drop chain's name: a reason, or a rule's number."""
    # Python refuses to read more than 4,300 digits; a program has 64 rules.
    return ("rule", int(why)) if why.isascii() and why.isdigit() and len(why) < 10 else (why, None)


def read_addresses(packet: bytes) -> tuple[Address, Address, int, int] | None:
    """Source, destination, protocol and destination port of an IP packet, which may be cut short."""
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 20:
        protocol, start = _transport(packet)
        return Address(packet[12:16]), Address(packet[16:20]), protocol, _port(packet, protocol, start)
    if version == 6 and len(packet) >= 40:
        protocol, start = _transport(packet)
        return Address(packet[8:24]), Address(packet[24:40]), protocol, _port(packet, protocol, start)
    return None


def answers_only(packet: bytes) -> bool:
    """Whether this packet, of which the addresses can be read, begins no flow: a TCP reset, an ICMP error, an SCTP
    packet without an INIT."""
    protocol, start = _transport(packet)
    at, begins_nothing = _ANSWERS.get(protocol, (0, _never))
    return start + at < len(packet) and begins_nothing(packet[start + at])


def _never(octet: int) -> bool:
    return False


_ANSWERS: Final[Mapping[int, tuple[int, Callable[[int], bool]]]] = {
    1: (0, frozenset((3, 11, 12)).__contains__),
    6: (13, lambda flags: bool(flags & 4)),
    58: (0, frozenset((1, 2, 3, 4)).__contains__),
    132: (12, lambda chunk: chunk != 1),
}
"""By protocol: which octet of the header tells, and what of it."""


def _transport(packet: bytes) -> tuple[int, int]:
    """The protocol of the transport's header and where that starts."""
    return (packet[9], 4 * (packet[0] & 15)) if packet[0] >> 4 == 4 else _transport6(packet)


def _transport6(packet: bytes) -> tuple[int, int]:
    """The protocol behind IPv6's extension headers (RFC 8200, 4.1) and where its header starts."""
    protocol, start = packet[6], 40
    while protocol in (*_EXTENSIONS, _FRAGMENT) and start + 2 <= len(packet):
        length = 8 if protocol == _FRAGMENT else 8 * (packet[start + 1] + 1)
        protocol, start = packet[start], start + length
    return protocol, start


def _port(packet: bytes, protocol: int, start: int) -> int:
    if protocol not in WITH_PORTS or start + 4 > len(packet):
        return 0
    return int.from_bytes(packet[start + 2 : start + 4], "big")


def dropped(session: Session, names: Iterable[str]) -> list[Dropped]:
    """What the counting sets among these sets of the table have counted."""
    found = []
    for name in names:
        kind, _, rest = name.partition("_")
        if kind == "dropped" and rest in LINK_REASONS:
            found += [Dropped(rest, None, None, _link(key), n) for key, n in elements.counters(session, name)]
        elif kind == "denied":
            reason, rule = reason_of(rest[:-2])
            found += [Dropped(reason, rule, Address(key), None, n) for key, n in elements.counters(session, name)]
    return found


def _link(key: bytes) -> LinkIndex:
    return LinkIndex(int.from_bytes(key, sys.byteorder))
