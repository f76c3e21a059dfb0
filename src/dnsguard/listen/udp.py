"""DNS queries over UDP that TPROXY brought: one socket per family, whatever address the pod asked.

Needs the sockets of `transparent.open_sockets` and an output rule that turns the source port of marked replies into
53. Promises that a reply leaves from the asked address out of the link the query came by, that nothing blocks, and
that an error in handling one query harms no other. Replies are gathered and leave together: those given while queries
are being taken, at the end of that batch; others before the loop waits again.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable

from dnsguard.core.model import LinkIndex
from dnsguard.engine.contracts import Client
from dnsguard.mmsg import Inbox, Outbox

OnQuery = Callable[[bytes, str, LinkIndex, Client], None]
"""`on_query(packet, source, link, client)`: a DNS message, the pod's address as text, the link it came by."""
OnError = Callable[[Exception], None]

KNOWN_SOURCES = 10_000
"""Addresses whose text is remembered: an inet_ntop saved for each query."""


class UdpCounts:
    """What one UDP socket has seen, as plain numbers that only grow."""

    __slots__ = ("discarded", "received", "sent", "unsent")

    def __init__(self) -> None:
        self.received = 0
        self.discarded = 0
        """Empty or longer than any query."""
        self.sent = 0
        self.unsent = 0
        """Replies that the kernel refused: the pod has gone, no memory, a full buffer."""


class UdpClient:
    """The way back to the pod's socket; `identity` holds that socket, the asked address and the link."""

    __slots__ = ("_port", "identity")
    stream = False

    def __init__(self, port: _UdpPort, envelope: bytes) -> None:
        self._port = port
        self.identity = envelope

    def reply(self, packet: bytes) -> None:
        port = self._port
        port.packets.append(packet)
        port.envelopes.append(self.identity)
        if not port.flushing:
            port.flush_soon()


class UdpListener:
    """Hands every datagram of these sockets to `on_query`. The listener owns the sockets from then on."""

    def __init__(self, sockets: Iterable[socket.socket], on_query: OnQuery, on_error: OnError) -> None:
        self._ports = [_UdpPort(one, on_query, on_error) for one in sockets]

    def start(self) -> None:
        """Begin, in the running event loop."""
        for port in self._ports:
            port.start(asyncio.get_running_loop())

    def stop(self) -> None:
        """Take no more queries; replies still go out."""
        for port in self._ports:
            port.stop()

    def close(self) -> None:
        """Stop, send what is still gathered, and close the sockets. Later replies are ignored."""
        for port in self._ports:
            port.close()

    @property
    def counts(self) -> list[UdpCounts]:
        """One for each socket."""
        return [port.counts for port in self._ports]


class _UdpPort:
    def __init__(self, own: socket.socket, on_query: OnQuery, on_error: OnError) -> None:
        self._socket, self._on_query, self._on_error = own, on_query, on_error
        self._inbox, self._outbox = Inbox(own), Outbox(own)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._texts: dict[bytes, str] = {}
        self.counts = UdpCounts()
        self.packets: list[bytes] = []
        self.envelopes: list[bytes] = []
        self.flushing = False
        """A flush is on its way already."""

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        loop.add_reader(self._socket.fileno(), self._ready)

    def stop(self) -> None:
        if self._loop is not None and self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())

    def close(self) -> None:
        self.stop()
        self._flush()
        self.flushing = True
        self._socket.close()

    def flush_soon(self) -> None:
        if self._loop is not None:
            self.flushing = True
            self._loop.call_soon(self._flush)

    def _ready(self) -> None:
        try:
            waiting = self._inbox.receive()
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._on_error(error)
            return
        self.flushing = True
        on_query, texts, counts = self._on_query, self._texts, self.counts
        for packet, envelope, (address, link) in waiting:
            if not packet:
                counts.discarded += 1
                continue
            counts.received += 1
            try:
                on_query(packet, texts.get(address) or self._text(address), link, UdpClient(self, envelope))
            except Exception as error:
                self._on_error(error)
        self._flush()

    def _text(self, address: bytes) -> str:
        if len(self._texts) >= KNOWN_SOURCES:
            self._texts.clear()
        return self._texts.setdefault(address, socket.inet_ntop(self._socket.family, address))

    def _flush(self) -> None:
        self.flushing = False
        if self._socket.fileno() < 0:
            return
        packets, envelopes = self.packets, self.envelopes
        self.packets, self.envelopes = [], []
        while packets:
            done = self._send(packets, envelopes)
            del packets[:done], envelopes[:done]

    def _send(self, packets: list[bytes], envelopes: list[bytes]) -> int:
        """How many of them are settled, one way or the other."""
        try:
            sent = self._outbox.send(packets, envelopes)
        except OSError as error:
            lost = (
                len(packets) if isinstance(error, BlockingIOError) else 1
            )  # a full buffer would refuse the others too
            self.counts.unsent += lost
            return lost
        self.counts.sent += sent
        return sent
