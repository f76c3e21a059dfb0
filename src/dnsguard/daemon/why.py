"""`explain` as a whole: the verdict, what was denied before, what came nearest to allowing it, and the line to add.

Reads immutable objects and the allowlist's lines, so it runs in a thread beside the daemon's loop; the CLI uses it for
an answer from files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from dnsguard.control.advice import Advice, Wanted, advise_name, advise_packet
from dnsguard.control.calls import Addition, DenialRow, Explanation
from dnsguard.control.explain import Ended, Subject, explain, read_address, read_port
from dnsguard.core.chain import WITHHELD
from dnsguard.core.model import Address, Name, Origin, Packet, Seconds
from dnsguard.core.names import parse_name, to_text
from dnsguard.enforce.denials import POLICY_REASONS, PROTOCOLS, WHY
from dnsguard.engine.contracts import EventKind
from dnsguard.observe.events import field_value
from dnsguard.observe.recent import Denial
from dnsguard.sources.edits import Edit, add_name, add_pod, add_rule, fill_pod, rule_text

UNSURE: Final = "the file has changed or cannot be read: put it in front of the rule that stood there"
SHORT: Final = "this form opens every port: for some of them, give the pod a policy in its place"
LATER: Final = "the lines told above first, and a reload; then ask again"
_QUERIES: Final = (EventKind.QUERY_DENIED, EventKind.QUERY_AUDITED)
_FLOWS: Final = (EventKind.FLOW_DENIED, EventKind.FLOW_AUDITED)
_ANSWERS: Final = {
    EventKind.ANSWER_WITHHELD: "an answer was withheld, or a part of it,",
    EventKind.ANSWER_AUDITED: "Enforce would have withheld an answer, or a part of it,",
}
_NUMBERS: Final = {text: number for number, text in PROTOCOLS.items()}
_NOT_OF_POLICY: Final = frozenset(text for reason, text in WHY.items() if reason not in POLICY_REASONS) | {"multicast"}


@dataclass(frozen=True, slots=True)
class Case:
    """A pod, and all that bears on its denials. `sources` are the pod's addresses; `entry` is where the allowlist has
    it; `ended` is what each address was leased for last."""

    subject: Subject
    sources: Sequence[Address]
    allowlist: Path
    entry: Origin | None = None
    ended: Mapping[Address, Ended] = field(default_factory=dict)
    past: Sequence[Denial] = ()
    now: Seconds = 0.0

    def towards(self, peer: Address) -> Subject:
        """The subject as it is for packets to `peer`."""
        source = next((one for one in self.sources if len(one) == len(peer)), self.sources[0])
        return replace(self.subject, source=source, ended=self.ended.get(peer))


def explain_all(case: Case, question: Mapping[str, str]) -> Explanation:
    """The parameters of the `explain` call. Raises InvalidNameError, or CallError (usage)."""
    if "name" in question:
        explanation = explain(case.subject, question)
        name = parse_name(question["name"])
        advice, related = advise_name(case.subject, name), _about_name(case, name)
        if explanation["verdict"] == "allowed":
            explanation["reason"] += _withheld(case, name)
    else:
        subject = case.towards(read_address(question["address"])) if "address" in question else case.subject
        explanation = explain(subject, question)
        peer = read_address(question["address"])
        protocol, port = read_port(question["port"], question.get("protocol", "tcp"))
        advice = advise_packet(subject, Packet(subject.source, peer, protocol, port))
        related = [one for one in case.past if one.fields.get("address") == peer]
    explanation["past"] = [_row(case, one, Advice([]), []) for one in related]
    explanation["nearest"] = advice.nearest
    edits = _edits(case, advice.wanted)
    explanation["add"] = _addition(edits, advice.wanted)
    if advice.wanted is not None and not edits:
        explanation["remark"] = _elsewhere(advice.wanted)
    return explanation


def denial_rows(case: Case) -> list[DenialRow]:
    """Every remembered denial of the pod, each with what would have allowed it. What can be inserted but once stands
    with the newest."""
    rows, begun = [], False
    for one in case.past:
        advice = _advise(case, one)
        edits = _edits(case, advice.wanted)
        alone = any(edit.once for edit in edits)
        row = _row(case, one, advice, [] if alone and begun else edits)
        if advice.wanted is not None and row["add"] is None:
            row["remark"] = LATER if edits else _elsewhere(advice.wanted)
        rows.append(row)
        begun |= alone
    return rows


def _about_name(case: Case, name: Name) -> Iterable[Denial]:
    """Denials of the name, and of connections to what it was leased for."""
    text = to_text(name)
    leased = {read_address(lease["address"]) for lease in case.subject.leases if text in lease["names"]}
    leased |= {address for address, ended in case.ended.items() if name in ended.names}
    return [one for one in case.past if one.fields.get("name") == name or one.fields.get("address") in leased]


def _withheld(case: Case, name: Name) -> str:
    """That a name is allowed says nothing of its answers."""
    answers = (one for one in case.past if one.kind in _ANSWERS and one.fields["name"] == name)
    if (last := next(answers, None)) is None:
        return ""
    reason = str(field_value("reason", last.reason))
    key = "; see answers.protected" if reason.startswith(WITHHELD["protected"]) else ""
    return f", but {_ANSWERS[last.kind]} {case.now - last.last:.0f} s ago ({reason}{key})"


def _advise(case: Case, denial: Denial) -> Advice:
    fields = denial.fields
    if denial.kind in _QUERIES and isinstance(name := fields["name"], bytes):
        return advise_name(case.subject, Name(name))
    if denial.kind in _FLOWS and denial.reason not in _NOT_OF_POLICY:
        protocol, port, peer = fields["protocol"], fields["port"], fields["address"]
        number = _NUMBERS.get(protocol) if isinstance(protocol, str) else protocol
        if isinstance(number, int) and isinstance(port, int) and isinstance(peer, bytes):
            subject = case.towards(Address(peer))
            return advise_packet(subject, Packet(subject.source, Address(peer), number, port))
    return Advice([])


def _row(case: Case, denial: Denial, advice: Advice, edits: Sequence[Edit]) -> DenialRow:
    return {
        "pod": case.subject.pod,
        "event": denial.kind.value,
        "subject": _subject_text(denial),
        "reason": str(field_value("reason", denial.reason or "no reason given")),
        "count": denial.count,
        "first": round(case.now - denial.first, 1),
        "last": round(case.now - denial.last, 1),
        "nearest": advice.nearest,
        "add": _addition(edits, advice.wanted),
    }


def _subject_text(denial: Denial) -> str:
    texts = {key: str(field_value(key, value)) for key, value in denial.fields.items()}
    match denial.kind:
        case kind if kind in _FLOWS:
            return f"{texts['address']} {texts['protocol']}/{texts['port']}"
        case EventKind.QUERY_LIMITED:
            return f"limit {texts['limit']}"
        case EventKind.QUERY_REFUSED:
            return "a packet to port 53"
        case _:
            return f"{texts['name']} {texts.get('type', '')}".rstrip()


# ---- the line to add


def _addition(edits: Sequence[Edit], wanted: Wanted | None) -> Addition | None:
    if wanted is None or not edits:
        return None
    edit, *others = edits
    of_ports = SHORT if edit.every_port else wanted.of_ports
    remark = "; ".join(filter(None, (wanted.remark, of_ports, "" if edit.sure else UNSURE)))
    addition = _place(edit, remark)
    if others:
        addition["also"] = _place(others[0], "")
    return addition


def _elsewhere(wanted: Wanted) -> str:
    return f"what the file has of the pod cannot be added to; give the pod a policy with {rule_text(wanted.rule)}"


def _place(edit: Edit, remark: str) -> Addition:
    return {"file": edit.file, "line": edit.line, "column": edit.column, "text": edit.text, "remark": remark}


def _edits(case: Case, wanted: Wanted | None) -> list[Edit]:
    """At most two, of which each needs the other; none when what is wanted cannot be written by inserting."""
    if wanted is None:
        return []
    policies = case.subject.policy.key.policies
    if not policies:
        first = str(ip_address(case.sources[0]))
        if case.entry is None:
            return add_pod(wanted.rule, case.allowlist, first)
        return fill_pod(wanted.rule, case.entry, first)
    named = wanted.before.policy if wanted.before is not None else ""
    policy = next((one for one in policies if one.name == named), policies[0])
    before = wanted.before.rule.origin if wanted.before is not None else None
    if policy.origin == case.entry:
        edit = add_name(wanted.rule, policy.rules[0].origin)
    else:
        edit = add_rule(wanted.rule, policy, before)
    return [edit] if edit is not None else []
