"""Which upstream is asked next: health, the way back in, and who does not speak EDNS.

In: outcomes, with the moment they happened. Out: an index into the configured upstreams. It sends nothing and keeps
no clock: `next_probe` says when it wants to be asked again.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from dnsguard.core.model import Seconds

FAILURES_TO_DOWN = 2
"""In a row: one lost packet is not an outage."""

USELESS_TO_TELL = 5
"""Answers in a row that were of no use, over at least USELESS_SECONDS: one name that fails is nobody's outage."""
USELESS_SECONDS: Seconds = 2.0

FIRST_PROBE: Seconds = 1.0
LONGEST_PROBE: Seconds = 4.0
"""A server that is back is in use within 5 s."""
EDNS_MEMORY: Seconds = 3600.0
"""After this an upstream that refused EDNS is tried with it again: it may have been repaired."""


@dataclass(slots=True)
class _Server:
    failures: int = 0
    failed_at: Seconds = float("-inf")
    down: bool = False
    told: bool = False
    """That it is down has been told, and nothing since."""
    doubts: int = 0
    """How often it went down since it last answered a query."""
    pause: Seconds = FIRST_PROBE
    probe_at: Seconds = float("inf")
    plain_until: Seconds = float("-inf")
    useless: int = 0
    useless_since: Seconds = 0.0
    useless_told: bool = False


class Servers:
    """The configured upstreams, by index."""

    __slots__ = ("_servers",)

    def __init__(self, count: int) -> None:
        self._servers = [_Server() for _ in range(count)]

    def choose(self, tried: Collection[int], now: Seconds) -> int | None:
        """The one to ask next, not in `tried`; None when all were tried.

        The first in configured order that is up; when all are down, the one whose last failure is longest ago.
        """
        if not tried and not self._servers[0].down:
            return 0
        left = [index for index in range(len(self._servers)) if index not in tried]
        for index in left:
            if not self._servers[index].down:
                return index
        return min(left, key=lambda index: self._servers[index].failed_at, default=None)

    def failed(self, index: int, now: Seconds) -> bool:
        """It gave no usable answer. True when this made it go down and that has not been told."""
        server = self._servers[index]
        server.failures += 1
        server.failed_at = now
        if server.down or server.failures < FAILURES_TO_DOWN:
            return False
        server.down = True
        server.pause = FIRST_PROBE
        server.probe_at = now + server.pause
        server.doubts += 1
        told, server.told = server.told, True
        return not told

    def answered(self, index: int, now: Seconds) -> bool:
        """It answered a query. True when it had been told to be down."""
        server = self._servers[index]
        _bring_back(server)
        server.doubts = 0
        told, server.told = server.told, False
        return told

    def probed(self, index: int) -> bool:
        """It answered a probe, and is asked again. True when that is to be told: of one that answers probes and no
        query only the first time."""
        server = self._servers[index]
        _bring_back(server)
        if server.doubts > 1:
            return False
        told, server.told = server.told, False
        return told

    def useless(self, index: int, now: Seconds) -> bool:
        """It answered with a refusal, a failure or what is no sound message. True, once, when it does nothing else."""
        server = self._servers[index]
        if not server.useless:
            server.useless_since = now
        server.useless += 1
        if server.useless_told or server.useless < USELESS_TO_TELL or now - server.useless_since < USELESS_SECONDS:
            return False
        server.useless_told = True
        return True

    def useful(self, index: int) -> bool:
        """Its answer was of use. True when `useless` had said that none was."""
        server = self._servers[index]
        told = server.useless_told
        server.useless, server.useless_told = 0, False
        return told

    def down(self, index: int) -> bool:
        return self._servers[index].down

    def due_probes(self, now: Seconds) -> list[int]:
        """The downed upstreams to probe now. Each is due again after twice the pause (at most LONGEST_PROBE) while
        silent."""
        due = [index for index, server in enumerate(self._servers) if server.probe_at <= now]
        for index in due:
            server = self._servers[index]
            server.pause = min(2 * server.pause, LONGEST_PROBE)
            server.probe_at = now + server.pause
        return due

    def next_probe(self) -> Seconds | None:
        """When `due_probes` will have something; None while all are up."""
        at = min((server.probe_at for server in self._servers), default=float("inf"))
        return None if at == float("inf") else at

    def edns_refused(self, index: int, now: Seconds) -> None:
        """It answered FORMERR, NOTIMP or BADVERS to a query with EDNS: ask it without for an hour (RFC 6891, 7)."""
        self._servers[index].plain_until = now + EDNS_MEMORY

    def speaks_edns(self, index: int, now: Seconds) -> bool:
        return now >= self._servers[index].plain_until


def _bring_back(server: _Server) -> None:
    server.failures = 0
    server.down = False
    server.probe_at = float("inf")
