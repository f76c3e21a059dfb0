"""What was seen of pods -> the rules that would have allowed it, and no more than it takes.

A name gets the ports on which the addresses of its answers were used. Where no name led, the address itself is
written. Many names under one parent become a wildcard, unless the parent belongs to many owners. A name that was
resolved and never connected to gets a port on which nothing listens: it must go on to resolve, and open nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Network, ip_address, ip_network
from typing import Final

from dnsguard.core.model import ALL_PORTS, WITH_PORTS, Name, Network, Pattern, PortRange, Ports, Protocol
from dnsguard.core.names import ROOT, ancestors, parse_name
from dnsguard.core.ports import merge_ports
from dnsguard.learning.book import PodBook, parent_of
from dnsguard.learning.rows import FlowRow, NameRow, SeenRow
from dnsguard.learning.suffixes import is_shared

WILDCARD: Final = 8
"""Names under one parent, used on the same ports, that are written as `*.parent`."""
MOST_RULES: Final = 60
"""Rules of one pod; those that were used least share one beyond it. A program has room for 64."""
UNUSED: Final[Ports] = (PortRange(Protocol.TCP, 9, 9),)
"""The discard port (RFC 863), which stands for no port in other protocols, too (RFC 8839, 4.2.1.3)."""

PROBES: Final = parse_name("dnsguard.invalid")
"""Under it are names that dnsguard itself asks for, to see whether a pod's query is intercepted."""


@dataclass(frozen=True, slots=True)
class Note:
    """How often and when last something was seen, of how many names; `denied`: no rule allowed it the last time.
    `closed` are those of a name's ports that no rule allowed; `withheld` is an address that Enforce takes out."""

    count: int
    last: int
    names: int = 1
    denied: bool = False
    closed: Ports = ()
    withheld: str = ""

    def __add__(self, other: Note) -> Note:
        latest = max(self, other, key=lambda note: note.last)
        closed = merge_ports((*self.closed, *other.closed))
        return Note(
            self.count + other.count,
            latest.last,
            self.names + other.names,
            self.denied or other.denied,
            closed,
            self.withheld or other.withheld,
        )

    def beside(self, other: Note) -> Note:
        """The same thing, seen of another pod."""
        return replace(self + other, names=max(self.names, other.names))


@dataclass(slots=True)
class RuleNeeds:
    """The peers of one rule."""

    names: dict[Pattern, Note] = field(default_factory=dict)
    blocks: dict[Network, Note] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return sum(note.count for note in (*self.names.values(), *self.blocks.values()))

    def take(self, other: RuleNeeds) -> None:
        for pattern, note in other.names.items():
            self.names[pattern] = note.beside(self.names[pattern]) if pattern in self.names else note
        for block, note in other.blocks.items():
            self.blocks[block] = note.beside(self.blocks[block]) if block in self.blocks else note


Rules = dict[Ports, RuleNeeds]


@dataclass(slots=True)
class Needs:
    """What one pod, or several with the same needs, must be allowed; `missing` are names that do not exist."""

    rules: Rules
    missing: dict[Name, Note]
    left_out_names: int = 0
    left_out_flows: int = 0
    squeezed: bool = False
    """Rules share ports because there would be too many."""

    def content(self) -> object:
        """Equal for needs that one policy can meet."""
        return frozenset((ports, frozenset(rule.names), frozenset(rule.blocks)) for ports, rule in self.rules.items())

    def take(self, other: Needs) -> None:
        """Those of another pod with the same content."""
        for ports, rule in other.rules.items():
            self.rules[ports].take(rule)
        for name, note in other.missing.items():
            self.missing[name] = note.beside(self.missing[name]) if name in self.missing else note
        self.left_out_names += other.left_out_names
        self.left_out_flows += other.left_out_flows


def needs_of(rows: Iterable[SeenRow]) -> Needs:
    """The needs of one pod, of which there may be several rows (before it had its name)."""
    return _Working(list(rows)).needs()


class _Working:
    """Names and addresses of one pod with the ports they were used on."""

    def __init__(self, rows: list[SeenRow]) -> None:
        self._rows = rows
        self._notes: dict[Pattern, Note] = {}
        self._missing: dict[Name, Note] = {}
        self._ports: defaultdict[Pattern, set[PortRange]] = defaultdict(set)
        self._allowed: defaultdict[Pattern, set[PortRange]] = defaultdict(set)
        """Those of the ports that a rule allowed."""
        self._blocks: dict[Network, Note] = {}
        self._block_ports: defaultdict[Network, set[PortRange]] = defaultdict(set)
        self._whole: set[Network] = set()
        """Blocks of which every port must be open."""
        self._rules: Rules = {}
        self._unwritable = 0

    def needs(self) -> Needs:
        for seen in self._rows:
            for name in seen["names"]:
                self._name(name)
        for seen in self._rows:
            for flow in seen["flows"]:
                self._flow(flow)
        for pattern, note in self._notes.items():
            ports = self._ports[pattern]
            closed = merge_ports(ports - self._allowed[pattern])
            self._rule(merge_ports(ports) or UNUSED).names[pattern] = replace(note, closed=closed)
        for block, note in self._blocks.items():
            self._rule(ALL_PORTS if block in self._whole else merge_ports(self._block_ports[block])).blocks[block] = (
                note
            )
        for rule in self._rules.values():
            _widen(rule)
        _drop_covered(self._rules)
        squeezed = _squeeze(self._rules)
        rules = {ports: rule for ports, rule in self._rules.items() if rule.names or rule.blocks}
        names, flows = (sum(int(row[key]) for row in self._rows) for key in ("left_out_names", "left_out_flows"))
        return Needs(rules, self._missing, names, flows + self._unwritable, squeezed)

    def _rule(self, ports: Ports) -> RuleNeeds:
        return self._rules.setdefault(ports, RuleNeeds())

    def _name(self, row: NameRow) -> None:
        pattern = _pattern(row)
        withheld = _address(row["withheld"]) if row.get("withheld") else ""
        note = Note(row["count"], row["last"], row["names"], not row["rule"], (), withheld)
        if PROBES in ancestors(pattern.name):
            return
        if row["outcome"] == "missing":
            self._missing[pattern.name] = note
        elif pattern.name != ROOT:  # only `*` would match it, and all else
            self._notes[pattern] = note + self._notes[pattern] if pattern in self._notes else note

    def _flow(self, row: FlowRow) -> None:
        note = Note(row["count"], row["last"], 1, row["denied"])
        ports = _ports(row)
        names = [parse_name(text) for text in row["names"]]
        if not names or not ports or row["bare"] or ROOT in names:
            self._block(ip_network(row["address"]), ports, note)
        for name in names if ports else ():
            if name == ROOT:
                continue
            pattern = self._known(name)
            self._missing.pop(name, None)
            self._notes.setdefault(pattern, replace(note, denied=False))
            self._ports[pattern].update(ports)
            if not row["denied"]:
                self._allowed[pattern].update(ports)

    def _block(self, block: Network, ports: Ports, note: Note) -> None:
        if isinstance(block, IPv6Network) and block.network_address.ipv4_mapped:
            self._unwritable += 1  # an allowlist has no such block, and no such packet has an honest sender
            return
        self._blocks[block] = note.beside(self._blocks[block]) if block in self._blocks else note
        self._block_ports[block].update(ports)
        if not ports:
            self._whole.add(block)

    def _known(self, name: Name) -> Pattern:
        """The pattern under which a name is kept."""
        whole = Pattern(parent_of(name), wildcard=True)
        return whole if whole in self._notes and Pattern(name) not in self._notes else Pattern(name)


def _address(text: str) -> str:
    """Without a zone, which may have any letters in it."""
    return str(ip_address(ip_address(text).packed))


def _pattern(row: NameRow) -> Pattern:
    text = row["name"]
    return Pattern(parse_name(text[2:]), wildcard=True) if text.startswith("*.") else Pattern(parse_name(text))


def _ports(row: FlowRow) -> Ports:
    """Nothing for what only a rule for all ports allows: protocols without ports, port 0."""
    number, port = row["protocol"], row["port"]
    if number not in list(Protocol) or not port:
        return ALL_PORTS
    return (PortRange(Protocol(number), port, port),)


def _widen(rule: RuleNeeds) -> None:
    """Write a wildcard where there are many names under one parent."""
    below: defaultdict[Name, list[Pattern]] = defaultdict(list)
    for pattern in rule.names:
        if not pattern.wildcard and not is_shared(parent_of(pattern.name)):
            below[parent_of(pattern.name)].append(pattern)
    for parent, patterns in below.items():
        wide = Pattern(parent, wildcard=True)
        if len(patterns) < WILDCARD and wide not in rule.names:
            continue
        for pattern in patterns:
            note = rule.names.pop(pattern)
            rule.names[wide] = rule.names[wide] + note if wide in rule.names else note


def _drop_covered(rules: Rules) -> None:
    """Leave out what a wildcard of the same rule allows anyway, and what only has to resolve and some wildcard lets."""
    elsewhere = {one for ports, rule in rules.items() if ports != UNUSED for one in rule.names if one.wildcard}
    for ports, rule in rules.items():
        own = {pattern for pattern in rule.names if pattern.wildcard}
        wide = own | elsewhere if ports == UNUSED else own
        for pattern in list(rule.names):
            if _is_under(pattern, wide) or (ports == UNUSED and pattern in elsewhere):
                del rule.names[pattern]


def _is_under(pattern: Pattern, wildcards: set[Pattern]) -> bool:
    return any(Pattern(above, wildcard=True) in wildcards for above in ancestors(pattern.name))


def _squeeze(rules: Rules) -> bool:
    """Give the least used rules one set of ports between them when there are too many."""
    if len(rules) <= MOST_RULES:
        return False
    by_use = sorted((ports for ports in rules if ports), key=lambda ports: (-rules[ports].count, ports))
    least, together = by_use[MOST_RULES - 2 :], RuleNeeds()
    for ports in least:
        together.take(rules.pop(ports))
    whole = merge_ports(one for ports in least for one in ports)
    together.take(rules.pop(whole, RuleNeeds()))
    rules[whole] = together
    return True


def ports_used(book: PodBook) -> dict[Name, Ports]:
    """The ports on which a pod connected to where each name led."""
    ports: defaultdict[Name, list[PortRange]] = defaultdict(list)
    for by_port in book.flows.values():
        for (protocol, port), went in by_port.items():
            for name in went.names if protocol in WITH_PORTS and port else ():
                ports[name].append(PortRange(Protocol(protocol), port, port))
    return {name: merge_ports(ranges) for name, ranges in ports.items()}


def is_probe(row: SeenRow) -> bool:
    """Whether nothing was seen of it but what dnsguard itself asked, by a link of its own."""
    asked = [ancestors(_pattern(name).name) for name in row["names"]]
    return bool(asked) and not row["flows"] and all(PROBES in above for above in asked)


def owners(rows: Iterable[SeenRow]) -> Mapping[str, str]:
    """Address -> the pod that had it last."""
    last: dict[str, tuple[int, str]] = {}
    for row in rows:
        for address in row["addresses"]:
            last[address] = max(last.get(address, (0, "")), (row["last"], row["pod"]))
    return {address: pod for address, (_, pod) in last.items()}
