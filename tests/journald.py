"""What journald does with what it is sent, for tests: an own socket in its place, and an own reader of its protocol."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

LARGEST = 1 << 20
SEALED = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def fields(entry: bytes) -> list[tuple[str, str]]:
    """An entry's fields in their order, as journald reads them. Raises ValueError when it would not take one whole."""
    found = []
    while entry:
        first, newline, rest = entry.partition(b"\n")
        if not newline:
            raise ValueError(f"a line without an end: {first[:80]!r}")
        if b"=" in first:
            key, _, value = first.partition(b"=")
            entry = rest
        else:
            key, length = first, int.from_bytes(rest[:8], "little")
            value, entry = rest[8 : 8 + length], rest[9 + length :]
            if rest[8 + length : 9 + length] != b"\n":
                raise ValueError(f"{key!r} does not end where it says")
        found.append((_key(key), value.decode("utf-8")))
    return found


def _key(key: bytes) -> str:
    """Others are dropped by journald, or are its own."""
    text = key.decode("ascii")
    if not 1 <= len(text) <= 64 or text.startswith("_") or text[0].isdigit() or not text.replace("_", "A").isalnum():
        raise ValueError(f"{key!r} is no name of a field")
    if text != text.upper():
        raise ValueError(f"{key!r} is not in capitals")
    return text


class Journald:
    """A socket that takes entries when the test says so."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listen()

    def listen(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(self.path))

    def go(self) -> None:
        """Nobody listens, and the path is gone."""
        self._socket.close()
        self.path.unlink(missing_ok=True)

    def entries(self) -> list[Mapping[str, str]]:
        """All that waits; of a field that is there several times the last."""
        return [dict(one) for one in self.raw()]

    def raw(self) -> list[list[tuple[str, str]]]:
        """All that waits, each entry's fields in their order."""
        return [fields(octets) for octets in self._received()]

    def _received(self) -> Iterator[bytes]:
        while True:
            try:
                octets, files, _, _ = socket.recv_fds(self._socket, LARGEST, 1)
            except BlockingIOError:
                return
            yield self._content(files[0]) if files else octets

    def _content(self, file: int) -> bytes:
        """journald reads a file only when nobody can change it meanwhile."""
        with open(file, "rb") as content:
            if fcntl.fcntl(file, fcntl.F_GET_SEALS) != SEALED:
                raise ValueError("the file is not sealed")
            return os.pread(content.fileno(), os.fstat(file).st_size, 0)
