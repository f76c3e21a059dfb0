"""What stands in the runtime directory while a daemon runs, put back when somebody removes it: lock and control socket.

Under systemd the directory is a mount of the unit's own, in a tree that is otherwise read-only: what a service cannot
put back there, its next process finds put back by systemd. So it ends then, and queries wait as in any restart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from dnsguard.control.api import ControlServer
from dnsguard.core.errors import DnsguardError
from dnsguard.core.model import Seconds
from dnsguard.daemon.lock import Lock
from dnsguard.engine.contracts import EventKind, Events

LOOK: Final[Seconds] = 1.0


class Runtime:
    """`end` is called when nothing but another start helps; None where nobody would start the daemon again."""

    def __init__(self, lock: Lock, control: ControlServer, events: Events, end: Callable[[], None] | None) -> None:
        self._lock = lock
        self._control = control
        self._events = events
        self._end = end
        self._path = str(lock.path.parent)
        self._told = False

    async def look(self) -> None:
        """Every LOOK."""
        standing = {"the lock": self._lock.stands(), "the control socket": self._control.stands()}
        missing = " and ".join(what for what, stands in standing.items() if not stands)
        try:
            await self._put_back()
        except (DnsguardError, OSError) as error:
            self._lost(missing, error)
            return
        self._told = False
        if missing:
            self._events.emit(EventKind.RUNTIME_RESTORED, what=missing, path=self._path)

    async def _put_back(self) -> None:
        if not self._lock.stands():
            self._lock.renew()
        if not self._control.stands():
            await self._control.renew()

    def _lost(self, missing: str, error: Exception) -> None:
        if self._told:
            return
        self._told = True
        cause = error if isinstance(error, OSError) else error.__cause__
        reason = cause.strerror if isinstance(cause, OSError) else str(error)
        self._events.emit(EventKind.RUNTIME_LOST, what=missing, path=self._path, reason=reason)
        if self._end is not None:
            self._end()
