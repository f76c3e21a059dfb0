"""Lines of log to a file descriptor that may be slow, stopped or gone, without ever waiting for it.

What the descriptor does not take at once is kept, up to a bound, and written when it flows again; what does not fit is
counted, and the count is said in a line of its own as soon as there is room.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

MAX_WAITING: Final = 1 << 20
"""Octets kept while the descriptor takes nothing."""

LAST_WAIT_MS: Final = 500
"""How long `close` waits for a reader that has stopped reading."""


@dataclass(frozen=True, slots=True)
class Channel:
    """A way to write without waiting. `write` returns how many octets were taken, and raises BlockingIOError when none
    can be, another OSError when nobody will read again. `fd` polls writable when there is room."""

    fd: int
    write: Callable[[bytes], int]
    close: Callable[[], None]


def open_channel(fd: int) -> Channel:
    """A channel to what `fd` refers to.

    `fd` itself is left as it is: O_NONBLOCK belongs to the open file that a shell or a pipeline shares with us.
    """
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):
        sock = socket.socket(fileno=os.dup(fd))
        return Channel(sock.fileno(), lambda data: sock.send(data, socket.MSG_DONTWAIT), sock.close)
    if stat.S_ISREG(mode):
        return Channel(fd, lambda data: os.write(fd, data), lambda: None)
    try:
        own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        # Another user's pipe or terminal, or no /proc.
        return Channel(fd, lambda data: _write_when_ready(fd, data), lambda: None)
    return Channel(own, lambda data: os.write(own, data), lambda: os.close(own))


def _write_when_ready(fd: int, data: bytes) -> int:
    """A pipe that polls writable has room for PIPE_BUF octets (pipe(7)), so a write of so many does not wait."""
    if not _writable(fd, 0):
        raise BlockingIOError
    return os.write(fd, data[: select.PIPE_BUF])


def _writable(fd: int, wait_ms: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(wait_ms))


class Outlet:
    """Whole lines out, from any thread. `lost(n)` renders the line that says that `n` lines were dropped."""

    def __init__(self, fd: int, lost: Callable[[int], bytes], max_waiting: int = MAX_WAITING) -> None:
        self.dropped = 0
        """Lines dropped since the start."""
        self._channel = open_channel(fd)
        self._lost = lost
        self._max_waiting = max_waiting
        self._waiting = bytearray()
        self._unsaid = 0
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watching = False

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on `loop` continues what could not be written at once."""
        self._loop = loop

    def detach(self) -> None:
        """The loop ends. What waits is written with later lines. Call it in the loop's thread."""
        if self._loop is not None and self._watching:
            self._loop.remove_writer(self._channel.fd)
        self._loop, self._watching = None, False

    def write(self, line: bytes) -> None:
        """Write or keep one line (with its newline), or count it as dropped. Never waits, never raises."""
        with self._lock:
            self._drain()
            if len(self._waiting) + len(line) > self._max_waiting or self._unsaid:
                self.dropped += 1
                self._unsaid += 1
            else:
                self._waiting += line
                self._drain()
            self._watch_if_stuck()

    def flush(self) -> None:
        """Write what waits, as far as that goes without waiting."""
        with self._lock:
            self._drain()
            stuck = bool(self._waiting)
        if not stuck and self._watching and self._loop is not None:
            self._loop.remove_writer(self._channel.fd)
            self._watching = False

    def close(self) -> None:
        """Write what still waits, giving a slow reader `LAST_WAIT_MS`; what is left then is lost."""
        self.detach()
        self.flush()
        while self._waiting and _writable(self._channel.fd, LAST_WAIT_MS):
            self.flush()
        self._channel.close()

    def _drain(self) -> None:
        try:
            while self._waiting or self._unsaid:
                if not self._waiting:
                    self._waiting += self._lost(self._unsaid)
                    self._unsaid = 0
                del self._waiting[: self._channel.write(bytes(self._waiting[:65536]))]
        except BlockingIOError:
            return
        except OSError:
            # The reader is gone for good: nobody will see these lines.
            self.dropped += self._waiting.count(b"\n")
            self._unsaid = 0
            self._waiting.clear()

    def _watch_if_stuck(self) -> None:
        if self._waiting and self._loop is not None and not self._watching:
            self._watching = True
            with contextlib.suppress(RuntimeError):  # the loop was closed under us
                self._loop.call_soon_threadsafe(self._watch)

    def _watch(self) -> None:
        if self._loop is not None and self._watching:
            self._loop.add_writer(self._channel.fd, self.flush)
