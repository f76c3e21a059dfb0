"""DNS queries over TCP that TPROXY brought (RFC 7766): pipelined, answered in any order, bounded in every way.

Needs the sockets of `transparent.open_sockets`. Promises that a connection ends when the client has been answered and
has said that it asks no more, when it was idle or open for too long, when it does not read its replies, or when it
sends what is not DNS; and that an error in handling one query harms no other.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

from dnsguard.core.framing import LONGEST, FrameReader, framed
from dnsguard.core.model import LinkIndex, Seconds
from dnsguard.listen.transparent import BACKLOG, IP_PKTOPTIONS, IPV6_2292PKTOPTIONS
from dnsguard.listen.udp import OnError, OnQuery

Release = Callable[[], None]
Admit = Callable[[str, LinkIndex], Release | None]
"""`admit(source, link)`: None refuses a new connection; otherwise what is to be called once when it has ended."""

WRITE_PAUSE = 64 << 10
"""Octets not yet taken by the kernel from which on no more queries are read."""
WRITE_LIMIT = 1 << 20
"""Octets not yet taken by the kernel at which a client that does not read is cut."""
_NO_ROOM = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
ACCEPTED = 64
"""Connections taken from one socket in one turn of the loop, so that others get theirs."""
PAUSE: Seconds = 0.25
"""How long nothing is accepted when the kernel has no descriptor or no memory for it: the socket stays readable, and
the loop would turn for nothing."""


@dataclass(frozen=True, slots=True)
class TcpLimits:
    """How long a connection may live: since its last complete query, and altogether."""

    idle: Seconds = 10.0
    total: Seconds = 120.0
    descriptors: int = sys.maxsize
    """A connection whose descriptor has this number or a higher one is turned away."""


class TcpListener:
    """Hands every message on connections to these sockets to `on_query`. The listener owns the sockets from then on."""

    def __init__(
        self,
        sockets: Iterable[socket.socket],
        on_query: OnQuery,
        on_error: OnError,
        *,
        admit: Admit,
        limits: TcpLimits | None = None,
        on_crowded: Callable[[], None] = lambda: None,
    ) -> None:
        self._sockets = tuple(sockets)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._beginning: set[asyncio.Task[object]] = set()
        """Accepted, and not yet anybody's."""
        self.on_query, self.on_error, self.admit, self.on_crowded = on_query, on_error, admit, on_crowded
        self.limits = limits or TcpLimits()
        self.connections: set[TcpConnection] = set()
        """The open connections that were admitted."""
        self.refused = 0
        """Connections that `admit` turned away, or for which there was no room."""
        self.cut = 0
        """Connections ended because of a limit."""

    async def start(self) -> None:
        """Begin, in the running event loop."""
        self._loop = asyncio.get_running_loop()
        for listening in self._sockets:
            listening.setblocking(False)
            listening.listen(BACKLOG)
            self._listen(listening)

    def stop(self) -> None:
        """Take no more connections and queries; each connection ends once it has its answers."""
        self._close_sockets()
        for connection in list(self.connections):
            connection.finish()

    def close(self) -> None:
        """Stop and end every connection at once."""
        self._close_sockets()
        for task in self._beginning:
            task.cancel()
        for connection in list(self.connections):
            connection.abort()

    def _close_sockets(self) -> None:
        for listening in self._sockets:
            if self._loop is not None:
                self._loop.remove_reader(listening.fileno())
            listening.close()
        self._sockets = ()

    def _listen(self, listening: socket.socket) -> None:
        if self._loop is not None and listening.fileno() >= 0:
            self._loop.add_reader(listening.fileno(), self._accept, listening)

    # Not asyncio's server: under uvloop it turns in circles when there is no descriptor.
    def _accept(self, listening: socket.socket) -> None:
        for _ in range(ACCEPTED):
            try:
                accepted, _ = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause(listening, error)
                return
            if accepted.fileno() < self.limits.descriptors:
                self._begin(accepted)
            else:
                accepted.close()
                self.refused += 1
                self.on_crowded()

    def _pause(self, listening: socket.socket, error: OSError) -> None:
        if error.errno in _NO_ROOM:
            self.on_crowded()
        else:
            self.on_error(error)
        if self._loop is not None:
            self._loop.remove_reader(listening.fileno())
            self._loop.call_later(PAUSE, self._listen, listening)

    def _begin(self, accepted: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        task = loop.create_task(loop.connect_accepted_socket(lambda: TcpConnection(self, loop), accepted))
        self._beginning.add(task)
        task.add_done_callback(self._has_begun)

    def _has_begun(self, task: asyncio.Task[object]) -> None:
        self._beginning.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception) and not isinstance(error, OSError):  # OSError: already gone
            self.on_error(error)


class TcpConnection(asyncio.Protocol):
    """One connection, and the way back (`Client`) for every query on it."""

    stream = True
    _transport: asyncio.Transport
    _timers: tuple[asyncio.TimerHandle, ...] = ()
    _release: Release | None = None
    _source: str
    _link: LinkIndex

    def __init__(self, listener: TcpListener, loop: asyncio.AbstractEventLoop) -> None:
        self._listener, self._loop = listener, loop
        self._frames = FrameReader()
        self._unanswered = 0
        self._finishing = False
        self._asked_at = loop.time()

    @property
    def identity(self) -> object:
        return self

    @property
    def waiting(self) -> int:
        """Octets of replies that the kernel has not yet taken."""
        return self._transport.get_write_buffer_size()

    def reply(self, packet: bytes) -> None:
        if self not in self._listener.connections:
            return
        self._unanswered -= 1
        if len(packet) > LONGEST or self.waiting > WRITE_LIMIT:
            self._cut()
            return
        self._transport.write(framed(packet))
        self._end_if_answered()

    def finish(self) -> None:
        """Read no more; end once every query was answered."""
        self._finishing = True
        if not self._transport.is_closing():
            self._transport.pause_reading()
        self._end_if_answered()

    def abort(self) -> None:
        self._transport.abort()

    # -- called by the event loop ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class is not derived from it
        try:
            self._source, self._link = _origin(self._transport)
            self._release = self._listener.admit(self._source, self._link)
        except OSError:  # already gone
            self.abort()
            return
        except Exception as error:
            self._listener.on_error(error)
        if self._release is None:
            self._listener.refused += 1
            self.abort()
            return
        self._listener.connections.add(self)
        self._transport.set_write_buffer_limits(high=WRITE_PAUSE)
        limits = self._listener.limits
        total = self._loop.call_later(limits.total, self._cut)
        self._timers = (total, self._loop.call_later(limits.idle, self._check_idle))

    def data_received(self, data: bytes) -> None:
        if self._finishing or self not in self._listener.connections:
            return
        for message in self._frames.feed(data):
            self._asked_at = self._loop.time()
            self._unanswered += 1
            try:
                self._listener.on_query(message, self._source, self._link, self)
            except Exception as error:
                self._unanswered -= 1
                self._listener.on_error(error)
        if self._frames.broken:
            self.finish()

    def eof_received(self) -> bool:
        self._finishing = True
        return self._unanswered > 0  # True keeps our direction open

    def pause_writing(self) -> None:
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        if not self._finishing:
            self._transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self._listener.connections.discard(self)
        for timer in self._timers:
            timer.cancel()
        self._timers = ()
        if self._release is not None:
            self._release()
            self._release = None

    # -- limits ---------------------------------------------------------------------------------------------------

    def _end_if_answered(self) -> None:
        if self._finishing and self._unanswered <= 0:
            self._transport.close()

    def _check_idle(self) -> None:
        remaining = self._asked_at + self._listener.limits.idle - self._loop.time()
        if remaining <= 0:
            self._cut()
        else:
            self._timers = (self._timers[0], self._loop.call_later(remaining, self._check_idle))

    def _cut(self) -> None:
        self._listener.connections.discard(self)  # before connection_lost: replies on their way are ignored from now on
        self._listener.cut += 1
        self.abort()


def _origin(transport: asyncio.Transport) -> tuple[str, LinkIndex]:
    """The client's address and the link its handshake came by. Raises OSError when the connection has gone already.

    The kernel keeps the interface of the handshake's last packet where it keeps multicast's (`mc_index`, `mcast_oif`
    in tcp_v4_syn_recv_sock and tcp_v6_syn_recv_sock) and shows it as packet information.
    """
    connection, peer = transport.get_extra_info("socket"), transport.get_extra_info("peername")
    if peer is None:
        raise ConnectionResetError
    if connection.family == socket.AF_INET:
        (link,) = struct.unpack_from("=16xI", connection.getsockopt(socket.IPPROTO_IP, IP_PKTOPTIONS, 64))
    else:
        (link,) = struct.unpack_from("=32xI", connection.getsockopt(socket.IPPROTO_IPV6, IPV6_2292PKTOPTIONS, 64))
    return peer[0].partition("%")[0], LinkIndex(link)
