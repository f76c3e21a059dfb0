"""UDP to resolvers, over real sockets on loopback."""

from __future__ import annotations

import resource
import socket
from collections.abc import AsyncIterator, Iterator

import pytest

from dnsguard.upstream import udp
from dnsguard.upstream.matching import MAX_DISCARDS, Reports
from dnsguard.upstream.transport import abandon
from dnsguard.upstream.udp import UdpUpstream
from tests.upstreams import Ask, Inbox, Query, Resolver, Server, ask, question, until


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
def resolver() -> Iterator[Resolver]:
    made = Resolver()
    yield made
    made.close()


@pytest.fixture
async def upstream(resolver: Resolver, inbox: Inbox) -> AsyncIterator[UdpUpstream]:
    made = UdpUpstream([resolver.server], inbox.reports)
    yield made
    made.close()


async def asked(upstream: UdpUpstream, resolver: Resolver, name: str = "a.test") -> tuple[Ask, Query]:
    attempt = ask(name)
    upstream.ask(attempt)
    return attempt, await resolver.query()


async def test_an_answer_reaches_its_attempt(upstream: UdpUpstream, resolver: Resolver, inbox: Inbox) -> None:
    attempt, query = await asked(upstream, resolver)

    query.send(query.reply())
    await until(lambda: inbox.ended == 1)

    assert query.packet[2:] == attempt.query
    assert inbox.answered == {attempt: query.reply()}
    assert attempt.handle is None


async def test_answers_in_any_order_find_their_attempts(
    upstream: UdpUpstream, resolver: Resolver, inbox: Inbox
) -> None:
    attempts = [ask(f"n{n}.test") for n in range(200)]
    for attempt in attempts:
        upstream.ask(attempt)
    queries = await resolver.queries(200)

    for query in reversed(queries):
        query.send(query.reply())
    await until(lambda: inbox.ended == 200)

    assert all(attempt.section in packet for attempt, packet in inbox.answered.items())
    assert len(inbox.answered) == 200


async def test_an_answer_may_spell_the_name_otherwise(upstream: UdpUpstream, resolver: Resolver, inbox: Inbox) -> None:
    _, query = await asked(upstream, resolver, "mixed.test")

    query.send(query.reply(section=question("MiXeD.test")))
    await until(lambda: inbox.ended == 1)

    assert inbox.failed == {}


async def test_what_is_no_answer_is_counted_and_waiting_goes_on(
    upstream: UdpUpstream, resolver: Resolver, inbox: Inbox
) -> None:
    attempt, query = await asked(upstream, resolver)
    other = bytes((query.packet[0] ^ 1, query.packet[1]))

    query.send(query.reply(ident=other))
    query.send(query.reply(section=question("b.test")))
    query.send(query.reply(counts=b"\x00\x02" + bytes(6)))
    query.send(query.reply(flags=b"\x01\x00"))
    query.send(query.packet[:5])
    query.send(query.reply())
    await until(lambda: inbox.ended == 1)

    assert inbox.reasons == {"id": 1, "question": 2, "qr": 1, "short": 1}
    assert list(inbox.answered) == [attempt]


async def test_a_reply_without_the_question_is_taken_when_it_is_an_error(
    upstream: UdpUpstream, resolver: Resolver, inbox: Inbox
) -> None:
    attempt, query = await asked(upstream, resolver)

    query.send(query.packet[:2] + b"\x81\x81" + bytes(8))
    await until(lambda: inbox.ended == 1)

    assert list(inbox.answered) == [attempt]


async def test_twenty_guesses_at_one_question_fail_it_alone(
    upstream: UdpUpstream, resolver: Resolver, inbox: Inbox
) -> None:
    victim, other = ask("victim.test"), ask("other.test")
    upstream.ask(victim)
    upstream.ask(other)
    guessed, honest = await resolver.queries(2)

    wrong = [bytes((n, guessed.packet[1] ^ 1)) for n in range(MAX_DISCARDS + 1)]
    for ident in [i for i in wrong if i not in (guessed.packet[:2], honest.packet[:2])][:MAX_DISCARDS]:
        guessed.send(guessed.reply(ident=ident))
    await until(lambda: inbox.ended == 1)
    honest.send(honest.reply())
    await until(lambda: inbox.ended == 2)

    assert inbox.failed == {victim: "garbage"}
    assert list(inbox.answered) == [other]


async def test_a_closed_port_fails_what_waits_for_it(inbox: Inbox) -> None:
    resolver = Resolver()
    resolver.close()
    upstream = UdpUpstream([resolver.server], inbox.reports)
    attempts = [ask(f"n{n}.test") for n in range(3)]

    for attempt in attempts:
        upstream.ask(attempt)
    await until(lambda: inbox.ended == 3)

    assert set(inbox.failed.values()) == {"refused"}
    assert upstream.sockets == 0


async def test_a_packet_from_elsewhere_never_arrives(upstream: UdpUpstream, resolver: Resolver, inbox: Inbox) -> None:
    attempt, query = await asked(upstream, resolver)
    forger = Resolver()

    query._replace(socket=forger._socket).send(query.reply(section=question("forged.test")))
    forger.close()
    query.send(query.reply())
    await until(lambda: inbox.ended == 1)

    assert inbox.reports.discarded == {}
    assert inbox.answered == {attempt: query.reply()}


async def test_a_server_that_cannot_be_reached_fails_at_once(inbox: Inbox) -> None:
    # Only a socket that has asked for it may send to the broadcast address.
    upstream = UdpUpstream([Server("255.255.255.255", 53)], inbox.reports)
    attempt = ask("a.test")

    upstream.ask(attempt)

    assert list(inbox.failed) == [attempt]
    assert upstream.sockets == 0


async def test_no_more_descriptors_fails_the_attempt_and_the_next_one_works(
    upstream: UdpUpstream, resolver: Resolver, inbox: Inbox
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    starved = ask("starved.test")
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        upstream.ask(starved)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    served, query = await asked(upstream, resolver)
    query.send(query.reply())
    await until(lambda: inbox.ended == 2)

    assert inbox.failed == {starved: "sockets"}
    assert list(inbox.answered) == [served]


async def test_ports_and_ids_change_from_burst_to_burst(
    upstream: UdpUpstream, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(udp, "BURST", 1)
    queries = [(await asked(upstream, resolver))[1] for _ in range(300)]

    # 300 draws from 64 slots leave fewer than 50 slots used, or from 65,536 IDs give 20 pairs, once in a lifetime.
    assert len({query.port for query in queries}) > 50
    assert len({query.packet[:2] for query in queries}) > 280


async def test_one_burst_shares_a_socket_so_that_its_answers_come_together(
    upstream: UdpUpstream, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(udp, "BURST_SECONDS", 60.0)
    for n in range(2 * udp.BURST):
        upstream.ask(ask(f"n{n}.test"))

    ports = [query.port for query in await resolver.queries(2 * udp.BURST)]

    assert len(set(ports[: udp.BURST])) == 1
    assert len(set(ports[udp.BURST :])) == 1


async def test_a_socket_is_replaced_after_its_uses(
    upstream: UdpUpstream, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(udp, "SLOTS", 1)
    monkeypatch.setattr(udp, "BURST_SECONDS", 60.0)

    ports = [(await asked(upstream, resolver))[1].port for _ in range(udp.USES + 1)]

    assert len(set(ports[: udp.USES])) == 1
    assert ports[-1] != ports[0]


async def test_a_socket_that_saw_a_time_out_is_not_used_again(
    upstream: UdpUpstream, resolver: Resolver, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(udp, "SLOTS", 1)
    monkeypatch.setattr(udp, "BURST_SECONDS", 60.0)
    lost, first = await asked(upstream, resolver)
    waiting, second = await asked(upstream, resolver, "b.test")

    abandon(lost, timed_out=True)
    _, third = await asked(upstream, resolver, "c.test")
    second.send(second.reply())
    await until(lambda: inbox.ended == 1)

    assert first.port == second.port != third.port
    assert list(inbox.answered) == [waiting]
    assert upstream.sockets == 1


async def test_an_abandoned_attempt_keeps_its_socket_and_its_late_answer_is_nothing(
    upstream: UdpUpstream, resolver: Resolver, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(udp, "SLOTS", 1)
    monkeypatch.setattr(udp, "BURST_SECONDS", 60.0)
    given_up, first = await asked(upstream, resolver)

    abandon(given_up, timed_out=False)
    first.send(first.reply())
    await until(lambda: inbox.reasons == {"late": 1})
    _, second = await asked(upstream, resolver, "b.test")

    assert inbox.ended == 0
    assert second.port == first.port


async def test_an_idle_server_holds_no_socket(
    upstream: UdpUpstream, resolver: Resolver, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(udp, "LIFETIME", 0.02)
    _, query = await asked(upstream, resolver)
    query.send(query.reply())

    await until(lambda: inbox.ended == 1 and upstream.sockets == 0)

    _, query = await asked(upstream, resolver, "again.test")
    query.send(query.reply())
    await until(lambda: inbox.ended == 2)


async def test_sockets_that_only_wait_are_limited(
    upstream: UdpUpstream, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(udp, "MAX_OPEN", 5)
    monkeypatch.setattr(udp, "LIFETIME", -1.0)
    monkeypatch.setattr(udp, "BURST", 1)
    attempts = [ask(f"n{n}.test") for n in range(8)]

    for attempt in attempts:
        upstream.ask(attempt)

    assert upstream.sockets == 5
    assert inbox.failed == dict.fromkeys(attempts[5:], "sockets")


async def test_closing_forgets_what_waits_and_frees_every_descriptor(
    upstream: UdpUpstream, resolver: Resolver, inbox: Inbox
) -> None:
    attempt, _ = await asked(upstream, resolver)

    upstream.close()

    abandon(attempt, timed_out=True)
    assert upstream.sockets == 0
    assert inbox.ended == 0


async def test_an_answer_may_lead_to_the_next_question_at_once(
    upstream: UdpUpstream, resolver: Resolver, inbox: Inbox
) -> None:
    second = ask("second.test")
    answered = inbox.reports.answered
    chained = UdpUpstream(
        [resolver.server],
        Reports(lambda a, p: (answered(a, p), a is second or chained.ask(second))[0], inbox.reports.failed),
    )
    chained.ask(ask("first.test"))

    for _ in range(2):
        query = await resolver.query()
        query.send(query.reply())
    await until(lambda: inbox.ended == 2)
    chained.close()

    assert second in inbox.answered


async def test_ipv6_servers_are_asked(inbox: Inbox) -> None:
    resolver = Resolver(socket.AF_INET6)
    upstream = UdpUpstream([resolver.server], inbox.reports)
    _, query = await asked(upstream, resolver)

    query.send(query.reply())
    await until(lambda: inbox.ended == 1)
    upstream.close()
    resolver.close()

    assert inbox.failed == {}
