"""What goes into the kernel's answers and what comes out of them, on the virtual clock: the double answers as a kernel
would, and the stage holds every reply to I1."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dnsguard.enforce.told import MemoryAnswers
from dnsguard.engine.contracts import EventKind
from dnsguard.engine.prefetch import DENIED_NAMES
from dnsguard.upstream.scripted import Answer, Silence
from tests.replay.stage import Stage, respond
from tests.unit.messages import ask

ALL = "policies: {}\npods: {10.244.0.0/24: ['*.example.com']}\n"
NONE = "policies: {}\npods: {}\n"
DENYING = """
policies:
  p:
    egress: [{to: [{domainNames: ['*.example.com']}], ports: [{protocol: TCP, port: 443}]}]
pods: {10.244.0.5: {policies: [p]}, 10.244.0.6: ['*.example.com']}
"""


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage(ALL, pods={"web": ["10.244.0.5"], "db": ["10.244.0.6"]}, kernel=True)
    answering(made, 60)
    yield made
    made.check()
    made.close()


def answering(stage: Stage, ttl: int) -> None:
    stage.script("a.example.com", "A", Answer(respond(f"a.example.com. {ttl} A 192.0.2.1")))


def told(stage: Stage) -> int:
    assert isinstance(stage.answers, MemoryAnswers)
    return stage.answers.told


def test_the_kernel_tells_from_the_third_asking_on(stage: Stage) -> None:
    before = [told(stage) for _ in range(4) if stage.ask("web", "a.example.com")]
    assert before == [0, 0, 1, 2]
    assert len(stage.upstream.asked) == 1


def test_names_that_are_asked_for_once_take_no_place(stage: Stage) -> None:
    for number in range(20):
        stage.script(f"n{number}.example.com", "A", Answer(respond(f"n{number}.example.com. 60 A 192.0.2.9")))
        stage.ask("web", f"n{number}.example.com")
        stage.ask("web", f"n{number}.example.org")
    assert isinstance(stage.answers, MemoryAnswers)
    assert stage.answers._entries == {}


def test_what_is_told_has_the_age_that_it_has(stage: Stage) -> None:
    for _ in range(2):
        stage.ask("web", "a.example.com")
    stage.pass_time(20)
    assert stage.ask("web", "a.example.com").reply.ttls <= {39, 40}
    assert told(stage) == 1


def test_a_question_comes_up_when_its_lease_gets_shorter_than_the_floor() -> None:
    stage = Stage(ALL, "dns: {prefetch: false}\nttl: {floor: 30s, grace: 10s}", kernel=True)
    answering(stage, 60)
    for _ in range(2):
        stage.ask("web", "a.example.com")
    stage.pass_time(39)
    stage.ask("web", "a.example.com")
    assert told(stage) == 1
    stage.pass_time(2)
    stage.ask("web", "a.example.com")
    assert told(stage) == 1
    assert len(stage.upstream.asked) == 1
    stage.check()
    stage.close()


def test_a_hot_name_is_asked_for_before_its_end_and_told_on_without_a_gap(stage: Stage) -> None:
    for _ in range(65):
        stage.ask("web", "a.example.com")
        stage.pass_time(1)
    assert told(stage) == 63
    assert len(stage.upstream.asked) == 2


def test_a_name_that_nobody_asks_for_any_more_is_let_go(stage: Stage) -> None:
    for _ in range(3):
        stage.ask("web", "a.example.com")
    stage.pass_time(70)
    assert len(stage.upstream.asked) == 1


def test_an_upstream_that_is_silent_about_a_hot_name_is_told_to_nobody(stage: Stage) -> None:
    for _ in range(3):
        stage.ask("web", "a.example.com")
    stage.script("a.example.com", "A", Silence())
    stage.pass_time(62)
    assert [kind for kind in stage.told.kinds() if kind.value in ("query_failed", "answer_stale")] == []
    assert stage.counters.responses == {0: 2}


def test_a_new_policy_takes_out_what_the_old_one_told(stage: Stage) -> None:
    for _ in range(3):
        stage.ask("web", "a.example.com")
        stage.ask("db", "a.example.com")
    stage.reload(NONE)
    before = told(stage)
    assert stage.ask("web", "a.example.com").reply.rcode == "NXDOMAIN"
    assert stage.ask("db", "a.example.com").reply.rcode == "NXDOMAIN"
    assert told(stage) == before


def test_a_reload_that_changes_nothing_for_a_pod_leaves_its_answers(stage: Stage) -> None:
    for _ in range(2):
        stage.ask("web", "a.example.com")
    stage.reload(ALL)
    stage.ask("web", "a.example.com")
    assert told(stage) == 1


def test_a_denial_is_told_with_its_reason_and_heard_of_again_after_a_while(stage: Stage) -> None:
    replies = [stage.ask("web", "evil.example.org").reply for _ in range(4)]
    assert told(stage) == 2
    assert {(reply.rcode, reply.ede) for reply in replies} == {(replies[0].rcode, replies[0].ede)}
    stage.pass_time(31)
    stage.ask("web", "evil.example.org")
    assert told(stage) == 2
    assert len(stage.told.of(EventKind.QUERY_DENIED)) == 3


def test_a_name_that_is_denied_again_and_again_is_written_once_in_ten_seconds(stage: Stage) -> None:
    """As by TCP, which the kernel does not answer."""
    question, answers = ask("evil.example.org"), stage.answers
    assert isinstance(answers, MemoryAnswers)
    ends = []
    for now in (1000.0, 1003.0, 1009.9, 1010.0, 1012.0):
        stage.engine.feed.denied(stage.pod("web"), "10.244.0.5", question, rcode=3, ede=None, now=now)
        ends.append([until for until, _ in answers._entries.values()])

    assert ends == [[], [1030.0], [1030.0], [1040.0], [1040.0]]


def test_a_denied_name_is_forgotten_when_a_pod_asks_for_thousands_of_others() -> None:
    stage = Stage(ALL, "limits: {queriesPerSecond: 100000, burst: 100000}", kernel=True)
    assert isinstance(stage.answers, MemoryAnswers)
    stage.ask("web", "first.example.org")
    for number in range(2 * DENIED_NAMES + 1):
        stage.ask("web", f"n{number}.example.org")
    stage.ask("web", "first.example.org")
    assert stage.answers._entries == {}
    stage.ask("web", "first.example.org")
    assert len(stage.answers._entries) == 1
    stage.close()


def test_a_pod_that_went_leaves_no_answers_to_whoever_has_its_address_next(stage: Stage) -> None:
    for _ in range(3):
        stage.ask("web", "a.example.com")
    stage.went("web")
    stage.came("web", "10.244.0.5")
    stage.ask("web", "a.example.com")
    assert told(stage) == 1


def test_a_stale_answer_is_told_once(stage: Stage) -> None:
    answering(stage, 1)
    stage.ask("web", "a.example.com")
    stage.script("a.example.com", "A", Silence())
    stage.pass_time(2)
    for _ in range(3):
        stage.ask("web", "a.example.com")
        stage.pass_time(5)
    assert told(stage) == 0


def test_an_answer_of_which_one_pod_may_see_less_is_told_to_each_as_it_may() -> None:
    stage = Stage(DENYING, pods={"web": ["10.244.0.5"], "db": ["10.244.0.6"]}, kernel=True)
    answering(stage, 60)
    for _ in range(3):
        stage.ask("web", "a.example.com")
        stage.ask("db", "a.example.com")
    assert told(stage) >= 3
    assert stage.passes("web", "192.0.2.1", 443)
    assert not stage.passes("web", "192.0.2.1", 80)
    assert stage.passes("db", "192.0.2.1", 80)
    stage.check()
    stage.close()
