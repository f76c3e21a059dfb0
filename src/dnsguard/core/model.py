"""The words of dnsguard as types: what sources produce, what the compiler reads, what enforcers are given.

Everything here is immutable. Names and addresses are bytes, as they stand in packets and in kernel keys, so that the
way of a query converts nothing; text belongs to files, logs and people.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from ipaddress import IPv4Network, IPv6Network
from typing import NewType

Name = NewType("Name", bytes)
"""A domain name in wire form, lower case, uncompressed, with the root's zero octet: 1 to 255 octets."""

Address = NewType("Address", bytes)
"""An IP address in network order: 4 or 16 octets. An IPv4-mapped IPv6 address is 16 octets."""

LinkIndex = NewType("LinkIndex", int)
"""The kernel's interface index of a pod link, in the node's network namespace."""

PodId = NewType("PodId", int)
"""A number for a pod, never reused while the daemon lives."""

Seconds = float
"""A length of time, or a moment on the monotonic clock, in seconds."""

Network = IPv4Network | IPv6Network


class Protocol(IntEnum):
    """IP protocol numbers that a port can belong to."""

    TCP = 6
    UDP = 17
    SCTP = 132


WITH_PORTS = frozenset((*Protocol, 33, 136))
"""DCCP and UDP-Lite have ports too."""

ICMP_REQUESTS = {1: (8, 13, 15, 17), 58: (128,)}
"""The types of ICMP and ICMPv6 that begin a flow (nf_conntrack_proto_icmp.c, bpf/flow.h); a Flow does not say which."""


class Action(StrEnum):
    ACCEPT = "Accept"
    DENY = "Deny"
    PASS = "Pass"


class Tier(IntEnum):
    """Evaluated in this order (KEP-2091). Pass leaves the tier; a pod with a POD policy never reaches BASELINE."""

    ADMIN = 0
    POD = 1
    BASELINE = 2


class DnsMode(StrEnum):
    """What becomes of a name that no rule allows: FILTER denies it, PASS_THROUGH resolves it and opens nothing."""

    FILTER = "Filter"
    PASS_THROUGH = "PassThrough"


@dataclass(frozen=True, slots=True, order=True)
class PortRange:
    """Ports `first` to `last`, both included, of one protocol."""

    protocol: Protocol
    first: int
    last: int


Ports = tuple[PortRange, ...]
"""Sorted, disjoint, merged. The empty tuple is every port of every protocol."""

ALL_PORTS: Ports = ()


@dataclass(frozen=True, slots=True)
class Origin:
    """Where something was written: file, line and column, both 1-based."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


NOWHERE = Origin("-", 1, 1)


@dataclass(frozen=True, slots=True, order=True)
class Pattern:
    """`a.b` (wildcard False) or `*.a.b` (wildcard True: one or more labels under `name`, never `name` itself)."""

    name: Name
    wildcard: bool = False


@dataclass(frozen=True, slots=True)
class DomainPeer:
    """Names that a rule accepts, less those that `excepts` matches."""

    patterns: tuple[Pattern, ...]
    excepts: tuple[Pattern, ...] = ()


@dataclass(frozen=True, slots=True)
class BlockPeer:
    """Addresses in `cidr`, less those in `excepts`."""

    cidr: Network
    excepts: tuple[Network, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a policy. Domain peers are allowed with ACCEPT only. No peers matches nothing."""

    domains: tuple[DomainPeer, ...] = ()
    blocks: tuple[BlockPeer, ...] = ()
    ports: Ports = ALL_PORTS
    action: Action = Action.ACCEPT
    tier: Tier = Tier.POD
    priority: int = 0
    origin: Origin = NOWHERE


@dataclass(frozen=True, slots=True)
class Policy:
    """A named list of rules, in the order they were written."""

    name: str
    rules: tuple[Rule, ...]
    dns: DnsMode = DnsMode.FILTER
    origin: Origin = NOWHERE


@dataclass(frozen=True, slots=True)
class PodEntry:
    """What the allowlist says of the pods whose address lies in `network` (the longest prefix wins)."""

    network: Network
    name: str | None
    policies: tuple[Policy, ...]
    origin: Origin = NOWHERE


@dataclass(frozen=True, slots=True)
class Scope:
    """What a lease opens: these ports, behind the Deny and Pass rules that stand before the rule that carries it.

    `name` is made from the content alone (`tcp_443`, `any`, `tcp_443_after_1f3a9c2e`), so that it means the same to
    an enforcer, to a new generation and to a later process.
    """

    name: str
    ports: Ports


@dataclass(frozen=True, slots=True)
class ProgramRule:
    """One merged rule as an enforcer sees it. `networks` are disjoint, with every `except` carved out."""

    tier: Tier
    action: Action
    ports: Ports
    networks: tuple[Network, ...] = ()
    scope: Scope | None = None
    """Leases in this scope match too; only with ACCEPT."""
    label: str = ""
    """The policies it came from, for logs and counters (`backend`, `backend+web`)."""


@dataclass(frozen=True, slots=True)
class Program:
    """The ordered rules of a pod: all that an enforcer is given. At most 64; the first that matches decides.

    A Pass skips the rest of its tier. `default` decides when nothing matched. `name` is made from the content.
    """

    name: str
    rules: tuple[ProgramRule, ...] = field(default=())
    default: Action = Action.DENY


@dataclass(frozen=True, slots=True)
class Packet:
    """The first packet of a flow, as the decision sees it; `port` is the destination port, 0 where there is none."""

    source: Address
    destination: Address
    protocol: int
    port: int


@dataclass(frozen=True, slots=True, order=True)
class Flow:
    """An open flow that a pod began, as the pod sees it; `reply_peer` is where replies come from (other under DNAT)."""

    protocol: int
    pod: Address
    pod_port: int
    peer: Address
    peer_port: int
    reply_peer: Address
    reply_port: int


Pair = tuple[LinkIndex, Address]
"""A pod link and one address routed to it: what a governed packet is recognised by."""
