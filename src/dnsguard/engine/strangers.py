"""Queries and connections from sources that are no pod yet: the kernel's word about a new pod's route is on its way.

A few of each link are kept for a second. When the pod is known they are asked as if they had just come; those nobody
vouches for are dropped, counted and told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterator
from typing import Final, NamedTuple

from dnsguard.core.model import LinkIndex, Seconds
from dnsguard.engine.contracts import Client, EventKind, Events
from dnsguard.engine.counters import Counters

LINKS: Final = 1000
PER_LINK: Final = 10
WAIT: Final[Seconds] = 1.0


class Stranger(NamedTuple):
    """A packet, the source it came from as text, the way back, and when it came."""

    packet: bytes
    source: str
    client: Client
    since: Seconds


class Strangers:
    """What waits, by link."""

    def __init__(self, events: Events, counters: Counters) -> None:
        self._events = events
        self._counters = counters
        self._waiting: dict[LinkIndex, list[Stranger]] = {}
        self._connections: Counter[LinkIndex] = Counter()

    def __len__(self) -> int:
        """Links with anything that waits."""
        return len(self._waiting)

    def keep(self, link: LinkIndex, stranger: Stranger) -> None:
        waiting = self._waiting.get(link, [])
        if len(waiting) >= PER_LINK or (not waiting and len(self._waiting) >= LINKS):
            self._counters.dropped["unknown source"] += 1
            return
        self._waiting[link] = [*waiting, stranger]

    def admit(self, link: LinkIndex) -> Callable[[], None] | None:
        """Take a TCP connection: what gives it back, or None when the link has enough of them."""
        connections = self._connections
        if connections[link] >= PER_LINK or (link not in connections and len(connections) >= LINKS):
            self._counters.dropped["unknown source"] += 1
            return None
        connections[link] += 1

        def release() -> None:
            connections[link] -= 1
            if not connections[link]:
                del connections[link]

        return release

    def known(self, sources: Container[tuple[str, int]]) -> Iterator[tuple[LinkIndex, Stranger]]:
        """Take out those whose source is among these now."""
        before, self._waiting = self._waiting, {}
        for link, waiting in before.items():
            for stranger in waiting:
                if (stranger.source, link) in sources:
                    yield link, stranger
                else:
                    self._waiting.setdefault(link, []).append(stranger)

    def tick(self, now: Seconds) -> None:
        """Drop those that have waited long enough."""
        for link, waiting in list(self._waiting.items()):
            gone = [stranger for stranger in waiting if now - stranger.since >= WAIT]
            self._counters.dropped["unknown source"] += len(gone)
            for source in {stranger.source for stranger in gone}:
                self._events.emit(EventKind.QUERY_UNKNOWN_SOURCE, pod_ip=source, link=link)
            if len(gone) == len(waiting):
                del self._waiting[link]
            elif gone:
                self._waiting[link] = waiting[len(gone) :]
