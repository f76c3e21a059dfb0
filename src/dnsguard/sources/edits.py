"""Where in an allowlist a rule would go, and the line to write there.

Reads no more of the file than it needs to see whether it is written in lines or in brackets at that place. The result
is text to insert: what the operator sees is what `check` would read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from ipaddress import ip_network
from itertools import count, islice
from pathlib import Path
from typing import Final, NamedTuple

from dnsguard.core.model import Origin, Policy, Rule
from dnsguard.core.names import pattern_text

_PLAIN: Final = re.compile(r"[a-z_][a-z0-9_-]*(\.[a-z0-9_-]+)+")
"""Names that every reader of YAML takes for text."""
_EMPTY: Final = re.compile(r"egress:\s*\[(?=\s*\])")
_BLOCK: Final = re.compile(r":\s*(#.*)?$")
_BRACES: Final = re.compile(r":\s*\{")
_NOTHING: Final = re.compile(r"(?P<key>\bpolicies)?:\s*\[(?=\s*\])")
_NOT_IN_A_NAME: Final = re.compile(r"[^0-9a-z.]")


class Edit(NamedTuple):
    """Insert `text` before what stands at `line` and `column`, 1-based. `sure`: the place was seen in the file;
    `every_port`: the form that is written there knows no ports; `once`: a second one in the same place would be wrong.
    """

    file: str
    line: int
    column: int
    text: str
    sure: bool = True
    every_port: bool = False
    once: bool = False


def add_rule(rule: Rule, policy: Policy, before: Origin | None) -> Edit | None:
    """Into a policy of the list of policies: in front of the rule `before`, else of its first."""
    if place := before or next((one.origin for one in policy.rules), None):
        return _before(place, rule_text(rule))
    return _into_empty(policy.origin, rule_text(rule))


def add_name(rule: Rule, names: Origin) -> Edit | None:
    """Into the short form of a pod, whose list of names begins at `names`; None for what it cannot express."""
    line = _line(names)
    if rule.blocks or line is None:
        return None
    text = ", ".join(_names(rule))
    lead, rest = line[: names.column - 1], line[names.column - 1 :]
    if rest.startswith("["):
        return Edit(names.file, names.line, names.column + 1, f"{text}, ", every_port=True)
    if rest.startswith("- ") and not lead.strip():
        return Edit(names.file, names.line, 1, f"{lead}- {text}\n", every_port=True)
    return None


def add_pod(rule: Rule, file: Path, address: str) -> list[Edit]:
    """A pod that the file does not know yet, with a policy of its own: both are needed. Where there is no place for a
    policy, the short form; nothing for what that cannot express, or when the file has come to know the pod."""
    key = re.compile(rf"(?<![\w.:-]){re.escape(address)}[\"']?\s*:(\s|$)")
    if any(address in line and key.search(line) for line in _lines(file)):
        return []
    name = _free_name(file, address)
    pod = _into_mapping(file, "pods", f"{_key(address)}: {{policies: [{name}]}}")
    if pod is None:
        return []
    if policy := _new_policy(rule, file, name):
        return _from_the_end([pod, policy])
    if rule.blocks:
        return []
    short = _into_mapping(file, "pods", f"{_key(address)}: [{', '.join(_names(rule))}]")
    return [short._replace(every_port=True)] if short else []


def fill_pod(rule: Rule, entry: Origin, address: str) -> list[Edit]:
    """A pod whose entry begins at `entry` and has neither a policy nor a name: `policies: []`, or `[]`."""
    for place, found in _in_entry(entry):
        at = place._replace(column=found.end() + 1)
        if found["key"] is None:
            return [] if rule.blocks else [at._replace(text=", ".join(_names(rule)), every_port=True)]
        name = _free_name(Path(entry.file), address)
        policy = _new_policy(rule, Path(entry.file), name)
        return _from_the_end([at._replace(text=name), policy]) if policy else []
    return []


def rule_text(rule: Rule) -> str:
    """A rule on one line."""
    peers = [f"{{domainNames: [{', '.join(_names(rule))}]}}"] if rule.domains else []
    peers += [f"{{ipBlock: {{cidr: {_key(str(block.cidr))}}}}}" for block in rule.blocks]
    ports = [
        f"{{protocol: {one.protocol.name}, port: {one.first}{f', endPort: {one.last}' * (one.last > one.first)}}}"
        for one in rule.ports
    ]
    return f"{{to: [{', '.join(peers)}]" + (f", ports: [{', '.join(ports)}]}}" if ports else "}")


def _names(rule: Rule) -> list[str]:
    texts = [pattern_text(pattern) for peer in rule.domains for pattern in peer.patterns]
    return [text if _PLAIN.fullmatch(text) else json.dumps(text) for text in texts]


def _key(text: str) -> str:
    """An address or CIDR; one of IPv6 in quotes, because brackets read a colon as a mapping."""
    return json.dumps(text) if ip_network(text).version == 6 else text


def _before(place: Origin, text: str) -> Edit:
    line = _line(place) or ""
    lead, rest = line[: place.column - 1], line[place.column - 1 :]
    if lead.strip() == "-":
        return Edit(place.file, place.line, 1, f"{lead}{text}\n")
    return Edit(place.file, place.line, place.column, f"{text}, ", sure=rest.startswith("{"))


def _into_empty(policy: Origin, text: str) -> Edit | None:
    for number, line in enumerate(_lines(Path(policy.file)), 1):
        if number >= policy.line and "egress:" in line:
            found = _EMPTY.search(line, policy.column - 1 if number == policy.line else 0)
            return Edit(policy.file, number, found.end() + 1, text, once=True) if found else None
    return None


# ---- a policy and a pod that are new


def _new_policy(rule: Rule, file: Path, name: str) -> Edit | None:
    """Under `policies:`; a file that has no such key gets it in front of `pods:`."""
    flow = f"{name}: {{egress: [{rule_text(rule)}]}}"
    block = f"{name}:\n{{indent}}  egress:\n{{indent}}    - {rule_text(rule).replace('{', '{{').replace('}', '}}')}"
    if edit := _into_mapping(file, "policies", flow, block):
        return edit
    head = f"policies:\n  {block.format(indent='  ')}\n"
    at = None
    for number, line in enumerate(_lines(file), 1):
        if line.lstrip("'\"").startswith("policies"):
            return None
        if line.startswith("pods:"):
            at = number
    return Edit(str(file), at, 1, head, once=True) if at else None


def _into_mapping(file: Path, key: str, flow: str, block: str | None = None) -> Edit | None:
    """As the first entry of this key of the file's top: `flow` where it is written in braces, else `block`, in which
    `{indent}` is that of the entry."""
    lines = enumerate(_lines(file), 1)
    for number, line in lines:
        if not line.startswith(key):
            continue
        if found := _BRACES.match(line, len(key)):
            more = "" if line[found.end() :].lstrip().startswith("}") else ", "
            return Edit(str(file), number, found.end() + 1, flow + more, once=True)
        if _BLOCK.match(line, len(key)):
            indent = _indent(following for _, following in lines)
            text = block.format(indent=indent) if block else flow
            return Edit(str(file), number + 1, 1, f"{indent}{text}\n", once=True)
    return None


def _indent(lines: Iterable[str]) -> str:
    first = next((line for line in lines if line.strip() and not line.lstrip().startswith("#")), "")
    return first[: len(first) - len(first.lstrip())] or "  "


def _in_entry(entry: Origin) -> Iterator[tuple[Edit, re.Match[str]]]:
    """Lists without an item in the entry of a pod, each with its line."""
    depth = entry.column - 1
    for number, line in enumerate(_lines(Path(entry.file)), 1):
        if number < entry.line:
            continue
        begin, end = (depth, (line + "}").index("}", depth)) if number == entry.line else (0, len(line))
        if number > entry.line and line.strip() and len(line) - len(line.lstrip()) <= depth:
            return
        if found := _NOTHING.search(line, begin, end):
            yield Edit(entry.file, number, 1, "", once=True), found


def _free_name(file: Path, address: str) -> str:
    """What `learn` would call the pod's policy, with a number behind it where the file has that name."""
    name = f"pod-{_NOT_IN_A_NAME.sub('-', address)}"
    taken = {word for line in _lines(file) if name in line for word in re.findall(r"[\w.-]+", line)}
    return next(free for n in count(1) if (free := name if n == 1 else f"{name}-{n}") not in taken)


def _from_the_end(edits: Iterable[Edit]) -> list[Edit]:
    """In the order in which the places of those that follow stay where they are."""
    return sorted(edits, key=lambda edit: (-edit.line, -edit.column))


def _line(place: Origin) -> str | None:
    return next(islice(_lines(Path(place.file)), place.line - 1, None), None)


def _lines(file: Path) -> Iterator[str]:
    """Line by line: in a thread beside the loop, a file of 26 MB in one piece would hold it up."""
    try:
        with file.open(encoding="utf-8") as lines:
            yield from lines
    except (OSError, UnicodeDecodeError):
        return
