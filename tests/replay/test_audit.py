"""Audit lets everything through and tells of what it would have denied; enforcing begins with a reload, in one step."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from dnsguard.core.errors import KernelError
from dnsguard.core.model import Protocol
from dnsguard.engine.contracts import EventKind
from dnsguard.upstream.scripted import Answer
from tests.replay.stage import Stage, respond

ALLOWLIST = """
policies:
  web: {egress: [{to: [{domainNames: [db.example.com]}], ports: [{protocol: TCP, port: 5432}]}]}
pods: {10.244.0.5: {name: shop/web, policies: [web]}}
"""
WITH_OTHER = ALLOWLIST.replace("[db.example.com]", "[db.example.com, other.example.com]")
DB, OTHER = "192.0.2.1", "198.51.100.7"
BOTH = "db.example.com. 60 AAAA ::1\ndb.example.com. 60 AAAA 2001:db8::1"


Staged = Callable[..., Stage]


@pytest.fixture
def staged() -> Iterator[Staged]:
    """Makes stages, each held to what it promised in the end."""
    made: list[Stage] = []

    def make(config: str, **how: bool) -> Stage:
        stage = Stage(ALLOWLIST, config, **how)
        made.append(stage)
        for name, address in (("db", DB), ("other", OTHER)):
            stage.script(f"{name}.example.com", "A", Answer(respond(f"{name}.example.com. 60 A {address}")))
        return stage

    yield make
    for stage in made:
        stage.close()
        assert stage.broken == []


@pytest.fixture
def stage(staged: Staged) -> Stage:
    return staged("mode: Audit\n")


def test_a_name_that_no_rule_allows_is_answered_counted_and_told(stage: Stage) -> None:
    asked = stage.ask("web", "other.example.com")

    assert asked.reply.addresses == [OTHER]
    assert dict(stage.counters.verdicts) == {"audited": 1}
    (told,) = stage.told.of(EventKind.QUERY_AUDITED)
    assert (told["pod"], told["policy"], told["reason"]) == ("shop/web", "web", "no rule allows this name")
    assert EventKind.QUERY_ALLOWED not in stage.told.kinds()


def test_it_opens_no_lease_and_is_not_told_by_the_kernel(staged: Staged) -> None:
    stage = staged("mode: Audit\n", kernel=True)

    for _ in range(4):
        stage.ask("web", "other.example.com")

    assert not stage.enforcer.held()
    assert stage.counters.verdicts["audited"] == 4


def test_what_is_allowed_has_its_leases_as_ever(stage: Stage) -> None:
    stage.ask("web", "db.example.com")

    assert [held.scope for held in stage.enforcer.held()] == ["tcp_5432"]
    assert stage.counters.verdicts["allowed"] == 1


def test_an_audited_flow_is_told_of_by_the_name_that_led_there(stage: Stage) -> None:
    stage.ask("web", "other.example.com")

    why = stage.engine.why_closed(stage.pod("web"), stage.addresses["web"][0], stage.clock.now)
    named = stage.engine.why_closed(stage.pod("web"), bytes([198, 51, 100, 7]), stage.clock.now)  # type: ignore[arg-type]

    assert why == "never resolved"
    assert named == "other.example.com resolved to it: no rule allows this name"


def test_a_protected_address_is_shown_and_told_and_not_opened(stage: Stage) -> None:
    stage.script("db.example.com", "AAAA", Answer(respond(BOTH)))

    asked = stage.ask("web", "db.example.com", "AAAA")

    assert asked.reply.addresses == ["::1", "2001:db8::1"]
    assert len(stage.told.of(EventKind.ANSWER_AUDITED)) == 1
    assert not stage.counters.answers_withheld


def test_a_limit_is_told_of_and_refuses_nothing(staged: Staged) -> None:
    stage = staged("mode: Audit\nlimits: {queriesPerSecond: 1, burst: 2}\n")

    replies = [stage.ask("web", "db.example.com").reply.rcode for _ in range(5)]

    assert replies == ["NOERROR"] * 5
    assert stage.counters.limited["queriesPerSecond"] == 3


def test_ten_times_a_limit_is_refused_in_audit_too(staged: Staged) -> None:
    stage = staged("mode: Audit\nlimits: {queriesPerSecond: 1, burst: 2}\n")

    asked = [stage.ask("web", "db.example.com") for _ in range(30)]

    assert [one.open for one in asked] == [False] * 20 + [True] * 10


@pytest.mark.parametrize("later", [False, True])
def test_a_kernel_that_refuses_a_lease_withholds_no_answer(stage: Stage, later: bool) -> None:
    stage.enforcer.refuse("ENFILE")
    if later:
        stage.enforcer.hold()

    asked = stage.ask("web", "db.example.com")
    stage.enforcer.release()

    assert asked.reply.addresses == [DB]
    assert stage.told.of(EventKind.ANSWER_AUDITED)[0]["reason"] == "ENFILE"


def test_a_kernel_that_is_late_withholds_no_answer(stage: Stage) -> None:
    stage.enforcer.hold()
    asked = stage.ask("web", "db.example.com")

    stage.pass_time(1.2)

    assert asked.reply.addresses == [DB]


def test_from_audit_to_enforce_names_are_denied_and_flows_that_nothing_justifies_are_cut(stage: Stage) -> None:
    stage.ask("web", "other.example.com")
    stage.ask("web", "db.example.com")
    allowed, other = stage.connect("web", DB, 5432), stage.connect("web", OTHER, 443)

    cut = stage.finish(stage.engine.changes.audit(False))

    assert cut == 1
    assert stage.flowing(allowed) and not stage.flowing(other)
    assert stage.ask("web", "other.example.com").reply.rcode == "NXDOMAIN"
    assert not stage.passes("web", OTHER, 443)
    assert stage.passes("web", DB, 5432)


def test_a_flow_that_nothing_justifies_ends_with_audit_itself_and_not_when_it_is_judged(stage: Stage) -> None:
    stage.ask("web", "db.example.com")
    allowed, unjust = stage.connect("web", DB, 5432), stage.connect("web", OTHER, 443)
    enforce, flowing = stage.enforcer.audit, []

    async def ended_then(on: bool) -> None:
        flowing.append(stage.flowing(unjust))
        await enforce(on)
        flowing.append(stage.flowing(unjust))
        raise asyncio.CancelledError  # the process ends here

    stage.enforcer.audit = ended_then  # type: ignore[method-assign]
    with pytest.raises(asyncio.CancelledError):
        stage.finish(stage.engine.changes.audit(False))

    assert flowing == [True, False]
    assert stage.flowing(allowed)


def test_what_was_told_in_audit_and_is_allowed_by_now_is_open_when_enforcing_begins(stage: Stage) -> None:
    stage.ask("web", "other.example.com")
    flow = stage.connect("web", OTHER, 5432)
    stage.reload(WITH_OTHER)

    cut = stage.finish(stage.engine.changes.audit(False))

    assert cut == 0 and stage.flowing(flow)
    assert stage.passes("web", OTHER, 5432)
    stage.pass_time(75)
    assert not stage.passes("web", OTHER, 5432)


def test_a_flow_that_has_outlived_its_answer_is_judged_by_its_name(stage: Stage) -> None:
    stage.ask("web", "other.example.com")
    flow = stage.connect("web", OTHER, 5432)
    stage.pass_time(300)
    stage.reload(WITH_OTHER)

    cut = stage.finish(stage.engine.changes.audit(False))

    assert cut == 0 and stage.flowing(flow)
    assert not stage.passes("web", OTHER, 5432)


def test_a_question_under_way_is_judged_by_the_mode_in_which_it_is_answered(stage: Stage) -> None:
    stage.script("slow.example.com", "A", Answer(respond("slow.example.com. 60 A 192.0.2.9"), 0.5))
    stage.enforcer.hold()
    held = stage.ask("web", "db.example.com")
    slow = stage.ask("web", "slow.example.com")

    switching = stage.start(stage.engine.changes.audit(False))
    stage.enforcer.release()
    stage.spin()
    stage.pass_time(1.5)

    assert switching.done()
    assert held.reply.addresses == [DB]
    assert slow.reply.rcode == "NXDOMAIN"


def test_a_kernel_that_will_not_enforce_leaves_audit_in_force(stage: Stage) -> None:
    async def refused(on: bool) -> None:
        raise KernelError("EBUSY")

    stage.enforcer.audit = refused  # type: ignore[method-assign]

    with pytest.raises(KernelError):
        stage.finish(stage.engine.changes.audit(False))

    assert stage.ask("web", "other.example.com").reply.addresses == [OTHER]


def test_from_enforce_to_audit_everything_opens_in_one_step(staged: Staged) -> None:
    stage = staged("")
    stage.ask("web", "db.example.com")
    flow = stage.connect("web", DB, 5432)
    stage.reload("policies: {}\npods: {10.244.0.5: []}\n")
    assert not stage.flowing(flow)

    stage.finish(stage.engine.changes.audit(True))

    assert stage.flowing(flow)
    assert stage.passes("web", OTHER, 443, Protocol.UDP)
    assert stage.ask("web", "other.example.com").reply.addresses == [OTHER]


def test_a_policy_that_changes_in_audit_cuts_nothing(stage: Stage) -> None:
    stage.ask("web", "db.example.com")
    flow = stage.connect("web", DB, 5432)

    stage.reload("policies: {}\npods: {10.244.0.5: []}\n")

    assert stage.flowing(flow)
    assert not stage.counters.flows_cut
