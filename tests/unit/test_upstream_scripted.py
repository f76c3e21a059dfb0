"""The upstream without sockets or a clock."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import pytest

from dnsguard.core.model import Name
from dnsguard.upstream.scripted import Answer, Asked, Failure, ScriptedUpstream, Silence
from tests.upstreams import Inbox, ask

A = Name(b"\x01a\x04test\x00")


class Clock:
    """Virtual time: what is due happens when a test moves it on."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []

    def later(self, delay: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self.now + delay, len(self._due), do))

    def move(self, seconds: float) -> None:
        self.now += seconds
        while self._due and self._due[0][0] <= self.now:
            heapq.heappop(self._due)[2]()


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def upstream(inbox: Inbox, clock: Clock) -> ScriptedUpstream:
    return ScriptedUpstream(inbox.reports, clock.later)


def echo(query: bytes) -> bytes:
    return query[:2] + b"\x81\x80" + query[4:]


def test_an_answer_comes_after_its_delay(upstream: ScriptedUpstream, inbox: Inbox, clock: Clock) -> None:
    upstream.script(A, 1, [Answer(echo, 0.5)])
    attempt = ask("A.test")

    upstream.ask(attempt)
    clock.move(0.4)
    too_early = inbox.ended
    clock.move(0.2)

    assert too_early == 0
    assert inbox.answered[attempt][2:] == echo(b"id" + attempt.query)[2:]
    assert upstream.outstanding == 0


def test_steps_follow_one_another_and_the_last_one_stays(
    upstream: ScriptedUpstream, inbox: Inbox, clock: Clock
) -> None:
    upstream.script(A, 1, [Failure("refused"), Answer(echo)])
    attempts = [ask("a.test") for _ in range(3)]

    for attempt in attempts:
        upstream.ask(attempt)
    clock.move(0)

    assert inbox.failed == {attempts[0]: "refused"}
    assert list(inbox.answered) == attempts[1:]


def test_a_server_may_have_a_script_of_its_own(upstream: ScriptedUpstream, inbox: Inbox, clock: Clock) -> None:
    upstream.script(A, 1, [Answer(echo)])
    upstream.script(A, 1, [Silence()], server=1)
    attempts = [ask("a.test", server=server) for server in (0, 1)]

    for attempt in attempts:
        upstream.ask(attempt)
    clock.move(100)

    assert list(inbox.answered) == attempts[:1]
    assert upstream.outstanding == 1


def test_an_abandoned_attempt_never_ends(upstream: ScriptedUpstream, inbox: Inbox, clock: Clock) -> None:
    upstream.script(A, 1, [Answer(echo, 1.0)])
    attempt = ask("a.test")
    upstream.ask(attempt)

    upstream.abandon(attempt, timed_out=True)
    clock.move(2)

    assert inbox.ended == 0
    assert upstream.outstanding == 0


def test_what_has_no_script_is_met_with_silence_and_remembered(
    upstream: ScriptedUpstream, inbox: Inbox, clock: Clock
) -> None:
    upstream.ask(ask("a.test", 28, server=2, stream=True))
    clock.move(100)

    assert inbox.ended == 0
    assert upstream.asked == [Asked(A, 28, 2, True)]
