"""What came nearest to allowing a denied name or connection, in words, and the rule that would allow it.

Pure, as `explain`. The rule is a model object: where it goes in a file, and how it is written there, sources know.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from itertools import islice
from typing import Final, NamedTuple

from dnsguard.control.calls import LeaseRow, NearRow
from dnsguard.control.explain import Subject, block_text, names_text, ports_text
from dnsguard.core.compile import compile_program, decide
from dnsguard.core.model import (
    WITH_PORTS,
    Action,
    BlockPeer,
    DomainPeer,
    Name,
    Packet,
    Pattern,
    PortRange,
    Ports,
    Protocol,
    Rule,
)
from dnsguard.core.names import parse_name, pattern_text, to_text
from dnsguard.core.nearest import Miss, Missed, has_port, missed_name, missed_packet
from dnsguard.core.policy import ROOT, Allowed, EffectivePolicy, EffectiveRule

HTTPS: Final[Ports] = (PortRange(Protocol.TCP, 443, 443),)
USED: Final = "the ports are those that the pod used"
GUESSED: Final = "443 is a guess: write the ports that the pod uses"
EVERY_PORT: Final = "without ports it opens every port and protocol there"
BY_NAME: Final = "if a name stands behind the address, allow the name instead: addresses change"
ON_PURPOSE: Final = "an except took it out, probably on purpose"
TYPO: Final = "if the name in the file is the one with the slip, correct it there instead"


class Wanted(NamedTuple):
    """A rule that would allow it, meant for the place `before` another rule; without one, for the pod's first policy.
    `remark`: what to think of before; `of_ports`: where the rule has its ports from."""

    rule: Rule
    before: EffectiveRule | None = None
    remark: str = ""
    of_ports: str = ""


@dataclass(frozen=True, slots=True)
class Advice:
    """`wanted` is None when no rule is missing, or none would help."""

    nearest: list[NearRow]
    wanted: Wanted | None = None


def advise_name(subject: Subject, name: Name) -> Advice:
    """For a name that the pod may not resolve; nothing to say of one that it may."""
    if isinstance(subject.policy.verdict(name), Allowed):
        return Advice([])
    found = missed_name(subject.policy, name)
    other = _elsewhere(subject, (_name_rule(policy.verdict(name)) for policy in subject.others))
    # That another policy allows the very name says more than that a name of ours is like it.
    rows = [_row(one.miss, one.rule, _name_text(one, name), _peer(one)) for one in found]
    rows[_telling(found) : _telling(found)] = [_of_another(rule) for rule in other]
    if name == ROOT or (found and found[0].miss is Miss.SEARCHED):
        return Advice(rows)  # the root cannot be allowed but by `*`
    nearest = found[0] if found else None
    like = nearest.rule if nearest is not None and (_telling(found) or not other) else next(iter(other), None)
    ports, of_ports = _ports_of(subject, name, nearest, like)
    rule = Rule((DomainPeer((Pattern(name),)),), ports=ports)
    return Advice(rows, Wanted(rule, nearest.rule if nearest else None, _remark(nearest), of_ports))


def _telling(found: Sequence[Missed]) -> int:
    """How many of these misses were by a hair."""
    return sum(one.miss is not Miss.LABEL for one in found)


def advise_packet(subject: Subject, packet: Packet) -> Advice:
    """For a connection that is not let through; nothing to say of one that is."""
    scopes = {lease["scope"] for lease in _leases(subject, packet)}
    decision = decide(subject.program, packet, scopes.__contains__)
    if decision.action is Action.ACCEPT:
        return Advice([])
    if decision.rule is not None:
        return Advice([*_closers(subject, packet)])
    if subject.ended is not None and (rows := [*_ended(subject, packet)]):
        return Advice(rows)
    leased = [*_leased(subject, packet)]
    found = missed_packet(subject.policy, packet)
    rows = [row for row, _ in leased]
    rows += [_row(one.miss, one.rule, _block_miss(one, packet), _peer(one)) for one in found]
    rows += map(_of_another, _elsewhere(subject, (_packet_rule(other, packet) for other in subject.others)))
    return Advice(rows, _wanted_there(packet, leased[0][1] if leased else None, found))


def _wanted_there(packet: Packet, leased: Wanted | None, found: list[Missed]) -> Wanted:
    if leased is not None:
        return leased
    block = BlockPeer(ip_network(packet.destination))
    excepted = bool(found) and found[0].miss is Miss.EXCEPTED
    remark = ON_PURPOSE if excepted else BY_NAME if packet.protocol in WITH_PORTS else EVERY_PORT
    return Wanted(Rule(blocks=(block,), ports=_ports(packet)), found[0].rule if found else None, remark)


# ---- names


def _name_text(one: Missed, name: Name) -> str:
    peer, asked = _peer(one), to_text(name)
    match one.miss:
        case Miss.EXCEPTED:
            return f"{peer} matches it, and the except {_hole(one)} takes it out"
        case Miss.APEX:
            return f"{peer} matches the names under {asked}, not {asked} itself"
        case Miss.BELOW:
            return f"{peer} matches itself only, not the names under it: those are *.{peer}"
        case Miss.SEARCHED:
            tail = asked.removeprefix(f"{peer}.")
            return f"{peer} is allowed: if a search list put {tail} behind it, nothing is missing"
        case Miss.TYPO:
            return f"{peer} is one letter away"
        case _:
            return f"{peer} differs in one label"


def _ports_of(subject: Subject, name: Name, nearest: Missed | None, like: EffectiveRule | None) -> tuple[Ports, str]:
    """The best ports that are known for the name, and in words where they are from, if that needs saying."""
    if used := subject.used.get(name):
        return used, USED
    if like is None:
        return HTTPS, GUESSED
    if not like.rule.ports:
        return (), f"it opens every port, as the rule at {like.rule.origin} does"
    if nearest is None or nearest.miss is Miss.LABEL:
        return like.rule.ports, f"the ports are those of the rule at {like.rule.origin}: write those that the pod uses"
    return like.rule.ports, ""


def _remark(nearest: Missed | None) -> str:
    return {Miss.EXCEPTED: ON_PURPOSE, Miss.TYPO: TYPO}.get(nearest.miss, "") if nearest is not None else ""


def _name_rule(verdict: object) -> EffectiveRule | None:
    return verdict.rules[0] if isinstance(verdict, Allowed) and verdict.rules else None


# ---- addresses


def _leases(subject: Subject, packet: Packet) -> list[LeaseRow]:
    there = str(ip_address(packet.destination))
    return [lease for lease in subject.leases if lease["address"] == there]


def _leased(subject: Subject, packet: Packet) -> Iterator[tuple[NearRow, Wanted]]:
    """The rules whose names opened the address, on other ports."""
    for lease in _leases(subject, packet):
        for rule in subject.policy.rules:
            if rule.rule.domains and rule.scope.name == lease["scope"]:
                names = ", ".join(lease["names"])
                text = f"{names} opens {lease['ports']} there, not {_port_text(packet)}"
                peers = DomainPeer(tuple(Pattern(parse_name(name)) for name in lease["names"] if "(" not in name))
                wanted = Wanted(Rule((peers,), ports=_ports(packet)), rule)
                yield _row(Miss.PORT, rule, text, names), wanted


def _ended(subject: Subject, packet: Packet) -> Iterator[NearRow]:
    """The rules that would open the address again, as soon as the name is asked for."""
    assert subject.ended is not None
    for name in filter(None, subject.ended.names):
        verdict = subject.policy.verdict(name)
        for rule in verdict.rules if isinstance(verdict, Allowed) else ():
            if rule.scope.ports and not has_port(rule.scope.ports, packet):
                continue
            text = (
                f"the lease of {names_text([name])} ended {subject.ended.ago:.0f} s ago: it opens again when the pod "
                "asks for the name; a client that keeps addresses longer than their TTL needs a higher ttl.floor"
            )
            yield _row("ended", rule, text, to_text(name))
            return


def _block_miss(one: Missed, packet: Packet) -> str:
    there = ip_address(packet.destination)
    match one.miss:
        case Miss.EXCEPTED:
            return f"{_peer(one)} holds {there}, and its except {one.hole} takes it out"
        case Miss.PORT:
            return f"{_peer(one)} holds {there}, but opens {ports_text(one.rule.rule.ports)}, not {_port_text(packet)}"
        case _:
            return f"{_peer(one)} ends close to {there}"


def _closers(subject: Subject, packet: Packet) -> Iterator[NearRow]:
    for rule in subject.policy.rules:
        holding = any(ip_address(packet.destination) in network for network in rule.networks)
        if rule.rule.action is Action.DENY and holding and has_port(rule.rule.ports, packet):
            yield _row("closed", rule, "a Deny rule closes it, whatever allows it further down", _blocks(rule.rule))
            return


def _packet_rule(other: EffectivePolicy, packet: Packet) -> EffectiveRule | None:
    program = compile_program(other)
    decision = decide(program, packet, frozenset[str]().__contains__)
    if decision.rule is None or decision.action is not Action.ACCEPT:
        return None
    there = ip_address(packet.destination)
    holding = (one for one in other.rules if any(there in network for network in one.networks))
    return next((one for one in holding if has_port(one.rule.ports, packet)), None)


def _elsewhere(subject: Subject, rules: Iterable[EffectiveRule | None]) -> list[EffectiveRule]:
    """The first rule of a policy that this pod does not have, or none."""
    own = {policy.name for policy in subject.policy.key.policies}
    return [*islice((rule for rule in rules if rule is not None and rule.policy not in own), 1)]


def _of_another(rule: EffectiveRule) -> NearRow:
    text = f"policy {rule.policy} allows it, and this pod does not have that policy"
    return _row("elsewhere", rule, text, "")


# ---- words


def _row(miss: str, rule: EffectiveRule, text: str, peer: str) -> NearRow:
    return {
        "miss": str(miss),
        "policy": rule.policy,
        "peer": peer,
        "ports": ports_text(rule.rule.ports),
        "origin": str(rule.rule.origin),
        "text": text,
    }


def _peer(one: Missed) -> str:
    if one.pattern is not None:
        return pattern_text(one.pattern)
    if one.block is not None:
        return str(one.block.cidr)
    return to_text(one.name) if one.name else ""


def _hole(one: Missed) -> str:
    return pattern_text(one.hole) if isinstance(one.hole, Pattern) else str(one.hole)


def _blocks(rule: Rule) -> str:
    return ", ".join(map(block_text, rule.blocks))


def _ports(packet: Packet) -> Ports:
    if packet.protocol not in list(Protocol):
        return ()
    return (PortRange(Protocol(packet.protocol), packet.port, packet.port),)


def _port_text(packet: Packet) -> str:
    return ports_text(_ports(packet))
