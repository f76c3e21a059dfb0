"""The layout of the table."""

from __future__ import annotations

import pytest

from dnsguard.core.model import Address
from dnsguard.enforce.nftables.endings import denial_chain
from dnsguard.enforce.nftables.layout import Layout
from dnsguard.enforce.nftables.ruleset import add_chains, static_chains


@pytest.mark.parametrize("pattern", ["", "veth**", "a b", 'x" drop', "x/y", "abcdefghijklmnop"])
def test_an_interface_pattern_that_is_none_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="no interface pattern"):
        Layout((pattern,))


def test_every_pattern_is_governed_and_falls_to_a_drop() -> None:
    assert static_chains(Layout(("veth*", "cali1")))["intercept"] == (
        'iifname "veth*" jump pod',
        'iifname "veth*" drop',
        'iifname "cali1" jump pod',
        'iifname "cali1" drop',
    )


def test_a_lone_star_governs_every_link_but_the_loopback() -> None:
    assert static_chains(Layout(("*",)))["to_pod"] == ('oifname != "lo" goto toward_pod',)


def test_a_list_of_servers_is_matched_by_family() -> None:
    layout = Layout(("veth*",), intercept=(Address(bytes([10, 96, 0, 10])), Address(bytes(15) + b"\1")))
    matches = [rule for rule in static_chains(layout)["pod"] if rule.endswith("goto dns")]
    assert [match.split(" meta")[0] for match in matches] == ["ip daddr { 10.96.0.10 }", "ip6 daddr { ::1 }"]


def test_an_empty_list_intercepts_nothing() -> None:
    assert not [rule for rule in static_chains(Layout(("veth*",), intercept=()))["pod"] if "goto dns" in rule]


def test_without_a_rate_nothing_is_logged() -> None:
    assert not [
        rule for rules in static_chains(Layout(("veth*",), log_rate=0)).values() for rule in rules if "log" in rule
    ]


def test_chains_are_made_before_any_rule_goes_to_them() -> None:
    commands = add_chains(static_chains(Layout(("veth*",))))
    kinds = [command.split()[1] for command in commands]
    assert kinds == sorted(kinds)


def test_every_chain_for_unwanted_packets_ends_in_a_drop() -> None:
    layout = Layout(("veth*",))
    chains = static_chains(layout) | {"denied_3": denial_chain("3", layout)}
    ends = {name: rules[-1] for name, rules in chains.items() if name.startswith(("drop_", "denied_"))}
    assert set(ends.values()) == {"drop"}
    assert {rules[-1] for name, rules in chains.items() if name.endswith("_out")} == {"goto drop_cut"}
