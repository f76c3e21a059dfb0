"""A program as chains: one line for each rule, kind of peer, family and protocol; the first line that matches decides.

    chain program_p_0123456789ab {
      jump flows
      ip daddr 10.0.0.0/16 tcp dport 8000-8010 accept
      ip saddr . ip daddr @tcp_443_v4 tcp dport 443 accept
      goto denied_default
    }

A tier with a Pass rule is a chain of its own, and Pass is its `return`. A denial goes to the chain of its rule's
number, `denied_3`, which is shared by all programs: it counts by the pod's address and rule, logs and drops.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from dnsguard.core.errors import KernelError
from dnsguard.core.model import Action, Network, Ports, Program, ProgramRule, Protocol
from dnsguard.enforce.nftables.layout import Chains

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,119}\Z")
_ENTRY = "program_"
_FAMILIES = ((4, "ip"), (6, "ip6"))


@dataclass(frozen=True, slots=True)
class Compiled:
    """A program for the kernel: its chains, the sets its leases live in, and the denials it ends in."""

    entry: str
    chains: Chains
    lease_sets: frozenset[str]
    denials: frozenset[str]


def program_of(entry: str) -> str:
    """The name of the program whose chain this is."""
    return entry.removeprefix(_ENTRY)


def compiled(program: Program) -> Compiled:
    """Raises KernelError for a name that cannot be a chain's or a set's."""
    entry = _ENTRY + _checked(program.name)
    denials: set[str] = set()
    lines = ["jump flows"]
    chains: Chains = {}
    numbered = list(enumerate(program.rules))
    for tier, members in groupby(numbered, key=lambda item: item[1].tier):
        rules = list(members)
        tier_lines = [line for number, rule in rules for line in _rule_lines(number, rule)]
        denials.update(str(number) for number, rule in rules if rule.action is Action.DENY)
        if any(rule.action is Action.PASS for _, rule in rules):
            chain = f"{entry}_{tier.name.lower()}"
            chains[chain] = tuple(tier_lines)
            lines.append(f"jump {chain}")
        else:
            lines += tier_lines
    if program.default is Action.ACCEPT:
        lines.append("accept")
    else:
        denials.add("default")
        lines.append("goto denied_default")
    chains[entry] = tuple(lines)
    scopes = {_checked(rule.scope.name) for rule in program.rules if rule.scope}
    sets = frozenset(f"{scope}_v{family}" for scope in scopes for family, _ in _FAMILIES)
    return Compiled(entry, chains, sets, frozenset(denials))


def _checked(name: str) -> str:
    if not _NAME.match(name):
        raise KernelError(f"{name!r} cannot be the name of a chain or a set")
    return name


def _rule_lines(number: int, rule: ProgramRule) -> Iterator[str]:
    verdict = {Action.ACCEPT: "accept", Action.DENY: f"goto denied_{number}", Action.PASS: "return"}[rule.action]
    for peer in _peers(rule):
        for port in _port_matches(rule.ports):
            yield " ".join(filter(None, (peer, port, verdict)))


def _peers(rule: ProgramRule) -> Iterator[str]:
    for version, ip in _FAMILIES:
        networks = [network for network in rule.networks if network.version == version]
        if networks:
            yield _destination(ip, networks)
    if rule.scope:
        for version, ip in _FAMILIES:
            yield f"{ip} saddr . {ip} daddr @{rule.scope.name}_v{version}"


def _destination(ip: str, networks: list[Network]) -> str:
    if any(network.prefixlen == 0 for network in networks):
        return f"meta nfproto ipv{networks[0].version}"
    return f"{ip} daddr {_one_of([str(network) for network in networks])}"


def _port_matches(ports: Ports) -> Iterator[str]:
    """One match for each protocol; the empty match for every port of every protocol."""
    if not ports:
        yield ""
    for protocol, ranges in groupby(ports, key=lambda each: each.protocol):
        spans = [(each.first, each.last) for each in ranges]
        name = Protocol(protocol).name.lower()
        if (0, 65535) in spans:
            yield f"meta l4proto {name}"
        else:
            yield f"{name} dport {_one_of([f'{a}-{b}' if a != b else str(a) for a, b in spans])}"


def _one_of(values: list[str]) -> str:
    return values[0] if len(values) == 1 else f"{{ {', '.join(values)} }}"
