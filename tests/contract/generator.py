"""Scenarios for comparing enforcers: rules of some pods, the names they resolved, and packets with what must happen.

`Scenario.expected` evaluates the rules as they are written, one by one; it uses neither the compiler nor its merging
nor scopes. An enforcer under test is given `Scenario.desired` and `Scenario.writes`, made by the real ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from hypothesis import strategies as st

from dnsguard.core.compile import compile_program
from dnsguard.core.model import (
    Action,
    Address,
    BlockPeer,
    DnsMode,
    DomainPeer,
    LinkIndex,
    Name,
    Packet,
    Pattern,
    Policy,
    PortRange,
    Ports,
    Protocol,
    Rule,
    Tier,
)
from dnsguard.core.policy import Allowed, EffectivePolicy, effective
from dnsguard.engine.contracts import Desired, Write

LEASE_MS = 60_000


def address(text: str) -> Address:
    return Address(ip_address(text).packed)


def wire(text: str) -> Name:
    return Name(b"".join(bytes([len(label)]) + label.encode() for label in text.split(".")) + b"\0")


@dataclass(frozen=True)
class Place:
    """Where a pod is: its link, and one address of each family routed to it."""

    link: LinkIndex
    v4: Address
    v6: Address

    @property
    def addresses(self) -> tuple[Address, Address]:
        return self.v4, self.v6


NAMES = ("a.test", "b.test", "x.a.test", "y.x.a.test")
PATTERNS = ("a.test", "b.test", "*.a.test", "x.a.test", "*.test", "*.x.a.test")
DESTINATIONS = tuple(
    map(address, ("198.51.100.1", "198.51.100.2", "198.51.100.129", "203.0.113.7", "2001:db8:1::1", "2001:db8:2::1"))
)
BLOCKS = tuple(
    map(
        ip_network,
        (
            "198.51.100.0/24",
            "198.51.100.0/30",
            "198.51.100.2/32",
            "198.51.100.128/25",
            "203.0.113.0/24",
            "0.0.0.0/0",
            "2001:db8:1::/48",
            "2001:db8::/32",
            "::/0",
        ),
    )
)
# The edges of the ranges below, from both sides, and the first and last port there is. Port 53 is intercepted and 67,
# 68, 546, 547 are DHCP's: they are not the program's to decide.
PORTS = (0, 79, 80, 81, 442, 443, 444, 1023, 1024, 65535)
RANGES = (
    PortRange(Protocol.TCP, 80, 80),
    PortRange(Protocol.TCP, 80, 443),
    PortRange(Protocol.TCP, 443, 443),
    PortRange(Protocol.TCP, 1024, 65535),
    PortRange(Protocol.UDP, 0, 65535),
    PortRange(Protocol.UDP, 443, 443),
    PortRange(Protocol.SCTP, 0, 80),
    PortRange(Protocol.SCTP, 443, 1023),
)
NO_PORTS_PROTOCOL = 253  # RFC 3692: for experiments
PORTLESS = (1, 58, NO_PORTS_PROTOCOL)
"""ICMP and ICMPv6 too, each also in the other's family, where it is nothing special."""


@dataclass(frozen=True)
class Scenario:
    """`policies` and `resolved` are by pod, `resolved` as (name, address)."""

    places: tuple[Place, ...]
    policies: tuple[tuple[Policy, ...], ...]
    default: Action
    resolved: tuple[tuple[tuple[str, Address], ...], ...]
    effective: tuple[EffectivePolicy, ...] = field(init=False)

    def __post_init__(self) -> None:
        policies = tuple(effective(written, self.default) for written in self.policies)
        object.__setattr__(self, "effective", policies)

    def __repr__(self) -> str:
        return (
            f"Scenario(places={self.places}, policies={self.policies}, default={self.default}, "
            f"resolved={self.resolved})"
        )

    @property
    def desired(self) -> Desired:
        programs = [compile_program(policy) for policy in self.effective]
        pairs = {
            (place.link, own): program.name
            for place, program in zip(self.places, programs, strict=True)
            for own in place.addresses
        }
        return Desired(tuple({program.name: program for program in programs}.values()), pairs)

    @property
    def writes(self) -> list[Write]:
        """What answering the resolved names arms."""
        found = {
            (scope.name, own + peer)
            for place, policy, resolved in zip(self.places, self.effective, self.resolved, strict=True)
            for name, peer in resolved
            if isinstance(verdict := policy.verdict(wire(name)), Allowed)
            for scope in verdict.scopes
            for own in place.addresses
            if len(own) == len(peer)
        }
        return [Write(scope, key, LEASE_MS) for scope, key in sorted(found)]

    def expected(self, pod: int, packet: Packet) -> bool:
        """True when the rules let the packet pass, read one by one as they are written."""
        rules = [rule for policy in self.policies[pod] for rule in policy.rules]
        selected = any(not p.rules or any(r.tier is Tier.POD for r in p.rules) for p in self.policies[pod])
        names = [name for name, peer in self.resolved[pod] if peer == packet.destination]
        for tier in (Tier.ADMIN, Tier.POD, *(() if selected else (Tier.BASELINE,))):
            for rule in sorted((r for r in rules if r.tier is tier), key=lambda r: r.priority):
                if not _applies(rule, packet, names):
                    continue
                if rule.action is Action.PASS:
                    break
                return rule.action is Action.ACCEPT
        return self.default is Action.ACCEPT and not selected


def _applies(rule: Rule, packet: Packet, names: Sequence[str]) -> bool:
    ports = not rule.ports or any(
        p.protocol == packet.protocol and p.first <= packet.port <= p.last for p in rule.ports
    )  # fmt: skip
    peer = ip_address(packet.destination)
    block = any(peer in b.cidr and not any(peer in hole for hole in b.excepts) for b in rule.blocks)
    return ports and (block or any(_names(domain, wire(name)) for domain in rule.domains for name in names))


def _names(peer: DomainPeer, name: Name) -> bool:
    def match(pattern: Pattern) -> bool:
        return (name != pattern.name and name.endswith(pattern.name)) if pattern.wildcard else name == pattern.name

    return any(map(match, peer.patterns)) and not any(map(match, peer.excepts))


# ---- strategies


def _pattern(text: str) -> Pattern:
    return Pattern(wire(text.removeprefix("*.")), text.startswith("*."))


_patterns = st.lists(st.sampled_from(PATTERNS).map(_pattern), min_size=1, max_size=3, unique=True).map(tuple)
_excepts = st.lists(st.sampled_from(PATTERNS).map(_pattern), max_size=1).map(tuple)
_domains = st.lists(st.builds(DomainPeer, _patterns, _excepts), max_size=2).map(tuple)
_blocks = st.lists(
    st.builds(BlockPeer, st.sampled_from(BLOCKS), st.lists(st.sampled_from(BLOCKS), max_size=2).map(tuple)), max_size=2
).map(tuple)


# Sorted, disjoint and merged, as the model promises. Equal ports are frequent, so that rules meet in one scope.
_ports: st.SearchStrategy[Ports] = st.sampled_from(
    [(), (), *[(RANGES[2],)] * 4, *((one,) for one in RANGES), RANGES[0:3:2], RANGES[1:5:3], RANGES[2:8:2], RANGES[6:8]]
)


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    action = draw(st.sampled_from([Action.ACCEPT, Action.DENY, Action.ACCEPT, Action.PASS]))
    domains = draw(_domains) if action is Action.ACCEPT else ()
    tier = draw(st.sampled_from([Tier.POD, Tier.ADMIN, Tier.POD, Tier.ADMIN, Tier.BASELINE]))
    return Rule(domains, draw(_blocks), draw(_ports), action, tier, draw(st.integers(0, 1)))


# Long lists are seldom drawn unless asked for.
_rule_lists = st.one_of(st.lists(rules(), max_size=3), st.lists(rules(), min_size=4, max_size=10)).map(tuple)
_policy = st.builds(Policy, st.sampled_from(["web", "mail"]), _rule_lists, st.sampled_from(list(DnsMode)))
_policies = st.lists(_policy, max_size=2).map(tuple)


@st.composite
def scenarios(draw: st.DrawFn, places: Sequence[Place]) -> Scenario:
    """Rules and resolved names for pods at these places."""
    resolved = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(DESTINATIONS)), max_size=8).map(tuple)
    return Scenario(
        tuple(places),
        tuple(draw(_policies) for _ in places),
        draw(st.sampled_from([Action.DENY, Action.ACCEPT])),
        tuple(draw(resolved) for _ in places),
    )


def every_packet(place: Place) -> Iterator[Packet]:
    """First packets of flows from this pod: to each destination, by each protocol, to each port."""
    for peer in DESTINATIONS:
        own = place.v4 if len(peer) == 4 else place.v6
        for portless in PORTLESS:
            yield Packet(own, peer, portless, 0)
        for protocol in Protocol:
            for port in PORTS:
                yield Packet(own, peer, protocol, port)
