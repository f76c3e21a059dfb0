"""What the daemon asks of its own process: how the interpreter runs, and how many descriptors it may have."""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import gc
import os
import resource
import sys
from typing import Final

from dnsguard.engine.contracts import EventKind, Events

RESERVED: Final = 4096
"""File descriptors at most, and a quarter of all, that connections of pods do not get: upstreams, a reload, the control
socket and scrapes need some."""


def tune_interpreter() -> None:
    """The engine makes no reference cycles, and long-lived objects by the hundred thousand: look for cycles seldom, so
    that no collection walks the leases again and again. Threads wait for the loop 0.5 ms at most, not 5."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    sys.setswitchinterval(0.0005)


def tell_stacks_on_abort() -> None:
    """On SIGABRT, which a watchdog sends, say on standard error what every thread was at."""
    faulthandler.enable(all_threads=True)


def return_memory() -> None:
    """Give back to the kernel what was freed in the middle of the heap (malloc_trim, of glibc alone): 8 MB after a
    start. Nothing else can allocate meanwhile, for up to 3 ms a megabyte: not for when queries are answered."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def raise_descriptors() -> None:
    """As many as this process may have: 50 pods with 20 DNS connections each would use up the usual 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class Descriptors:
    """Tells once when file descriptors run short, and once when they do no longer.

    The kernel gives the lowest number that is free, so a high number means that few are left.
    """

    def __init__(self, events: Events) -> None:
        self._events = events
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.limit = limit
        self.for_connections = limit - min(limit // 4, RESERVED)
        """Connections of pods may have descriptors below this number."""
        self._crowded = 0
        self._short = False

    def crowded(self) -> None:
        """A connection was turned away for its descriptor's number."""
        self._crowded += 1

    async def look(self) -> None:
        """Once a second or so."""
        crowded, self._crowded = self._crowded, 0
        none = not _one_is_left()
        if (none or crowded) and not self._short:
            self._events.emit(EventKind.DESCRIPTORS_SHORT, reason=self._why(none=none))
        elif self._short and not none and not crowded:
            self._events.emit(EventKind.DESCRIPTORS_FREE)
        self._short = none or crowded > 0

    def _why(self, *, none: bool) -> str:
        if none:
            return f"all {self.limit} that this process may have are in use"
        return f"TCP connections of pods use {self.for_connections} of {self.limit}, and get no more"


def _one_is_left() -> bool:
    try:
        os.close(os.dup(0))
    except OSError as error:
        return error.errno not in (errno.EMFILE, errno.ENFILE)
    return True
