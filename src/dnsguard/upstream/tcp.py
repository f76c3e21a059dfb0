"""Queries over TCP: connections that are kept, carry many questions at once and take answers in any order (RFC 7766).

Only few questions come this way: after a truncated answer, or when somebody seems to be guessing IDs.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import cast

from dnsguard.core.framing import FrameReader, framed
from dnsguard.core.model import Seconds
from dnsguard.engine.contracts import Attempt
from dnsguard.upstream.endpoint import Endpoint, Place, place
from dnsguard.upstream.matching import Reports, Suspicions, identifiers
from dnsguard.upstream.udp import reason_of

IDLE: Seconds = 5.0
"""A connection without a question is closed after this: "a few seconds" (RFC 7766, 6.2.3)."""
CONNECTIONS = 4
"""To one server, those included that only wait for their last answers."""
PIPELINED = 1000
"""Questions outstanding on one connection."""
UNSENT = 1 << 18
"""Octets that a server may leave unread before its connection counts as full."""


class TcpUpstream:
    """Sends attempts over TCP: that half of `contracts.Upstream`, with its promises. Needs a running event loop.

    A connection that closes fails its attempts, except those sent on it after it had answered others: it may simply
    have been idle for too long for the server's taste, so these are sent once more on a new one.
    """

    def __init__(self, servers: Sequence[Endpoint], reports: Reports) -> None:
        self._reports = reports
        self._identifier = identifiers().__next__
        self._places = [place(server) for server in servers]
        self._connections: list[list[_Connection]] = [[] for _ in servers]

    def ask(self, attempt: Attempt) -> None:
        """Send it, or let it wait for the connection. May call `failed` before it returns."""
        connection = self._usable(attempt.server)
        if connection is None:
            self._reports.failed(attempt, "overloaded")
        else:
            connection.ask(attempt)

    @property
    def connections(self) -> int:
        """How many are open or opening."""
        return sum(len(of_server) for of_server in self._connections)

    def close(self) -> None:
        """Close every connection. Attempts still outstanding are forgotten, not failed."""
        for connection in [connection for of_server in self._connections for connection in of_server]:
            connection.close()

    def _usable(self, server: int) -> _Connection | None:
        of_server = self._connections[server]
        usable = next((connection for connection in of_server if connection.usable), None)
        if usable is None and len(of_server) < CONNECTIONS:
            usable = _Connection(server, self._reports, identifier=self._identifier, owner=self)
            of_server.append(usable)
            usable.open(self._places[server])
        return usable

    def ended(self, connection: _Connection) -> None:
        """It is closed, or about to be."""
        self._connections[connection.server].remove(connection)


class _Connection(asyncio.Protocol):
    """One connection, from the wish to have it to its end."""

    def __init__(
        self,
        server: int,
        reports: Reports,
        *,
        identifier: Callable[[], bytes],
        owner: TcpUpstream,
    ) -> None:
        self.server, self._reports = server, reports
        self._identifier, self._owner = identifier, owner
        self._pending: dict[bytes, Attempt] = {}
        self._repeatable: set[bytes] = set()
        self._suspicions = Suspicions(self._pending, reports.discarded)
        self._frames = FrameReader()
        self._unsent: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._opening: asyncio.Task[None] | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._retired = self._closed = self._proven = False

    @property
    def usable(self) -> bool:
        """Whether it takes another question."""
        unread = self._transport.get_write_buffer_size() if self._transport else 0
        return not self._retired and max(len(self._pending), len(self._unsent)) < PIPELINED and unread < UNSENT

    def open(self, to: Place) -> None:
        self._opening = asyncio.get_running_loop().create_task(self._connect(to))

    def ask(self, attempt: Attempt) -> None:
        self._rest()
        identifier = self._identifier()
        while identifier in self._pending:
            identifier = self._identifier()
        self._pending[identifier] = attempt
        attempt.handle = self, identifier
        if self._proven:
            self._repeatable.add(identifier)
        if self._transport is None:
            self._unsent.append(framed(identifier + attempt.query))
        else:
            self._transport.write(framed(identifier + attempt.query))

    def abandon(self, identifier: bytes, *, timed_out: bool) -> None:
        """Wait no longer for this one; after a time-out take no more questions."""
        self._take(identifier)
        self._suspicions.abandoned(identifier)
        self._retired = self._retired or timed_out
        self._settle()

    def close(self) -> None:
        """End it. What waits on it is forgotten."""
        for identifier in list(self._pending):
            self._take(identifier)
        self._end()

    async def _connect(self, to: Place) -> None:
        opened = socket.socket(to.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            loop = asyncio.get_running_loop()
            await loop.sock_connect(opened, to.sockaddr)
            await loop.create_connection(lambda: self, sock=opened)
        except OSError as error:
            opened.close()
            self._fail_all(reason_of(error))
        except asyncio.CancelledError:
            opened.close()
            raise

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own type, no subclass of asyncio's
        if self._closed:
            self._transport.abort()
            return
        self._transport.write(b"".join(self._unsent))
        self._unsent.clear()

    def data_received(self, data: bytes) -> None:
        for packet in self._frames.feed(data):
            if self._closed:
                return
            self._receive(packet)
        if self._frames.broken:
            self._fail_all("garbage")
        self._settle()

    def connection_lost(self, error: Exception | None) -> None:
        self._fail_all("closed")

    def _receive(self, packet: bytes) -> None:
        judged = self._suspicions.weigh(packet)
        if judged is None:
            return
        identifier, reason = judged
        attempt = self._take(identifier)
        if reason is None:
            self._proven = True
            self._reports.answered(attempt, packet)
        else:
            self._reports.failed(attempt, reason)

    def _take(self, identifier: bytes) -> Attempt:
        attempt = self._pending.pop(identifier)
        attempt.handle = None
        self._repeatable.discard(identifier)
        self._suspicions.answered(identifier)
        return attempt

    def _fail_all(self, reason: str) -> None:
        if self._closed:
            return
        again = [self._take(identifier) for identifier in list(self._repeatable)]
        failed = [self._take(identifier) for identifier in list(self._pending)]
        self._end()
        for attempt in failed:
            self._reports.failed(attempt, reason)
        for attempt in again:
            self._owner.ask(attempt)

    def _settle(self) -> None:
        """Close when retired and done; otherwise, when nothing waits, begin to be idle."""
        if self._pending or self._closed:
            return
        if self._retired:
            self._end()
        elif self._idle is None:
            self._idle = asyncio.get_running_loop().call_later(IDLE, self._end)

    def _rest(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _end(self) -> None:
        if self._closed:
            return
        self._closed = self._retired = True
        self._rest()
        if self._opening is not None:
            self._opening.cancel()
        if self._transport is not None:
            # Not close(): a server that reads nothing would keep the unsent rest, and the socket, for ever.
            self._transport.abort()
        self._owner.ended(self)
