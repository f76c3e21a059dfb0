"""What was seen, over a restart and a reboot: an SQLite file in `paths.state`, one row of JSON for each pod.

A file that cannot be used is moved aside and begun anew; one that cannot be written is tried again the next time.
Both are said in what a call returns; nothing here raises for the state of a disk. Calls block: they belong in a thread.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from dnsguard.core.errors import DnsguardError
from dnsguard.learning.book import PODS
from dnsguard.learning.rows import RowError, SeenRow, book_of

FILE: Final = "seen.sqlite"
VERSION: Final = 1
"""In the file's user_version: of what the rows are like."""
_APPLICATION: Final = 0x64677365
_BUSY: Final = 2.0

_SCHEMA: Final = f"""
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {VERSION};
CREATE TABLE IF NOT EXISTS seen (pod TEXT PRIMARY KEY, last INTEGER NOT NULL, row TEXT NOT NULL) WITHOUT ROWID;
"""


class StateError(DnsguardError):
    """The state file is not one that can be used."""


class SeenFile:
    """The file of one daemon. `read` comes first."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE

    def read(self) -> tuple[list[SeenRow], str]:
        """All rows, and what was wrong with the file, which is then moved aside; empty when nothing was."""
        if not self.path.exists():
            return [], ""
        try:
            return read_rows(self.path), ""
        except StateError as error:
            return [], f"{error}; {self._move_aside()}"

    def write(self, rows: Iterable[SeenRow]) -> str:
        """Keep these rows in place of those of the same pods. Returns what went wrong, empty when nothing did."""
        kept = ((row["pod"], row["last"], json.dumps(row, separators=(",", ":"))) for row in rows)
        try:
            self._write(kept)
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                return f"{self.path} cannot be written: {error}"
            return f"{self.path}: {error}; {self._move_aside()}"
        except OSError as error:
            return f"{self.path} cannot be written: {error.strerror}"
        return ""

    def _write(self, kept: Iterable[tuple[str, int, str]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
        self.path.touch(mode=0o640)
        with closing(sqlite3.connect(self.path, timeout=_BUSY)) as database, database:
            if not _number(database, "user_version"):
                database.executescript(_SCHEMA)
            database.executemany("INSERT OR REPLACE INTO seen VALUES (?, ?, ?)", kept)
            database.execute(
                "DELETE FROM seen WHERE pod NOT IN (SELECT pod FROM seen ORDER BY last DESC LIMIT ?)", (PODS,)
            )

    def _move_aside(self) -> str:
        aside = self.path.with_suffix(".unusable")
        try:
            self.path.replace(aside)
        except OSError as error:
            return f"it cannot be moved aside: {error.strerror}"
        for leftover in ("-journal", "-wal", "-shm"):
            with suppress(OSError):
                self.path.with_name(self.path.name + leftover).unlink()
        return f"it is now {aside.name}, and a new one is begun"


def read_rows(path: Path) -> list[SeenRow]:
    """The rows of a state file, in the order of the pods' names. Changes nothing. Raises StateError."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_BUSY)) as database:
            _check(path, database)
            texts = [text for (text,) in database.execute("SELECT row FROM seen ORDER BY pod")]
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise StateError(f"{path} cannot be read: {error}") from error
    return [_row(path, text) for text in texts]


def _check(path: Path, database: sqlite3.Connection) -> None:
    if _number(database, "application_id") != _APPLICATION:
        raise StateError(f"{path} is not a file of what dnsguard has seen")
    if (version := _number(database, "user_version")) != VERSION:
        raise StateError(f"{path} is of version {version}, this dnsguard writes {VERSION}")
    (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise StateError(f"{path} is damaged: {found}")


def _row(path: Path, text: str) -> SeenRow:
    try:
        row: SeenRow = json.loads(text)
        book_of(row, 0.0)
    except (ValueError, RowError) as error:
        raise StateError(f"{path} is damaged: {error}") from error
    return row


def _number(database: sqlite3.Connection, pragma: str) -> int:
    (value,) = database.execute(f"PRAGMA {pragma}").fetchone()
    return int(value)


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    """SQLITE_CORRUPT or SQLITE_NOTADB, not a full or locked disk."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
