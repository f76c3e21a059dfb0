"""Needs of pods -> the text of an allowlist.yaml that `check` passes, the same for the same needs.

Every text that a pod or a file could have chosen is written so that the reader of YAML gives it back, or is not
written: names are in presentation form, all else is letters that cannot end a quoted text or a comment.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Final

from dnsguard.core.model import ALL_PORTS, Network, PortRange, Ports
from dnsguard.core.protected import DEFAULT_PROTECTED
from dnsguard.core.words import some
from dnsguard.learning.needs import UNUSED, Needs, Note, RuleNeeds, needs_of, owners
from dnsguard.learning.rows import SeenRow, name_written, pattern_written

_PLAIN: Final = re.compile(r"[a-z][a-z0-9_-]*(?:[./][a-z0-9_-]+)+").fullmatch
"""Texts that no reader of YAML takes for anything else."""
_NOT_IN_A_NAME: Final = re.compile(r"[^A-Za-z0-9._/-]")
_POD_NAME: Final = re.compile(r"[!-*\-.-~]{1,253}").fullmatch
"""Printable ASCII without `+` and `,`, as names of pods are."""
_PROTECTED: Final = "PROTECTED RANGE (metadata services, loopback, link-local), look twice: "
_GONE: Final = "it is gone, and other pods have its addresses now"
_NEVER_SEEN: Final = "none of its addresses is known"
_SHOWN: Final = 10
"""Names in one comment."""
_LONGEST: Final = 200


def allowlist(rows: Sequence[SeenRow]) -> str:
    """The whole file. Rows of several pods with one address go to the one that had it last."""
    return "\n".join(_lines(_Learned(rows))) + "\n"


class _Learned:
    """Policies with the pods that have them, each pod with its addresses; `homeless` are pods without any, with why."""

    def __init__(self, rows: Sequence[SeenRow]) -> None:
        owner = owners(rows)
        by_pod: dict[str, list[SeenRow]] = {}
        for row in sorted(rows, key=lambda one: one["pod"]):
            # An address that serves as the name of a pod becomes that of the pod which has a name of its own.
            by_pod.setdefault(owner.get(row["pod"], row["pod"]), []).append(row)
        self.addresses: dict[str, list[str]] = {pod: [] for pod in by_pod if _POD_NAME(pod)}
        for address in sorted(owner, key=_in_order):
            self.addresses.get(owner[address], []).append(address)
        self.homeless = {
            pod: _GONE if any(row["addresses"] for row in by_pod[pod]) else _NEVER_SEEN
            for pod, addresses in sorted(self.addresses.items())
            if not addresses
        }
        self.policies: dict[str, tuple[Needs, list[str]]] = {}
        self.policy_of: dict[str, str] = {}
        self._group({pod: needs_of(by_pod[pod]) for pod, addresses in self.addresses.items() if addresses})

    def _group(self, needs: dict[str, Needs]) -> None:
        """One policy for all pods with the same needs, called after the first of them."""
        by_content: dict[object, str] = {}
        for pod in sorted(needs):
            mine = needs[pod]
            if not mine.rules and not mine.missing:
                continue
            name = by_content.get(mine.content())
            if name is None:
                name = by_content[mine.content()] = self._name(pod)
                self.policies[name] = mine, [pod]
            else:
                self.policies[name][0].take(mine)
                self.policies[name][1].append(pod)
            self.policy_of[pod] = name

    def _name(self, pod: str) -> str:
        name = _NOT_IN_A_NAME.sub("-", pod if not _is_address(pod) else f"pod-{pod}")[:_LONGEST]
        number, free = 1, name
        while free in self.policies:
            number += 1
            free = f"{name}-{number}"
        return free


def _lines(learned: _Learned) -> Iterator[str]:
    yield "# Written by `dnsguard learn` from what was seen of pods. Read it before it is enforced: it allows what they"
    yield "# did, whether or not they should have. Times are in UTC."
    for pod, why in learned.homeless.items():
        yield f"# {pod} is left out: {why}."
    yield "apiVersion: dnsguard/v1"
    yield "kind: Allowlist"
    yield "policies:" if learned.policies else "policies: {}"
    for name in sorted(learned.policies):
        needs, pods = learned.policies[name]
        yield from _policy(name, needs, pods)
    yield "pods:" if learned.policy_of else "pods: {}"
    for pod in sorted(learned.policy_of):
        yield from _pod(pod, learned.addresses[pod], learned.policy_of[pod])


def _pod(pod: str, addresses: Iterable[str], policy: str) -> Iterator[str]:
    named = "" if _is_address(pod) else f"name: {_quoted(pod)}, "
    for address in addresses:
        key = _quoted(address) if ":" in address else address
        yield f"  {key}: {{{named}policies: [{_quoted(policy)}]}}"


def _policy(name: str, needs: Needs, pods: Sequence[str]) -> Iterator[str]:
    yield f"  {_quoted(name)}:"
    yield from _comment("    ", "of", pods)
    if needs.missing:
        yield from _comment("    ", "left out, they do not exist:", map(name_written, sorted(needs.missing)))
    if needs.left_out_names or needs.left_out_flows:
        left_out = f"{needs.left_out_names} questions and {needs.left_out_flows} flows"
        yield f"    # {left_out} went beyond what is remembered of one pod, and are not here"
    if needs.squeezed:
        yield "    # there were too many different ports: the least used rules share theirs"
    rules = sorted(needs.rules.items())
    yield "    egress:" if rules else "    egress: []"
    for ports, rule in rules:
        yield from _rule(ports, rule)


def _rule(ports: Ports, rule: RuleNeeds) -> Iterator[str]:
    if ports == UNUSED:
        yield "      # Resolved, and no connection was seen. Port 9 (discard) opens nothing: write what is needed."
    elif ports == ALL_PORTS:
        yield "      # Seen with a protocol that has no ports, like ICMP: only a rule for every port allows it."
    yield "      - to:"
    if rule.names:
        yield "          - domainNames:"
        for pattern in sorted(rule.names):
            note = rule.names[pattern]
            remark = f"PROTECTED ADDRESS {note.withheld}, which Enforce takes out of answers: " if note.withheld else ""
            many = f"{note.names} names, " if pattern.wildcard else ""
            yield f"              - {_quoted(pattern_written(pattern))}  # {remark}{many}{_seen(note)}"
    for block in sorted(rule.blocks, key=_block_order):
        cidr = _quoted(str(block)) if block.version == 6 else str(block)
        remark = _PROTECTED if _is_protected(block) else ""
        yield f"          - ipBlock: {{cidr: {cidr}}}  # {remark}no name led there, {_seen(rule.blocks[block])}"
    if ports:
        yield f"        ports: [{', '.join(map(_port, ports))}]"


def _seen(note: Note) -> str:
    last = datetime.fromtimestamp(max(0, min(note.last, 253402300799)), UTC).strftime("%Y-%m-%d %H:%M:%S")
    often = "once" if note.count == 1 else f"{note.count} times"
    return f"{often}, last {last}{_denied(note)}"


def _denied(note: Note) -> str:
    if note.denied:
        return ", no rule allowed it"
    ports = [f"{one.protocol.name} {one.first}{f'-{one.last}' * (one.last > one.first)}" for one in note.closed]
    return f", {' '.join(ports)}: no rule allowed it" if ports else ""


def _port(one: PortRange) -> str:
    end = f", endPort: {one.last}" if one.last > one.first else ""
    return f"{{protocol: {one.protocol.name}, port: {one.first}{end}}}"


def _comment(indent: str, what: str, items: Iterable[str]) -> Iterator[str]:
    """Some of a list, and how many more there are."""
    texts = list(items)
    yield f"{indent}# {what} {some(texts, _SHOWN)}"


def _quoted(text: str) -> str:
    """A scalar that is read back as this text; JSON's escapes are YAML's for ASCII."""
    return text if _PLAIN(text) else json.dumps(text)


def _is_protected(block: Network) -> bool:
    """Whether it lies where no answer may lead (`answers.protected`'s default)."""
    return any(block.version == each.version and block.subnet_of(each) for each in DEFAULT_PROTECTED)  # type: ignore[arg-type]


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _in_order(address: str) -> tuple[int, int]:
    parsed = ip_address(address)
    return parsed.version, int(parsed)


def _block_order(block: Network) -> tuple[int, int]:
    return block.version, int(block.network_address)
