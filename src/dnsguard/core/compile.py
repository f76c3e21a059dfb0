"""Effective rules -> the program of a pod: the only thing an enforcer is given, and what it must make of it.

`compile_program` merges rules and names the result by its content; `decide` is what every enforcer, in whatever
kernel language, must do with it; `closed` tells which addresses a lease could not open. No kernel is known here.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import IPv4Network, IPv6Network, collapse_addresses
from itertools import takewhile
from typing import NamedTuple
from weakref import WeakKeyDictionary

from dnsguard.core.errors import PolicyError
from dnsguard.core.model import (
    Action,
    Address,
    DomainPeer,
    Network,
    Packet,
    Pattern,
    PortRange,
    Ports,
    Program,
    ProgramRule,
    Protocol,
    Scope,
    Tier,
)
from dnsguard.core.policy import EffectivePolicy, EffectiveRule, behind_barriers

MOST_RULES = 64
"""Rules of one program: an eBPF enforcer keeps them as the bits of one word."""

_OTHER_PROTOCOL = 0  # stands for every protocol without ports


class Decision(NamedTuple):
    """What becomes of a packet, and the index of the rule that said so; None when it was the default."""

    action: Action
    rule: int | None


# ---- compiling


def compile_program(policy: EffectivePolicy) -> Program:
    """The program of these rules. Equal programs have equal names, in every process.

    The domain names that a rule accepts, the policies' names, and whether other names resolve, are no part of what a
    kernel does with it, and are part of the name: a process that finds its predecessor's leases and answers knows of
    a program of the same name that the same names justified them.
    Raises PolicyError, with the policies' names, when more than 64 rules are left after merging.
    """
    program = _compiled.get(policy)
    if program is None:
        program = _compiled[policy] = _compile(policy)
    return program


# Pods share policies, and a policy may have 100,000 names to put into the program's name (34 ms).
_compiled: WeakKeyDictionary[EffectivePolicy, Program] = WeakKeyDictionary()


def _compile(policy: EffectivePolicy) -> Program:
    merged: list[_Merging] = []
    for rule in policy.rules:
        _merge(merged, rule)
    if len(merged) > MOST_RULES:
        raise PolicyError(
            f"policies {policy.label} need {len(merged)} rules on one pod after merging those with equal ports; "
            f"at most {MOST_RULES} are possible: give more rules the same ports"
        )
    rules = tuple(rule.finished() for rule in merged)
    return Program(_content_name(rules, policy), rules, policy.default)


@dataclass(slots=True)
class _Merging:
    """One rule of the program while others are being merged into it."""

    first: EffectiveRule
    networks: list[Network]
    labels: list[str]
    named: bool

    @property
    def action(self) -> Action:
        return self.first.rule.action

    def takes(self, other: EffectiveRule) -> bool:
        """Equal scopes have equal ports and the same Deny and Pass rules before them; a Deny or Pass needs its tier."""
        if self.action is Action.ACCEPT:
            return self.first.scope.name == other.scope.name
        return self.first.rule.tier is other.rule.tier and self.first.rule.ports == other.rule.ports

    def finished(self) -> ProgramRule:
        rule = self.first.rule
        return ProgramRule(
            rule.tier,
            rule.action,
            rule.ports,
            _collapsed(self.networks),
            self.first.scope if self.named else None,
            "+".join(dict.fromkeys(self.labels)),
        )


def _merge(merged: list[_Merging], rule: EffectiveRule) -> None:
    """Add a rule, into an equal one where only rules of the same action stand between: their order does not matter."""
    named = any(peer.patterns for peer in rule.rule.domains)
    if not named and not rule.networks:
        return  # matches nothing
    for earlier in takewhile(lambda earlier: earlier.action is rule.rule.action, reversed(merged)):
        if earlier.takes(rule):
            earlier.networks.extend(rule.networks)
            earlier.labels.append(rule.policy)
            earlier.named = earlier.named or named
            return
    merged.append(_Merging(rule, list(rule.networks), [rule.policy], named))


def _collapsed(networks: Sequence[Network]) -> tuple[Network, ...]:
    """Disjoint, IPv4 first, ascending."""
    return (
        *collapse_addresses(network for network in networks if isinstance(network, IPv4Network)),
        *collapse_addresses(network for network in networks if isinstance(network, IPv6Network)),
    )


def _content_name(rules: tuple[ProgramRule, ...], policy: EffectivePolicy) -> str:
    content = [
        f"{policy.default} {policy.label} {policy.pass_through}",
        *(_named(rule.scope.name, peer) for rule in policy.rules for peer in rule.rule.domains),
    ]
    for rule in rules:
        ports = ",".join(f"{p.protocol:d}:{p.first}-{p.last}" for p in rule.ports)
        scope = rule.scope.name if rule.scope else "-"
        networks = " ".join(map(str, rule.networks))
        content.append(f"{rule.tier:d}|{rule.action}|{ports}|{scope}|{networks}|{rule.label}")
    return f"p_{sha256(chr(10).join(content).encode()).hexdigest()[:12]}"


def _named(scope: str, peer: DomainPeer) -> str:
    return f"{scope}|{_patterns(peer.patterns)}|{_patterns(peer.excepts)}"


def _patterns(patterns: tuple[Pattern, ...]) -> str:
    return " ".join([("*." if pattern.wildcard else "") + pattern.name.hex() for pattern in patterns])


# ---- deciding


def decide(program: Program, packet: Packet, leased: Callable[[str], bool]) -> Decision:
    """What every enforcer must do with the first packet of a flow.

    `leased(scope name)` tells whether a lease of (packet.source, packet.destination) is alive in that scope. Only
    TCP, UDP and SCTP have ports: another protocol matches rules without ports only.
    """

    def applies(rule: ProgramRule) -> bool:
        return _has_port(rule.ports, packet.protocol, packet.port) and (
            (rule.scope is not None and leased(rule.scope.name))
            or any(_contains(network, packet.destination) for network in rule.networks)
        )

    index = _deciding(program.rules, applies)
    return Decision(program.default if index is None else program.rules[index].action, index)


def _deciding(rules: Sequence[ProgramRule], applies: Callable[[ProgramRule], bool]) -> int | None:
    """The first rule that applies and is not a Pass; a Pass that applies skips the rest of its tier."""
    passed: Tier | None = None
    for index, rule in enumerate(rules):
        if rule.tier is passed or not applies(rule):
            continue
        if rule.action is not Action.PASS:
            return index
        passed = rule.tier
    return None


def _has_port(ports: Ports, protocol: int, port: int) -> bool:
    return not ports or any(p.protocol == protocol and p.first <= port <= p.last for p in ports)


def _contains(network: Network, address: Address) -> bool:
    if len(address) * 8 != network.max_prefixlen:
        return False
    return (int.from_bytes(address) ^ int(network.network_address)) & int(network.netmask) == 0


def closed(program: Program, scope: Scope, address: Address) -> bool:
    """True when a lease of `address` in `scope` would open none of the scope's ports, because Deny or Pass rules stand
    before it and no other rule accepts there. `program` is one that `compile_program` made."""
    if not behind_barriers(scope):
        return False
    rules = [rule for rule in program.rules if _carries(rule, scope) or _within(rule.networks, address)]
    if _carries_first(rules, scope):
        return False
    return not any(_accepted(rules, program.default, *point) for point in _points(rules, scope.ports))


def _carries(rule: ProgramRule, scope: Scope) -> bool:
    return rule.scope is not None and rule.scope.name == scope.name


def _carries_first(rules: list[ProgramRule], scope: Scope) -> bool:
    """True when no Deny or Pass that concerns the address stands before the rule with this scope."""
    before = takewhile(lambda rule: rule.action is Action.ACCEPT, rules)
    return any(_carries(rule, scope) for rule in before)


def _within(networks: tuple[Network, ...], address: Address) -> bool:
    """Membership by bisection: the networks are disjoint and ascending, and a Deny list may hold thousands."""
    place = len(address), int.from_bytes(address)
    index = bisect_right(
        networks, place, key=lambda network: (network.max_prefixlen // 8, int(network.network_address))
    )
    return index > 0 and _contains(networks[index - 1], address)


def _accepted(rules: list[ProgramRule], default: Action, protocol: int, port: int) -> bool:
    index = _deciding(rules, lambda rule: _has_port(rule.ports, protocol, port))
    return (default if index is None else rules[index].action) is Action.ACCEPT


def _points(rules: list[ProgramRule], ports: Ports) -> Iterator[tuple[int, int]]:
    """(protocol, port) points such that every port of `ports` is decided like one of them: a decision can change only
    where a range begins, or right behind where one ends."""
    if not ports:
        yield _OTHER_PROTOCOL, 0
    for outer in ports or tuple(PortRange(protocol, 0, 65535) for protocol in Protocol):
        yield outer.protocol, outer.first
        inner = [p for rule in rules for p in rule.ports if p.protocol is outer.protocol]
        for port in {p.first for p in inner} | {p.last + 1 for p in inner}:
            if outer.first < port <= outer.last:
                yield outer.protocol, port
