"""Names against patterns, the order of rules, and the scopes they carry."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnsguard.core.errors import PolicyError
from dnsguard.core.model import (
    Action,
    BlockPeer,
    DnsMode,
    DomainPeer,
    Name,
    Pattern,
    Policy,
    PortRange,
    Protocol,
    Rule,
    Tier,
)
from dnsguard.core.policy import (
    NO_RULE,
    NOT_SELECTED,
    Allowed,
    Denied,
    EffectivePolicy,
    PolicyKey,
    carve,
    deny_all,
    effective,
)

HTTPS = PortRange(Protocol.TCP, 443, 443)
EVERYWHERE = BlockPeer(ip_network("0.0.0.0/0"))


def wire(text: str) -> Name:
    labels = [label for label in text.split(".") if label]
    return Name(b"".join(bytes([len(label)]) + label.encode() for label in labels) + b"\0")


def pattern(text: str) -> Pattern:
    return Pattern(wire(text.removeprefix("*").removeprefix(".")), text.startswith("*"))


def patterns(*texts: str) -> tuple[Pattern, ...]:
    return tuple(pattern(text) for text in texts)


def rule(*names: str, excepts: tuple[str, ...] = (), ports: tuple[PortRange, ...] = (HTTPS,)) -> Rule:
    return Rule((DomainPeer(patterns(*names), patterns(*excepts)),), ports=ports)


def one(*names: str, excepts: tuple[str, ...] = ()) -> EffectivePolicy:
    return effective([Policy("web", (rule(*names, excepts=excepts),))], Action.DENY)


def denied(policy: EffectivePolicy, name: str) -> Denied:
    verdict = policy.verdict(wire(name))
    assert isinstance(verdict, Denied)
    return verdict


def allowed(policy: EffectivePolicy, name: str) -> Allowed:
    verdict = policy.verdict(wire(name))
    assert isinstance(verdict, Allowed)
    return verdict


# ---- names


def test_a_listed_name_is_allowed_and_its_neighbours_are_not() -> None:
    policy = one("db.example.com")
    assert allowed(policy, "db.example.com").labels == "web"
    assert denied(policy, "db2.example.com") == Denied(NO_RULE, False, "web")
    assert not denied(policy, "a.db.example.com").ancestor


def test_a_wildcard_allows_any_depth_below_it_and_not_itself() -> None:
    policy = one("*.example.com")
    allowed(policy, "a.example.com")
    allowed(policy, "c.b.a.example.com")
    assert denied(policy, "example.com").ancestor


def test_a_star_alone_allows_every_name_and_the_root() -> None:
    policy = one("*")
    allowed(policy, "a.b.c.d.e")
    allowed(policy, "com")
    allowed(policy, ".")


@pytest.mark.parametrize("name", ["example.com", "com", "."])
def test_what_stands_above_an_allowed_name_is_denied_as_an_ancestor(name: str) -> None:
    assert denied(one("db.example.com"), name) == Denied(NO_RULE, True, "web")


def test_an_excepted_name_is_denied_and_the_policy_is_named() -> None:
    policy = one("*.example.com", excepts=("secret.example.com",))
    assert denied(policy, "secret.example.com").reason == "excepted by policy web"


def test_an_excepted_name_is_an_ancestor_because_the_wildcard_still_allows_what_is_below_it() -> None:
    policy = one("*.example.com", excepts=("secret.example.com",))
    allowed(policy, "a.secret.example.com")
    assert denied(policy, "secret.example.com").ancestor


def test_an_excepted_subtree_is_no_ancestor_unless_something_in_it_is_allowed() -> None:
    policy = effective(
        [Policy("web", (rule("*.a", excepts=("*.x.a",)), rule("deep.down.x.a")))],
        Action.DENY,
    )
    assert denied(policy, "other.x.a") == Denied("excepted by policy web", False, "web")
    assert denied(policy, "down.x.a") == Denied("excepted by policy web", True, "web")
    allowed(policy, "deep.down.x.a")
    allowed(policy, "x.a")


def test_an_except_binds_its_own_peer_only() -> None:
    peers = (DomainPeer(patterns("*.a"), patterns("x.a")), DomainPeer(patterns("x.a")))
    policy = effective([Policy("web", (Rule(peers),))], Action.DENY)
    allowed(policy, "x.a")


def test_a_name_that_two_rules_allow_has_both_rules_and_both_scopes() -> None:
    smtp = PortRange(Protocol.TCP, 25, 25)
    policy = effective(
        [Policy("web", (rule("*.a"),)), Policy("mail", (rule("x.a", ports=(smtp,)),))],
        Action.DENY,
    )
    verdict = allowed(policy, "x.a")
    assert [scope.name for scope in verdict.scopes] == ["tcp_443", "tcp_25"]
    assert [r.policy for r in verdict.rules] == ["web", "mail"]
    assert verdict.labels == "web+mail"


def test_two_rules_on_the_same_ports_give_one_scope() -> None:
    policy = effective([Policy("web", (rule("*.a"), rule("x.a")))], Action.DENY)
    assert len(allowed(policy, "x.a").scopes) == 1
    assert len(allowed(policy, "x.a").rules) == 2


def test_names_that_the_same_rules_allow_share_one_verdict() -> None:
    policy = one("a.b", "c.d", "*.e")
    assert policy.verdict(wire("a.b")) is policy.verdict(wire("x.y.e"))


_TEXTS = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=4).map(".".join)
_PATTERNS = st.lists(st.one_of(_TEXTS, _TEXTS.map("*.{}".format), st.just("*")), max_size=4)
_PEERS = st.lists(st.tuples(_PATTERNS, _PATTERNS), max_size=3)


def _matches(text: str, name: str) -> bool:
    if text == "*":
        return True
    return name.endswith(text[1:]) if text.startswith("*.") else name == text


def _naive(rules: list[list[tuple[list[str], list[str]]]], name: str) -> list[int]:
    return [
        index
        for index, peers in enumerate(rules)
        if any(
            any(_matches(text, name) for text in texts) and not any(_matches(text, name) for text in excepts)
            for texts, excepts in peers
        )
    ]


@settings(deadline=None)
@given(st.lists(_PEERS, max_size=4), st.lists(_TEXTS, max_size=12))
def test_a_verdict_is_what_matching_every_pattern_of_every_rule_gives(
    rules: list[list[tuple[list[str], list[str]]]], names: list[str]
) -> None:
    written = tuple(
        Rule(tuple(DomainPeer(patterns(*texts), patterns(*excepts)) for texts, excepts in peers)) for peers in rules
    )
    policy = effective([Policy("p", written)], Action.DENY)
    for name in names:
        verdict = policy.verdict(wire(name))
        got = [policy.rules.index(r) for r in verdict.rules] if isinstance(verdict, Allowed) else []
        assert got == _naive(rules, name)


@settings(deadline=None)
@given(st.lists(_PEERS, max_size=3), _TEXTS)
def test_a_denied_name_is_an_ancestor_exactly_when_something_below_it_is_allowed(
    rules: list[list[tuple[list[str], list[str]]]], name: str
) -> None:
    written = tuple(
        Rule(tuple(DomainPeer(patterns(*texts), patterns(*excepts)) for texts, excepts in peers)) for peers in rules
    )
    verdict = effective([Policy("p", written)], Action.DENY).verdict(wire(name))
    known = {label for r in rules for texts, excepts in r for text in (*texts, *excepts) for label in [text]}
    below = {f"z.{name}"} | {
        ".".join(labels[start:])
        for text in known
        for labels in [text.removeprefix("*.").split("."), ["z", *text.removeprefix("*.").split(".")]]
        for start in range(len(labels))
    }
    expected = any(_naive(rules, lower) for lower in below if lower.endswith(f".{name}"))
    assert isinstance(verdict, Allowed) or verdict.ancestor == expected


# ---- PassThrough and defaults


def test_one_passthrough_policy_lets_every_name_resolve_and_opens_only_what_rules_match() -> None:
    policy = effective(
        [Policy("web", (rule("*.a", excepts=("x.a",)),)), Policy("all", (), DnsMode.PASS_THROUGH)], Action.DENY
    )
    assert policy.pass_through
    assert [scope.name for scope in allowed(policy, "b.a").scopes] == ["tcp_443"]
    assert allowed(policy, "x.a").scopes == ()
    assert allowed(policy, "elsewhere").scopes == ()


def test_a_pod_that_no_policy_selects_gets_the_default() -> None:
    assert denied(effective([], Action.DENY), "a.b") == Denied(NOT_SELECTED, False, "(none)")
    open_policy = effective([], Action.ACCEPT)
    assert not open_policy.selected
    assert open_policy.default is Action.ACCEPT
    assert allowed(open_policy, "a.b").scopes == ()


def test_a_selected_pod_is_denied_by_default_whatever_the_default_for_others() -> None:
    policy = effective([Policy("empty", ())], Action.ACCEPT)
    assert policy.selected
    assert policy.default is Action.DENY
    assert denied(policy, "a.b").policies == "empty"


def test_deny_all_says_why() -> None:
    assert denied(deny_all("entries disagree"), "a.b").reason == "entries disagree"


# ---- order


def test_rules_stand_by_tier_then_priority_then_as_written() -> None:
    def at(tier: Tier, priority: int, port: int) -> Rule:
        ports = (PortRange(Protocol.TCP, port, port),)
        return Rule(blocks=(EVERYWHERE,), ports=ports, tier=tier, priority=priority)

    rules = (at(Tier.BASELINE, 0, 5), at(Tier.ADMIN, 7, 3), at(Tier.ADMIN, 1, 1), at(Tier.ADMIN, 1, 2))
    policy = effective([Policy("p", rules)], Action.DENY)
    assert [r.rule.ports[0].first for r in policy.rules] == [1, 2, 3, 5]
    assert not policy.selected


def test_a_pod_that_a_pod_tier_policy_selects_never_reaches_baseline() -> None:
    baseline = Policy("base", (Rule(blocks=(EVERYWHERE,), tier=Tier.BASELINE),))
    policy = effective([baseline, Policy("web", (rule("a.b"),))], Action.ACCEPT)
    assert [r.policy for r in policy.rules] == ["web"]
    assert policy.default is Action.DENY


@pytest.mark.parametrize("action", [Action.DENY, Action.PASS])
def test_domain_names_under_another_action_than_accept_are_an_error(action: Action) -> None:
    bad = Rule((DomainPeer(patterns("a.b")),), action=action)
    with pytest.raises(PolicyError, match="policy web: domain names need action Accept"):
        effective([Policy("web", (bad,))], Action.DENY)


# ---- scopes


@pytest.mark.parametrize(
    ("ports", "name"),
    [
        ((), "any"),
        ((HTTPS,), "tcp_443"),
        ((PortRange(Protocol.TCP, 5432, 5432), PortRange(Protocol.TCP, 8000, 8010)), "tcp_5432_tcp_8000_8010"),
        ((PortRange(Protocol.TCP, 53, 53), PortRange(Protocol.UDP, 53, 53)), "tcp_53_udp_53"),
        ((PortRange(Protocol.SCTP, 0, 65535),), "sctp_0_65535"),
    ],
)
def test_a_scope_is_named_by_its_ports(ports: tuple[PortRange, ...], name: str) -> None:
    policy = effective([Policy("p", (rule("a.b", ports=ports),))], Action.DENY)
    assert policy.rules[0].scope.name == name


def test_a_long_list_of_ports_is_named_by_its_digest() -> None:
    ports = tuple(PortRange(Protocol.TCP, port, port) for port in range(1000, 1100, 2))
    name = effective([Policy("p", (rule("a.b", ports=ports),))], Action.DENY).rules[0].scope.name
    assert name.startswith("ports_")
    assert len(name) < 30


def test_deny_and_pass_rules_before_a_rule_are_in_its_scopes_name() -> None:
    deny = Rule(blocks=(EVERYWHERE,), action=Action.DENY)
    policy = effective([Policy("p", (rule("a.b"), deny, rule("c.d"), deny, rule("e.f")))], Action.DENY)
    first, _, second, _, third = (r.scope.name for r in policy.rules)
    assert first == "tcp_443"
    assert second.startswith("tcp_443_after_")
    assert third.startswith("tcp_443_after_")
    assert second != third


def test_a_deny_that_matches_nothing_leaves_scopes_alone() -> None:
    nothing = Rule(blocks=(BlockPeer(ip_network("10.0.0.0/8"), (ip_network("10.0.0.0/8"),)),), action=Action.DENY)
    policy = effective([Policy("p", (nothing, rule("a.b")))], Action.DENY)
    assert policy.rules[1].scope.name == "tcp_443"


def test_a_pass_separates_the_scopes_of_two_tiers() -> None:
    skip = Rule(blocks=(EVERYWHERE,), action=Action.PASS, tier=Tier.ADMIN)
    admin = Rule((DomainPeer(patterns("a.b")),), ports=(HTTPS,), tier=Tier.ADMIN)
    policy = effective([Policy("p", (skip, admin, rule("c.d")))], Action.DENY)
    assert policy.rules[1].scope != policy.rules[2].scope


# ---- sharing


def test_equal_inputs_share_one_effective_policy_while_it_is_in_use() -> None:
    def written() -> list[Policy]:
        return [Policy("web", (rule("a.b"),))]

    first = effective(written(), Action.DENY)
    assert effective(written(), Action.DENY) is first
    assert effective(written(), Action.ACCEPT) is not first
    assert PolicyKey(written(), Action.DENY) == first.key
    assert first.key != "web"


# ---- IP blocks


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 255),
            st.integers(24, 32),
            st.lists(st.tuples(st.integers(0, 255), st.integers(24, 32)), max_size=4),
        ),
        max_size=4,
    )
)
def test_carved_blocks_hold_exactly_what_the_blocks_hold(
    written: list[tuple[int, int, list[tuple[int, int]]]],
) -> None:
    def network(last: int, length: int):  # type: ignore[no-untyped-def]
        return ip_network(f"10.0.0.{last}/{length}", strict=False)

    blocks = [BlockPeer(network(last, n), tuple(network(*hole) for hole in holes)) for last, n, holes in written]
    carved = carve(blocks)
    for last in range(256):
        address = ip_address(f"10.0.0.{last}")
        expected = any(address in b.cidr and not any(address in e for e in b.excepts) for b in blocks)
        assert sum(address in n for n in carved) == expected  # in one network or in none: they are disjoint
    assert list(carved) == sorted(carved)


def test_blocks_that_touch_become_one_network() -> None:
    halves = (BlockPeer(ip_network("10.0.0.128/25")), BlockPeer(ip_network("10.0.0.0/25")))
    assert carve(halves) == (ip_network("10.0.0.0/24"),)


def test_carved_blocks_keep_the_families_apart() -> None:
    blocks = (BlockPeer(ip_network("::/0"), (ip_network("8000::/1"), ip_network("0.0.0.0/0"))), EVERYWHERE)
    assert carve(blocks) == (ip_network("0.0.0.0/0"), ip_network("::/1"))
