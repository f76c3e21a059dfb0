"""What pods may not do, tried every other millisecond, as a program of its own: a test's threads would keep it waiting.

`python tries.py JSON` runs until its standard input ends. It says `begun` when all has been tried once, and in the end
one JSON object: how many rounds, the longest pause between two, and replies that told something. Standard library only.

    links      [socket, source, [[peer, protocol, port], ...]]: packets that begin a flow, each from another port than
               the one before, through a packet socket on the pod's side of its link
    questions  [socket, name]: queries for that name, through a connected UDP socket; only the kernel and the daemon
               answer them, with NXDOMAIN, SERVFAIL or REFUSED and no record
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

EVERY: Final = 0.002
QUESTION_ONE_IN: Final = 2
"""Rounds. More questions would use up what a pod may ask for."""
QUESTIONS_EVERY: Final = EVERY * QUESTION_ONE_IN
FIRST_PORT, PORTS = 20_000, 32
"""Below those that connections of the pod itself have."""
GATEWAY: Final = b"\xee" * 6
PROTOCOLS: Final = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}
NOTHING: Final = (2, 3, 5)
"""SERVFAIL, NXDOMAIN, REFUSED."""


def checksum(data: bytes) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def transport(ports: tuple[int, int], protocol: int, pseudo: bytes) -> bytes:
    """A SYN, or a datagram of two octets."""
    if protocol == socket.IPPROTO_TCP:
        head, at = struct.pack("!HHIIBBHHH", *ports, 1, 0, 5 << 4, 2, 1024, 0, 0), 16
    else:
        head, at = struct.pack("!HHHH2s", *ports, 10, 0, b"no"), 6
    total = checksum(pseudo + struct.pack("!II", len(head), protocol) + head)
    return head[:at] + struct.pack("!H", total) + head[at + 2 :]


def frame(mac: bytes, source: str, peer: str, protocol: int, ports: tuple[int, int]) -> bytes:
    """As the pod would send it: Ethernet, IPv4 or IPv6, and what begins a flow."""
    family = socket.AF_INET6 if ":" in peer else socket.AF_INET
    ends = socket.inet_pton(family, source) + socket.inet_pton(family, peer)
    payload = transport(ports, protocol, ends)
    if family == socket.AF_INET6:
        head = struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64)
        return GATEWAY + mac + b"\x86\xdd" + head + ends + payload
    head = struct.pack("!BBHHHBB", 0x45, 0, 20 + len(payload), 0, 0x4000, 64, protocol)
    total = checksum(head + b"\0\0" + ends)
    return GATEWAY + mac + b"\x08\x00" + head + struct.pack("!H", total) + ends + payload


def question(name: str) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!6H", 1, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", 1, 1)


def packets(links: Sequence[Any]) -> list[tuple[socket.socket, list[bytes]]]:
    """For each way its socket, and a frame for each of PORTS rounds; then they come again."""
    found = []
    for number, source, ways in links:
        link = opened(number)
        mac = link.getsockname()[4]
        for peer, protocol, port in ways:
            each = [(FIRST_PORT + one, port) for one in range(PORTS)]
            found.append((link, [frame(mac, source, peer, PROTOCOLS[protocol], ports) for ports in each]))
    return found


def opened(number: int) -> socket.socket:
    found = socket.socket(fileno=number)
    found.setblocking(False)
    return found


def replies(asking: socket.socket) -> Iterator[bytes]:
    with contextlib.suppress(OSError):
        while True:
            yield asking.recv(4096)


def tells(reply: bytes) -> bool:
    """Whether there is more in it than a refusal."""
    return reply[3] & 15 not in NOTHING or reply[6:8] != b"\0\0"


def ended(seconds: float) -> bool:
    """Wait so long, or until standard input ends."""
    return bool(select.select([sys.stdin], [], [], max(0.0, seconds))[0])


def run(links: Sequence[Any], questions: Sequence[Any]) -> dict[str, Any]:
    sending = packets(links)
    asking = [(opened(number), question(name)) for number, name in questions]
    told: list[str] = []
    last, longest = time.monotonic(), 0.0
    for turn in itertools.count():
        for link, frames in sending:
            with contextlib.suppress(OSError):  # the link is down
                link.send(frames[turn % PORTS])
        for socket_, query in asking if turn % QUESTION_ONE_IN == 0 else ():
            told += [reply.hex() for reply in replies(socket_) if tells(reply)]
            with contextlib.suppress(OSError):  # an ICMP error about an earlier one
                socket_.send(query)
        if turn == 0:
            print("begun", flush=True)
        if ended(last + EVERY - time.monotonic()):
            return {"rounds": turn + 1, "longest_pause": round(longest, 4), "told": told}
        now = time.monotonic()
        last, longest = now, max(longest, now - last)
    raise AssertionError("counting does not end")


if __name__ == "__main__":
    with contextlib.suppress(OSError):  # where root may not, it waits for its turn like others
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    print(json.dumps(run(**json.loads(sys.argv[1]))))
