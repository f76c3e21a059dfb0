"""Programs as chains of nft rules."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from dnsguard.core.errors import KernelError
from dnsguard.core.model import Action, PortRange, Ports, Program, ProgramRule, Protocol, Scope, Tier
from dnsguard.enforce.nftables.program import compiled

TCP, UDP = Protocol.TCP, Protocol.UDP


def rule(action: Action, *cidrs: str, ports: Ports = (), tier: Tier = Tier.POD, scope: str = "") -> ProgramRule:
    return ProgramRule(tier, action, ports, tuple(map(ip_network, cidrs)), Scope(scope, ports) if scope else None)


def lines(*rules: ProgramRule, default: Action = Action.DENY) -> tuple[str, ...]:
    return compiled(Program("p", rules, default)).chains["program_p"]


def test_a_program_without_rules_lets_open_flows_on_and_denies_the_rest() -> None:
    assert lines() == ("jump flows", "goto denied_default")


def test_a_default_of_accept_ends_in_accept_and_needs_no_denial() -> None:
    program = compiled(Program("p", (), Action.ACCEPT))
    assert program.chains["program_p"] == ("jump flows", "accept")
    assert program.denials == frozenset()


def test_a_lease_rule_has_a_line_for_each_family_and_protocol() -> None:
    ports = (PortRange(TCP, 443, 443), PortRange(TCP, 8000, 8010), PortRange(UDP, 443, 443))
    assert lines(rule(Action.ACCEPT, ports=ports, scope="s"))[1:-1] == (
        "ip saddr . ip daddr @s_v4 tcp dport { 443, 8000-8010 } accept",
        "ip saddr . ip daddr @s_v4 udp dport 443 accept",
        "ip6 saddr . ip6 daddr @s_v6 tcp dport { 443, 8000-8010 } accept",
        "ip6 saddr . ip6 daddr @s_v6 udp dport 443 accept",
    )


def test_blocks_are_one_match_for_each_family() -> None:
    assert lines(rule(Action.ACCEPT, "10.0.0.0/16", "10.2.0.0/16", "fd00::/8"))[1:-1] == (
        "ip daddr { 10.0.0.0/16, 10.2.0.0/16 } accept",
        "ip6 daddr fd00::/8 accept",
    )


def test_every_port_of_a_protocol_is_the_protocol() -> None:
    assert lines(rule(Action.ACCEPT, "0.0.0.0/0", ports=(PortRange(TCP, 0, 65535),)))[1] == (
        "meta nfproto ipv4 meta l4proto tcp accept"
    )


def test_a_rule_without_peers_matches_nothing() -> None:
    assert lines(rule(Action.ACCEPT)) == lines()


def test_a_denial_goes_to_the_chain_of_its_number() -> None:
    program = compiled(Program("p", (rule(Action.ACCEPT, "10.0.0.0/8"), rule(Action.DENY, "11.0.0.0/8"))))
    assert program.chains["program_p"][2] == "ip daddr 11.0.0.0/8 goto denied_1"
    assert program.denials == {"1", "default"}


def test_a_tier_with_a_pass_is_a_chain_that_it_returns_from() -> None:
    rules = (
        rule(Action.PASS, "10.0.0.0/8", tier=Tier.ADMIN),
        rule(Action.DENY, "10.0.0.0/7", tier=Tier.ADMIN),
        rule(Action.ACCEPT, "10.0.0.0/8"),
    )
    program = compiled(Program("p", rules))
    assert program.chains == {
        "program_p_admin": ("ip daddr 10.0.0.0/8 return", "ip daddr 10.0.0.0/7 goto denied_1"),
        "program_p": ("jump flows", "jump program_p_admin", "ip daddr 10.0.0.0/8 accept", "goto denied_default"),
    }


def test_its_lease_sets_are_its_scopes_in_both_families() -> None:
    program = compiled(Program("p", (rule(Action.ACCEPT, scope="a"), rule(Action.ACCEPT, scope="b"))))
    assert program.lease_sets == {"a_v4", "a_v6", "b_v4", "b_v6"}


@pytest.mark.parametrize("name", ["", "a b", "a;flush ruleset", "a\n", "9a", "x" * 200])
def test_a_name_that_nft_would_read_as_something_else_is_refused(name: str) -> None:
    with pytest.raises(KernelError):
        compiled(Program(name))
    with pytest.raises(KernelError):
        compiled(Program("p", (ProgramRule(Tier.POD, Action.ACCEPT, (), (), Scope(name, ())),)))
