"""When a map is full: who is told what to raise, and how often it may be searched for what has ended."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable

from dnsguard.core.errors import KernelError
from dnsguard.core.model import Seconds

_AT_LEAST: Seconds = 1.0
_SHARE = 20
"""A search takes at most one part in so many of the writer's time."""


def refusal(what: str, error: OSError, key: str) -> KernelError:
    """What the kernel refused, and the configuration key to raise when it was for want of room."""
    if error.errno in (errno.E2BIG, errno.ENOSPC):
        return KernelError(f"no room for {what} in the kernel: raise {key}")
    return KernelError(f"the kernel refused {what}: {errno.errorcode.get(error.errno or 0, error)}")


class Search:
    """Makes room by `work`, which looks at every entry: some 1.3 us each. A pod that keeps a map full must not keep
    the writer at it."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._next = float("-inf")

    def make_room(self) -> bool:
        """False when that was done only just now."""
        begun = time.monotonic()
        if begun < self._next:
            return False
        self._work()
        ended = time.monotonic()
        self._next = ended + max(_AT_LEAST, _SHARE * (ended - begun))
        return True
