"""A pod's share of what all pods use: queries a second, queries in flight, names a minute, TCP connections.

Every method takes `now` and answers with the name of the limit that was hit, or None. A limit's name is the
configuration key, the metric label and the log field. Nothing here is shared between pods, so that one pod's
flood is another pod's nothing (I5).
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from dnsguard.core.model import Name, Seconds

QUERIES = "queriesPerSecond"
IN_FLIGHT = "inFlight"
NAMES = "uniqueNamesPerMinute"
CONNECTIONS = "tcpConnections"

FREE_OCTETS, OCTETS = 512, 128
"""An answer longer than this counts as one more query for every so many octets: reading it takes that much longer."""
FREE_LEASES = LEASES = 16
"""So do leases of one answer."""

_FEWEST = 64

REFUSED_BEFORE_DROPPING = 9
"""Queries refused for each one allowed before the rest is dropped: ten times the limit in all."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one pod may use. Rates per second or minute as named; the others are counts."""

    queries_per_second: int = 1000
    burst: int = 2000
    in_flight: int = 1000
    connections: int = 20
    names_per_minute: int = 3000


class _Names:
    """A set of names, by 32 bits of their hashes: some 10 octets each, of which a set takes 90. Two of a thousand names
    are taken for one in a minute of ten thousand, and no pod knows which."""

    __slots__ = ("_count", "_places")

    def __init__(self) -> None:
        self._count = 0
        self._places = array("I", bytes(4 * _FEWEST))
        """Each number at the first free place from its own on; 0 is a free one. At least a third are free."""

    def __len__(self) -> int:
        return self._count

    def add(self, name: Name, most: int) -> bool:
        """Whether it is among them from now on: it was, or there were fewer than `most`."""
        number = hash(name) & 0xFFFFFFFF or 1
        places = self._places
        last = len(places) - 1
        place = number & last
        while found := places[place]:
            if found == number:
                return True
            place = place + 1 & last
        if self._count >= most:
            return False
        places[place] = number
        self._count += 1
        if 3 * self._count > 2 * last:
            self._grow()
        return True

    def _grow(self) -> None:
        places = array("I", bytes(8 * len(self._places)))
        last = len(places) - 1
        for number in filter(None, self._places):
            place = number & last
            while places[place]:
                place = place + 1 & last
            places[place] = number
        self._places = places


class Share:
    """What one pod has used."""

    __slots__ = ("_limits", "_minute", "_names", "_refusals", "_tokens", "_updated", "connections", "in_flight")

    def __init__(self, limits: Limits, now: Seconds) -> None:
        self._limits = limits
        self._tokens = float(limits.burst)
        self._refusals = float(limits.burst * REFUSED_BEFORE_DROPPING)
        self._updated = now
        self._minute = now
        self._names = _Names()
        self.in_flight = 0
        self.connections = 0

    def credit(self, seconds: Seconds) -> None:
        """Queries may have come in for so long and not been read. At its rate it could have asked them all, and had
        them answered one after the other: they are read at once now, and not its fault. Good until `forget`."""
        self._tokens += seconds * self._limits.queries_per_second

    def query(self, now: Seconds) -> str | None:
        """Count one query against the rate (a token bucket) and the queries in flight."""
        limits = self._limits
        tokens = self._tokens + (now - self._updated) * limits.queries_per_second
        if tokens > limits.burst:
            tokens = max(self._tokens, limits.burst)  # more than a burst only on credit
        if tokens < 1.0:
            return QUERIES
        self._updated = now
        self._tokens = tokens - 1.0
        return IN_FLIGHT if self.in_flight >= limits.in_flight and tokens <= limits.burst else None

    def refusal(self, now: Seconds) -> bool:
        """After `query` said QUERIES: is a refusal still due, or is the pod past ten times its limit?"""
        limits = self._limits
        passed, self._updated = now - self._updated, now
        self._tokens = min(limits.burst, self._tokens + passed * limits.queries_per_second)  # no credit is left here
        most = limits.burst * REFUSED_BEFORE_DROPPING
        rate = limits.queries_per_second * REFUSED_BEFORE_DROPPING
        self._refusals = min(most, self._refusals + passed * rate)
        if self._refusals < 1.0:
            return False
        self._refusals -= 1.0
        return True

    def work(self, queries: int, now: Seconds) -> str | None:
        """Count work that one query turns out to be as so many more. Only begun on credit: after it the rate may be
        owed, and nothing more is done until it is paid."""
        if self._tokens + (now - self._updated) * self._limits.queries_per_second < 0.0:
            return QUERIES
        self._tokens -= queries
        return None

    def name(self, name: Name, now: Seconds) -> str | None:
        """Count a name that is about to leave the node; one already counted this minute is free."""
        if now - self._minute >= 60.0:
            self._minute = now
            self._names = _Names()
        return None if self._names.add(name, self._limits.names_per_minute) else NAMES

    def forget(self, now: Seconds) -> None:
        """Drop what is left of a credit, and the names of a minute that is over, for a pod may ask no more."""
        self._tokens = min(self._tokens, float(self._limits.burst))
        if now - self._minute >= 60.0 and len(self._names):
            self._names = _Names()

    def within_reason(self) -> bool:
        """Whether a pod over its queries in flight or its connections is not past ten times of them yet."""
        most = 1 + REFUSED_BEFORE_DROPPING
        return self.in_flight < most * self._limits.in_flight and self.connections < most * self._limits.connections

    def connection(self) -> str | None:
        """Take a TCP connection."""
        if self.connections >= self._limits.connections:
            return CONNECTIONS
        self.connections += 1
        return None

    def disconnection(self) -> None:
        """Give a TCP connection back."""
        self.connections -= 1
