"""Why a name resolves or not, and why a connection is let through or not, with the lines of the files that decided.

Pure: the daemon gives the pod's policy and its live leases, the CLI the policy that the files would give it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from dnsguard.control.calls import USAGE, CallError, Explanation, LeaseRow, RuleRow
from dnsguard.core.compile import decide
from dnsguard.core.model import Action, Address, BlockPeer, DomainPeer, Network, Packet, Ports, Program, Protocol
from dnsguard.core.names import parse_name, pattern_text, to_text
from dnsguard.core.policy import Allowed, EffectivePolicy, EffectiveRule

TYPES: Final = frozenset(
    "A AAAA ANY AXFR CAA CNAME DNAME DNSKEY DS HINFO HTTPS IXFR LOC MX NAPTR NS NSEC NSEC3 OPENPGPKEY PTR RRSIG SOA SRV "
    "SSHFP SVCB TLSA TXT URI".split()
)
UNFORWARDED: Final = {
    "ANY": "allowed, but ANY is answered by dnsguard itself with HINFO (RFC 8482)",
    "AXFR": "allowed, but zone transfers are answered NOTIMP",
    "IXFR": "allowed, but zone transfers are answered NOTIMP",
}


@dataclass(frozen=True, slots=True)
class Subject:
    """The pod that is asked about, and its leases if they are known (`live`)."""

    pod: str
    policy: EffectivePolicy
    program: Program
    source: Address
    leases: Sequence[LeaseRow] = ()
    live: bool = False


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


# ---- explaining


def explain_name(subject: Subject, text: str, kind: str = "A") -> Explanation:
    """Whether the pod may resolve a name. Raises InvalidNameError, or CallError (usage) for the type."""
    name, kind = parse_name(text), read_type(kind)
    verdict = subject.policy.verdict(name)
    leases = [lease for lease in subject.leases if to_text(name) in lease["names"]]
    title = f"{to_text(name)} {kind}"
    if isinstance(verdict, Allowed):
        reason = UNFORWARDED.get(kind) or _allowance(subject.policy, verdict)
        return _explanation(subject, title, "allowed", reason, verdict.rules, leases)
    reason = verdict.reason
    if verdict.ancestor:
        reason += "; a name below it is allowed, so the answer is NODATA"
    return _explanation(subject, title, "denied", reason, (), leases)


def explain_connection(subject: Subject, address: Address, protocol: Protocol, port: int) -> Explanation:
    """Whether the pod may connect there now, or from files alone: whether static rules let it."""
    there = str(ipaddress.ip_address(address))
    leases = [lease for lease in subject.leases if lease["address"] == there]
    scopes = {lease["scope"] for lease in leases}
    decision = decide(subject.program, Packet(subject.source, address, protocol, port), scopes.__contains__)
    title = f"{there} {protocol.name.lower()}/{port}"
    verdict = "allowed" if decision.action is Action.ACCEPT else "denied"
    if decision.rule is None:
        reason, rules = _undecided(subject, protocol, port, leases)
        return _explanation(subject, title, verdict, reason, rules, leases)
    rule = subject.program.rules[decision.rule]
    rules = [
        one
        for one in subject.policy.rules
        if one.rule.action is rule.action
        and one.rule.tier is rule.tier
        and one.rule.ports == rule.ports
        and (_holds(one.networks, address) or (one.rule.domains and one.scope.name in scopes))
    ]
    by_lease = rule.scope is not None and rule.scope.name in scopes and not _holds(rule.networks, address)
    reason = "a live lease opens it" if by_lease else f"an address block decides: {rule.action}"
    return _explanation(subject, title, verdict, reason, rules, leases)


def _allowance(policy: EffectivePolicy, verdict: Allowed) -> str:
    if verdict.rules:
        return f"opens {', '.join(dict.fromkeys(ports_text(rule.rule.ports) for rule in verdict.rules))}"
    if policy.pass_through:
        return "dns: PassThrough: it resolves, and opens nothing by itself"
    return "no policy selects this pod, and defaultAction is Allow"


def _undecided(
    subject: Subject, protocol: Protocol, port: int, leases: Sequence[LeaseRow]
) -> tuple[str, list[EffectiveRule]]:
    """The reason when no rule matched, and the rules with names that would open this port."""
    if subject.program.default is Action.ACCEPT:
        return "no rule matches, and defaultAction is Allow", []
    openers = [
        one
        for one in subject.policy.rules
        if one.rule.domains and one.rule.action is Action.ACCEPT and _has_port(one.rule.ports, protocol, port)
    ]
    if leases:
        open_ports = ", ".join(dict.fromkeys(lease["ports"] for lease in leases))
        return f"its leases open {open_ports} only", openers
    if not openers:
        return "no rule opens this port", []
    known = "no live lease holds this address" if subject.live else "the files name no address block that holds it"
    return f"{known}; it opens only as the answer to one of these rules' names", openers


def _has_port(ports: Ports, protocol: Protocol, port: int) -> bool:
    return not ports or any(p.protocol is protocol and p.first <= port <= p.last for p in ports)


def _holds(networks: Iterable[Network], address: Address) -> bool:
    there = ipaddress.ip_address(address)
    return any(there in network for network in networks)


def _explanation(
    subject: Subject,
    title: str,
    verdict: str,
    reason: str,
    rules: Iterable[EffectiveRule],
    leases: Sequence[LeaseRow],
) -> Explanation:
    return {
        "pod": subject.pod,
        "policy": subject.policy.label,
        "subject": title,
        "verdict": verdict,
        "reason": reason,
        "rules": [rule_row(rule) for rule in rules],
        "leases": list(leases),
        "source": "live" if subject.live else "files",
    }


# ---- words for rules


def ports_text(ports: Ports) -> str:
    """`tcp/443 udp/5000-5010`, or `any port`."""
    return (
        " ".join(f"{p.protocol.name.lower()}/{p.first}" + (f"-{p.last}" if p.last != p.first else "") for p in ports)
        or "any port"
    )


def rule_row(effective: EffectiveRule) -> RuleRow:
    rule = effective.rule
    return {
        "policy": effective.policy,
        "tier": rule.tier.name.capitalize(),
        "action": rule.action.value,
        "peers": [*_domain_texts(rule.domains), *(_block_text(block) for block in rule.blocks)],
        "ports": ports_text(rule.ports),
        "origin": str(rule.origin),
    }


def _domain_texts(domains: Iterable[DomainPeer]) -> list[str]:
    texts = []
    for peer in domains:
        texts += [pattern_text(pattern) for pattern in peer.patterns]
        texts += [f"not {pattern_text(pattern)}" for pattern in peer.excepts]
    return texts


def _block_text(block: BlockPeer) -> str:
    excepts = ", ".join(map(str, block.excepts))
    return f"{block.cidr} except {excepts}" if excepts else str(block.cidr)
