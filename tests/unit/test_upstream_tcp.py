"""TCP to resolvers, over real sockets on loopback."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from dnsguard.core.framing import framed
from dnsguard.upstream import tcp
from dnsguard.upstream.matching import MAX_DISCARDS
from dnsguard.upstream.tcp import TcpUpstream
from dnsguard.upstream.transport import abandon
from tests.upstreams import Ask, Inbox, Server, ask, question, until


@dataclass
class Peer:
    """The resolver's end of one connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def query(self) -> bytes:
        async with asyncio.timeout(5):
            return await self.reader.readexactly(int.from_bytes(await self.reader.readexactly(2)))

    def send(self, packet: bytes) -> None:
        self.writer.write(framed(packet))

    async def at_end(self) -> bool:
        async with asyncio.timeout(5):
            try:
                return await self.reader.read() == b""
            except ConnectionResetError:
                return True


class Listener:
    """A resolver that a test plays by hand, connection by connection."""

    def __init__(self) -> None:
        self.peers: asyncio.Queue[Peer] = asyncio.Queue()
        self._all: list[Peer] = []

    async def start(self, port: int = 0) -> Server:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", port)
        return Server(*self._server.sockets[0].getsockname())

    async def peer(self) -> Peer:
        async with asyncio.timeout(5):
            return await self.peers.get()

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._all.append(Peer(reader, writer))
        self.peers.put_nowait(self._all[-1])

    def stop(self) -> None:
        self._server.close()
        for peer in self._all:
            peer.writer.close()


@dataclass
class Line:
    """An upstream, and the resolver at its other end."""

    upstream: TcpUpstream
    listener: Listener
    inbox: Inbox
    server: Server

    def ask(self, name: str) -> Ask:
        attempt = ask(name, stream=True)
        self.upstream.ask(attempt)
        return attempt


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
async def line(inbox: Inbox) -> AsyncIterator[Line]:
    listener = Listener()
    server = await listener.start()
    upstream = TcpUpstream([server], inbox.reports)
    yield Line(upstream, listener, inbox, server)
    upstream.close()
    listener.stop()
    await asyncio.sleep(0)


def answer(query: bytes) -> bytes:
    return query[:2] + b"\x81\x80" + query[4:]


async def test_questions_share_a_connection_and_answers_may_overtake(line: Line) -> None:
    attempts = [line.ask(f"n{n}.test") for n in range(50)]
    peer = await line.listener.peer()
    queries = [await peer.query() for _ in attempts]

    for query in reversed(queries):
        peer.send(answer(query))
    await until(lambda: line.inbox.ended == 50)

    assert all(attempt.section in line.inbox.answered[attempt] for attempt in attempts)
    assert line.listener.peers.empty()


async def test_an_answer_in_small_pieces_is_put_together(line: Line) -> None:
    attempt = line.ask("a.test")
    peer = await line.listener.peer()
    whole = framed(answer(await peer.query()) + bytes(3000))

    for piece in (whole[:1], whole[1:2], whole[2:40], whole[40:]):
        peer.writer.write(piece)
        await peer.writer.drain()
    await until(lambda: line.inbox.ended == 1)

    assert line.inbox.answered[attempt] == whole[2:]


async def test_a_refused_connection_fails_what_waits_for_it(line: Line) -> None:
    line.listener.stop()
    attempts = [line.ask("a.test"), line.ask("b.test")]

    await until(lambda: line.inbox.ended == 2)

    assert line.inbox.failed == dict.fromkeys(attempts, "refused")
    assert line.upstream.connections == 0


async def test_a_connection_that_closes_without_an_answer_fails_its_attempts(line: Line) -> None:
    attempt = line.ask("a.test")
    peer = await line.listener.peer()

    peer.writer.close()
    await until(lambda: line.inbox.ended == 1)

    assert line.inbox.failed == {attempt: "closed"}
    assert line.upstream.connections == 0


async def test_a_question_sent_into_a_closing_idle_connection_is_sent_once_more(line: Line) -> None:
    line.ask("first.test")
    old = await line.listener.peer()
    old.send(answer(await old.query()))
    await until(lambda: line.inbox.ended == 1)

    second = line.ask("second.test")
    await old.query()
    old.writer.close()
    new = await line.listener.peer()
    new.send(answer(await new.query()))
    await until(lambda: line.inbox.ended == 2)

    assert second in line.inbox.answered


async def test_what_was_sent_once_more_is_not_sent_a_third_time(line: Line) -> None:
    line.ask("first.test")
    old = await line.listener.peer()
    old.send(answer(await old.query()))
    await until(lambda: line.inbox.ended == 1)

    second = line.ask("second.test")
    await old.query()
    old.writer.close()
    (await line.listener.peer()).writer.close()
    await until(lambda: line.inbox.ended == 2)

    assert line.inbox.failed == {second: "closed"}
    assert line.listener.peers.empty()


async def test_an_idle_connection_is_closed(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "IDLE", 0.01)
    line.ask("a.test")
    peer = await line.listener.peer()
    peer.send(answer(await peer.query()))

    closed = await peer.at_end()

    assert closed
    assert line.inbox.ended == 1
    assert line.upstream.connections == 0


async def test_a_question_ends_the_idleness(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "IDLE", 0.2)
    line.ask("a.test")
    peer = await line.listener.peer()
    peer.send(answer(await peer.query()))
    await until(lambda: line.inbox.ended == 1)

    line.ask("b.test")
    query = await peer.query()
    now = asyncio.get_running_loop().time
    later = now() + 0.3
    await until(lambda: now() > later)
    peer.send(answer(query))
    await until(lambda: line.inbox.ended == 2)

    assert line.inbox.failed == {}


async def test_a_connection_that_saw_a_time_out_is_not_used_again_but_its_last_answers_are_taken(line: Line) -> None:
    lost, waiting = line.ask("lost.test"), line.ask("waiting.test")
    old = await line.listener.peer()
    queries = {query[12:]: query for query in [await old.query(), await old.query()]}

    abandon(lost, timed_out=True)
    line.ask("next.test")
    new = await line.listener.peer()
    old.send(answer(queries[question("waiting.test")]))
    await until(lambda: line.inbox.ended == 1)

    assert list(line.inbox.answered) == [waiting]
    assert await old.at_end()
    assert question("next.test") in await new.query()


async def test_giving_up_the_last_attempt_ends_an_unfinished_connect(inbox: Inbox) -> None:
    # A listener whose queue is full ignores further SYNs, so that a connect hangs.
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, socket.create_connection(full.getsockname()):
        upstream = TcpUpstream([Server(*full.getsockname())], inbox.reports)
        attempt = ask("a.test", stream=True)
        upstream.ask(attempt)
        await asyncio.sleep(0)

        abandon(attempt, timed_out=True)
        await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})

    assert upstream.connections == 0
    assert inbox.ended == 0


async def test_wrong_answers_are_counted_and_twenty_fail_the_question(line: Line) -> None:
    attempt = line.ask("a.test")
    peer = await line.listener.peer()
    query = await peer.query()
    wrong = bytes((query[0], query[1] ^ 1))

    for _ in range(MAX_DISCARDS):
        peer.send(wrong + answer(query)[2:])
    await until(lambda: line.inbox.ended == 1)

    assert line.inbox.failed == {attempt: "garbage"}
    assert line.inbox.reasons == {"id": MAX_DISCARDS}


@pytest.mark.parametrize("noise", [bytes(12), b"\xff" * 600, b"\x00\x00\x81\x80\x00\x01" + bytes(60)])
async def test_messages_that_are_no_answers_are_thrown_away(line: Line, noise: bytes) -> None:
    attempt = line.ask("a.test")
    peer = await line.listener.peer()
    query = await peer.query()

    peer.writer.write(framed(noise) + framed(answer(query)))
    await until(lambda: line.inbox.ended == 1)

    assert list(line.inbox.answered) == [attempt]
    assert line.inbox.reasons == {"id": 1}


@pytest.mark.parametrize("noise", [b"\x00\x00", b"\x00\x05hello", framed(bytes(11))])
async def test_a_stream_that_cannot_be_messages_fails_what_waits_and_is_closed(line: Line, noise: bytes) -> None:
    attempt = line.ask("a.test")
    peer = await line.listener.peer()
    query = await peer.query()

    peer.writer.write(noise + framed(answer(query)))
    await until(lambda: line.inbox.ended == 1)

    assert line.inbox.failed == {attempt: "garbage"}
    assert await peer.at_end()


async def test_a_server_that_takes_no_more_fails_further_questions(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "PIPELINED", 3)

    attempts = [line.ask(f"n{n}.test") for n in range(3 * tcp.CONNECTIONS + 1)]

    assert line.upstream.connections == tcp.CONNECTIONS
    assert line.inbox.failed == {attempts[-1]: "overloaded"}


async def test_closing_ends_connections_and_forgets_what_waits(line: Line) -> None:
    attempt = line.ask("a.test")
    peer = await line.listener.peer()
    await peer.query()

    line.upstream.close()

    abandon(attempt, timed_out=True)
    assert line.upstream.connections == 0
    assert await peer.at_end()
    assert line.inbox.ended == 0
