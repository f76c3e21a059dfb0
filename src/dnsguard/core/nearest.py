"""Which rules came nearest to allowing what was denied, and by what they missed it.

In: the rules of a pod and a name that they do not allow, or a packet that they do not let through. Out: the misses, the
most telling first. Looks at every pattern once: 100,000 cost about 40 ms, so it is not for the way of a query.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import Final

from dnsguard.core.model import Action, BlockPeer, Name, Network, Packet, Pattern, Ports
from dnsguard.core.names import matches, to_text
from dnsguard.core.policy import Allowed, EffectivePolicy, EffectiveRule

MOST_MISSES: Final = 3
"""Misses of one denial that are told."""
MOST_COMPARED: Final = 20_000
"""Patterns that are compared letter by letter."""
_SHORTEST: Final = 6
"""Letters below which a name one letter away says nothing."""
_BESIDE: Final = 4
"""Bits: an address is beside a block when it lies in the one sixteen times as large."""
_WIDEST: Final = {4: 8, 6: 16}
"""Shortest prefix in which being beside a block means anything."""


class Miss(StrEnum):
    """By what a rule missed, the most telling first."""

    EXCEPTED = "excepted"
    APEX = "apex"
    SEARCHED = "searched"
    BELOW = "below"
    PORT = "port"
    TYPO = "typo"
    LABEL = "label"
    BESIDE = "beside"


_ORDER: Final = {miss: place for place, miss in enumerate(Miss)}


@dataclass(frozen=True, slots=True)
class Missed:
    """A rule that nearly allowed it. `pattern` or `block` is the peer that nearly matched; `hole` is the except that
    took it out; `name` is what the peer does match, for a name that a search list made longer."""

    miss: Miss
    rule: EffectiveRule
    pattern: Pattern | None = None
    block: BlockPeer | None = None
    hole: Pattern | Network | None = None
    name: Name | None = None


def missed_name(policy: EffectivePolicy, name: Name) -> list[Missed]:
    """What nearly allowed `name`, which `policy` denies."""
    found = [*_searched(policy, name), *_missed_patterns(policy, name)]
    if not found:
        found = [*_similar(policy, name)]
    return _told(found)


def missed_packet(policy: EffectivePolicy, packet: Packet) -> list[Missed]:
    """The address blocks that nearly held `packet`, which no rule accepts."""
    return _told(
        missed
        for rule in policy.rules
        if rule.rule.action is Action.ACCEPT
        for block in rule.rule.blocks
        if (missed := _missed_block(rule, block, packet)) is not None
    )


def has_port(ports: Ports, packet: Packet) -> bool:
    """Whether a rule of these ports speaks of the packet."""
    return not ports or any(p.protocol == packet.protocol and p.first <= packet.port <= p.last for p in ports)


def _told(found: Iterable[Missed]) -> list[Missed]:
    return sorted(found, key=lambda one: _ORDER[one.miss])[:MOST_MISSES]


# ---- names


def _patterns(policy: EffectivePolicy) -> Iterator[tuple[EffectiveRule, Pattern]]:
    return ((rule, pattern) for rule in policy.rules for peer in rule.rule.domains for pattern in peer.patterns)


def _missed_patterns(policy: EffectivePolicy, name: Name) -> Iterator[Missed]:
    tails = frozenset(_tails(name))
    for rule in policy.rules:
        for peer in rule.rule.domains:
            for pattern in peer.patterns:
                if pattern.name not in tails:
                    continue
                if matches(pattern, name):
                    hole = next((one for one in peer.excepts if matches(one, name)), None)
                    yield Missed(Miss.EXCEPTED, rule, pattern, hole=hole)
                elif pattern.name == name:
                    yield Missed(Miss.APEX, rule, pattern)
                elif _labels(pattern.name) > 1:
                    yield Missed(Miss.BELOW, rule, pattern)


def _searched(policy: EffectivePolicy, name: Name) -> Iterator[Missed]:
    """A resolver puts each domain of its search list behind a name before it asks for the name itself."""
    for tail in _tails(name):
        inner = Name(name[: len(name) - len(tail)] + b"\0")
        if tail == b"\0" or _labels(inner) < 2:
            continue
        verdict = policy.verdict(inner)
        if isinstance(verdict, Allowed) and verdict.rules:
            yield Missed(Miss.SEARCHED, verdict.rules[0], name=inner)
            return


def _similar(policy: EffectivePolicy, name: Name) -> Iterator[Missed]:
    text = to_text(name)
    parent = name[1 + name[0] :]
    for rule, pattern in islice(_patterns(policy), MOST_COMPARED):
        compared = _last_labels(text, _labels(pattern.name)) if pattern.wildcard else text
        if compared is not None and one_letter_apart(compared, to_text(pattern.name)):
            yield Missed(Miss.TYPO, rule, pattern)
        elif not pattern.wildcard and pattern.name[1 + pattern.name[0] :] == parent and _labels(Name(parent)) > 1:
            yield Missed(Miss.LABEL, rule, pattern)


def _last_labels(text: str, count: int) -> str | None:
    """The end of a name as long as a wildcard's; None when nothing is left in front of it."""
    labels = text.split(".")
    return ".".join(labels[-count:]) if count and len(labels) > count else None


def one_letter_apart(one: str, other: str) -> bool:
    """True when one letter was replaced, left out, added, or changed places with the next."""
    if one == other or abs(len(one) - len(other)) > 1 or min(len(one), len(other)) < _SHORTEST:
        return False
    start = _common(one, other)
    one, other = one[start:], other[start:]
    end = _common(one[::-1], other[::-1])
    one, other = one[: len(one) - end], other[: len(other) - end]
    return max(len(one), len(other)) == 1 or (len(one) == 2 and one == other[::-1])


def _common(one: str, other: str) -> int:
    """Letters with which both begin."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _tails(name: Name) -> Iterator[Name]:
    """The name, what is above it, and the root: the longest first."""
    rest: bytes = name
    while True:
        yield Name(rest)
        if not rest[0]:
            return
        rest = rest[1 + rest[0] :]


def _labels(name: Name) -> int:
    return sum(1 for _ in _tails(name)) - 1


# ---- addresses


def _missed_block(rule: EffectiveRule, block: BlockPeer, packet: Packet) -> Missed | None:
    there = packet.destination
    if len(there) * 8 != block.cidr.max_prefixlen:
        return None
    ported = has_port(rule.rule.ports, packet)
    hole = next((one for one in block.excepts if _holds(one, there)), None)
    if _holds(block.cidr, there):
        if hole is None:
            return None if ported else Missed(Miss.PORT, rule, block=block)
        return Missed(Miss.EXCEPTED, rule, block=block, hole=hole) if ported else None
    return Missed(Miss.BESIDE, rule, block=block) if ported and _beside(block.cidr, there) else None


def _holds(network: Network, there: bytes, *, wider: int = 0) -> bool:
    spare = network.max_prefixlen - network.prefixlen + wider
    return int.from_bytes(there) >> spare == int(network.network_address) >> spare


def _beside(network: Network, there: bytes) -> bool:
    wider = min(_BESIDE, network.prefixlen - _WIDEST[network.version])
    return wider > 0 and _holds(network, there, wider=wider)
