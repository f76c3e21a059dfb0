"""A small authoritative server over UDP and TCP, for the demo and the tests: a table that may change while it serves.

It is built on dnslib and asyncio-dgram, commits whatever faults its table orders, and remembers what it was asked, so
that a test can say that a name never arrived. It is good for nothing else: no zone cuts, no DNSSEC, no limits.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import asyncio_dgram
from dnslib import CLASS, EDNS0, QTYPE, RCODE, RR, SOA, DNSError, DNSHeader, DNSRecord

from dnsguard.core.model import Seconds

NEGATIVE_TTL = 5
LONGEST_CHAIN = 16
PLAIN_SIZE = 512
"""What a query without EDNS can take over UDP, in octets (RFC 1035, 4.2.1)."""

Spoil = Callable[[bytes], Iterable[bytes]]
"""What to send instead of the right reply: a fault that a test wants."""
Speak = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""One connection's conversation. That the other side goes away is no error."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What one name and type has, and how it is told."""

    records: tuple[Any, ...] = ()
    """dnslib's RRs."""
    rcode: int = RCODE.NOERROR
    delay: Seconds = 0
    truncate: bool = False
    """Over UDP, send nothing but TC=1."""
    drop: bool = False
    """Never reply."""
    spoil: Spoil | None = None


class Reply(NamedTuple):
    """The packets to send, in order, and how long to wait before."""

    packets: tuple[bytes, ...]
    delay: Seconds = 0


class Zone:
    """Names and what they have. May be changed from any thread while it is served.

    Unknown names get NXDOMAIN, known ones without the type NODATA, both with an SOA. CNAMEs are followed in the table.
    `*.a.b` stands for every name under a.b that has no entry of its own.
    """

    def __init__(self, *, edns: bool = True) -> None:
        self._entries: dict[tuple[str, int], Entry] = {}
        self._asked: Counter[tuple[str, str]] = Counter()
        self.edns = edns
        """False: a query with EDNS gets FORMERR, as from a server that has never heard of it."""

    def put(self, name: str, kind: str, *data: str, ttl: int = 60, **how: Any) -> None:
        """Let `name` have these records, instead of what it had of this type: `zone.put("a.test", "A", "10.0.0.1")`.

        `data` is in zone-file form; names in it are absolute. `how` is Entry's rcode, delay, truncate, drop, spoil.
        With the type ANY and no data it applies to every type of the name that has no entry.
        """
        owner = _folded(name)
        records = tuple(RR.fromZone(f"{owner or '.'} {ttl} IN {kind} {text}")[0] for text in data)
        self._entries[owner, QTYPE.reverse[kind]] = Entry(records, **how)

    def remove(self, name: str, kind: str) -> None:
        """Raises KeyError when it is not there."""
        del self._entries[_folded(name), QTYPE.reverse[kind]]

    def asked(self, name: str, kind: str | None = None) -> int:
        """How many queries for this name, or for this name and type, have arrived."""
        counted = dict(self._asked)  # in one step: the thread of the server may be adding to it
        return sum(count for (n, k), count in counted.items() if n == _folded(name) and kind in (None, k))

    def names_asked(self) -> frozenset[str]:
        """Every name that has arrived, in lower case without the trailing dot."""
        return frozenset(name for name, _ in list(self._asked))

    def respond(self, query: bytes, *, stream: bool) -> Reply:
        """The reply to one message; no packets for what should get none."""
        try:
            request = DNSRecord.parse(query)
        except (DNSError, ValueError):
            return Reply(())
        if request.header.qr or len(request.questions) != 1:
            return Reply(())
        question = request.q
        name = _folded(str(question.qname))
        self._asked[name, QTYPE[question.qtype]] += 1
        if request.ar and not self.edns:
            return Reply((_bare_error(request, RCODE.FORMERR),))
        entry = self._entry(name, question.qtype)
        if entry is not None and entry.drop:
            return Reply(())
        packet = self._packet(request, entry, name=name, stream=stream)
        spoilt = (packet,) if entry is None or entry.spoil is None else tuple(entry.spoil(packet))
        return Reply(spoilt, entry.delay if entry is not None else 0)

    def _packet(self, request: Any, entry: Entry | None, *, name: str, stream: bool) -> bytes:
        reply = request.reply(ra=1, aa=1)
        opt = next((record for record in request.ar if record.rtype == QTYPE.OPT), None)
        if opt is not None:
            reply.add_ar(EDNS0(udp_len=1232))
        if entry is not None and entry.truncate and not stream:
            reply.header.tc = 1
            return bytes(reply.pack())
        reply.header.rcode = self._fill(reply, entry, name)
        packed = bytes(reply.pack())
        room = PLAIN_SIZE if opt is None else max(PLAIN_SIZE, opt.rclass)
        return packed if stream or len(packed) <= room else bytes(reply.truncate().pack())

    def _fill(self, reply: Any, entry: Entry | None, name: str) -> int:
        """Put the records in; gives the rcode."""
        kind = reply.q.qtype
        for _ in range(LONGEST_CHAIN):
            if entry is None or entry.rcode != RCODE.NOERROR or not entry.records:
                break
            for record in entry.records:
                reply.add_answer(_owned(record, name))
            target = entry.records[0]
            if target.rtype != QTYPE.CNAME or kind == QTYPE.CNAME:
                return int(RCODE.NOERROR)
            name = _folded(str(target.rdata.label))
            entry = self._entry(name, kind)
        if entry is not None:
            rcode = entry.rcode
        else:
            known = any(self._exists(owner) for owner in _and_wildcards(name))
            rcode = RCODE.NOERROR if known else RCODE.NXDOMAIN
        if rcode in (RCODE.NOERROR, RCODE.NXDOMAIN):
            reply.add_auth(_soa(name))
        return int(rcode)

    def _entry(self, name: str, kind: int) -> Entry | None:
        for owner in _and_wildcards(name):
            for wanted in (kind, QTYPE.CNAME, QTYPE.ANY):
                entry = self._entries.get((owner, wanted))
                if entry is not None:
                    return entry
            if self._exists(owner):
                return None
        return None

    def _exists(self, name: str) -> bool:
        """A name exists when it, or one under it, has an entry (RFC 8020)."""
        return any(owner == name or owner.endswith("." + name) for owner, _ in list(self._entries))


def _folded(name: str) -> str:
    return name.lower().rstrip(".")


def _and_wildcards(name: str) -> Iterator[str]:
    yield name
    while "." in name:
        name = name.partition(".")[2]
        yield f"*.{name}"


def _owned(record: Any, name: str) -> Any:
    """The record under this name: that of a wildcard answers for the name that was asked."""
    return RR(name, record.rtype, CLASS.IN, record.ttl, record.rdata)


def _soa(name: str) -> Any:
    times = (1, 3600, 600, 86400, NEGATIVE_TTL)
    return RR(name, QTYPE.SOA, CLASS.IN, NEGATIVE_TTL, SOA("ns.invalid.", "hostmaster.invalid.", times))


def _bare_error(request: Any, rcode: int) -> bytes:
    header = DNSHeader(id=request.header.id, qr=1, rcode=rcode)
    return bytes(DNSRecord(header).pack())


# -- serving ----------------------------------------------------------------------------------------------------------


def open_sockets(addresses: Sequence[str], port: int = 53) -> list[socket.socket]:
    """A UDP and a TCP socket on each address, in the network namespace of the thread that calls.

    With port 0 the kernel chooses one, the same for all. Raises OSError when one cannot be had; then none stays open.
    """
    with contextlib.ExitStack() as opened:
        sockets = []
        for address in addresses:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                sockets.append(opened.enter_context(_bound(address, port, kind)))
                port = port or sockets[0].getsockname()[1]
        opened.pop_all()
    return sockets


def _bound(address: str, port: int, kind: socket.SocketKind) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    opened = socket.socket(family, kind)
    try:
        if kind == socket.SOCK_STREAM:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.bind((address, port))
        if kind == socket.SOCK_STREAM:
            opened.listen(64)
    except OSError:
        opened.close()
        raise
    return opened


async def serve(zone: Zone, sockets: Iterable[socket.socket]) -> None:
    """Answer on these sockets until cancelled, then close them."""
    with contextlib.ExitStack() as closing:
        async with asyncio.TaskGroup() as tasks:
            for each in sockets:
                closing.callback(each.close)
                serving = _datagrams if each.type == socket.SOCK_DGRAM else _streams
                tasks.create_task(serving(zone, each))


@contextlib.contextmanager
def served(zone: Zone, sockets: Sequence[socket.socket]) -> Iterator[Zone]:
    """Serve in a thread of its own while the `with` block runs, for callers that have no event loop."""
    try:
        with in_a_thread(serve(zone, sockets), "authoritative"):
            yield zone
    finally:
        for each in sockets:
            each.close()  # Cancelled before it began, it has not closed them.


@contextlib.contextmanager
def in_a_thread(serving: Coroutine[Any, Any, None], name: str) -> Iterator[None]:
    """Run `serving` in a loop and a thread of their own while the `with` block runs, then cancel it."""
    loop = asyncio.new_event_loop()
    task = loop.create_task(serving)
    thread = threading.Thread(target=_run, args=(loop, task), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()


def _run(loop: asyncio.AbstractEventLoop, serving: asyncio.Task[None]) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        loop.run_until_complete(serving)
    loop.run_until_complete(asyncio.sleep(0))  # transports close their sockets one turn later
    loop.close()


async def _datagrams(zone: Zone, bound: socket.socket) -> None:
    stream = await asyncio_dgram.from_socket(bound)
    try:
        async with asyncio.TaskGroup() as replies:
            while True:
                query, peer = await stream.recv()
                reply = zone.respond(query, stream=False)
                replies.create_task(_send_datagrams(stream, peer, reply))
    finally:
        stream.close()


async def _send_datagrams(stream: Any, peer: Any, reply: Reply) -> None:
    await asyncio.sleep(reply.delay)
    for packet in reply.packets:
        await stream.send(packet, peer)


async def _streams(zone: Zone, listening: socket.socket) -> None:
    await serve_streams(listening, lambda reader, writer: _stream(zone, reader, writer))


async def serve_streams(listening: socket.socket, speak: Speak) -> None:
    """Let `speak` have every connection, several at once, until cancelled; each is closed when it returns."""
    async with asyncio.TaskGroup() as connections:

        def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connections.create_task(_spoken(speak, reader, writer))

        server = await asyncio.start_server(accepted, sock=listening)
        async with server:
            await server.serve_forever()


async def _spoken(speak: Speak, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        await speak(reader, writer)
    except* (OSError, asyncio.IncompleteReadError):
        pass  # The client has gone: nobody is left to tell.
    finally:
        writer.close()


async def _stream(zone: Zone, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    async with asyncio.TaskGroup() as replies:
        while True:
            length = int.from_bytes(await reader.readexactly(2))
            reply = zone.respond(await reader.readexactly(length), stream=True)
            replies.create_task(_send_frames(writer, reply))


async def _send_frames(writer: asyncio.StreamWriter, reply: Reply) -> None:
    await asyncio.sleep(reply.delay)
    for packet in reply.packets:
        writer.write(len(packet).to_bytes(2) + packet)
