"""What every enforcer promises (`engine/contracts.Enforcer`), run over each of them.

Times are whole seconds and are judged 300 ms away from their edge, so that a kernel's clock can be used as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from ipaddress import ip_network
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dnsguard.core.compile import compile_program
from dnsguard.core.errors import KernelError
from dnsguard.core.model import (
    Action,
    Address,
    BlockPeer,
    DomainPeer,
    Flow,
    Network,
    Packet,
    Pair,
    Pattern,
    Policy,
    PortRange,
    Ports,
    Program,
    Protocol,
    Rule,
    Tier,
)
from dnsguard.core.policy import effective
from dnsguard.engine.contracts import Desired, Element, Write
from tests.contract.generator import NO_PORTS_PROTOCOL, Place, address, scenarios, wire
from tests.contract.scenario import misjudged
from tests.contract.subject import Subject

PEER, OTHER = address("198.51.100.1"), address("198.51.100.2")
PEER6 = address("2001:db8:1::1")
UNKNOWN_SCOPE = "tcp_4711"

tickets = count(1)


def tcp(first: int, last: int | None = None) -> Ports:
    return (PortRange(Protocol.TCP, first, last or first),)


def named(name: str, ports: Ports) -> Rule:
    return Rule((DomainPeer((Pattern(wire(name)),)),), ports=ports)


def block(
    text: str,
    ports: Ports = (),
    action: Action = Action.ACCEPT,
    *,
    tier: Tier = Tier.POD,
    excepts: Sequence[str] = (),
) -> Rule:
    holes: tuple[Network, ...] = tuple(map(ip_network, excepts))
    return Rule(blocks=(BlockPeer(ip_network(text), holes),), ports=ports, action=action, tier=tier)


def compiled(*rules: Rule) -> Program:
    return compile_program(effective([Policy("web", rules)], Action.DENY))


WEB = compiled(named("a.test", tcp(443)))
WEB_AND_MAIL = compiled(named("a.test", tcp(443)), named("b.test", tcp(25)))


def running(runs: dict[Place, Program], excluded: Collection[Pair] = ()) -> Desired:
    pairs = {(place.link, own): program.name for place, program in runs.items() for own in place.addresses}
    return Desired(tuple({p.name: p for p in runs.values()}.values()), pairs, frozenset(excluded))


def write(place: Place, peer: Address = PEER, scope: str = "tcp_443", *, seconds: float = 60) -> Write:
    own = place.v4 if len(peer) == 4 else place.v6
    return Write(scope, own + peer, int(seconds * 1000))


def element(of: Write) -> Element:
    return Element(of.scope, of.key)


def packet(place: Place, port: int = 443, peer: Address = PEER, protocol: int = Protocol.TCP) -> Packet:
    return Packet(place.v4 if len(peer) == 4 else place.v6, peer, protocol, port)


async def arm(subject: Subject, *writes: Write) -> str | None:
    """Arm and wait: the reason of a refusal, or None."""
    ticket = next(tickets)
    subject.enforcer.arm(ticket, writes)
    return await subject.settled[ticket]


async def passing(subject: Subject, place: Place, ports: Collection[int], peer: Address = PEER) -> list[int]:
    """Those of the TCP ports that a new connection passes on."""
    return [port for port in ports if await subject.decide(packet(place, port, peer))]


# ---- leases


async def test_an_address_is_closed_without_a_lease_and_open_when_its_lease_is_acknowledged(subject: Subject) -> None:
    one, _ = subject.places
    await subject.enforcer.apply(running({one: WEB}))
    assert not await subject.decide(packet(one))
    assert await arm(subject, write(one)) is None
    assert await subject.decide(packet(one))


async def test_a_lease_opens_its_address_on_its_ports_and_protocol_only(subject: Subject) -> None:
    one, _ = subject.places
    await subject.enforcer.apply(running({one: WEB}))
    await arm(subject, write(one))
    assert await passing(subject, one, (442, 443, 444)) == [443]
    assert not await subject.decide(packet(one, peer=OTHER))
    assert not await subject.decide(packet(one, protocol=Protocol.UDP))


async def test_a_lease_works_in_ipv6(subject: Subject) -> None:
    one, _ = subject.places
    await subject.enforcer.apply(running({one: WEB}))
    await arm(subject, write(one, PEER6))
    assert await passing(subject, one, (442, 443), PEER6) == [443]


async def test_a_lease_ends_at_its_time_and_not_before(subject: Subject) -> None:
    one, _ = subject.places
    await subject.enforcer.apply(running({one: WEB}))
    await arm(subject, write(one, seconds=2))
    await subject.elapse(1.7)
    assert await subject.decide(packet(one))
    await subject.elapse(0.6)
    assert not await subject.decide(packet(one))


async def test_a_lease_armed_again_lives_the_new_time(subject: Subject) -> None:
    one, _ = subject.places
    await subject.enforcer.apply(running({one: WEB}))
    await arm(subject, write(one, seconds=1))
    await arm(subject, write(one, seconds=3))
    await subject.elapse(2)
    assert await subject.decide(packet(one))
    await subject.elapse(1.3)
    assert not await subject.decide(packet(one))


async def test_a_lease_armed_again_with_the_same_time_begins_anew(subject: Subject) -> None:
    one, _ = subject.places
    await subject.enforcer.apply(running({one: WEB}))
    await arm(subject, write(one, seconds=2))
    await subject.elapse(1.5)
    await arm(subject, write(one, seconds=2))
    await subject.elapse(1)
    assert await subject.decide(packet(one))


async def test_a_lease_that_ended_can_be_armed_again(subject: Subject) -> None:
    one, _ = subject.places
    await subject.enforcer.apply(running({one: WEB}))
    await arm(subject, write(one, seconds=1))
    await subject.elapse(1.3)
    assert await arm(subject, write(one)) is None
    assert await subject.decide(packet(one))


async def test_the_same_element_twice_in_one_ticket_is_one_lease(subject: Subject) -> None:
    one, _ = subject.places
    await subject.enforcer.apply(running({one: WEB}))
    assert await arm(subject, write(one), write(one)) is None
    assert [(held.scope, held.key) for held in await subject.enforcer.read()] == [element(write(one))]


async def test_two_scopes_on_one_address_stay_apart(subject: Subject) -> None:
    one, _ = subject.places
    await subject.enforcer.apply(running({one: WEB_AND_MAIL}))
    await arm(subject, write(one, scope="tcp_25"))
    assert await passing(subject, one, (25, 443)) == [25]


async def test_one_scope_ends_while_the_other_stays(subject: Subject) -> None:
    one, _ = subject.places
    await subject.enforcer.apply(running({one: WEB_AND_MAIL}))
    await arm(subject, write(one, scope="tcp_25", seconds=1), write(one, scope="tcp_443", seconds=60))
    await subject.elapse(1.3)
    assert await passing(subject, one, (25, 443)) == [443]


async def test_a_lease_of_one_pod_opens_nothing_for_another(subject: Subject) -> None:
    one, two = subject.places
    await subject.enforcer.apply(running({one: WEB, two: WEB}))
    await arm(subject, write(one))
    assert await subject.decide(packet(one))
    assert not await subject.decide(packet(two))


async def test_many_tickets_are_settled_in_order_and_all_are_open(subject: Subject) -> None:
    one, _ = subject.places
    await subject.enforcer.apply(running({one: WEB}))
    peers = [Address(bytes((198, 51, 100, last))) for last in range(1, 201)]
    numbers = [next(tickets) for _ in peers]
    for ticket, peer in zip(numbers, peers, strict=True):
        subject.enforcer.arm(ticket, [write(one, peer)])
    assert [await subject.settled[ticket] for ticket in numbers] == [None] * len(numbers)
    assert len(await subject.enforcer.read()) == len(peers)
    assert await subject.decide(packet(one, peer=peers[-1]))


async def test_a_refused_write_fails_its_own_ticket_only(subject: Subject) -> None:
    one, two = subject.places
    await subject.enforcer.apply(running({one: WEB, two: WEB}))
    numbers = [next(tickets) for _ in range(3)]
    for ticket, asked in zip(numbers, (write(one), write(two, scope=UNKNOWN_SCOPE), write(two)), strict=True):
        subject.enforcer.arm(ticket, [asked])
    first, second, third = [await subject.settled[ticket] for ticket in numbers]
    assert (first, third) == (None, None)
    assert second
    assert await subject.decide(packet(one))
    assert await subject.decide(packet(two))


async def test_read_returns_what_is_alive_with_the_time_it_has_left(subject: Subject) -> None:
    one, two = subject.places
    await subject.enforcer.apply(running({one: WEB_AND_MAIL, two: WEB}))
    writes = [write(one), write(one, PEER6, seconds=30), write(one, scope="tcp_25"), write(two)]
    await arm(subject, *writes, write(two, OTHER, seconds=1))
    await subject.elapse(1.3)
    held = {Element(h.scope, h.key): h.remaining_ms for h in await subject.enforcer.read()}
    assert held.keys() == {element(w) for w in writes}
    for asked in writes:
        assert asked.timeout_ms - 4000 < held[element(asked)] <= asked.timeout_ms - 1200


async def test_no_element_is_permanent(subject: Subject) -> None:
    one, _ = subject.places
    with pytest.raises(ValueError, match="permanent"):
        subject.enforcer.arm(next(tickets), [write(one, seconds=0)])


# ---- programs


async def test_ip_blocks_open_without_a_lease_less_what_is_excepted(subject: Subject) -> None:
    one, _ = subject.places
    program = compiled(block("198.51.100.0/24", tcp(443), excepts=["198.51.100.2/32"]), block("2001:db8::/32"))
    await subject.enforcer.apply(running({one: program}))
    assert await passing(subject, one, (443, 444)) == [443]
    assert await passing(subject, one, (443, 444), OTHER) == []
    assert await passing(subject, one, (443, 444), PEER6) == [443, 444]


async def test_port_ranges_hold_both_ends(subject: Subject) -> None:
    one, _ = subject.places
    both = (*tcp(5432), PortRange(Protocol.TCP, 8000, 8010))
    await subject.enforcer.apply(running({one: compiled(named("a.test", both))}))
    await arm(subject, write(one, scope="tcp_5432_tcp_8000_8010"))
    assert await passing(subject, one, (5431, 5432, 5433, 7999, 8000, 8010, 8011)) == [5432, 8000, 8010]


async def test_a_rule_without_ports_opens_every_protocol(subject: Subject) -> None:
    one, _ = subject.places
    await subject.enforcer.apply(running({one: compiled(named("a.test", ()))}))
    await arm(subject, write(one, scope="any"))
    for protocol, port in ((Protocol.TCP, 1), (Protocol.UDP, 65535), (NO_PORTS_PROTOCOL, 0)):
        assert await subject.decide(packet(one, port, protocol=protocol))


async def test_a_deny_before_a_rule_closes_its_leases_and_one_behind_it_does_not(subject: Subject) -> None:
    one, _ = subject.places
    deny = block("198.51.100.0/24", action=Action.DENY)
    program = compiled(named("a.test", tcp(443)), deny, named("b.test", (*tcp(443), *tcp(25))))
    later = program.rules[2].scope
    assert later is not None
    await subject.enforcer.apply(running({one: program}))
    await arm(subject, write(one, scope=later.name), write(one, OTHER))
    assert await passing(subject, one, (25, 443)) == []
    assert await passing(subject, one, (25, 443), OTHER) == [443]


async def test_pass_goes_on_with_the_next_tier(subject: Subject) -> None:
    one, _ = subject.places
    admin = (
        block("198.51.100.1/32", action=Action.PASS, tier=Tier.ADMIN),
        block("198.51.100.0/24", action=Action.DENY, tier=Tier.ADMIN),
    )
    await subject.enforcer.apply(running({one: compiled(*admin, block("0.0.0.0/0", tcp(443)))}))
    assert await subject.decide(packet(one))
    assert not await subject.decide(packet(one, peer=OTHER))


async def test_a_default_that_accepts_lets_pass_what_no_rule_matches(subject: Subject) -> None:
    one, _ = subject.places
    deny = block("198.51.100.2/32", action=Action.DENY, tier=Tier.ADMIN)
    program = compile_program(effective([Policy("admin", (deny,))], Action.ACCEPT))
    await subject.enforcer.apply(running({one: program}))
    assert await subject.decide(packet(one))
    assert not await subject.decide(packet(one, peer=OTHER))


async def test_a_program_of_sixty_four_rules_is_decided_to_its_last(subject: Subject) -> None:
    one, _ = subject.places
    program = compiled(*(named("a.test", tcp(port)) for port in range(1001, 1065)))
    await subject.enforcer.apply(running({one: program}))
    await arm(subject, write(one, scope="tcp_1064"))
    assert await passing(subject, one, (1001, 1063, 1064, 1065)) == [1064]


# ---- who is governed


async def test_a_source_that_is_not_routed_to_its_link_is_dropped(subject: Subject) -> None:
    one, two = subject.places
    everything = compiled(block("0.0.0.0/0"))
    await subject.enforcer.apply(running({one: everything, two: everything}))
    assert await subject.decide(packet(one), one.link)
    assert not await subject.decide(packet(one), two.link)


async def test_a_pair_without_a_program_is_dropped(subject: Subject) -> None:
    one, two = subject.places
    await subject.enforcer.apply(running({one: compiled(block("0.0.0.0/0"))}))
    assert not await subject.decide(packet(two))


async def test_an_excluded_pair_is_not_enforced_and_its_address_on_another_link_is_a_forgery(subject: Subject) -> None:
    one, two = subject.places
    await subject.enforcer.apply(running({one: WEB}, [(two.link, two.v4)]))
    assert await subject.decide(packet(two), two.link)
    assert not await subject.decide(packet(two), one.link)
    assert not await subject.decide(packet(one))


# ---- changes


async def test_a_change_keeps_leases_whose_scope_stays(subject: Subject) -> None:
    one, _ = subject.places
    await subject.enforcer.apply(running({one: WEB}))
    await arm(subject, write(one, seconds=2))
    await subject.enforcer.apply(running({one: WEB_AND_MAIL}))
    assert await passing(subject, one, (25, 443)) == [443]
    await subject.elapse(2.3)
    assert not await subject.decide(packet(one))


async def test_a_change_makes_and_removes_the_elements_it_names(subject: Subject) -> None:
    one, _ = subject.places
    await subject.enforcer.apply(running({one: WEB}))
    await arm(subject, write(one))
    gone = [element(write(one)), element(write(one, address("198.51.100.99")))]
    await subject.enforcer.apply(running({one: WEB_AND_MAIL}), [write(one, OTHER, "tcp_25")], gone)
    assert await passing(subject, one, (25, 443)) == []
    assert await passing(subject, one, (25, 443), OTHER) == [25]


async def test_a_pod_whose_program_is_removed_reaches_nothing(subject: Subject) -> None:
    one, two = subject.places
    await subject.enforcer.apply(running({one: WEB, two: WEB}))
    await arm(subject, write(one), write(two))
    await subject.enforcer.apply(running({two: WEB}))
    assert not await subject.decide(packet(one))
    assert await subject.decide(packet(two))


async def test_leases_in_a_scope_that_nothing_carries_any_more_are_gone(subject: Subject) -> None:
    one, _ = subject.places
    await subject.enforcer.apply(running({one: WEB_AND_MAIL}))
    await arm(subject, write(one, scope="tcp_25"))
    await subject.enforcer.apply(running({one: WEB}))
    assert await arm(subject, write(one, scope="tcp_25"))
    await subject.enforcer.apply(running({one: WEB_AND_MAIL}))
    assert not await subject.decide(packet(one, 25))


async def test_a_change_that_fails_leaves_everything_as_it_was(subject: Subject) -> None:
    one, two = subject.places
    await subject.enforcer.apply(running({one: WEB}))
    await arm(subject, write(one))
    bad = Desired((WEB_AND_MAIL,), {(one.link, one.v4): WEB_AND_MAIL.name, (two.link, two.v4): "p_nowhere"})
    with pytest.raises(KernelError):
        await subject.enforcer.apply(bad, [write(one, OTHER)], [element(write(one))])
    assert await passing(subject, one, (25, 443)) == [443]
    assert await passing(subject, one, (25, 443), OTHER) == []


async def test_a_change_may_be_repeated(subject: Subject) -> None:
    one, _ = subject.places
    for _ in range(3):
        await subject.enforcer.apply(running({one: WEB}), [write(one)])
    assert await subject.decide(packet(one))


async def test_work_is_done_in_the_order_of_the_calls(subject: Subject) -> None:
    one, _ = subject.places
    ticket = next(tickets)
    applied = subject.enforcer.apply(running({one: WEB}))
    subject.enforcer.arm(ticket, [write(one)])
    removed = subject.enforcer.apply(running({one: WEB}), (), [element(write(one))])
    await applied
    await removed
    assert await subject.settled[ticket] is None
    assert not await subject.decide(packet(one))


# ---- flows that were cut


def flow(place: Place, port: int = 443) -> Flow:
    return Flow(Protocol.UDP, place.v4, 40000, PEER, port, PEER, port)


@pytest.mark.parametrize("port", [443, 444])
async def test_a_cut_flow_passes_in_neither_direction_until_it_is_uncut(subject: Subject, port: int) -> None:
    one, _ = subject.places
    await subject.enforcer.apply(running({one: compiled(block("198.51.100.0/24"))}))
    assert await subject.begin(flow(one, port))
    assert await subject.carries(flow(one, port)) == (True, True)
    await subject.enforcer.cut([flow(one, port)])
    assert await subject.carries(flow(one, port)) == (False, False)
    await subject.enforcer.uncut([flow(one, port)])
    assert await subject.begin(flow(one, port))


async def test_a_cut_concerns_no_other_flow(subject: Subject) -> None:
    one, two = subject.places
    program = compiled(block("198.51.100.0/24"))
    await subject.enforcer.apply(running({one: program, two: program}))
    assert await subject.begin(flow(one))
    assert await subject.begin(flow(two))
    await subject.enforcer.cut([flow(one)])
    assert await subject.carries(flow(two)) == (True, True)
    assert await subject.decide(packet(one, protocol=Protocol.UDP))


async def test_an_unknown_flow_can_be_cut_and_uncut(subject: Subject) -> None:
    one, _ = subject.places
    await subject.enforcer.apply(running({one: WEB}))
    await subject.enforcer.uncut([flow(one)])
    await subject.enforcer.cut([flow(one), flow(one, 444)])
    await subject.enforcer.cut([flow(one)])
    await subject.enforcer.uncut([flow(one)])


# ---- everything together


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_packets_pass_as_the_rules_say_read_one_by_one(subject: Subject, data: st.DataObject) -> None:
    scenario = data.draw(scenarios(subject.crowd))
    assert await misjudged(subject, scenario) == []
