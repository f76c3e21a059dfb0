"""What the programs tell: dropped packets as they happen, and how often something happened when asked.

The ring buffer holds one report for several packets of a kind, within a budget of each link; what a kind had no time
or budget to report waits in `drops`. `counts` misses nothing.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Final, Protocol

from dnsguard.core.model import Address, LinkIndex
from dnsguard.enforce.bpf import layout
from dnsguard.enforce.bpf.layout import What
from dnsguard.enforce.bpf.ring import Ring
from dnsguard.enforce.bpf.syscall import Map
from dnsguard.enforce.denials import Answered, Denial, Dropped, OnDenial

AT_ONCE: Final = 256
"""Reports read before the loop gets its turn: about 1 ms. What is left makes the ring readable again."""
QUIET_NS: Final = 3_000_000_000
"""A kind that goes on is told again after one second."""
REASONS: Final = {what: what.name.removeprefix("DROP_").lower() for what in What if what.name.startswith("DROP_")}


class Counts(Protocol):
    """The map `counts`, or a copy of what is in it."""

    def items(self) -> Iterator[tuple[bytes, bytes]]: ...


class DropReader:
    """Reads the ring buffer `reports` from its making until `close`, in the running loop."""

    def __init__(self, reports: Map, on_denial: OnDenial) -> None:
        self._on_denial = on_denial
        self._fd = reports.fd
        self._ring = Ring(reports.fd)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._readable)

    def close(self) -> None:
        """Before the map is closed."""
        self._loop.remove_reader(self._fd)
        self._ring.close()

    def _readable(self) -> None:
        for report in self._ring.read(AT_ONCE):
            self._on_denial(denial(report))


def denial(report: bytes) -> Denial:
    """One `struct report`."""
    packets, link, source, peer, protocol, port, what, rule = layout.REPORT.unpack(report)
    reason = REASONS[What(what)]
    return Denial(LinkIndex(link), _address(source), _address(peer), protocol, port, reason, _rule(rule), packets)


def left_over(drops: Map, now_ns: int) -> list[Denial]:
    """What was dropped of kinds that fell quiet before they were told again, or that no budget was left for. Whose
    packets they were and which rule it was is not known any more. About 1.5 us for each of the kinds."""
    left = {}
    for key, value in drops.items():
        packets, reported_ns = layout.DROP.unpack(value)
        # above 2^63: what two CPUs have told twice
        if 0 < packets < 1 << 63 and reported_ns + QUIET_NS <= now_ns:
            left[key] = packets
    drops.delete_many(left)
    return [_left(key, packets) for key, packets in left.items()]


def _left(key: bytes, packets: int) -> Denial:
    link, peer, protocol, port, what = layout.DROP_KEY.unpack(key)
    return Denial(LinkIndex(link), None, _address(peer), protocol, port, REASONS[What(what)], packets=packets)


def dropped(counts: Counts) -> list[Dropped]:
    """How many packets of each link were dropped, and why, since the map was made."""
    found = _counted(counts)
    return [Dropped(REASONS[what], rule, None, link, n) for link, what, rule, n in found if what in REASONS]


def answered(counts: Counts) -> list[Answered]:
    """What became of the questions of each link, since the map was made."""
    by_link: defaultdict[LinkIndex, Counter[What]] = defaultdict(Counter)
    for link, what, _, number in _counted(counts):
        if what not in REASONS:
            by_link[link][what] += number
    return [
        Answered(link, numbers[What.ANSWERED], numbers[What.ANSWERED_DENIED], numbers[What.ASKED])
        for link, numbers in by_link.items()
    ]


def _counted(counts: Counts) -> Iterator[tuple[LinkIndex, What, int | None, int]]:
    for key, value in counts.items():
        link, what, rule = layout.COUNT_KEY.unpack(key)
        (number,) = layout.U64.unpack(value)
        yield LinkIndex(link), What(what), _rule(rule), number


def _rule(number: int) -> int | None:
    return None if number == layout.NO_RULE else number


def _address(octets: bytes) -> Address | None:
    """None when the program could not read it."""
    return layout.address_of(octets) if any(octets[:4]) else None
