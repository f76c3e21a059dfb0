"""Queries over UDP: connected sockets whose ports and IDs nobody can predict, drained many answers at a time.

A server has up to 64 sockets. One of them, chosen at random, sends a burst of at most 64 queries or 1 ms and then gives
way to another: so under load answers arrive together on one socket, one wake-up brings many, and ports still change.
Queries asked in one turn of the loop leave together at its end, in one system call for each socket.
A socket is used for at most 1 s or 1,000 queries, and never after an attempt on it has timed out.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Sequence
from time import monotonic

from dnsguard.core.model import Seconds
from dnsguard.engine.contracts import Attempt
from dnsguard.mmsg import Receiver, Sender
from dnsguard.upstream.endpoint import Endpoint, place
from dnsguard.upstream.matching import ONE_QUESTION, RESPONSE, Reports, Suspicions, identifiers

SLOTS = 64
"""Sockets of one server that take new queries; a power of two, at most 256."""
BURST = 64
BURST_SECONDS = 0.001
USES = 1000
LIFETIME = 1.0
MAX_OPEN = 512
"""Sockets of one server in all, those included that only wait for their last answers."""
DRAIN = 64
"""Answers taken from one socket in one wake-up, so that other sockets get their turn."""
RECEIVE_BUFFER = 1 << 20
SO_RCVBUFFORCE = 33
"""asm-generic/socket.h; Python 3.11 does not name it."""

_REASONS = {
    errno.ECONNREFUSED: "refused",
    errno.ENETUNREACH: "unreachable",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETDOWN: "unreachable",
    errno.EMFILE: "sockets",
    errno.ENFILE: "sockets",
    errno.EADDRNOTAVAIL: "sockets",
}


def reason_of(error: OSError) -> str:
    """A metric label for a socket's error: refused, unreachable, sockets (none to be had) or send."""
    return _REASONS.get(error.errno or 0, "send")


def _widen(opened: socket.socket) -> None:
    try:
        opened.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
    except PermissionError:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)


class UdpUpstream:
    """Sends attempts over UDP: that half of `contracts.Upstream`, with its promises. Needs a running event loop."""

    def __init__(self, servers: Sequence[Endpoint], reports: Reports) -> None:
        self._identifier = identifiers().__next__
        self._failed = reports.failed
        self._pools = [_Pool(server, reports, self._identifier) for server in servers]
        self._loop = asyncio.get_running_loop()
        self._sender = Sender()
        self._laden: list[_Port] = []
        """Ports with queries that have not left yet; a flush is on its way for them."""

    def ask(self, attempt: Attempt) -> None:
        """Send it, at the end of this turn of the loop, under a random ID from a random port. May call `failed`."""
        # This body and `_Port.drain` are the hot path: written out, because a call costs 0.05 us and a property more.
        pool = self._pools[attempt.server]
        port = pool.active
        if port is None or port.burst <= 0 or monotonic() > port.burst_ends:
            try:
                port = pool.turn()
            except OSError as error:
                self._failed(attempt, reason_of(error))
                return
        pending = port.pending
        identifier = self._identifier()
        while identifier in pending:
            identifier = self._identifier()
        port.burst -= 1
        pending[identifier] = attempt
        attempt.handle = port, identifier
        if not port.outgoing:
            if not self._laden:
                self._loop.call_soon(self._flush)
            self._laden.append(port)
        port.outgoing.append(identifier + attempt.query)

    def _flush(self) -> None:
        laden, self._laden = self._laden, []
        for port in laden:
            port.flush(self._sender)

    @property
    def sockets(self) -> int:
        """How many are open."""
        return sum(len(pool.ports) for pool in self._pools)

    def close(self) -> None:
        """Close every socket. Attempts still outstanding are forgotten, not failed."""
        for pool in self._pools:
            pool.close()


class _Pool:
    """The sockets of one server."""

    def __init__(self, server: Endpoint, reports: Reports, identifier: Callable[[], bytes]) -> None:
        self.reports = reports
        self.active: _Port | None = None
        self.ports: set[_Port] = set()
        self._place = place(server)
        self._identifier = identifier
        self.receiver = Receiver()
        self._slots: list[_Port | None] = [None] * SLOTS
        self._loop = asyncio.get_running_loop()
        self._sweeping: asyncio.TimerHandle | None = None

    def turn(self) -> _Port:
        """Another socket for the next burst. Raises OSError when there is none to be had."""
        slot = self._identifier()[0] % SLOTS
        port, now = self._slots[slot], monotonic()
        if port is None or port.worn(now):
            port = self._slots[slot] = self._replace(port, now)
        port.begin_burst(now)
        self.active = port
        return port

    def _replace(self, worn: _Port | None, now: Seconds) -> _Port:
        if worn is not None:
            worn.retire()
        if len(self.ports) >= MAX_OPEN:
            raise OSError(errno.EMFILE, "too many sockets wait for one server")
        port = _Port(self, self._connected(), now)
        self.ports.add(port)
        self._loop.add_reader(port.fd, port.drain)
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(LIFETIME, self._sweep)
        return port

    def _connected(self) -> socket.socket:
        # Connected, so that the kernel takes packets from the server only, and tells when its port is closed.
        opened = socket.socket(self._place.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            _widen(opened)
            opened.connect(self._place.sockaddr)
        except OSError:
            opened.close()
            raise
        return opened

    def _sweep(self) -> None:
        """Close what has had its time, so that an idle server holds no socket."""
        now = monotonic()
        for port in [port for port in self.ports if port.worn(now)]:
            port.retire()
        self._sweeping = self._loop.call_later(LIFETIME, self._sweep) if self.ports else None

    def leave(self, port: _Port) -> None:
        """It takes no more queries."""
        if self.active is port:
            self.active = None
        if port in self._slots:
            self._slots[self._slots.index(port)] = None

    def gone(self, port: _Port) -> None:
        """It is about to close."""
        self._loop.remove_reader(port.fd)
        self.ports.discard(port)

    def close(self) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
        for port in list(self.ports):
            port.close()


class _Port:
    """One connected socket: a source port, and the attempts that wait on it by their IDs."""

    __slots__ = (
        "_answered", "_born", "_failed", "_pool", "_receive", "_retired", "_socket", "_suspicions", "_uses",
        "burst", "burst_ends", "fd", "outgoing", "pending",
    )  # fmt: skip

    def __init__(self, pool: _Pool, connected: socket.socket, now: Seconds) -> None:
        self._pool, self._socket, self._born = pool, connected, now
        self._answered, self._failed = pool.reports.answered, pool.reports.failed
        self._uses, self._retired = USES, False
        self.fd, self._receive = connected.fileno(), pool.receiver.receive
        self.pending: dict[bytes, Attempt] = {}
        self.outgoing: list[bytes] = []
        self._suspicions = Suspicions(self.pending, pool.reports.discarded)
        self.burst, self.burst_ends = 0, now

    def worn(self, now: Seconds) -> bool:
        return self._retired or self._uses <= 0 or now - self._born > LIFETIME

    def begin_burst(self, now: Seconds) -> None:
        self.burst = min(BURST, self._uses)
        self._uses -= self.burst
        self.burst_ends = now + BURST_SECONDS

    def flush(self, sender: Sender) -> None:
        """Send what was asked in this turn."""
        outgoing, self.outgoing = self.outgoing, []
        while outgoing and self.fd >= 0:
            try:
                sent = sender.send(self.fd, outgoing)
            except OSError as error:
                self.broken(error, outgoing[0][:2])
                sent = 1
            del outgoing[:sent]

    def drain(self) -> None:
        """The socket has become readable."""
        try:
            packets = self._receive(self.fd, DRAIN)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.broken(error)
            return
        pending, answered = self.pending, self._answered
        for packet in packets:
            identifier = packet[:2]
            attempt = pending.get(identifier)
            if (
                attempt is not None
                and packet.startswith(attempt.section, 12)
                and packet[2] & RESPONSE
                and packet[4:6] == ONE_QUESTION
            ):
                del pending[identifier]
                attempt.handle = None
                answered(attempt, packet)
            else:
                self._suspect(packet)
        if self._retired:
            self._close_if_idle()

    def _suspect(self, packet: bytes) -> None:
        judged = self._suspicions.weigh(packet)
        if judged is not None:
            identifier, reason = judged
            attempt = self._take(identifier)
            if reason is None:
                self._answered(attempt, packet)
            else:
                self._failed(attempt, reason)

    def _take(self, identifier: bytes) -> Attempt:
        attempt = self.pending.pop(identifier)
        attempt.handle = None
        self._suspicions.answered(identifier)
        return attempt

    def abandon(self, identifier: bytes, *, timed_out: bool) -> None:
        """Wait no longer for this one."""
        self._take(identifier)
        self._suspicions.abandoned(identifier)
        if timed_out:
            self.retire()
        elif self._retired:
            self._close_if_idle()

    def broken(self, error: OSError, sending: bytes | None = None) -> None:
        """An error of the socket. Unless it is only that this one query could not be sent, all that wait here fail."""
        reason = reason_of(error)
        if reason == "send" and sending is not None:
            if sending in self.pending:  # not abandoned meanwhile
                self._failed(self._take(sending), reason)
            return
        concerned = [self._take(identifier) for identifier in list(self.pending)]
        self.retire()
        for attempt in concerned:
            self._failed(attempt, reason)

    def retire(self) -> None:
        """Take no more queries; close when the last answer is in or given up."""
        if not self._retired:
            self._retired = True
            self.burst = 0
            self._pool.leave(self)
        self._close_if_idle()

    def close(self) -> None:
        """Close at once. What waits here is forgotten."""
        for identifier in list(self.pending):
            self._take(identifier)
        self.retire()

    def _close_if_idle(self) -> None:
        if not self.pending and self.fd >= 0:
            self._pool.gone(self)
            self.fd = -1
            self._socket.close()
