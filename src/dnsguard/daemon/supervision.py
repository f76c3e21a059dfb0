"""What the daemon and systemd owe each other: signs of life, a status to read, and what is kept for the next process.

Kept are the sockets that queries wait in, and the netlink port that owns the table: as long as somebody holds that,
nobody else can change the table, also while no daemon runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Final

from dnsguard.core.errors import DnsguardError, KernelError
from dnsguard.core.model import Seconds
from dnsguard.daemon.backoff import Starts
from dnsguard.enforce.writer import BusySince
from dnsguard.engine.contracts import EventKind, Events
from dnsguard.listen.transparent import ListenSockets, open_sockets
from dnsguard.node.systemd import Systemd

OFFERED: Final = "dns"
"""What the sockets of dnsguard.socket are called (FileDescriptorName=)."""
LISTENING: Final = "listening"
"""What sockets that we opened ourselves are called in the store."""
OWNER: Final = "table"
"""What the netlink port that owns the table is called in the store."""
EXTENSION: Final[Seconds] = 30.0
"""What a start asks for again and again, for as long as it gets on."""
LOOK: Final[Seconds] = 5.0
"""Between two signs of life at most, and between two looks at what the status should say."""
STUCK: Final[Seconds] = 10.0
"""One piece of the writer's work takes milliseconds, a policy of 100,000 prefixes some seconds."""


class Supervision:
    """Belongs to the event loop, but for `release_table`, which is for the writer's thread."""

    def __init__(
        self, systemd: Systemd, starts: Starts | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._systemd = systemd
        self._starts = starts or Starts(None)
        self._clock = clock
        self.rejected = ""
        """What was wrong with the last reload; empty when nothing was."""
        self.interval: Seconds = min(LOOK, systemd.watchdog / 4) if systemd.watchdog else LOOK
        self._patience: Seconds = systemd.watchdog / 2 or STUCK
        self._busy_since: BusySince = lambda: None

    @property
    def restarted(self) -> bool:
        """Whether somebody starts this process again when it ends."""
        return self._systemd.there

    def ended(self) -> str:
        """How the process before was ended; empty when it ended by itself."""
        return self._starts.ended()

    # -- what outlives a process

    def listen(self, port: int, reply_mark: int, events: Events) -> ListenSockets:
        """The sockets for queries: systemd's, those that the process before opened, or new ones; ours are kept."""
        offered = self._systemd.take(OFFERED)
        kept = list(_still_wanted(self._systemd.take(LISTENING), port))
        sockets = open_sockets(port, reply_mark, [*offered, *kept])
        for why in sockets.unfit:
            events.emit(EventKind.SOCKET_NOT_USED, reason=why)
        self._systemd.forget(LISTENING)
        self._systemd.keep(LISTENING, [one for one in (*sockets.udp, *sockets.tcp) if one not in offered])
        return sockets

    def release_table(self) -> None:
        """Let go of the port by which the process before owned the table, right before ours takes it over.

        Raises KernelError when systemd goes on holding it.
        """
        if held := self._systemd.take(OWNER):
            for one in held:
                one.close()
            self._systemd.forget(OWNER)
            if not self._systemd.settled():
                raise KernelError("systemd does not let go of the netlink port that owns the table: start again")

    def hold_table(self, owner: socket.socket) -> None:
        self._systemd.keep(OWNER, [owner])

    # -- whether it gets on

    def watch(self, busy_since: BusySince) -> None:
        """From here on no sign of life is given, nor more time asked for, while the writer's thread does not get on."""
        self._busy_since = busy_since

    def _gets_on(self) -> bool:
        """Whether the writer has been at one piece of work for less than half of what systemd waits. That the loop
        turns is shown by its asking."""
        since = self._busy_since()
        return since is None or self._clock() - since < self._patience

    # -- what systemd is told

    @contextlib.asynccontextmanager
    async def starting(self) -> AsyncIterator[None]:
        """Inside, systemd waits for as long as the loop turns and the writer gets on: an allowlist may be large."""
        extending = asyncio.create_task(self._extend())
        try:
            yield
        finally:
            extending.cancel()
            await asyncio.gather(extending, return_exceptions=True)

    async def _extend(self) -> None:
        while True:
            if self._gets_on():
                self._systemd.extend(EXTENSION)
            await asyncio.sleep(LOOK)

    def ready(self, status: str) -> None:
        self._starts.over()
        self._systemd.status(status)
        self._systemd.ready()

    def stopping(self) -> None:
        self._systemd.status("stopping: queries in flight are answered first")
        self._systemd.stopping()

    @contextlib.contextmanager
    def reloading(self, status: Callable[[], str]) -> Iterator[None]:
        """Inside, a policy is put in force: what is wrong with it is what the status says, until one is right."""
        try:
            yield
        except DnsguardError as error:
            self.rejected = str(error)
            raise
        else:
            self.rejected = ""
        finally:
            self.tell(status())

    def tell(self, status: str) -> None:
        self._systemd.status(f"{status}; the last reload was refused: {self.rejected}" if self.rejected else status)

    def look(self, status: str) -> None:
        """A sign of life, while the writer gets on."""
        self.tell(status)
        if self._gets_on():
            self._systemd.alive()


def _still_wanted(kept: Sequence[socket.socket], port: int) -> Iterator[socket.socket]:
    for one in kept:
        if one.getsockname()[1] == port:
            yield one
        else:
            one.close()  # another dns.listenPort was configured meanwhile
