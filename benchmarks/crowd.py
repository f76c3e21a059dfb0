"""Many pods at once, each asking from a link of its own, until every question is answered.

`python -m benchmarks.crowd PODS NAMES SECONDS [FIRST LAST SHARE]` runs in the namespace that holds the pods' ends of
all links and prints a JSON object. Every pod asks for every name; with FIRST and LAST these turns are taken, in each of
which another name is asked for, and by another pod than the last time. One in SHARE of them asks for a name that is
denied, and now and then a pod connects to what it was answered, and to what is closed. The ends have no addresses:
frames are made here and sent by one packet socket, which also sees the replies; nobody else looks at them.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Iterator
from itertools import islice

from benchmarks.flows import LASTS, Flows
from benchmarks.frames import DENIED, FIRST_POD, IP4, link_name, question

WINDOW = 1024
"""Questions under way at once."""
LOST_AFTER = 2.0
BURST = 300
"""Questions for denied names until another pod is the one that asks most of them."""
OWN = 100
"""Names of each pod that it is denied."""
_NXDOMAIN = 3


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


def mixed(pods: int, names: int, turn: range, share: int) -> Iterator[Asking]:
    """These turns of one in `share` for what is denied, the others as `turns` has them."""
    allowed = turns(pods, names, turn.start - turn.start // share, turn.stop - turn.stop // share)
    for each in turn:
        yield denied(pods, each // share) if each % share == share - 1 else next(allowed)


def denied(pods: int, number: int) -> Asking:
    """Each pod has OWN names that it is denied. By turns the next pod asks for the next of its own; the loudest pod,
    past its share of log lines, does; and the next pod asks for its first, which the kernel denies by itself soon."""
    third, turn = divmod(number, 3)
    pod = number // BURST % pods if turn == 1 else third % pods
    each = (third // pods, third, 0)[turn]
    return pod, DENIED + pod * OWN + each % OWN


class Crowd:
    """Asks in this order; what failed or was lost is asked again. One of so many answers leads to a connection and to a
    packet to what is closed, and a pod's first answer does; with 0 none."""

    def __init__(self, pods: int, left: Iterator[Asking], *, connecting: int = 0) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(IP4))
        self._socket.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
        self._socket.settimeout(0.05)
        self._ends = [_end(pod) for pod in range(pods)]
        self._left = left
        self._waiting: dict[Asking, tuple[int, float]] = {}
        """By pod and ID of the question, one under way: the number of its name, and when it was asked."""
        self._flows = Flows(lambda pod, frame: self._ends[pod].send(frame))
        self._connecting = connecting
        self._connected: set[int] = set()
        self._asked = 0
        self.answered = self.denied = self.failed = 0

    def run(self, seconds: float) -> dict[str, float]:
        begun = time.monotonic()
        while (now := time.monotonic()) - begun < seconds:
            self._ask_again(now)
            self._flows.end(now - LASTS)
            for pod, number in islice(self._left, WINDOW - len(self._waiting)):
                self._ask(pod, number, now)
            if not self._waiting:
                break
            self._take()
        took = time.monotonic() - begun
        self._end_flows()
        return {
            "answered": self.answered,
            "denied": self.denied,
            "failed": self.failed,
            "unanswered": len(self._waiting) + sum(1 for _ in self._left),
            "seconds": took,
            "begun": self._flows.begun,
            "stood": self._flows.stood,
            "closed": self._flows.closed,
        }

    def _end_flows(self) -> None:
        deadline = time.monotonic() + LASTS
        while self._flows.unanswered and time.monotonic() < deadline:
            self._take()
        self._flows.end(time.monotonic())

    def _ask(self, pod: int, number: int, now: float) -> None:
        self._asked = self._asked + 1 & 0xFFFF
        self._waiting[pod, self._asked] = number, now
        self._ends[pod].send(question(pod, number, self._asked))

    def _ask_again(self, now: float) -> None:
        while self._waiting:
            (pod, identity), (number, asked) = next(iter(self._waiting.items()))
            if now - asked < LOST_AFTER:
                return
            del self._waiting[pod, identity]
            self._ask(pod, number, now)

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
        if packet[23] == 6:
            self._flows.take(packet)
            return
        if packet[23] != 17 or packet[34:36] != b"\0\x35":
            return
        pair = int.from_bytes(packet[30:34]) - FIRST_POD, int.from_bytes(packet[42:44])
        if pair not in self._waiting:
            return
        number, _ = self._waiting[pair]
        if packet[45] & 15 != (_NXDOMAIN if number >= DENIED else 0):
            self.failed += 1  # it stays among those waiting, and is asked again
            return
        del self._waiting[pair]
        if number >= DENIED:
            self.denied += 1
            return
        self.answered += 1
        if self._connecting and (pair[0] not in self._connected or not self.answered % self._connecting):
            self._connect(pair[0], packet[-4:])

    def _connect(self, pod: int, answered: bytes) -> None:
        self._connected.add(pod)
        self._flows.begin(pod, answered, time.monotonic())
        self._flows.knock(pod)


def main(pods: int, names: int, seconds: int, *mix: int) -> dict[str, float]:
    if not mix:
        return Crowd(pods, everything(pods, names)).run(seconds)
    first, last, share, connecting = mix
    return Crowd(pods, mixed(pods, names, range(first, last), share), connecting=connecting).run(seconds)


if __name__ == "__main__":
    json.dump(main(*map(int, sys.argv[1:])), sys.stdout)
