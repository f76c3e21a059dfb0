"""Silent mistakes: what is allowed to be written in an allowlist and probably not meant.

Each check costs no more than n log n of what it looks at: files describe whole clusters.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from itertools import chain
from typing import NamedTuple

from dnsguard.config.positions import Node
from dnsguard.core.model import Name, Network, Origin, Pattern, Ports
from dnsguard.core.names import ancestors, pattern_text
from dnsguard.sources.peers import Block, Names, Placed, WrittenRule, contains
from dnsguard.sources.reading import Findings

_ROOT = Name(b"\0")


class Written(NamedTuple):
    """A pod entry as the checks see it; entries of equal `content` allow the same."""

    network: Network
    origin: Origin
    content: tuple[object, ...]


class Ranges:
    """Networks that can be asked which of them holds another, at the cost of one look for each prefix length."""

    def __init__(self, networks: Iterable[Network]) -> None:
        self._by_length: dict[tuple[int, int], dict[int, Network]] = defaultdict(dict)
        for network in networks:
            host_bits = network.max_prefixlen - network.prefixlen
            self._by_length[network.version, network.prefixlen][int(network.network_address) >> host_bits] = network

    def holding(self, network: Network) -> Network | None:
        """One of the networks that contain all of `network`."""
        address = int(network.network_address)
        for (version, length), networks in self._by_length.items():
            if version == network.version and length <= network.prefixlen:
                found = networks.get(address >> (network.max_prefixlen - length))
                if found is not None:
                    return found
        return None


def warn_of_patterns(rules: Sequence[WrittenRule], findings: Findings) -> None:
    """`*` alone, a pattern that another with the same ports covers, an `except` that excludes nothing."""
    by_ports: dict[Ports, list[Names]] = defaultdict(list)
    for rule in rules:
        by_ports[rule.ports] += rule.names
    for group in by_ports.values():
        _warn_of_covered(group, findings)
        for names in group:
            _warn_of_excepts(names, findings)


def _warn_of_covered(group: list[Names], findings: Findings) -> None:
    seen: dict[Pattern, Placed] = {}
    wildcards: dict[Name, tuple[Names, Placed]] = {}
    for names in group:
        for placed in names.patterns:
            pattern = placed.pattern
            first = seen.setdefault(pattern, placed)
            if first is not placed:
                findings.warn(
                    placed.node, f"'{pattern_text(pattern)}' is written twice (first in line {first.node.line})"
                )
            elif pattern.wildcard:
                wildcards[pattern.name] = (names, placed)
                if pattern.name == _ROOT:
                    findings.warn(placed.node, "'*' alone allows every name")
    if wildcards:
        for names in group:
            for placed in names.patterns:
                if seen[placed.pattern] is placed:
                    _warn_if_covered(placed, names, wildcards, findings)


def _warn_if_covered(
    placed: Placed, names: Names, wildcards: dict[Name, tuple[Names, Placed]], findings: Findings
) -> None:
    name = placed.pattern.name
    for ancestor in chain(ancestors(name), (_ROOT,) if name != _ROOT else ()):
        wide = wildcards.get(ancestor)
        # Another peer's except may be the very reason why this pattern is written.
        if wide is not None and (wide[0] is names or not wide[0].excepts):
            text = f"'{pattern_text(placed.pattern)}' is covered by '{pattern_text(wide[1].pattern)}'"
            findings.warn(placed.node, f"{text} in line {wide[1].node.line}; one of them is enough")
            return


def _warn_of_excepts(names: Names, findings: Findings) -> None:
    if not names.excepts:
        return
    patterns = {placed.pattern for placed in names.patterns}
    wildcards = {pattern.name for pattern in patterns if pattern.wildcard}
    # Under each of these stands a pattern: what a wildcard of that name would take away.
    above = {ancestor for pattern in patterns for ancestor in ancestors(pattern.name)} | {_ROOT}
    for placed in names.excepts:
        pattern = placed.pattern
        excludes = (
            pattern in patterns
            or not wildcards.isdisjoint((*ancestors(pattern.name), _ROOT))
            or (pattern.wildcard and (pattern.name in above or pattern.name in wildcards))
        )
        if not excludes:
            text = f"'{pattern_text(pattern)}' excludes nothing: no name beside it matches it"
            findings.warn(placed.node, text)


def warn_of_blocks(rules: Sequence[WrittenRule], protected: Ranges, findings: Findings) -> None:
    """A block inside a protected range, and an `except` that leaves nothing of its block."""
    for block in chain.from_iterable(rule.blocks for rule in rules):
        held = protected.holding(block.cidr)
        if held is not None:
            text = f"{block.cidr} lies in the protected range {held}; no answer may lead there, but this rule does"
            findings.warn(block.node, text)
        _warn_of_block_excepts(block, findings)


def _warn_of_block_excepts(block: Block, findings: Findings) -> None:

    seen: dict[Network, Node] = {}
    by_width = sorted(block.excepts, key=lambda one: one[0].prefixlen)
    wider = Ranges(network for network, _ in by_width)
    for network, node in by_width:
        if network == block.cidr:
            findings.warn(node, f"{network} excludes the whole block; leave the block out")
        elif seen.setdefault(network, node) is not node or _within(wider, network):
            findings.warn(node, f"{network} excludes nothing more: another entry of 'except' has it already")


def _within(ranges: Ranges, network: Network) -> bool:
    return network.prefixlen > 0 and ranges.holding(network.supernet()) is not None


def warn_of_own(network: Network, key: str, own: Collection[Network], origin: Origin, findings: Findings) -> None:
    """A pod written by an address of the node itself: nothing that enters by a pod link is routed to it."""
    if network.prefixlen == network.max_prefixlen and network in own:
        findings.warn_at(origin, f"{key} is an address of the node itself; no pod has it")


def warn_of_nested(entries: list[Written], findings: Findings) -> None:
    """A CIDR inside another with other policies. Single addresses inside a CIDR are how exceptions are written."""
    around: list[Written] = []
    for entry in sorted(
        entries, key=lambda one: (one.network.version, int(one.network.network_address), one.network.prefixlen)
    ):
        while around and not contains(around[-1].network, entry.network):
            around.pop()
        if around and around[-1].content != entry.content:
            wide = around[-1]
            text = f"{entry.network} lies inside {wide.network} (line {wide.origin.line}), which has other policies"
            findings.warn_at(entry.origin, f"{text}; the longer prefix wins")
        around.append(entry)
