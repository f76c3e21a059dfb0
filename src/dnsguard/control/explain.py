"""Why a name resolves or not, and why a connection is let through or not, with the lines of the files that decided.

Pure: the daemon gives the pod's policy and its live leases, the CLI the policy that the files would give it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, NamedTuple

from dnsguard.control.calls import USAGE, CallError, Explanation, LeaseRow, RuleRow
from dnsguard.core.compile import decide
from dnsguard.core.model import (
    Action,
    Address,
    BlockPeer,
    Name,
    Network,
    Packet,
    Ports,
    Program,
    ProgramRule,
    Protocol,
    Rule,
    Seconds,
)
from dnsguard.core.names import ancestors, matches, parse_name, pattern_text, to_text
from dnsguard.core.nearest import has_port
from dnsguard.core.policy import ROOT, Allowed, EffectivePolicy, EffectiveRule
from dnsguard.core.wire import Qtype

TYPES: Final = frozenset(Qtype.__members__) - {"OPT"}
MOST_PEERS: Final = 50
"""Peers of one rule that are told."""

UNFORWARDED: Final = {
    "ANY": "allowed, but ANY is answered by dnsguard itself with HINFO (RFC 8482)",
    "AXFR": "allowed, but zone transfers are answered NOTIMP",
    "IXFR": "allowed, but zone transfers are answered NOTIMP",
}


class Ended(NamedTuple):
    """A lease that is over."""

    names: Sequence[Name]
    ago: Seconds


@dataclass(frozen=True, slots=True)
class Subject:
    """The pod that is asked about, and its leases if they are known (`live`)."""

    pod: str
    policy: EffectivePolicy
    program: Program
    source: Address
    leases: Sequence[LeaseRow] = ()
    live: bool = False
    others: Sequence[EffectivePolicy] = ()
    """What other pods have."""
    used: Mapping[Name, Ports] = field(default_factory=dict)
    """The ports on which the pod connected to where a name led, if it was let."""
    ended: Ended | None = None
    """The lease on the address that is asked about that ended last."""


# ---- reading what an operator wrote


def read_type(text: str) -> str:
    """A question type in upper case. Raises CallError (usage)."""
    kind = text.upper()
    if kind in TYPES or (kind.startswith("TYPE") and kind[4:].isdigit() and int(kind[4:]) < 65536):
        return kind
    raise CallError(f"{text} is not a DNS type; write A, AAAA, HTTPS, SRV ... or TYPE65", USAGE)


def read_port(port: str, protocol: str) -> tuple[Protocol, int]:
    """(protocol, port). Raises CallError (usage)."""
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise CallError(f"{port} is not a port; write a number from 1 to 65535, like 443 or 443/tcp", USAGE)
    try:
        return Protocol[protocol.upper()], int(port)
    except KeyError as error:
        raise CallError(f"{protocol} is not a protocol with ports; write tcp, udp or sctp", USAGE) from error


def read_address(text: str) -> Address:
    """Raises CallError (usage)."""
    try:
        return Address(ipaddress.ip_address(text).packed)
    except ValueError as error:
        raise CallError(f"{text} is not an IP address", USAGE) from error


def refuse_excluded(pod: str, exclude: Iterable[ipaddress.IPv4Address | ipaddress.IPv6Address]) -> None:
    """Raises CallError for an address in `pods.exclude`, of which there is nothing to tell."""
    try:
        address = ipaddress.ip_address(pod)
    except ValueError:
        return
    if address in exclude:
        raise CallError(f"{pod} is in pods.exclude: it is neither intercepted nor enforced")


# ---- explaining


def explain(subject: Subject, question: Mapping[str, str]) -> Explanation:
    """Answer the parameters of the `explain` call: `name` and `type`, or `address`, `port` and `protocol`.

    Reads immutable objects only, so it may run in a thread beside the loop: a rule of 100,000 names takes 20 ms.
    Raises InvalidNameError, or CallError (usage).
    """
    if "name" in question:
        return explain_name(subject, question["name"], question.get("type", "A"))
    if "address" not in question or "port" not in question:
        raise CallError("explain needs a name, or an address and a port", USAGE)
    protocol, port = read_port(question["port"], question.get("protocol", "tcp"))
    return explain_connection(subject, read_address(question["address"]), protocol, port)


def explain_name(subject: Subject, text: str, kind: str = "A") -> Explanation:
    """Whether the pod may resolve a name. Raises InvalidNameError, or CallError (usage) for the type."""
    name, kind = parse_name(text), read_type(kind)
    title = f"{to_text(name)} {kind}"
    leases = [lease for lease in subject.leases if to_text(name) in lease["names"]]
    verdict = subject.policy.verdict(name)
    if isinstance(verdict, Allowed):
        reason = UNFORWARDED.get(kind) or _allowance(subject.policy, verdict)
        rows = [rule_row(rule, _matching(rule.rule, name)) for rule in verdict.rules]
        return _explanation(subject, title, _Finding("allowed", reason, rows), leases)
    below = "; a name below it is allowed, so the answer is NODATA" if verdict.ancestor else ""
    return _explanation(subject, title, _Finding("denied", verdict.reason + below), leases)


def explain_connection(subject: Subject, address: Address, protocol: Protocol, port: int) -> Explanation:
    """Whether the pod may connect there now, or from files alone: whether static rules let it."""
    there = str(ipaddress.ip_address(address))
    leases = [lease for lease in subject.leases if lease["address"] == there]
    packet = Packet(subject.source, address, protocol, port)
    decision = decide(subject.program, packet, {lease["scope"] for lease in leases}.__contains__)
    verdict = "allowed" if decision.action is Action.ACCEPT else "denied"
    if decision.rule is None:
        reason, rules = _undecided(subject, packet, leases)
    else:
        reason, rules = _decided(subject, decision.rule, packet, leases)
    finding = _Finding(verdict, reason, [rule_row(rule, _peer_texts(rule.rule)) for rule in rules])
    return _explanation(subject, f"{there} {protocol.name.lower()}/{port}", finding, leases)


class _Finding(NamedTuple):
    verdict: str
    reason: str
    rules: Sequence[RuleRow] = ()


def _allowance(policy: EffectivePolicy, verdict: Allowed) -> str:
    if verdict.rules:
        return f"its addresses open on {', '.join(dict.fromkeys(ports_text(r.rule.ports) for r in verdict.rules))}"
    if policy.pass_through:
        return "dns: PassThrough: it resolves, and opens nothing by itself"
    return "no policy selects this pod, and defaultAction is Allow"


def _decided(
    subject: Subject, index: int, packet: Packet, leases: Sequence[LeaseRow]
) -> tuple[str, list[EffectiveRule]]:
    """The reason, and the written rules behind the program's rule `index`."""
    rule = subject.program.rules[index]
    block = _holds(rule.networks, packet.destination)
    scope = rule.scope.name if rule.scope is not None and any(_opens(rule, lease) for lease in leases) else None
    alike = [
        one
        for one in subject.policy.rules
        if (one.rule.action, one.rule.tier, one.rule.ports) == (rule.action, rule.tier, rule.ports)
        and (_holds(one.networks, packet.destination) or (one.rule.domains and one.scope.name == scope))
    ]
    return f"an address block decides: {rule.action}" if block else "a live lease opens it", alike


def _opens(rule: ProgramRule, lease: LeaseRow) -> bool:
    return rule.scope is not None and rule.scope.name == lease["scope"]


def _undecided(subject: Subject, packet: Packet, leases: Sequence[LeaseRow]) -> tuple[str, list[EffectiveRule]]:
    """The reason when no rule matched, and the written rules with names that would open this port."""
    if subject.program.default is Action.ACCEPT:
        return "no rule matches, and defaultAction is Allow", []
    openers = [rule for rule in subject.policy.rules if rule.rule.domains and has_port(rule.rule.ports, packet)]
    if leases:
        return f"its leases open {', '.join(dict.fromkeys(lease['ports'] for lease in leases))} only", openers
    if not openers:
        return "no rule opens this port", []
    if subject.ended:
        return f"the lease of {names_text(subject.ended.names)} ended {subject.ended.ago:.0f} s ago", openers
    known = "no live lease holds this address" if subject.live else "no address block in the files holds it"
    return f"{known}; it opens only as the answer to a name of these rules", openers


def _holds(networks: Iterable[Network], address: Address) -> bool:
    there = ipaddress.ip_address(address)
    return any(there in network for network in networks)


def _explanation(subject: Subject, title: str, finding: _Finding, leases: Sequence[LeaseRow]) -> Explanation:
    return {
        "pod": subject.pod,
        "policy": subject.policy.label,
        "subject": title,
        "verdict": finding.verdict,
        "reason": finding.reason,
        "rules": list(finding.rules),
        "leases": list(leases),
        "source": "live" if subject.live else "files",
        "past": [],
        "nearest": [],
        "add": None,
    }


# ---- words for rules


def names_text(names: Iterable[Name]) -> str:
    """`a.test, b.test`; leases that an earlier process made may have none that is known."""
    return ", ".join(sorted(to_text(name) for name in names if name)) or "an earlier process"


def ports_text(ports: Ports) -> str:
    """`tcp/443 udp/5000-5010`, or `any port`."""
    return (
        " ".join(f"{p.protocol.name.lower()}/{p.first}" + (f"-{p.last}" if p.last != p.first else "") for p in ports)
        or "any port"
    )


def rule_row(effective: EffectiveRule, peers: Sequence[str]) -> RuleRow:
    rule = effective.rule
    return {
        "policy": effective.policy,
        "tier": rule.tier.name.capitalize(),
        "action": rule.action.value,
        "peers": list(peers),
        "ports": ports_text(rule.ports),
        "origin": str(rule.origin),
    }


def _matching(rule: Rule, name: Name) -> list[str]:
    """The rule's patterns that match the name."""
    above = {name, ROOT, *ancestors(name)}
    patterns = (pattern for peer in rule.domains for pattern in peer.patterns if pattern.name in above)
    return [pattern_text(pattern) for pattern in patterns if matches(pattern, name)]


def _peer_texts(rule: Rule) -> list[str]:
    """The rule's first `MOST_PEERS` peers, and how many more there are."""
    texts = list(islice(_all_peers(rule), MOST_PEERS))
    count = sum(len(peer.patterns) + len(peer.excepts) for peer in rule.domains) + len(rule.blocks)
    return texts if count <= MOST_PEERS else [*texts, f"and {count - MOST_PEERS} more"]


def _all_peers(rule: Rule) -> Iterator[str]:
    for peer in rule.domains:
        yield from map(pattern_text, peer.patterns)
        yield from (f"not {pattern_text(pattern)}" for pattern in peer.excepts)
    yield from map(block_text, rule.blocks)


def block_text(block: BlockPeer) -> str:
    excepts = ", ".join(map(str, block.excepts))
    return f"{block.cidr} except {excepts}" if excepts else str(block.cidr)
