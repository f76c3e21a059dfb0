"""The way back for a server that went down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from dnsguard.upstream import health
from dnsguard.upstream.health import Probes
from tests.upstreams import Resolver, until


class Downed:
    """Says that these servers are due whenever it is asked."""

    def __init__(self, *servers: int) -> None:
        self.due = list(servers)
        self.times = 0

    def due_probes(self, now: float) -> list[int]:
        self.times += 1
        return list(self.due)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "TICK", 0.005)
    monkeypatch.setattr(health, "PATIENCE", 0.1)


@pytest.fixture
async def resolver() -> AsyncIterator[Resolver]:
    made = Resolver()
    yield made
    made.close()


@pytest.fixture
async def back(resolver: Resolver) -> AsyncIterator[tuple[list[int], Downed]]:
    """The servers reported back while two are probed: 0 is the resolver, 1 a closed port."""
    closed = Resolver()
    closed.close()
    found: list[int] = []
    due = Downed(0, 1)
    running = asyncio.create_task(Probes([resolver.server, closed.server], due, back=found.append).run())
    yield found, due
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_server_that_replies_is_back_and_one_that_does_not_is_not(
    resolver: Resolver, back: tuple[list[int], Downed]
) -> None:
    found, due = back
    query = await resolver.query()
    due.due.remove(0)

    query.send(query.reply())
    await until(lambda: bool(found))

    assert query.packet[2:] == health.HEADER + health.ROOT_NS
    assert set(found) == {0}


async def test_a_refusal_is_a_reply(resolver: Resolver, back: tuple[list[int], Downed]) -> None:
    found, _ = back
    query = await resolver.query()

    query.send(query.packet[:2] + b"\x81\x85" + bytes(8))
    await until(lambda: bool(found))

    assert found[0] == 0


async def test_a_reply_to_something_else_is_none(resolver: Resolver, back: tuple[list[int], Downed]) -> None:
    found, due = back
    query = await resolver.query()

    query.send(query.reply(ident=bytes((query.packet[0] ^ 1, query.packet[1]))))
    query.send(query.packet)
    query.send(b"\x00")
    probed_again = await resolver.query()

    assert found == []
    assert probed_again.port != query.port
    assert due.times > 2


async def test_a_server_is_probed_once_at_a_time(resolver: Resolver, back: tuple[list[int], Downed]) -> None:
    _, due = back
    await resolver.query()

    asked = due.times
    await until(lambda: due.times >= asked + 3)

    with pytest.raises(BlockingIOError):
        resolver.take()


async def test_probes_under_way_end_with_it(resolver: Resolver) -> None:
    running = asyncio.create_task(Probes([resolver.server], Downed(0), back=lambda _: None).run())
    await resolver.query()

    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    assert asyncio.all_tasks() == {asyncio.current_task()}
