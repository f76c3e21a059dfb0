"""The load: as many questions as a window allows (saturation), or one at fixed moments (light load, latency).

`python -m benchmarks.load JSON` runs inside the pod's namespace and prints one JSON object. A generator of our own,
because the run must know which addresses were answered, and because percentiles are wanted: dnsperf 2.10 gives neither.
"""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import json
import select
import socket
import sys
import time
from collections.abc import Iterator

from benchmarks.batches import DONTWAIT, SIZE, SLOTS, Batch, datagram_socket
from benchmarks.names import DIGITS, Kind, addresses, query

SOCKETS = 16
"""Clients that ask at once, each from a port of its own."""
LOST_AFTER = 1.0
"""Seconds after which an unanswered question counts as lost (at the latest after twice that)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Order:
    """What to ask: `seconds` long, names number `first` to `first + distinct - 1` of `kind`, over and over."""

    server: str
    kind: Kind
    seconds: float
    first: int
    distinct: int
    window: int = 512
    """Questions under way at once (saturation)."""
    rate: int = 0
    """Questions a second (light load), open loop; 0 is saturation."""
    most: int = 1 << 60
    """Questions in all."""


@dataclasses.dataclass(slots=True)
class Outcome:
    """What came back. `addresses`: the distinct ones answered, in hex; latencies in microseconds (light load)."""

    asked: int = 0
    answered: int = 0
    lost: int = 0
    seconds: float = 0.0
    rcodes: dict[int, int] = dataclasses.field(default_factory=dict)
    addresses: list[str] = dataclasses.field(default_factory=list)
    latencies: list[float] = dataclasses.field(default_factory=list)


class Window:
    """One client's questions under way. IDs count up, so those of the last sweep but one are the lost ones."""

    def __init__(self, server: str) -> None:
        self.socket = datagram_socket(1 << 20)
        self.socket.connect((server, 53))
        self.descriptor = self.socket.fileno()
        self.next_id = 0
        self.waiting: set[bytes] = set()
        self.older: set[bytes] = set()

    def sweep(self) -> int:
        """Forget what has waited since before the previous sweep; how many those were."""
        lost = self.waiting & self.older
        self.waiting -= lost
        self.older = set(self.waiting)
        return len(lost)


class Saturation:
    """Keeps every window full until the time is over; each loop handles up to 64 datagrams of one socket."""

    def __init__(self, order: Order) -> None:
        self.order, self.outcome = order, Outcome()
        self.numbers: Iterator[int] = itertools.islice(
            itertools.cycle(range(order.first, order.first + order.distinct)), order.most
        )
        self.batch = Batch(peers=False)
        self.template = query(order.first, order.kind)
        self.places = places(order)
        self.seen = {a for _ in self.places for a in addresses(order.first, order.kind)}
        self.rcodes = [0] * 16

    def run(self) -> Outcome:
        windows = {w.descriptor: w for w in (Window(self.order.server) for _ in range(SOCKETS))}
        poll = select.epoll()
        for descriptor, window in windows.items():
            poll.register(descriptor, select.EPOLLIN)
            self.ask(window, self.order.window // SOCKETS)
        start = time.perf_counter()
        end, sweep_at = start + self.order.seconds, start + LOST_AFTER
        while (now := time.perf_counter()) < end and any(w.waiting for w in windows.values()):
            for descriptor, _ in poll.poll(0.1):
                window = windows[descriptor]
                self.ask(window, self.take(window))
            if now > sweep_at:
                sweep_at = now + LOST_AFTER
                for window in windows.values():
                    lost = window.sweep()
                    self.outcome.lost += lost
                    self.ask(window, lost)
        self.outcome.seconds = time.perf_counter() - start
        self.outcome.answered = sum(self.rcodes)
        self.outcome.rcodes = {rcode: n for rcode, n in enumerate(self.rcodes) if n}
        self.outcome.lost += self.drain(windows)
        self.outcome.addresses = sorted(a.hex() for a in self.seen)
        return self.outcome

    def drain(self, windows: dict[int, Window]) -> int:
        """Take what still comes, uncounted but for its addresses; how many questions stay without an answer."""
        counted, end = list(self.rcodes), time.perf_counter() + LOST_AFTER
        while time.perf_counter() < end and any(w.waiting for w in windows.values()):
            for window in windows.values():
                self.take(window)
        self.rcodes = counted
        return sum(len(w.waiting) for w in windows.values())

    def ask(self, window: Window, count: int) -> None:
        buffer, lengths, template = self.batch.buffer, self.batch.lengths, self.template
        waiting, size, identity = window.waiting, len(template), window.next_id
        first, last = DIGITS.start, DIGITS.stop
        while count > 0:
            slot = 0
            start = 0
            for number in itertools.islice(self.numbers, min(count, SLOTS)):
                identity = identity + 1 & 0xFFFF
                mark = identity.to_bytes(2, "big")
                waiting.add(mark)
                buffer[start : start + size] = template
                buffer[start : start + 2] = mark
                buffer[start + first : start + last] = b"%08d" % number
                lengths[slot] = size
                slot += 1
                start += SIZE
            window.next_id = identity
            self.outcome.asked += slot
            if not slot or not self.batch.send(window.descriptor, slot):
                return
            count -= slot

    def take(self, window: Window) -> int:
        """Read up to 64 answers; how many questions they settled."""
        count = self.batch.receive(window.descriptor, DONTWAIT)
        buffer, received, waiting, seen = self.batch.buffer, self.batch.received, window.waiting, self.seen
        rcodes, places = self.rcodes, self.places
        settled = 0
        for slot in range(count):
            start = slot * SIZE
            mark = bytes(buffer[start : start + 2])
            if mark not in waiting:
                continue
            waiting.discard(mark)
            settled += 1
            rcode = buffer[start + 3] & 15
            rcodes[rcode] += 1
            if not rcode:
                end = start + received[slot]
                for place in places:
                    seen.add(bytes(buffer[end - place : end - place + 4]))
        return settled


def light(order: Order) -> Outcome:
    """One question at each tick, whether or not the last one was answered; each wait ends when the answer is read.

    Not by the kernel's stamps of arrival: a reply that never left the node for the pod has that of its question.
    """
    ctypes.CDLL(None).prctl(29, 1, 0, 0, 0)  # PR_SET_TIMERSLACK: 1 ns instead of 50 us
    opened = datagram_socket()
    opened.connect((order.server, 53))
    sent: dict[bytes, float] = {}
    outcome = Outcome()
    start, ticks = time.perf_counter(), int(order.seconds * order.rate)
    for tick in range(ticks):
        _collect(opened, sent, outcome, start + tick / order.rate)
        mark = (tick & 0xFFFF).to_bytes(2, "big")
        packet = mark + query(order.first + tick % order.distinct, order.kind)[2:]
        sent[mark] = time.perf_counter()
        opened.send(packet)
    end = time.perf_counter() + LOST_AFTER
    while sent and time.perf_counter() < end:
        _collect(opened, sent, outcome, time.perf_counter() + 0.05)
    outcome.asked, outcome.lost, outcome.seconds = ticks, len(sent), time.perf_counter() - start
    return outcome


def _collect(opened: socket.socket, sent: dict[bytes, float], outcome: Outcome, until: float) -> None:
    """Read what there is and what comes until then."""
    while True:
        try:
            packet = opened.recv(SIZE, DONTWAIT)
        except BlockingIOError:
            if (left := until - time.perf_counter()) <= 0:
                return
            select.select([opened], [], [], left)
            continue
        read_at = time.perf_counter()
        asked_at = sent.pop(packet[:2], None)
        if asked_at is None:
            continue
        outcome.latencies.append((read_at - asked_at) * 1e6)
        outcome.answered += 1
        outcome.rcodes[packet[3] & 15] = outcome.rcodes.get(packet[3] & 15, 0) + 1


def closed_loop(order: Order) -> Outcome:
    """One question after the other, each asked when the last was answered: the wait that a client sees."""
    opened = datagram_socket()
    opened.connect((order.server, 53))
    opened.settimeout(LOST_AFTER)
    outcome, start = Outcome(), time.perf_counter()
    for tick in range(order.most):
        if time.perf_counter() - start > order.seconds:
            break
        packet = query(order.first + tick % order.distinct, order.kind)
        outcome.asked += 1
        asked_at = time.perf_counter_ns()
        opened.send(packet)
        try:
            reply = opened.recv(SIZE)
        except TimeoutError:
            outcome.lost += 1
            continue
        outcome.latencies.append((time.perf_counter_ns() - asked_at) / 1000)
        outcome.answered += 1
        outcome.rcodes[reply[3] & 15] = outcome.rcodes.get(reply[3] & 15, 0) + 1
    outcome.seconds = time.perf_counter() - start
    return outcome


def places(order: Order) -> tuple[int, ...]:
    """How far from a reply's end its addresses begin: the same in every reply, as names and records are of one size.

    Found by asking once. SystemExit says what was found where an address is missing.
    """
    if not order.kind.records:
        return ()
    opened = datagram_socket()
    opened.connect((order.server, 53))
    opened.settimeout(2 * LOST_AFTER)
    opened.send(query(order.first, order.kind))
    reply = opened.recv(SIZE)
    found = tuple(len(reply) - reply.rfind(address) for address in addresses(order.first, order.kind))
    if any(place > len(reply) for place in found):
        from dnslib import DNSRecord  # a third of a second that only this end needs

        sys.exit(f"{order.server} did not answer with the addresses of the name:\n{DNSRecord.parse(reply)}")
    return found


def main(text: str) -> None:
    given = json.loads(text)
    mode = given.pop("mode")
    order = Order(**given | {"kind": Kind(given["kind"])})
    outcome = {"saturate": lambda o: Saturation(o).run(), "light": light, "closed": closed_loop}[mode](order)
    json.dump(dataclasses.asdict(outcome), sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
