"""A new process takes up what the kernel still holds for pods that run what they ran, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dnsguard.core.lease import Element, Held
from dnsguard.daemon.restore import Left, restore
from dnsguard.names_file.content import Names
from dnsguard.upstream.scripted import Answer
from tests.replay.stage import Stage, respond

PODS = {"web": ["10.244.0.5", "10.244.0.6"]}
POLICY = """
policies: {p: {egress: [{to: [{domainNames: ["*.example.com"]}], ports: [{protocol: TCP, port: 443}]}]}}
pods: {10.244.0.0/24: {policies: [p]}}
"""
OTHER = POLICY.replace("port: 443}", "port: 443}, {protocol: TCP, port: 80}")


@pytest.fixture
def before() -> Iterator[Stage]:
    """A process that has resolved one name, 20 s ago, and then died."""
    stage = Stage(POLICY, pods=PODS)
    stage.script("a.example.com", "A", Answer(respond("a.example.com. 60 A 192.0.2.1")))
    stage.ask("web", "a.example.com")
    stage.pass_time(20)
    yield stage
    stage.close()


def restart(before: Stage, policy: str = POLICY, *, lost: bytes = b"", names: Names | None = None) -> Stage:
    """The next process on the same kernel; `lost` is the source whose elements went missing meanwhile."""
    held = [one for one in before.enforcer.held() if not lost or not one.key.startswith(lost)]
    running = dict(before.enforcer.desired.pairs)
    stage = Stage(policy, begin=False)
    stage.script("a.example.com", "A", Answer(respond("a.example.com. 60 A 192.0.2.1")))
    stage.clock.now = before.clock.now
    stage.enforcer.desired = before.enforcer.desired
    stage.enforcer._ends.update({Element(h.scope, h.key): stage.clock.now + h.remaining_ms / 1000 for h in held})
    engine = stage.engine
    left = Left(held, running, names or {})
    stage.begin(policy, PODS, lambda now: restore(engine.pods, engine.leases, left, now), running)
    stage.look()
    return stage


def finish(stage: Stage) -> None:
    stage.check()
    stage.check_nothing_left()
    stage.close()


def test_what_was_open_stays_open_for_the_time_it_had_left_and_no_longer(before: Stage) -> None:
    stage = restart(before)

    assert stage.passes("web", "192.0.2.1", 443)
    stage.pass_time(49)
    assert stage.passes("web", "192.0.2.1", 443)
    stage.pass_time(2)
    assert not stage.passes("web", "192.0.2.1", 443)
    finish(stage)


def test_a_restored_lease_is_extended_by_a_name_that_is_asked_again(before: Stage) -> None:
    stage = restart(before)

    stage.ask("web", "a.example.com")
    stage.pass_time(55)

    assert stage.passes("web", "192.0.2.1", 443)
    finish(stage)


def test_a_restored_lease_goes_at_the_first_change_of_the_program(before: Stage) -> None:
    stage = restart(before)

    stage.reload(OTHER)

    assert not stage.passes("web", "192.0.2.1", 443)
    assert stage.enforcer.held() == []
    finish(stage)


def test_a_restored_lease_stays_when_the_program_does(before: Stage) -> None:
    stage = restart(before)

    stage.reload("# the same rules, a line further down\n" + POLICY)

    assert stage.passes("web", "192.0.2.1", 443)
    finish(stage)


def test_what_a_pod_ran_otherwise_is_closed_before_anyone_asks(before: Stage) -> None:
    stage = restart(before, OTHER)

    assert stage.enforcer.held() == []
    finish(stage)


def test_a_flow_that_a_restored_lease_let_open_is_judged_by_the_program_only(before: Stage) -> None:
    stage = restart(before)
    flow = stage.connect("web", "192.0.2.1", 443)
    stage.pass_time(60)

    stage.reload("# the same rules, a line further down\n" + POLICY)
    kept = stage.flowing(flow)
    stage.reload(OTHER)

    assert kept
    assert not stage.flowing(flow)
    finish(stage)


def test_an_element_that_one_address_lacks_is_written_before_the_next_answer(before: Stage) -> None:
    stage = restart(before, lost=before.addresses["web"][1])

    stage.ask("web", "a.example.com")

    assert stage.passes("web", "192.0.2.1", 443)
    assert len(stage.enforcer.held()) == 2
    finish(stage)


def test_a_lease_lasts_for_an_answer_only_as_long_as_its_shortest_element(before: Stage) -> None:
    short = Element("tcp_443", before.addresses["web"][1] + bytes([192, 0, 2, 1]))
    before.enforcer._ends[short] = before.clock.now + 5

    stage = restart(before)
    stage.script("a.example.com", "A", Answer(respond("a.example.com. 5 A 192.0.2.1")))
    stage.ask("web", "a.example.com")

    assert {round(held.remaining_ms / 1000) for held in stage.enforcer.held()} == {50}
    finish(stage)


def test_what_another_program_left_open_is_removed_though_its_scope_is_the_same(before: Stage) -> None:
    static = POLICY.replace("egress: [", "egress: [{to: [{ipBlock: {cidr: 198.51.100.0/24}}]}, ")

    stage = restart(before, static)

    assert stage.enforcer.held() == []
    finish(stage)


def test_what_no_pod_has_is_named_for_removal() -> None:
    stage = Stage(POLICY, pods=PODS)
    key = bytes([10, 244, 9, 9, 192, 0, 2, 1])

    left = Left([Held("tcp_443", key, 1000)])
    changed = restore(stage.engine.pods, stage.engine.leases, left, stage.clock.now)

    assert changed.remove == [Element("tcp_443", key)]
    assert len(stage.engine.leases) == 0
    finish(stage)
