"""Lines of log to a reader that may be slow, stopped or gone, without ever waiting for it.

What the reader does not take at once is kept, up to a bound, and written when it takes again; what does not fit is
counted, and the count is said in a line of its own as soon as there is room. Needs a channel: how one kind of reader
(a file descriptor here, journald in `journal`) is written to.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import stat
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from dnsguard.core.model import Seconds

MAX_WAITING: Final = 1 << 20
"""Octets kept while the reader takes nothing."""

LAST_WAIT_MS: Final = 500
"""How long `close` waits for a reader that has stopped reading."""

AT_ONCE: Final = 64
"""Lines of those that waited that are written at once: the loop has packets to answer in between."""


class LaterError(OSError):
    """Nothing can be written for so many seconds, and polling the descriptor would not tell when it can."""

    def __init__(self, seconds: Seconds) -> None:
        super().__init__(f"try again in {seconds:g} s")
        self.seconds = seconds


class UnsendableError(OSError):
    """This one line can never be written; others can."""


class Channel(Protocol):
    """A way to write without waiting."""

    @property
    def fd(self) -> int:
        """Polls writable when there is room; the same until `close`."""

    def write(self, data: bytes) -> int:
        """How many octets were taken, at least one. Raises BlockingIOError when none can be until `fd` is writable,
        LaterError, UnsendableError, or another OSError when nobody will read again."""

    def close(self) -> None:
        """Nothing is written after it."""


@dataclass(frozen=True, slots=True)
class Stream:
    """The channel to a file descriptor."""

    fd: int
    write: Callable[[bytes], int]
    close: Callable[[], None]


def open_stream(fd: int) -> Stream:
    """A channel to what `fd` refers to.

    `fd` itself is left as it is: O_NONBLOCK belongs to the open file that a shell or a pipeline shares with us.
    """
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):
        sock = socket.socket(fileno=os.dup(fd))
        return Stream(sock.fileno(), lambda data: sock.send(data, socket.MSG_DONTWAIT), sock.close)
    if stat.S_ISREG(mode):
        return Stream(fd, lambda data: os.write(fd, data), lambda: None)
    try:
        own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        # Another user's pipe or terminal, or no /proc.
        return Stream(fd, lambda data: _write_when_ready(fd, data), lambda: None)
    return Stream(own, lambda data: os.write(own, data), lambda: os.close(own))


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

    def __init__(self, channel: Channel, lost: Callable[[int], bytes], max_waiting: int = MAX_WAITING) -> None:
        self.dropped = 0
        """Lines dropped since the start."""
        self._channel = channel
        self._lost = lost
        self._max_waiting = max_waiting
        self._waiting: deque[bytes] = deque()
        self._octets = 0
        self._unsaid = 0
        self._later: Seconds = 0.0
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watched = False
        self._timer: asyncio.TimerHandle | None = None

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on `loop` continues what could not be written at once."""
        self._loop = loop
        with self._lock:
            self._watch_if_stuck()

    def detach(self) -> None:
        """The loop ends. What waits is written with later lines. Call it in the loop's thread."""
        self._unwatch()
        self._loop = None

    def write(self, line: bytes) -> None:
        """Write or keep one line, or count it as dropped. Never waits, never raises."""
        with self._lock:
            self._drain(AT_ONCE)
            if self._octets + len(line) > self._max_waiting or self._unsaid:
                self._drop()
            else:
                self._keep(line)
                self._drain(1)
            self._watch_if_stuck()

    def flush(self) -> None:
        """Write what waits, as far as that goes without waiting."""
        with self._lock:
            while self._waiting and self._drain(AT_ONCE):
                pass

    def close(self) -> None:
        """Write what still waits, giving a slow reader `LAST_WAIT_MS`; what is left then is lost."""
        self.detach()
        self.flush()
        while self._waiting and not self._later and _writable(self._channel.fd, LAST_WAIT_MS):
            self.flush()
        self._channel.close()

    def _keep(self, line: bytes) -> None:
        self._waiting.append(line)
        self._octets += len(line)

    def _drop(self) -> None:
        self.dropped += 1
        self._unsaid += 1

    def _drain(self, most: int) -> bool:
        """Write up to so many of the lines that wait; False when the reader takes no more."""
        self._later = 0.0
        try:
            for _ in range(most):
                if not self._waiting:
                    if not self._unsaid:
                        break
                    self._keep(self._lost(self._unsaid))
                    self._unsaid = 0
                self._write_first()
        except BlockingIOError:
            return False
        except LaterError as later:
            self._later = later.seconds
            return False
        except OSError:
            # The reader is gone for good: nobody will see these lines.
            self.dropped += len(self._waiting)
            self._unsaid = self._octets = 0
            self._waiting.clear()
        return True

    def _write_first(self) -> None:
        line = self._waiting[0]
        try:
            taken = self._channel.write(line)
        except UnsendableError:
            self._drop()
            taken = len(line)
        self._octets -= taken
        if taken < len(line):
            self._waiting[0] = line[taken:]
        else:
            self._waiting.popleft()

    def _watch_if_stuck(self) -> None:
        if (self._waiting or self._unsaid) and self._loop is not None and not self._watched:
            self._watched = True
            with contextlib.suppress(RuntimeError):  # the loop was closed under us
                self._loop.call_soon_threadsafe(self._watch)

    def _watch(self) -> None:
        if self._loop is None or not self._watched:
            return
        if self._later:
            self._timer = self._loop.call_later(self._later, self._resume)
        else:
            self._loop.add_writer(self._channel.fd, self._resume)

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        elif self._watched and self._loop is not None:
            self._loop.remove_writer(self._channel.fd)
        self._timer, self._watched = None, False

    def _resume(self) -> None:
        """There may be room again. What to wait for next, if anything, may have changed."""
        self._unwatch()
        with self._lock:
            self._drain(AT_ONCE)
            self._watch_if_stuck()
