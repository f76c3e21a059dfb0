"""Whether the node's connection tracking has room: when it has none, the kernel drops the first packet of every flow.

Queries are not tracked, so pods are answered as before; the daemon's own queries to upstreams are tracked, and wait
until there is room.
"""

from __future__ import annotations

from pathlib import Path

from dnsguard.engine.contracts import EventKind, Events

FOLDER = Path("/proc/sys/net/netfilter")
"""Of the network namespace of whoever reads it."""
FULL, ROOM = 0.98, 0.9
"""The kernel refuses at the limit alone, but frees a few entries each time that it does."""


class ConntrackRoom:
    """`look` every few seconds: it reads two small files."""

    def __init__(self, events: Events, folder: Path = FOLDER) -> None:
        self._events = events
        self._count, self._limit = folder / "nf_conntrack_count", folder / "nf_conntrack_max"
        self._full = False

    async def look(self) -> None:
        """Tell when it gets full, and when it has room again; each once."""
        try:
            count, limit = int(self._count.read_text()), int(self._limit.read_text())
        except (OSError, ValueError):  # no connection tracking yet
            return
        if not self._full and count >= FULL * limit:
            self._full = True
            self._events.emit(EventKind.CONNTRACK_FULL, count=count, limit=limit)
        elif self._full and count < ROOM * limit:
            self._full = False
            self._events.emit(EventKind.CONNTRACK_HAS_ROOM, count=count, limit=limit)
