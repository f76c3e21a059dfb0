"""Audit, over each enforcer: what no rule accepts passes and is recorded, but for a forged source."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dnsguard.core.compile import compile_program, decide
from dnsguard.core.model import Action, Address, Flow, Packet, Program, Protocol
from dnsguard.engine.contracts import Desired
from tests.contract.generator import NO_PORTS_PROTOCOL, Scenario, address, scenarios
from tests.contract.scenario import decisions, misjudged, packets
from tests.contract.subject import Subject
from tests.contract.test_enforcer import OTHER, PEER, PEER6, WEB, arm, block, compiled, packet, running, write

EVERYTHING = compiled(block("0.0.0.0/0"), block("::/0"))
NOTHING = Program("p_0123456789ab")
SERVER = address("203.0.113.7")

Record = tuple[Address, Address, int, int, int | None]


async def records(subject: Subject) -> Counter[Record]:
    return Counter({tuple(each[:5]): each.packets for each in await subject.audited()})


def record(of: Packet, rule: int | None = None) -> Record:
    return of.source, of.destination, of.protocol, of.port, rule


def denials(scenario: Scenario) -> Counter[Record]:
    """What the rules deny of the scenario's packets, with the rule that does."""
    leased = {(write.key, write.scope) for write in scenario.writes}
    programs = [compile_program(policy) for policy in scenario.effective]
    found: Counter[Record] = Counter()
    for pod, sent in packets(scenario):
        key = sent.source + sent.destination
        decision = decide(programs[pod], sent, lambda scope, key=key: (key, scope) in leased)  # type: ignore[misc]
        if decision.action is Action.DENY:
            found[record(sent, decision.rule)] += 1
    return found


@pytest.mark.parametrize("before", [False, True], ids=["beforehand", "live"])
async def test_what_is_denied_passes_and_is_recorded_and_what_is_allowed_only_passes(
    subject: Subject, before: bool
) -> None:
    one, _ = subject.places
    if before:
        await subject.enforcer.apply(running({one: WEB}), [write(one)])
        await subject.enforcer.audit(True)
    else:
        await subject.enforcer.audit(True)
        await subject.enforcer.apply(running({one: WEB}), [write(one)])
    sent = [packet(one), packet(one, 444), packet(one, 444), packet(one, 80, PEER6), packet(one, peer=OTHER)]
    assert await subject.decide_all(sent) == [True] * len(sent)
    if subject.records:
        assert await records(subject) == Counter(map(record, sent[1:]))


async def test_every_protocol_passes_and_is_recorded_with_its_port_where_it_has_one(subject: Subject) -> None:
    one, _ = subject.places
    await subject.enforcer.apply(running({one: NOTHING}))
    await subject.enforcer.audit(True)
    sent = [packet(one, 443, protocol=each) for each in Protocol]
    sent += [packet(one, 0, protocol=1), packet(one, 0, PEER6, 58), packet(one, 0, protocol=NO_PORTS_PROTOCOL)]
    assert await subject.decide_all(sent) == [True] * len(sent)
    if subject.records:
        assert await records(subject) == Counter(map(record, sent))


async def test_a_deny_rule_is_told_by_its_number(subject: Subject) -> None:
    one, _ = subject.places
    program = compiled(block("198.51.100.1/32"), block("198.51.100.0/24", action=Action.DENY), block("0.0.0.0/0"))
    await subject.enforcer.apply(running({one: program}))
    await subject.enforcer.audit(True)
    sent = [packet(one), packet(one, peer=OTHER), packet(one, peer=SERVER)]
    assert await subject.decide_all(sent) == [True, True, True]
    if subject.records:
        assert await records(subject) == Counter([record(sent[1], 1)])


async def test_a_forged_source_is_dropped_and_not_recorded(subject: Subject) -> None:
    one, two = subject.places
    await subject.enforcer.apply(running({one: EVERYTHING}))
    await subject.enforcer.audit(True)
    assert await subject.decide(packet(one), one.link)
    for peer in (PEER, PEER6):
        assert not await subject.decide(packet(one, peer=peer), two.link)
    assert not await subject.audited()


async def test_a_pod_that_has_no_program_yet_passes_and_is_recorded(subject: Subject) -> None:
    one, two = subject.places
    await subject.enforcer.apply(running({one: NOTHING}))
    await subject.enforcer.audit(True)
    sent = [packet(two), packet(two, peer=PEER6)]
    assert [await subject.decide(each, two.link) for each in sent] == [True, True]
    if subject.records:
        assert await records(subject) == Counter(map(record, sent))


async def test_when_audit_ends_what_passed_is_denied_anew_and_its_records_go(subject: Subject) -> None:
    one, _ = subject.places
    await subject.enforcer.apply(running({one: WEB}), [write(one)])
    for _ in range(2):
        await subject.enforcer.audit(True)
        assert await subject.decide(packet(one, 80))
        await subject.enforcer.audit(False)
        assert await subject.decide(packet(one))
        assert not await subject.decide(packet(one, 80))
        assert not await subject.audited()


async def test_a_change_of_policy_in_audit_does_not_end_it(subject: Subject) -> None:
    one, two = subject.places
    await subject.enforcer.audit(True)
    await subject.enforcer.apply(running({one: WEB}))
    deny = compiled(block("198.51.100.0/24", action=Action.DENY), block("0.0.0.0/0"))
    await subject.enforcer.apply(running({one: deny, two: WEB}))
    assert await arm(subject, write(two)) is None
    sent = [packet(one), packet(two, 80), packet(two)]
    assert await subject.decide_all(sent) == [True, True, True]
    if subject.records:
        assert await records(subject) == Counter([record(sent[0], 0), record(sent[1])])


async def test_a_flow_that_audit_let_open_is_ended_by_cutting_it(subject: Subject) -> None:
    one, _ = subject.places
    flow = Flow(Protocol.UDP, one.v4, 40_000, PEER, 443, PEER, 443)
    await subject.enforcer.apply(running({one: NOTHING}))
    assert not await subject.begin(flow)
    await subject.enforcer.audit(True)
    assert await subject.begin(flow)
    await subject.enforcer.audit(False)
    await subject.enforcer.cut([flow])
    assert await subject.carries(flow) == (False, False)


async def test_a_flow_that_was_cut_passes_while_audit_is_on_and_is_cut_again_behind_it(subject: Subject) -> None:
    one, _ = subject.places
    flow = Flow(Protocol.UDP, one.v4, 40_000, PEER, 443, PEER, 443)
    await subject.enforcer.apply(running({one: EVERYTHING}))
    assert await subject.begin(flow)
    await subject.enforcer.cut([flow])
    await subject.enforcer.audit(True)
    assert await subject.carries(flow) == (True, True)
    await subject.enforcer.audit(False)
    assert await subject.carries(flow) == (False, False)


async def test_no_packet_is_lost_while_audit_begins_and_ends(subject: Subject) -> None:
    one, _ = subject.places
    await subject.enforcer.apply(running({one: WEB}), [write(one)])
    switches = [subject.enforcer.audit(number % 2 == 0) for number in range(20)]
    assert all(await subject.decide_all([packet(one)] * 1000))
    for each in switches:
        await each
    assert await subject.decide_all([packet(one), packet(one, 80)]) == [True, False]


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.data())
async def test_exactly_what_the_rules_deny_is_recorded_and_denied_again_afterwards(
    subject: Subject, data: st.DataObject
) -> None:
    scenario = data.draw(scenarios(subject.crowd))
    await subject.enforcer.audit(True)
    assert all(await decisions(subject, scenario))
    if subject.records:
        assert await records(subject) == denials(scenario)
    await subject.enforcer.audit(False)
    assert await misjudged(subject, scenario) == []


async def test_nothing_is_recorded_of_an_excluded_pair(subject: Subject) -> None:
    one, two = subject.places
    excluded = frozenset({(two.link, two.v4)})
    await subject.enforcer.apply(Desired((NOTHING,), {(one.link, one.v4): NOTHING.name}, excluded))
    await subject.enforcer.audit(True)
    assert await subject.decide(packet(two))
    assert not await subject.audited()
