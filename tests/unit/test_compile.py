"""Programs mean what the rules say, are named by their content, and decide as every enforcer must."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given, settings

from dnsguard.core.compile import MOST_RULES, Decision, closed, compile_program, decide
from dnsguard.core.errors import PolicyError
from dnsguard.core.model import (
    Action,
    Address,
    BlockPeer,
    DomainPeer,
    LinkIndex,
    Packet,
    Pattern,
    Policy,
    PortRange,
    Ports,
    Program,
    ProgramRule,
    Protocol,
    Rule,
    Scope,
    Tier,
)
from dnsguard.core.policy import EffectivePolicy, effective
from dnsguard.engine.contracts import Write
from tests.contract.generator import LEASE_MS, Place, Scenario, address, every_packet, scenarios, wire

PLACES = (
    Place(LinkIndex(11), address("10.0.0.1"), address("fd00::1")),
    Place(LinkIndex(12), address("10.0.0.2"), address("fd00::2")),
)
POD = PLACES[0].v4


def tcp(*ports: int) -> Ports:
    return tuple(PortRange(Protocol.TCP, port, port) for port in ports)


def blocks(*texts: str) -> tuple[BlockPeer, ...]:
    return tuple(BlockPeer(ip_network(text)) for text in texts)


def domain(name: str, ports: Ports, tier: Tier = Tier.POD) -> Rule:
    return Rule((DomainPeer((Pattern(wire(name)),)),), ports=ports, tier=tier)


def of(*rules: Rule, name: str = "web", default: Action = Action.DENY) -> EffectivePolicy:
    return effective([Policy(name, rules)], default)


def program(*rules: Rule, name: str = "web") -> Program:
    return compile_program(of(*rules, name=name))


def to(peer: str, port: int, protocol: int = Protocol.TCP) -> Packet:
    return Packet(POD, address(peer), protocol, port)


def nothing(scope: str) -> bool:
    return False


def leased_by(scenario: Scenario, packet: Packet) -> set[str]:
    key = packet.source + packet.destination
    return {write.scope for write in scenario.writes if write == Write(write.scope, key, LEASE_MS)}


# ---- the meaning


@settings(max_examples=300, deadline=None)
@given(scenarios(PLACES))
def test_a_program_decides_every_packet_as_the_rules_read_one_by_one(scenario: Scenario) -> None:
    for index, (place, policy) in enumerate(zip(PLACES, scenario.effective, strict=True)):
        compiled = compile_program(policy)
        for packet in every_packet(place):
            scopes = leased_by(scenario, packet)
            got = decide(compiled, packet, scopes.__contains__)
            assert (got.action is Action.ACCEPT) == scenario.expected(index, packet), packet


@settings(max_examples=200, deadline=None)
@given(scenarios(PLACES))
def test_closed_is_true_exactly_when_a_lease_opens_no_port_of_its_scope(scenario: Scenario) -> None:
    # Every range of the generator begins or ends at one of its ports, or spans all of them.
    compiled = compile_program(scenario.effective[0])
    for scope in {rule.scope for rule in compiled.rules if rule.scope}:
        for packet in every_packet(PLACES[0]):
            if not _in(scope.ports, packet):
                continue
            if decide(compiled, packet, scope.name.__eq__).action is Action.ACCEPT:
                assert not closed(compiled, scope, packet.destination)
        peers = {packet.destination for packet in every_packet(PLACES[0])}
        for peer in peers:
            if closed(compiled, scope, peer):
                continue
            probes = [(p, port) for p in (0, 6, 17, 132) for port in (0, 79, 80, 81, 442, 443, 444, 65535)]
            sent = [Packet(POD, peer, protocol, port) for protocol, port in probes]
            accepted = [p for p in sent if _in(scope.ports, p) and _opens(compiled, scope, p)]
            assert accepted, (scope, peer)


def _in(ports: Ports, packet: Packet) -> bool:
    return not ports or any(p.protocol == packet.protocol and p.first <= packet.port <= p.last for p in ports)


def _opens(compiled: Program, scope: Scope, packet: Packet) -> bool:
    return decide(compiled, packet, scope.name.__eq__).action is Action.ACCEPT


# ---- merging


def test_rules_on_the_same_ports_become_one() -> None:
    got = program(
        domain("a.test", tcp(443)), domain("b.test", tcp(443)), Rule(blocks=blocks("10.0.0.0/8"), ports=tcp(443))
    )
    assert got.rules == (
        ProgramRule(Tier.POD, Action.ACCEPT, tcp(443), (ip_network("10.0.0.0/8"),), Scope("tcp_443", tcp(443)), "web"),
    )


def test_a_merged_rule_names_all_its_policies() -> None:
    policies = [Policy(name, (domain("a.test", tcp(443)),)) for name in ("web", "mail", "web")]
    assert compile_program(effective(policies, Action.DENY)).rules[0].label == "web+mail"


def test_networks_of_merged_rules_are_disjoint() -> None:
    got = program(
        Rule(blocks=(BlockPeer(ip_network("10.0.0.0/24"), (ip_network("10.0.0.0/25"),)),)),
        Rule(blocks=blocks("10.0.0.0/25")),
    )
    assert got.rules[0].networks == (ip_network("10.0.0.0/24"),)


def test_a_deny_between_two_rules_keeps_them_apart() -> None:
    deny = Rule(blocks=blocks("10.0.0.0/8"), action=Action.DENY)
    got = program(domain("a.test", tcp(443)), deny, domain("b.test", tcp(443)))
    assert [rule.action for rule in got.rules] == [Action.ACCEPT, Action.DENY, Action.ACCEPT]
    assert got.rules[0].scope != got.rules[2].scope


def test_denies_of_one_tier_in_a_row_become_one_on_the_same_ports() -> None:
    denies = [
        Rule(blocks=blocks(b), action=Action.DENY, ports=tcp(p)) for b, p in (("10.0.0.0/9", 1), ("11.0.0.0/8", 2))
    ]
    again = Rule(blocks=blocks("10.128.0.0/9"), action=Action.DENY, ports=tcp(1))
    got = program(*denies, again)
    assert [rule.networks for rule in got.rules] == [(ip_network("10.0.0.0/8"),), (ip_network("11.0.0.0/8"),)]


def test_denies_of_two_tiers_stay_apart_because_a_pass_may_skip_one_of_them() -> None:
    skip = Rule(blocks=blocks("10.0.0.0/8"), action=Action.PASS, tier=Tier.ADMIN)
    admin = Rule(blocks=blocks("10.1.0.0/16"), action=Action.DENY, tier=Tier.ADMIN)
    pod = Rule(blocks=blocks("10.2.0.0/16"), action=Action.DENY)
    got = program(skip, admin, pod, Rule(blocks=blocks("0.0.0.0/0")))
    assert decide(got, to("10.2.0.1", 80), nothing).action is Action.DENY


def test_denies_on_both_sides_of_an_accept_stay_apart() -> None:
    first, last = (Rule(blocks=blocks(text), action=Action.DENY) for text in ("11.0.0.0/8", "10.0.0.0/8"))
    got = program(first, Rule(blocks=blocks("10.1.0.0/16")), last)
    assert decide(got, to("10.1.0.1", 80), nothing).action is Action.ACCEPT


def test_accepts_of_two_tiers_behind_a_pass_stay_apart() -> None:
    skip = Rule(blocks=blocks("10.0.0.0/8"), action=Action.PASS, tier=Tier.ADMIN)
    got = program(skip, domain("a.test", tcp(443), Tier.ADMIN), domain("b.test", tcp(443)))
    admin, pod = (rule.scope for rule in got.rules[1:])
    assert admin is not None
    assert pod is not None
    assert decide(got, to("10.0.0.1", 443), admin.name.__eq__).action is Action.DENY
    assert decide(got, to("10.0.0.1", 443), pod.name.__eq__).action is Action.ACCEPT


def test_rules_that_match_nothing_are_left_out() -> None:
    empty = BlockPeer(ip_network("10.0.0.0/8"), (ip_network("10.0.0.0/8"),))
    assert program(Rule(blocks=(empty,)), Rule(), Rule((DomainPeer(()),))).rules == ()


def test_sixty_four_rules_compile_and_one_more_is_an_error_that_names_the_policies() -> None:
    rules = [domain("a.test", tcp(port)) for port in range(1, MOST_RULES + 1)]
    assert len(program(*rules).rules) == MOST_RULES
    with pytest.raises(PolicyError, match="policies shop need 65 rules"):
        program(*rules, domain("a.test", tcp(9999)), name="shop")


# ---- names


def test_equal_content_gives_equal_programs() -> None:
    assert program(domain("a.test", tcp(443))) == program(domain("a.test", tcp(443)))


def test_other_domain_names_give_the_same_rules_under_another_name() -> None:
    """What a kernel does is the same, but leases of the one are not justified by the other."""
    one, another = program(domain("a.test", tcp(443))), program(domain("b.test", tcp(443)))
    assert one.rules == another.rules
    assert one.name != another.name


def test_a_name_is_short_and_safe_for_a_kernel() -> None:
    name = program(domain("a.test", tcp(443))).name
    assert name.startswith("p_")
    assert len(name) == 14
    assert set(name[2:]) <= set("0123456789abcdef")


@pytest.mark.parametrize(
    "other",
    [
        of(domain("a.test", tcp(80))),
        of(domain("a.test", tcp(443), Tier.ADMIN)),
        of(domain("a.test", tcp(443)), name="mail"),
        of(Rule(blocks=blocks("10.0.0.0/8"), ports=tcp(443))),
        of(Rule(blocks=blocks("10.0.0.0/8"), ports=tcp(443), action=Action.DENY)),
        of(),
        effective([], Action.ACCEPT),
    ],
)
def test_another_content_has_another_name(other: EffectivePolicy) -> None:
    assert compile_program(other).name != program(domain("a.test", tcp(443))).name


def test_the_default_is_part_of_the_content() -> None:
    names = {compile_program(effective([], default)).name for default in (Action.DENY, Action.ACCEPT)}
    assert len(names) == 2


# ---- deciding


def test_the_first_rule_that_matches_decides_and_is_named() -> None:
    deny = Rule(blocks=blocks("10.1.0.0/16"), action=Action.DENY)
    got = program(deny, Rule(blocks=blocks("10.0.0.0/8")))
    assert decide(got, to("10.1.0.1", 80), nothing) == Decision(Action.DENY, 0)
    assert decide(got, to("10.2.0.1", 80), nothing) == Decision(Action.ACCEPT, 1)
    assert decide(got, to("11.0.0.1", 80), nothing) == Decision(Action.DENY, None)


def test_pass_skips_the_rest_of_its_tier_only() -> None:
    skip = Rule(blocks=blocks("10.1.0.0/16"), action=Action.PASS, tier=Tier.ADMIN)
    deny = Rule(blocks=blocks("10.0.0.0/8"), action=Action.DENY, tier=Tier.ADMIN)
    got = program(skip, deny, Rule(blocks=blocks("0.0.0.0/0")))
    assert decide(got, to("10.1.0.1", 80), nothing).action is Action.ACCEPT
    assert decide(got, to("10.2.0.1", 80), nothing).action is Action.DENY


def test_a_rule_without_ports_matches_every_protocol_and_one_with_ports_only_theirs() -> None:
    every, some = program(Rule(blocks=blocks("0.0.0.0/0"))), program(Rule(blocks=blocks("0.0.0.0/0"), ports=tcp(80)))
    assert decide(every, to("10.0.0.1", 0, 1), nothing).action is Action.ACCEPT
    assert decide(some, to("10.0.0.1", 80, 1), nothing).action is Action.DENY
    assert decide(some, to("10.0.0.1", 80, Protocol.UDP), nothing).action is Action.DENY
    assert decide(some, to("10.0.0.1", 80), nothing).action is Action.ACCEPT


def test_port_ranges_hold_both_ends() -> None:
    got = program(Rule(blocks=blocks("0.0.0.0/0"), ports=(PortRange(Protocol.TCP, 8000, 8010),)))
    accepted = [p for p in (7999, 8000, 8010, 8011) if decide(got, to("10.0.0.1", p), nothing).action is Action.ACCEPT]
    assert accepted == [8000, 8010]


def test_an_ipv4_block_does_not_hold_mapped_addresses() -> None:
    got = program(Rule(blocks=blocks("0.0.0.0/0")))
    assert decide(got, to("::ffff:10.0.0.1", 80), nothing).action is Action.DENY


# ---- closed


def test_without_a_deny_before_it_no_lease_is_closed() -> None:
    policy = of(domain("a.test", tcp(443)), Rule(blocks=blocks("0.0.0.0/0"), action=Action.DENY))
    assert not closed(compile_program(policy), policy.rules[0].scope, address("10.0.0.1"))


@pytest.mark.parametrize(
    ("denied", "expected"), [((), True), (tcp(443), False), (tcp(80, 443), True), (tcp(79, 81), False)]
)
def test_a_lease_is_closed_when_earlier_denies_cover_all_its_ports(denied: Ports, expected: bool) -> None:
    deny = Rule(blocks=blocks("10.0.0.0/8"), action=Action.DENY, ports=denied)
    policy = of(deny, domain("a.test", tcp(80, 443)))
    compiled = compile_program(policy)
    assert closed(compiled, policy.rules[1].scope, address("10.0.0.1")) is expected
    assert not closed(compiled, policy.rules[1].scope, address("11.0.0.1"))


@pytest.mark.parametrize(
    ("denied", "expected"), [([(80, 89), (91, 443)], False), ([(80, 89), (90, 443)], True), ([(81, 443)], False)]
)
def test_one_port_left_open_keeps_a_lease_of_a_range_from_being_closed(
    denied: list[tuple[int, int]], expected: bool
) -> None:
    ports = tuple(PortRange(Protocol.TCP, first, last) for first, last in denied)
    deny = Rule(blocks=blocks("10.0.0.0/8"), action=Action.DENY, ports=ports)
    policy = of(deny, domain("a.test", (PortRange(Protocol.TCP, 80, 443),)))
    assert closed(compile_program(policy), policy.rules[1].scope, address("10.0.0.1")) is expected


def test_one_port_opened_by_an_ip_block_keeps_a_lease_of_a_range_from_being_closed() -> None:
    accept = Rule(blocks=blocks("10.0.0.0/8"), ports=tcp(100))
    deny = Rule(blocks=blocks("10.0.0.0/8"), action=Action.DENY)
    policy = of(accept, deny, domain("a.test", (PortRange(Protocol.TCP, 80, 443),)))
    assert not closed(compile_program(policy), policy.rules[2].scope, address("10.0.0.1"))


def test_a_lease_of_every_port_is_closed_only_by_a_deny_of_every_protocol() -> None:
    everything = tuple(PortRange(protocol, 0, 65535) for protocol in Protocol)
    for ports, expected in ((everything, False), ((), True)):
        policy = of(Rule(blocks=blocks("10.0.0.0/8"), action=Action.DENY, ports=ports), domain("a.test", ()))
        assert closed(compile_program(policy), policy.rules[1].scope, address("10.0.0.1")) is expected


def test_an_address_that_an_ip_block_opens_before_the_deny_is_not_closed() -> None:
    rules = (Rule(blocks=blocks("10.0.0.1/32"), ports=tcp(443)), Rule(blocks=blocks("10.0.0.0/8"), action=Action.DENY))
    policy = of(*rules, domain("a.test", tcp(443)))
    compiled = compile_program(policy)
    assert not closed(compiled, policy.rules[2].scope, address("10.0.0.1"))
    assert closed(compiled, policy.rules[2].scope, address("10.0.0.2"))


def test_a_long_list_of_denied_networks_is_searched_right() -> None:
    denied = blocks(*(f"10.{i}.{j}.0/25" for i in range(20) for j in range(20)), "2001:db8::/33")
    policy = of(Rule(blocks=denied, action=Action.DENY), domain("a.test", tcp(443)))
    compiled = compile_program(policy)
    texts = ("10.3.4.127", "10.3.4.128", "9.255.255.255", "10.0.0.0", "2001:db8::1", "2001:db8:8000::1", "::1")
    assert [closed(compiled, policy.rules[1].scope, address(text)) for text in texts] == [
        True, False, False, True, True, False, False,
    ]  # fmt: skip


def test_a_scope_that_the_program_does_not_carry_opens_nothing() -> None:
    compiled = program(domain("a.test", tcp(443)))
    unknown = Scope("tcp_1_after_00000000", tcp(1))
    assert closed(compiled, unknown, Address(b"\x0a\0\0\1"))
