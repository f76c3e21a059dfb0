"""A program as entries of maps: what each rule does, and which rules hold a port or an address.

Rule n is bit n. A map finds the longest prefix that fits, so each entry carries the rules of all wider ones too, and
the one that is found tells everything. Pure; `core/compile.decide` says what the entries mean together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from dnsguard.core.errors import KernelError
from dnsguard.core.model import Action, Address, Program, ProgramRule
from dnsguard.enforce.bpf import layout

Rules = int
"""A set of rules: bit n for rule n."""

_NAME = re.compile(r"p_[0-9a-f]{12}\Z")
_PORT_WIDTH = 16


class PortPrefix(NamedTuple):
    """Rules that hold every port with the first `length` bits of `port`."""

    protocol: int
    port: int
    length: int
    rules: Rules


class BlockPrefix(NamedTuple):
    """Rules that hold every address of a network; `length` is its prefix length."""

    network: Address
    length: int
    rules: Rules


@dataclass(frozen=True, slots=True)
class Entries:
    """All that the maps hold about a program. `scopes` has a number for each rule, 0 for one without a scope."""

    number: int
    accept: Rules
    passes: Rules
    any_port: Rules
    leased: Rules
    tiers: tuple[Rules, ...]
    scopes: tuple[int, ...]
    default_accept: bool
    ports: tuple[PortPrefix, ...]
    blocks: tuple[BlockPrefix, ...]


def number_of(name: str) -> int:
    """The number of a program in the maps. Raises KernelError for a name that is not made from content."""
    if not _NAME.match(name):
        raise KernelError(f"program {name!r} has no number: its name is to be p_ and twelve hexadecimal digits")
    return layout.program_number(name)


def name_of(number: int) -> str:
    return f"p_{number:012x}"


def entries(program: Program) -> Entries:
    """Raises KernelError for a program of more than 64 rules, or one whose name is not made from its content."""
    rules = program.rules
    if len(rules) > layout.MOST_RULES:
        raise KernelError(f"program {program.name} has {len(rules)} rules, at most {layout.MOST_RULES} are possible")
    return Entries(
        number_of(program.name),
        accept=_those(rule.action is Action.ACCEPT for rule in rules),
        passes=_those(rule.action is Action.PASS for rule in rules),
        any_port=_those(not rule.ports for rule in rules),
        leased=_those(rule.scope is not None for rule in rules),
        tiers=tuple(_those(rule.tier == tier for rule in rules) for tier in range(layout.TIERS)),
        scopes=tuple(layout.scope_number(rule.scope.name) if rule.scope else 0 for rule in rules),
        default_accept=program.default is Action.ACCEPT,
        ports=tuple(_ports(rules)),
        blocks=tuple(_blocks(rules)),
    )


def _those(members: Iterable[bool]) -> Rules:
    return sum(member << number for number, member in enumerate(members))


def _ports(rules: Iterable[ProgramRule]) -> Iterator[PortPrefix]:
    held: dict[int, dict[_Prefix, Rules]] = {}
    for number, rule in enumerate(rules):
        for each in rule.ports:
            own = held.setdefault(each.protocol, {})
            for prefix in _prefixes(each.first, each.last):
                own[prefix] = own.get(prefix, 0) | 1 << number
    for protocol, own in held.items():
        for (port, length), bits in _with_wider(own, _PORT_WIDTH):
            yield PortPrefix(protocol, port, length, bits)


def _blocks(rules: Iterable[ProgramRule]) -> Iterator[BlockPrefix]:
    held: dict[int, dict[_Prefix, Rules]] = {32: {}, 128: {}}
    for number, rule in enumerate(rules):
        for network in rule.networks:
            own = held[network.max_prefixlen]
            prefix = _Prefix(int(network.network_address), network.prefixlen)
            own[prefix] = own.get(prefix, 0) | 1 << number
    for width, own in held.items():
        for (value, length), bits in _with_wider(own, width):
            yield BlockPrefix(Address(value.to_bytes(width // 8, "big")), length, bits)


class _Prefix(NamedTuple):
    value: int
    length: int

    def holds(self, other: _Prefix, width: int) -> bool:
        return self.length <= other.length and (self.value ^ other.value) >> (width - self.length) == 0


def _prefixes(first: int, last: int) -> Iterator[_Prefix]:
    """The fewest prefixes that are ports `first` to `last`: each as large as its place and what is left allow."""
    while first <= last:
        free = min(_trailing_zeroes(first), (last - first + 1).bit_length() - 1)
        yield _Prefix(first, _PORT_WIDTH - free)
        first += 1 << free


def _trailing_zeroes(port: int) -> int:
    return (port & -port).bit_length() - 1 if port else _PORT_WIDTH


def _with_wider(own: Mapping[_Prefix, Rules], width: int) -> Iterator[tuple[_Prefix, Rules]]:
    """Each prefix with its own rules and those of all that hold it, but for those that add nothing."""
    around: list[tuple[_Prefix, Rules]] = []
    for prefix in sorted(own):  # one that holds others comes before them
        while around and not around[-1][0].holds(prefix, width):
            around.pop()
        wider = around[-1][1] if around else 0
        bits = own[prefix] | wider
        if bits != wider:
            around.append((prefix, bits))
            yield prefix, bits
