"""Many pods at once, each asking from a link of its own, until every question is answered.

`python -m benchmarks.crowd PODS NAMES SECONDS [FIRST LAST]` runs in the namespace that holds the pods' ends of all
links and prints a JSON object. Every pod asks for every name; with FIRST and LAST these turns are taken, in each of
which another name is asked for, and by another pod than the last time. The ends have no addresses: frames are made here
and sent by one packet socket, which also sees the replies; nobody else looks at them.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import time
from collections.abc import Iterator
from itertools import islice

from benchmarks.names import Kind, query

WINDOW = 1024
"""Questions under way at once."""
LOST_AFTER = 2.0
NODE_MAC = bytes.fromhex("eeeeeeeeeeee")
FIRST_POD = 0x0A640000
RESOLVER = bytes((10, 99, 1, 1))
CLIENT_PORT = 30_000
_IP4 = 0x0800


def link_name(pod: int) -> str:
    """The pod's end."""
    return f"pod-{pod}"


def address(pod: int) -> bytes:
    """10.100.0.0 and on."""
    return (FIRST_POD + pod).to_bytes(4)


def mac(pod: int) -> bytes:
    return b"\x02\0" + pod.to_bytes(4)


def question(pod: int, number: int) -> bytes:
    """A frame that asks for the A of a name. Its UDP sum is 0: none."""
    message = (number & 0xFFFF).to_bytes(2) + query(number, Kind.ONE_A)[2:]
    udp = struct.pack("!4H", CLIENT_PORT, 53, 8 + len(message), 0)
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28 + len(message), 0, 0, 64, 17, 0, address(pod), RESOLVER)
    head = head[:10] + _sum(head) + head[12:]
    return NODE_MAC + mac(pod) + _IP4.to_bytes(2) + head + udp + message


def _sum(header: bytes) -> bytes:
    total: int = sum(struct.unpack("!10H", header))
    folded = (total & 0xFFFF) + (total >> 16)
    return (0xFFFF ^ ((folded & 0xFFFF) + (folded >> 16))).to_bytes(2)


def _end(pod: int) -> socket.socket:
    """A socket that sends by a pod's end, and receives nothing."""
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    opened.bind((link_name(pod), 0))
    return opened


Asking = tuple[int, int]
"""A pod and the number of a name."""


def everything(pods: int, names: int) -> Iterator[Asking]:
    """In the order of the names, so that ever another pod is asking."""
    return ((pod, number) for number in range(names) for pod in range(pods))


def turns(pods: int, names: int, first: int, last: int) -> Iterator[Asking]:
    """Round and round through the names; in each round another pod asks for a name."""
    return (((turn + turn // names) % pods, turn % names) for turn in range(first, last))


class Crowd:
    """Asks in this order; what failed or was lost is asked again."""

    def __init__(self, pods: int, left: Iterator[Asking]) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_IP4))
        self._socket.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
        self._socket.settimeout(0.05)
        self._ends = [_end(pod) for pod in range(pods)]
        self._left = left
        self._waiting: dict[Asking, float] = {}
        self.answered = self.failed = 0

    def run(self, seconds: float) -> dict[str, float]:
        begun = time.monotonic()
        while (now := time.monotonic()) - begun < seconds:
            self._ask_again(now)
            for pod, number in islice(self._left, WINDOW - len(self._waiting)):
                self._ask(pod, number, now)
            if not self._waiting:
                break
            self._take()
        unanswered = len(self._waiting) + sum(1 for _ in self._left)
        took = time.monotonic() - begun
        return {"answered": self.answered, "failed": self.failed, "unanswered": unanswered, "seconds": took}

    def _ask(self, pod: int, number: int, now: float) -> None:
        self._waiting[pod, number & 0xFFFF] = now
        self._ends[pod].send(question(pod, number))

    def _ask_again(self, now: float) -> None:
        while self._waiting:
            pair, asked = next(iter(self._waiting.items()))
            if now - asked < LOST_AFTER:
                return
            del self._waiting[pair]
            self._ask(*pair, now)

    def _take(self) -> None:
        """At least one reply, if any comes, and whatever else is there."""
        try:
            packet = self._socket.recv(2048)
            while True:
                self._settle(packet)
                packet = self._socket.recv(2048, socket.MSG_DONTWAIT)
        except (TimeoutError, BlockingIOError):
            return

    def _settle(self, packet: bytes) -> None:
        if packet[23] != 17 or packet[34:36] != b"\0\x35":
            return
        pair = int.from_bytes(packet[30:34]) - FIRST_POD, int.from_bytes(packet[42:44])
        if pair not in self._waiting:
            return
        if packet[45] & 15:  # it stays among those waiting, and is asked again
            self.failed += 1
            return
        del self._waiting[pair]
        self.answered += 1


if __name__ == "__main__":
    pods, names, seconds, *between = map(int, sys.argv[1:])
    asked = turns(pods, names, *between) if between else everything(pods, names)
    json.dump(Crowd(pods, asked).run(seconds), sys.stdout)
