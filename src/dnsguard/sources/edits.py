"""Where in an allowlist a rule would go, and the line to write there.

Reads no more of the file than it needs to see whether it is written in lines or in brackets at that place. The result
is text to insert: what the operator sees is what `check` would read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from ipaddress import ip_network
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from dnsguard.core.model import Origin, Policy, Rule
from dnsguard.core.names import pattern_text

_PLAIN: Final = re.compile(r"[a-z_][a-z0-9_-]*(\.[a-z0-9_-]+)+")
"""Names that every reader of YAML takes for text."""
_EMPTY: Final = re.compile(r"egress:\s*\[(?=\s*\])")
_PODS: Final = re.compile(r"pods:\s*(#.*)?$")
_NO_PODS: Final = re.compile(r"pods:\s*\{(?=\s*\})")


class Edit(NamedTuple):
    """Insert `text` before what stands at `line` and `column`, 1-based. `sure`: the place was seen in the file."""

    file: str
    line: int
    column: int
    text: str
    sure: bool = True


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
        return Edit(names.file, names.line, names.column + 1, f"{text}, ")
    return Edit(names.file, names.line, 1, f"{lead}- {text}\n") if rest.startswith("- ") and not lead.strip() else None


def add_pod(rule: Rule, file: Path, address: str) -> Edit | None:
    """A pod that the file does not know yet, in the short form; None for what that cannot express."""
    if rule.blocks:
        return None
    lines = _lines(file)
    for number, line in enumerate(lines, 1):
        if found := _NO_PODS.match(line):
            return Edit(str(file), number, found.end() + 1, f"{_key(address)}: [{', '.join(_names(rule))}]")
        if _PODS.match(line):
            following = next(lines, "")
            indent = following[: len(following) - len(following.lstrip())].rstrip("\n") or "  "
            return Edit(str(file), number + 1, 1, f"{indent}{_key(address)}: [{', '.join(_names(rule))}]\n")
    return None


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
            return Edit(policy.file, number, found.end() + 1, text) if found else None
    return None


def _line(place: Origin) -> str | None:
    return next(islice(_lines(Path(place.file)), place.line - 1, None), None)


def _lines(file: Path) -> Iterator[str]:
    """Line by line: in a thread beside the loop, a file of 26 MB in one piece would hold it up."""
    try:
        with file.open(encoding="utf-8") as lines:
            yield from lines
    except (OSError, UnicodeDecodeError):
        return
