"""The file of names as the daemon sees it: read at the start, begun when leases are restored, followed, closed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

from dnsguard.core.leases import Leases
from dnsguard.core.model import Seconds
from dnsguard.core.pods import PodTable
from dnsguard.engine.contracts import EventKind, Events
from dnsguard.names_file.content import FILE, DamagedError, Names, boot_id, read_names, set_aside
from dnsguard.names_file.record import Record
from dnsguard.names_file.store import Batch
from dnsguard.names_file.writer import NamesWriter

PATIENCE: Final[Seconds] = 5.0
"""What the thread gets at a stop to write what is left."""


class KeptNames:
    """One daemon's file of names. All methods are called in the event loop's thread; none waits for the file."""

    def __init__(self, runtime: Path, events: Events, now: Callable[[], Seconds]) -> None:
        self.path = runtime / FILE
        self._events = events
        self._now = now
        self._boot = boot_id()
        self._record: Record | None = None
        self._writer: NamesWriter | None = None
        self._held: list[Batch] | None = None
        """All of everything so far, until it is complete: it replaces what the file holds in one transaction."""

    async def read(self) -> Names:
        """What an earlier process of this boot wrote. A file that is no good is set aside and told of."""
        try:
            return await asyncio.to_thread(read_names, self.path, self._boot)
        except DamagedError as error:
            reason = str(error)
        try:
            self._told_damaged(reason, set_aside(self.path))
        except OSError as error:
            self._told_lost(f"{reason}, and it cannot be moved aside: {error}")
        return {}

    def begin(self, pods: PodTable, leases: Leases) -> None:
        """Follow the leases from now on. The file is made anew at once: names of pods that went are not kept."""
        loop = asyncio.get_running_loop()
        self._record = Record(pods, leases)
        self._writer = NamesWriter(self.path, self._boot, _InLoop(self, loop))
        self._writer.start()
        self.hand_over_everything()

    async def tick(self) -> None:
        """Hand over what changed; some twenty times a second."""
        self._hand_over_changes()

    def _hand_over_changes(self) -> None:
        if self._record is not None:
            self._put(self._record.changes(self._now()))

    def hand_over_everything(self) -> None:
        if self._record is not None:
            self._put(self._record.everything(self._now()))

    async def close(self) -> None:
        """Return when all is written."""
        if self._record is None or self._writer is None:
            return
        while self._record.pending:
            self._hand_over_changes()
        await asyncio.to_thread(self._writer.close, PATIENCE)
        self._record = self._writer = None

    def _put(self, batch: Batch) -> None:
        if self._record is None or self._writer is None:
            return
        if batch.anew:
            self._held = []
        if self._held is None:
            if batch:
                self._writer.put([batch])
            return
        self._held.append(batch)
        if self._record.complete:
            self._writer.put(self._held)
            self._held = None

    # ---- what is told

    def _told_damaged(self, reason: str, aside: Path) -> None:
        self._events.emit(EventKind.STATE_FILE_SET_ASIDE, path=str(self.path), reason=reason, aside=str(aside))

    def _told_lost(self, reason: str) -> None:
        self._events.emit(EventKind.STATE_FILE_UNWRITABLE, path=str(self.path), reason=reason)

    def _told_back(self) -> None:
        self._events.emit(EventKind.STATE_FILE_WRITTEN, path=str(self.path))


class _InLoop:
    """Brings what the writer's thread tells into the loop."""

    def __init__(self, kept: KeptNames, loop: asyncio.AbstractEventLoop) -> None:
        self._kept, self._loop = kept, loop

    def lost(self, reason: str) -> None:
        self._loop.call_soon_threadsafe(self._kept._told_lost, reason)

    def damaged(self, reason: str, aside: Path) -> None:
        self._loop.call_soon_threadsafe(self._kept._told_damaged, reason, aside)

    def wanted(self) -> None:
        self._loop.call_soon_threadsafe(self._kept.hand_over_everything)

    def back(self) -> None:
        self._loop.call_soon_threadsafe(self._kept._told_back)
