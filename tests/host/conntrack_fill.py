"""Fills the connection tracking of a network namespace: the limit is the machine's, but what is counted is not.

Entries are made by netlink, as `conntrack -I` makes them, but 200 in a datagram.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import socket
import struct
from pathlib import Path

from dnsguard.enforce.nftables import netlink

CTNETLINK = 1
NEW, DELETE = CTNETLINK << 8, CTNETLINK << 8 | 2
CREATE = netlink.REQUEST | 0x400
UDP = 17
STATUS = 2 | 4 | 8
"""Seen a reply, assured and confirmed: the kernel does not drop these to make room (linux/nf_conntrack_common.h)."""
SECONDS = 600
AT_ONCE = 200
SOMEBODY = bytes((198, 18, 255, 254))
"""Whose address is written over in each datagram."""
FOLDER = Path("/proc/sys/net/netfilter")


def count() -> int:
    return int((FOLDER / "nf_conntrack_count").read_text())


def limit() -> int:
    return int((FOLDER / "nf_conntrack_max").read_text())


def fill() -> None:
    """Make entries until there is room for none. They begin at addresses of nobody's (RFC 2544)."""
    many = b"".join(_new(port) for port in range(AT_ONCE))
    with _opened() as kernel:
        for number in itertools.count():
            kernel.send(many.replace(SOMEBODY, bytes((198, 19, number >> 8 & 0xFF, number & 0xFF))))
            _ignore_replies(kernel)
            if count() >= limit():
                break


def empty() -> None:
    """Forget every flow, fillers or not."""
    with _opened() as kernel:
        for family in (socket.AF_INET, socket.AF_INET6):
            kernel.send(netlink.message(DELETE, netlink.REQUEST, 0, netlink.generic(family)))


def _opened() -> socket.socket:
    opened = netlink.netfilter_socket()
    opened.bind((0, 0))
    opened.setblocking(False)
    return opened


def _new(port: int) -> bytes:
    pod, peer = (SOMEBODY, port), (bytes((192, 0, 2, 1)), 9)
    body = netlink.generic(socket.AF_INET) + _tuple(1, pod, peer) + _tuple(2, peer, pod)
    body += netlink.attribute(3, struct.pack(">I", STATUS)) + netlink.attribute(7, struct.pack(">I", SECONDS))
    return netlink.message(NEW, CREATE, 1, body)


def _tuple(kind: int, source: tuple[bytes, int], destination: tuple[bytes, int]) -> bytes:
    addresses = netlink.attribute(1, source[0]) + netlink.attribute(2, destination[0])
    ports = netlink.attribute(2, struct.pack(">H", source[1])) + netlink.attribute(3, struct.pack(">H", destination[1]))
    protocol = netlink.attribute(1, bytes([UDP])) + ports
    return netlink.nested(kind, netlink.nested(1, addresses) + netlink.nested(2, protocol))


def _ignore_replies(kernel: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            try:
                kernel.recv(65536)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
