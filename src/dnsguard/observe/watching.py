"""Events for those who watch them live, each with a queue of its own.

Whoever watches gets events that the log leaves out, too: no level and no rate limit, only room for `QUEUE` events until
the next look, `EVERY` seconds later. What does not fit is counted, and told as a row of its own. So a flood costs the
daemon at most 4,000 events a second for each watcher, of about 15 us each, and one that reads slowly costs it less.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from datetime import UTC, datetime
from typing import Final

from dnsguard.core.errors import DnsguardError
from dnsguard.engine.contracts import EventKind
from dnsguard.observe.events import Event, EventLog, FieldValue, field_value

Row = Mapping[str, FieldValue]
NamesOf = Callable[[str], Collection[str]]
"""The names of the pods that a person means by a text: a name, an address or a link's name; none is no error."""

QUEUE: Final = 1000
EVERY: Final = 0.25
MOST: Final = 64
"""Watchers at once."""
STALLED: Final = 10.0
"""Seconds without being asked for rows after which the end of a watch is told: its reader did not read."""

PREFIXES: Final = {
    "query": ("query_", "answer_", "forwarding_"),
    "drop": ("flow_",),
    "lease": ("lease_", "leases_", "flows_"),
    "policy": ("policy_", "pod_", "mode_"),
}
"""Type of event -> how the names of its kinds begin."""
EVERYTHING: Final = frozenset(EventKind) - {EventKind.EVENTS_SUPPRESSED}
"""What is shown without a type. What the log left out is of the log only."""


class WatchError(DnsguardError):
    """What somebody wants to watch cannot be watched."""


def kinds_of(types: str) -> frozenset[EventKind]:
    """The kinds of events of these types, with commas between; all without any. Raises WatchError."""
    if not types:
        return EVERYTHING
    chosen = types.split(",")
    if unknown := [one for one in chosen if one not in PREFIXES]:
        raise WatchError(f"unknown type of event {unknown[0]!r}; known: {', '.join(PREFIXES)}")
    prefixes = tuple(prefix for one in chosen for prefix in PREFIXES[one])
    return frozenset(kind for kind in EventKind if kind.startswith(prefixes))


class Watcher:
    """The queue of one who watches `kinds`, of one pod or of all."""

    def __init__(self, kinds: frozenset[EventKind], pod: str = "", names_of: NamesOf = lambda text: ()) -> None:
        self.kinds = kinds
        self._pod = pod
        self._names_of = names_of
        self._names = {pod, *names_of(pod)}
        self._waiting: deque[tuple[float, Event]] = deque()
        self._lost = 0

    def wants(self, kind: EventKind, fields: Mapping[str, object]) -> bool:
        """Whether it is to be offered the event; one that finds no room is counted here."""
        if kind not in self.kinds or (self._pod and not self._is_pods(fields)):
            return False
        if len(self._waiting) >= QUEUE:
            self._lost += 1
            return False
        return True

    def offer(self, event: Event) -> None:
        self._waiting.append((time.time(), event))

    def take(self) -> list[Row]:
        """What came since the last time. Also looks again which pods are meant: they come and go."""
        rows = [_row(at, event) for at, event in self._waiting]
        self._waiting.clear()
        if self._lost:
            rows.append({"lost": self._lost})
            self._lost = 0
        self._names = {self._pod, *self._names_of(self._pod)}
        return rows

    @property
    def unseen(self) -> int:
        """Events that it wanted and that were not taken."""
        return self._lost + len(self._waiting)

    def _is_pods(self, fields: Mapping[str, object]) -> bool:
        if fields.get("pod") in self._names or fields.get("link") == self._pod:
            return True
        addresses = fields.get("pod_ip")
        return addresses is not None and self._pod in str(field_value("pod_ip", addresses)).split(", ")


class Watching:
    """Gives those who ask their rows of `log`."""

    def __init__(self, log: EventLog, names_of: NamesOf) -> None:
        self._log = log
        self._names_of = names_of

    async def rows(self, type: str = "", pod: str = "") -> AsyncIterator[list[Row]]:
        """Rows as they come, without an end; nothing when a look found none. Raises WatchError at once."""
        if len(self._log.watchers) >= MOST:
            raise WatchError(f"{MOST} watch already: end one of them first")
        return self._follow(Watcher(kinds_of(type), pod, self._names_of))

    async def _follow(self, watcher: Watcher) -> AsyncIterator[list[Row]]:
        self._log.watch(watcher)
        given = time.monotonic()
        try:
            while True:
                given = time.monotonic()
                yield watcher.take()
                await asyncio.sleep(EVERY)
        finally:
            self._log.unwatch(watcher)
            if time.monotonic() - given > STALLED:
                self._log.emit(EventKind.WATCHER_CUT_OFF, lost=watcher.unseen)


def _row(at: float, event: Event) -> Row:
    told = datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return {"time": told, "event": event.kind.value, "message": event.message, **event.fields}
