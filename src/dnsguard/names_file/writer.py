"""The thread that writes the file of names, and what becomes of a file that cannot be written.

Batches are collected for half a second and written in one transaction. When that fails the file is taken away: names
that are half known are worth less than none, and what it held is room for others. The thread then tries to make a new
one, and asks for everything once it can.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from dnsguard.core.model import Seconds
from dnsguard.names_file.content import BESIDE, set_aside
from dnsguard.names_file.store import Batch, NamesStore

INTERVAL: Final[Seconds] = 0.5
"""Between two transactions: what was told in the last one before a SIGKILL is restored with names unknown."""
AGAIN: Final[Seconds] = 2.0
"""Between two attempts to make a file that could not be written."""
LONGEST: Final[Seconds] = 60.0
"""The same, when each file that was made failed again."""
MOST_WAITING: Final = 200
"""Hand-overs that wait for the thread; beyond it they are thrown away, and everything is asked for again."""
HEADROOM: Final = 1 << 20
"""Octets that must be free beyond what the file had when it failed."""


class Told(Protocol):
    """What the thread says; called in it."""

    def lost(self, reason: str) -> None:
        """The file cannot be written."""

    def damaged(self, reason: str, aside: Path) -> None:
        """The file was no longer what had been written."""

    def wanted(self) -> None:
        """Hand over everything, the first batch `anew`, at once: the file is new."""

    def back(self) -> None:
        """After `lost`: everything is written."""


class NamesWriter:
    """See above. `put` and `close` are called by the owner, from one thread."""

    def __init__(self, path: Path, boot: str, told: Told) -> None:
        self._path, self._boot, self._told = path, boot, told
        self._waiting: deque[Sequence[Batch]] = deque()
        self._overflown = False
        self._stop = threading.Event()
        self._store: NamesStore | None = None
        self._begun = False
        """Everything is in the file."""
        self._failed = self._lost = False
        self._failed_at = -LONGEST
        self._pause = AGAIN
        self._size = 0
        self._thread = threading.Thread(target=self._run, name="names", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, batches: Sequence[Batch]) -> None:
        """These go into one transaction. Never waits."""
        if len(self._waiting) < MOST_WAITING:
            self._waiting.append(batches)
        else:
            self._overflown = True

    def close(self, patience: Seconds) -> None:
        """Write what waits, and end."""
        self._stop.set()
        self._thread.join(patience)

    # ---- in the thread

    def _run(self) -> None:
        while not self._stop.wait(self._pause if self._failed and self._store is None else INTERVAL):
            self._turn()
        if self._store is not None or not self._failed:
            self._turn()
        if self._store is not None:
            self._store.close()

    def _turn(self) -> None:
        try:
            if self._store is None:
                self._store = self._opened()
            self._write(self._store)
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)

    def _opened(self) -> NamesStore:
        store = NamesStore(self._path, self._boot)
        if self._failed:
            try:
                store.reserve(self._size + HEADROOM)
            except BaseException:
                store.close()
                raise
            self._told.wanted()
        return store

    def _write(self, store: NamesStore) -> None:
        if self._overflown:
            self._waiting.clear()
            self._overflown = self._begun = False
            self._told.wanted()
        batches = [batch for _ in range(len(self._waiting)) for batch in self._waiting.popleft()]
        if not self._begun:
            batches = _from_anew(batches)
        if not batches:
            return
        store.apply(batches)
        self._begun = True
        self._size = max(self._size, self._path.stat().st_size)
        self._failed = False
        if self._lost:
            self._lost = False
            self._told.back()

    def _give_up(self, error: Exception) -> None:
        """The file is no good: out of the way with it."""
        if self._store is not None:
            self._store.close()
            self._store = None
            self._slow_down()
        self._failed, self._begun, self._overflown = True, False, False
        self._waiting.clear()
        if _is_damage(error) and self._set_aside(str(error)):
            return
        for suffix in ("", *BESIDE):
            with contextlib.suppress(OSError):
                self._path.with_name(self._path.name + suffix).unlink()
        if not self._lost:
            self._lost = True
            self._told.lost(str(error))

    def _slow_down(self) -> None:
        now = time.monotonic()
        self._pause = min(2 * self._pause, LONGEST) if now - self._failed_at < 2 * LONGEST else AGAIN
        self._failed_at = now

    def _set_aside(self, reason: str) -> bool:
        try:
            aside = set_aside(self._path)
        except OSError:
            return False
        self._told.damaged(reason, aside)
        return True


def _from_anew(batches: list[Batch]) -> list[Batch]:
    first = next((at for at, batch in enumerate(batches) if batch.anew), len(batches))
    return batches[first:]


def _is_damage(error: Exception) -> bool:
    return isinstance(error, sqlite3.DatabaseError) and error.sqlite_errorcode in (
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
    )
