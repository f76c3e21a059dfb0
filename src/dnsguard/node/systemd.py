"""What is said to systemd, and what it keeps for us: sd_notify(3), the sockets it listens on, the descriptor store.

Needs nothing but the environment that systemd gives its services; without it nothing is said and nothing was kept.
Nothing here raises for what systemd does or does not do, and nothing waits for it but `settled`.
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Final

from dnsguard.core.model import Seconds

FIRST_DESCRIPTOR: Final = 3
"""SD_LISTEN_FDS_START."""


@dataclass(frozen=True, slots=True)
class Inherited:
    """A descriptor that this process was started with, and the name it was given."""

    name: str
    descriptor: int


class Systemd:
    """One service's line to its service manager. `from_environment` takes what only this process may use."""

    def __init__(self, address: str = "", watchdog: Seconds = 0.0, inherited: Sequence[Inherited] = ()) -> None:
        """`watchdog` is how long it waits for a sign of life, 0 for ever."""
        self.watchdog = watchdog
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._inherited = list(inherited)
        self._status = ""

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> Systemd:
        """The variables are taken out, so that no child of ours believes that they are meant for it."""
        taken = {name: environment.pop(name, "") for name in _VARIABLES}
        return cls(taken["NOTIFY_SOCKET"], _watchdog(taken), list(_inherited(taken)))

    @property
    def there(self) -> bool:
        """Whether anybody listens."""
        return bool(self._address)

    # -- what it keeps for us

    def take(self, name: str) -> list[socket.socket]:
        """The sockets of that name that this process was started with; they are the caller's from here on."""
        taken = [one for one in self._inherited if one.name == name]
        self._inherited = [one for one in self._inherited if one.name != name]
        return [socket.socket(fileno=one.descriptor) for one in taken if _is_socket(one.descriptor)]

    def keep(self, name: str, sockets: Sequence[socket.socket]) -> None:
        """Let the next process have these, however this one ends (not after a stop)."""
        for one in sockets:
            # Without FDPOLL=0 a socket with an error to report would be thrown out of the store.
            self._send(("FDSTORE=1", f"FDNAME={name}", "FDPOLL=0"), [one.fileno()])

    def forget(self, name: str) -> None:
        """Let go of everything of that name in the store."""
        self._send(("FDSTOREREMOVE=1", f"FDNAME={name}"))

    # -- what it is told

    def ready(self) -> None:
        self._send(("READY=1",))

    def stopping(self) -> None:
        self._send(("STOPPING=1",))

    def alive(self) -> None:
        self._send(("WATCHDOG=1",))

    def extend(self, seconds: Seconds) -> None:
        """Starting, or stopping, takes longer: this much from now on."""
        self._send((f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}",))

    def status(self, text: str) -> None:
        """What `systemctl status` shows. Only the first line counts for it, so lines become one."""
        line = " | ".join(filter(None, map(str.strip, text.splitlines())))[:_STATUS_LENGTH]
        if line != self._status:
            self._status = line
            self._send((f"STATUS={line}",))

    def settled(self, patience: Seconds = 2.0) -> bool:
        """Wait until all that was said before has been dealt with (sd_notify_barrier(3)); False when it was not."""
        mine, theirs = os.pipe2(os.O_CLOEXEC)
        try:
            sent = self._send(("BARRIER=1",), [theirs])
        finally:
            os.close(theirs)
        try:
            return sent and _hung_up(mine, patience)
        finally:
            os.close(mine)

    def _send(self, lines: Sequence[str], descriptors: Sequence[int] = ()) -> bool:
        if not self._address:
            return False
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
            # A full queue: a lost sign of life is followed by the next, and the loop must not wait.
            line.sendmsg(["\n".join(lines).encode()], ancillary, socket.MSG_DONTWAIT, self._address)
            return True
        return False


_VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
_STATUS_LENGTH: Final = 1000


def _watchdog(taken: MutableMapping[str, str]) -> Seconds:
    """WATCHDOG_PID, when it is there, names whose signs of life are awaited."""
    mine = taken["WATCHDOG_PID"] in ("", str(os.getpid()))
    return int(taken["WATCHDOG_USEC"]) / 1e6 if mine and taken["WATCHDOG_USEC"].isdecimal() else 0.0


def _inherited(taken: MutableMapping[str, str]) -> Iterator[Inherited]:
    if taken["LISTEN_PID"] != str(os.getpid()) or not taken["LISTEN_FDS"].isdecimal():
        return
    names = taken["LISTEN_FDNAMES"].split(":")
    for index in range(int(taken["LISTEN_FDS"])):
        descriptor = FIRST_DESCRIPTOR + index
        os.set_inheritable(descriptor, False)
        yield Inherited(names[index] if index < len(names) else "", descriptor)


def _is_socket(descriptor: int) -> bool:
    try:
        with socket.socket(fileno=os.dup(descriptor)):
            return True
    except OSError:
        return False


def _hung_up(pipe: int, patience: Seconds) -> bool:
    poll = select.poll()
    poll.register(pipe, 0)
    return bool(poll.poll(patience * 1000))
