"""Addresses and links to pods."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from dnsguard.core.compile import compile_program
from dnsguard.core.limits import Limits, Share
from dnsguard.core.model import (
    Action,
    Address,
    BlockPeer,
    LinkIndex,
    Origin,
    PodEntry,
    Policy,
    PortRange,
    Protocol,
    Rule,
)
from dnsguard.core.pods import Assignment, Pod, PodTable, assign
from dnsguard.core.policy import Denied, effective

V4, V6, OTHER = (Address(ip_address(text).packed) for text in ("10.244.0.5", "fd00:10:244::5", "10.244.0.6"))


class Entries:
    """The allowlist's entries, looked up the slow way."""

    def __init__(self, *entries: PodEntry) -> None:
        self.entries = entries

    def entry(self, address: Address) -> PodEntry | None:
        holding = [entry for entry in self.entries if ip_address(address) in entry.network]
        return max(holding, key=lambda entry: entry.network.prefixlen, default=None)


def policy(name: str, port: int = 443) -> Policy:
    ports = (PortRange(Protocol.TCP, port, port),)
    return Policy(name, (Rule(blocks=(BlockPeer(ip_network("0.0.0.0/0")),), ports=ports, origin=Origin("f", port, 1)),))


def entry(network: str, name: str | None, *policies: Policy, line: int = 1) -> PodEntry:
    return PodEntry(ip_network(network), name, policies, Origin("allowlist.yaml", line, 3))


WEB, MAIL = policy("web"), policy("mail", 25)


def test_the_longest_prefix_names_the_pod() -> None:
    lookup = Entries(entry("10.244.0.0/16", None, MAIL), entry("10.244.0.5/32", "shop/backend-0", WEB, line=7))
    got = assign([V4], lookup, Action.DENY)
    assert (got.name, got.policy.label, got.conflict) == ("shop/backend-0", "web", None)
    assert got.origin == Origin("allowlist.yaml", 7, 3)


@pytest.mark.parametrize("addresses", [[V4, V6], [V6, V4]])
def test_an_address_without_an_entry_takes_its_siblings(addresses: list[Address]) -> None:
    assert assign(addresses, Entries(entry("10.244.0.5/32", "a", WEB)), Action.DENY).policy.label == "web"


def test_entries_that_mean_the_same_agree_whatever_their_policies_are_called() -> None:
    lookup = Entries(entry("10.244.0.5/32", None, WEB), entry("fd00:10:244::5/128", "a", policy("again"), line=2))
    got = assign([V4, V6], lookup, Action.DENY)
    assert (got.name, got.conflict) == ("a", None)


@pytest.mark.parametrize(
    ("first", "second"), [(("a", WEB), ("a", MAIL)), (("a", WEB), ("b", WEB)), ((None, WEB), (None, MAIL))]
)
def test_entries_that_disagree_deny_all_and_name_both_lines(
    first: tuple[str | None, Policy], second: tuple[str | None, Policy]
) -> None:
    lookup = Entries(entry("fd00:10:244::5/128", *first, line=9), entry("10.244.0.5/32", *second, line=4))
    got = assign([V4, V6], lookup, Action.ACCEPT)
    assert got.conflict == (Origin("allowlist.yaml", 4, 3), Origin("allowlist.yaml", 9, 3))
    assert compile_program(got.policy).rules == ()
    assert got.policy.default is Action.DENY
    verdict = got.policy.verdict(b"\1a\0")  # type: ignore[arg-type]
    assert isinstance(verdict, Denied)
    assert "disagree" in verdict.reason


@pytest.mark.parametrize("entries", [(), (entry("10.244.0.5/32", "a"),)])
@pytest.mark.parametrize("default", [Action.DENY, Action.ACCEPT])
def test_a_pod_without_a_policy_gets_the_default(entries: tuple[PodEntry, ...], default: Action) -> None:
    got = assign([V4], Entries(*entries), default)
    assert got.policy.default is default
    assert not got.policy.selected


def test_pods_with_the_same_policies_share_the_effective_policy() -> None:
    lookup = Entries(entry("10.244.0.0/16", None, WEB))
    first, second = assign([V4], lookup, Action.DENY), assign([OTHER], lookup, Action.DENY)
    assert first.policy is second.policy


# ---- the table


def came(table: PodTable, link: int, addresses: list[Address], name: str | None = None) -> Pod:
    effective_policy = effective([WEB], Action.DENY)
    assignment = Assignment(name, effective_policy)
    return table.came(
        LinkIndex(link),
        f"veth{link}",
        addresses,
        assignment=assignment,
        program=compile_program(effective_policy),
        share=Share(Limits(), 0.0),
    )


def test_a_query_finds_its_pod_by_source_and_link() -> None:
    table = PodTable()
    pod = came(table, 7, [V6, V4], "shop/a")
    assert table.by_source["10.244.0.5", 7] is pod
    assert table.by_source["fd00:10:244::5", 7] is pod
    assert ("10.244.0.5", 8) not in table.by_source
    assert pod.addresses == (V4, V6)


def test_a_number_is_never_given_twice() -> None:
    table = PodTable()
    first = came(table, 7, [V4])
    table.went(LinkIndex(7))
    assert came(table, 7, [V4]).id > first.id


def test_a_pod_that_went_leaves_nothing_behind() -> None:
    table = PodTable()
    pod = came(table, 7, [V4, V6])
    assert table.went(LinkIndex(7)) is pod
    assert (len(table), table.by_source, table.by_id, table.pairs(), table.programs()) == (0, {}, {}, {}, ())
    assert table.went(LinkIndex(7)) is None


def test_an_address_gained_and_one_lost_change_what_queries_find() -> None:
    table = PodTable()
    pod = came(table, 7, [V4])
    table.readdressed(pod, [V6])
    assert list(table.by_source) == [("fd00:10:244::5", 7)]
    assert pod.addresses == (V6,)


def test_a_link_holds_one_pod() -> None:
    table = PodTable()
    came(table, 7, [V4])
    with pytest.raises(ValueError, match="already is pod"):
        came(table, 7, [V6])


def test_pods_are_found_by_name_by_address_and_by_link() -> None:
    table = PodTable()
    named, unnamed = came(table, 7, [V4, V6], "shop/a"), came(table, 8, [OTHER])
    bare = came(table, 9, [])
    assert table.find("shop/a") == [named]
    assert table.find("fd00:10:244:0::5") == [named]
    assert table.find("10.244.0.6") == [unnamed]
    assert table.find("veth9") == [bare]
    assert table.find("nobody") == []
    assert (unnamed.name, bare.name) == ("10.244.0.6", "veth9")


def test_an_enforcer_is_given_every_pair_and_each_program_once() -> None:
    table = PodTable()
    pod = came(table, 7, [V4, V6])
    came(table, 8, [OTHER])
    assert set(table.pairs()) == {(7, V4), (7, V6), (8, OTHER)}
    assert table.programs() == (pod.program,)
    assert list(table) == list(table.by_link.values())
