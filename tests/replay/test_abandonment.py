"""Whatever is given up, and wherever it stands then: nothing is left of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from dnsguard.core.errors import KernelError
from dnsguard.upstream.scripted import Answer, Silence
from tests.replay.stage import Stage, allowlist, respond

FIRST = "policies: {}\npods: {10.244.0.0/24: ['*.example.com']}\n"
SECOND = "policies: {}\npods: {10.244.0.0/24: [b.example.com]}\n"


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage(FIRST, pods={"web": ["10.244.0.5"], "db": ["10.244.0.6"]})
    made.slack = 10.0  # The kernel is held in most of these.
    made.script("a.example.com", "A", Answer(respond("a.example.com. 60 A 192.0.2.1"), 0.1))
    made.script("b.example.com", "A", Answer(respond("b.example.com. 60 A 192.0.2.2"), 0.1))
    made.script("c.example.com", "A", Answer(respond(flags=["tc"]), 0.1), Silence())
    made.script("d.example.com", "A", Answer(respond("d.example.com. 1 A 192.0.2.3")), Silence())
    yield made
    made.check()
    made.check_nothing_left()
    made.close()


# ---- an exchange: where it stands, by what brings it there

Bring = Callable[[Stage], None]


def at_the_upstream(stage: Stage) -> None:
    stage.ask("web", "a.example.com")


def at_the_second_attempt(stage: Stage) -> None:
    stage.script("a.example.com", "A", Silence())
    stage.ask("web", "a.example.com")
    stage.pass_time(1.2)


def over_tcp(stage: Stage) -> None:
    stage.ask("web", "c.example.com")
    stage.pass_time(0.2)


def asleep_between_rounds(stage: Stage) -> None:
    stage.script("a.example.com", "A", Answer(lambda query: query[:2] + b"\x81\x80" + bytes(8)))
    stage.ask("web", "a.example.com")


def coalesced(stage: Stage) -> None:
    stage.ask("web", "a.example.com")
    stage.ask("db", "a.example.com")


def at_the_gate(stage: Stage) -> None:
    stage.enforcer.hold()
    stage.ask("web", "a.example.com")
    stage.pass_time(0.2)


def at_the_gate_behind_another(stage: Stage) -> None:
    at_the_gate(stage)
    stage.ask("db", "a.example.com")
    stage.ask("web", "a.example.com")


def stale_at_the_gate(stage: Stage) -> None:
    stage.ask("web", "d.example.com")
    stage.pass_time(45)
    stage.ask("web", "d.example.com")
    stage.enforcer.hold()
    stage.pass_time(1.9)


def behind_a_change(stage: Stage) -> None:
    stage.ask("web", "b.example.com")
    stage.pass_time(0.2)
    stage.enforcer.hold()
    stage.start(stage.engine.changes.policy(allowlist(SECOND)))
    stage.ask("web", "b.example.com")


def unknown_yet(stage: Stage) -> None:
    stage.seen("new", "10.244.0.9")
    stage.ask("new", "a.example.com")


STANDS = [
    at_the_upstream,
    at_the_second_attempt,
    over_tcp,
    asleep_between_rounds,
    coalesced,
    at_the_gate,
    at_the_gate_behind_another,
    stale_at_the_gate,
    behind_a_change,
    unknown_yet,
]


def title(function: Callable[..., object]) -> str:
    return function.__name__.replace("_", " ")


@pytest.mark.parametrize("stand", STANDS, ids=title)
def test_nothing_is_left_of_an_exchange_whose_pod_goes(stage: Stage, stand: Bring) -> None:
    stand(stage)
    stage.forget_promises("web")

    stage.start(stage.engine.changes.links({stage.links["web"]: None}))
    stage.enforcer.release()
    stage.spin()

    assert [e for e in stage.engine.exchanges._open if e.pod.link == stage.links["web"]] == []


@pytest.mark.parametrize("stand", STANDS, ids=title)
def test_nothing_is_left_of_an_exchange_that_nobody_helps_on(stage: Stage, stand: Bring) -> None:
    stand(stage)
    stage.pass_time(5)

    assert len(stage.engine.exchanges) == 0


@pytest.mark.parametrize("stand", STANDS, ids=title)
def test_nothing_is_left_of_an_exchange_when_the_daemon_stops(stage: Stage, stand: Bring) -> None:
    stand(stage)

    stage.engine.fetches.abandon_all()

    assert len(stage.engine.fetches) == 0
    assert stage.upstream.outstanding == 0


@pytest.mark.parametrize("stand", STANDS, ids=title)
def test_nothing_is_left_of_an_exchange_whose_write_is_refused(stage: Stage, stand: Bring) -> None:
    stand(stage)
    stage.enforcer.refuse("set is full")

    stage.enforcer.release()
    stage.pass_time(6)

    assert len(stage.engine.exchanges) == 0


@pytest.mark.parametrize("stand", STANDS, ids=title)
def test_nothing_is_left_of_an_exchange_whose_name_a_new_policy_denies(stage: Stage, stand: Bring) -> None:
    stand(stage)
    stage.enforcer.release()
    stage.spin()

    stage.reload("policies: {}\npods: {}\n")
    stage.pass_time(6)

    assert len(stage.engine.exchanges) == 0
    assert stage.enforcer.held() == []


# ---- a change: given up at each of its steps


def test_a_reload_given_up_while_pods_are_assigned_changes_nothing(stage: Stage) -> None:
    for number in range(100):
        stage.came(f"more{number}", f"10.244.0.{100 + number}")
    before = stage.enforcer.desired

    task = stage.loop.create_task(stage.engine.changes.policy(allowlist(SECOND)))
    stage.loop.run_until_complete(asyncio.sleep(0))
    task.cancel()
    stage.spin()

    assert task.cancelled()
    assert stage.enforcer.desired == before
    assert stage.engine.changes.generation == 1


def test_a_reload_given_up_while_the_kernel_works_is_taken_back(stage: Stage) -> None:
    stage.ask("web", "a.example.com")
    stage.pass_time(0.2)
    before = stage.enforcer.desired
    stage.enforcer.hold()
    task = stage.start(stage.engine.changes.policy(allowlist(SECOND)))

    task.cancel()
    stage.spin()
    stage.enforcer.release()
    stage.spin()

    assert task.cancelled()
    assert stage.enforcer.desired.pairs == before.pairs
    assert stage.engine.changes.generation == 1
    assert stage.passes("web", "192.0.2.1", 443)
    assert not stage.engine.changes.unapplied
    assert stage.ask("web", "a.example.com").reply.rcode == "NOERROR"


def test_a_reload_given_up_while_flows_are_judged_is_in_force_and_they_are_judged_later(stage: Stage) -> None:
    stage.ask("web", "a.example.com")
    stage.pass_time(0.2)
    flow = stage.connect("web", "192.0.2.1", 443)
    judged = stage.loop.create_future()
    stage.flows.before = judged
    task = stage.start(stage.engine.changes.policy(allowlist(SECOND)))

    task.cancel()
    stage.spin()
    stage.flows.before = None

    assert task.cancelled()
    assert not stage.passes("web", "192.0.2.1", 443)
    assert stage.engine.changes.unapplied
    stage.finish(stage.engine.changes.apply_again())
    assert not stage.flowing(flow)


def test_a_change_of_pods_given_up_while_the_kernel_works_is_owed(stage: Stage) -> None:
    stage.ask("web", "a.example.com")
    stage.pass_time(0.2)
    stage.forget_promises("web")
    stage.enforcer.hold()
    task = stage.start(stage.engine.changes.links({stage.links["web"]: None}))

    task.cancel()
    stage.spin()
    stage.enforcer.release()
    stage.finish(stage.engine.changes.apply_again())

    assert not stage.engine.changes.unapplied
    assert stage.enforcer.held() == []
    assert stage.flows.forgotten == [stage.addresses["web"][0]]


def test_changes_happen_one_after_another_also_when_the_first_fails(stage: Stage) -> None:
    stage.enforcer.hold()
    stage.enforcer.refuse_changes("no memory")
    first = stage.start(stage.engine.changes.policy(allowlist(SECOND)))
    second = stage.start(stage.engine.changes.links(stage.seen("new", "10.244.0.9")))

    stage.enforcer.release()
    stage.spin()

    assert isinstance(first.exception(), KernelError)
    assert second.done()
    assert stage.engine.changes.unapplied
    stage.enforcer.relent()
    stage.finish(stage.engine.changes.apply_again())
    assert stage.ask("new", "a.example.com").open
    stage.pass_time(0.2)
    assert stage.passes("new", "192.0.2.1", 443)


def test_forgetting_the_flows_of_a_pod_that_went_is_owed_when_it_cannot_be_done(stage: Stage) -> None:
    stage.flows.refuse("no buffer space")
    stage.went("web")

    owed = stage.engine.changes.unapplied
    stage.flows.refuse(None)
    stage.finish(stage.engine.changes.apply_again())

    assert owed
    assert stage.flows.forgotten == [stage.addresses["web"][0]]
    assert not stage.engine.changes.unapplied
