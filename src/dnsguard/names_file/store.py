"""The file of names, open for writing: batches of changes, each list in few statements, all of them one transaction.

Python's sqlite3 lets go of the interpreter around every step of a statement, and beside a busy event loop gets it back
half a millisecond later: so many rows go into one statement, and a batch of thousands into dozens of steps.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Final

from dnsguard.core.model import Address, LinkIndex, Name, Seconds
from dnsguard.names_file.content import MOST_BYTES, SCHEMA

SIZES: Final = (256, 32, 4, 1)
"""Rows of one statement, so that few statements are ever compiled."""
PAGE: Final = 4096

PodRow = tuple[LinkIndex, bytes, str]
LeaseKey = tuple[LinkIndex, str, Address]
NameKey = tuple[LinkIndex, str, Address, Name]
NameRow = tuple[LinkIndex, str, Address, Name, Seconds]


@dataclass(slots=True)
class Batch:
    """Changes, to be made in the order of the fields. `anew`: nothing that was written before is true any longer."""

    anew: bool = False
    gone: list[tuple[LinkIndex]] = field(default_factory=list)
    pods: list[PodRow] = field(default_factory=list)
    over: list[LeaseKey] = field(default_factory=list)
    forgotten: list[NameKey] = field(default_factory=list)
    names: list[NameRow] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.anew or self.gone or self.pods or self.over or self.forgotten or self.names)


class NamesStore:
    """The open file. Every method raises sqlite3.Error or OSError when it cannot; it is closed by then, or should be.

    Used by one thread at a time.
    """

    def __init__(self, path: Path, boot: str) -> None:
        """Open the file, or make it."""
        self._path, self._boot = path, boot
        self._file = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0)
        try:
            self._prepare()
        except BaseException:
            self._file.close()
            raise

    def _prepare(self) -> None:
        # On tmpfs nothing outlives the machine anyway; a journal, for a process that is killed.
        for pragma in ("locking_mode = EXCLUSIVE", "journal_mode = TRUNCATE", "synchronous = OFF", "temp_store = 2"):
            self._file.execute(f"PRAGMA {pragma}").fetchall()
        self._file.execute(f"PRAGMA max_page_count = {MOST_BYTES // PAGE}").fetchall()
        if self._file.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
            self._file.executescript(f"BEGIN; {SCHEMA} COMMIT;")
            self._path.chmod(0o600)
        self._inode = self._path.stat().st_ino

    def reserve(self, octets: int) -> None:
        """Make sure that the file can grow to this."""
        with self._file:
            self._file.execute("BEGIN")
            self._file.execute("CREATE TABLE room (octets BLOB)")
            self._file.execute("INSERT INTO room VALUES (zeroblob(?))", (min(octets, MOST_BYTES // 2),))
            self._file.execute("DROP TABLE room")

    def apply(self, batches: Iterable[Batch]) -> None:
        """Write all of this, or nothing."""
        if self._path.stat().st_ino != self._inode:
            raise FileNotFoundError(f"{self._path} is another file now")
        with self._file:
            self._file.execute("BEGIN")
            for batch in batches:
                self._apply(batch)

    def _apply(self, batch: Batch) -> None:
        if batch.anew:
            for table in ("names", "pods", "boot"):
                self._file.execute(f"DELETE FROM {table}")
            self._file.execute("INSERT INTO boot VALUES (?)", (self._boot,))
        for table in ("names", "pods"):
            self._delete(table, ("link",), batch.gone)
        self._insert("pods", batch.pods)
        self._delete("names", ("link", "scope", "peer"), batch.over)
        self._delete("names", ("link", "scope", "peer", "name"), batch.forgotten)
        self._insert("names", batch.names)

    def _insert(self, table: str, rows: Sequence[tuple[object, ...]]) -> None:
        for part in _parts(rows):
            one = f"({', '.join('?' * len(part[0]))})"
            statement = f"INSERT OR REPLACE INTO {table} VALUES {', '.join([one] * len(part))}"
            self._file.execute(statement, tuple(chain.from_iterable(part)))

    def _delete(self, table: str, columns: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> None:
        # Each term is looked up by the key; (link, scope, peer) IN (VALUES ...) would walk through the whole table.
        one = f"({' AND '.join(f'{column} = ?' for column in columns)})"
        for part in _parts(rows):
            statement = f"DELETE FROM {table} WHERE {' OR '.join([one] * len(part))}"
            self._file.execute(statement, tuple(chain.from_iterable(part)))

    def close(self) -> None:
        self._file.close()


def _parts(rows: Sequence[tuple[object, ...]]) -> Iterator[Sequence[tuple[object, ...]]]:
    at = 0
    for size in SIZES:
        while len(rows) - at >= size:
            yield rows[at : at + size]
            at += size
