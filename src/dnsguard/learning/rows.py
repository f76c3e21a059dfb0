"""A pod's book as one JSON object: what the state file keeps, what the control socket tells, what `learn` reads.

Times in it are whole seconds since 1970 in UTC. Names are written as in an allowlist.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Final, NotRequired, TypedDict

from dnsguard.core.errors import DnsguardError
from dnsguard.core.model import Address, Name, Pattern, Seconds
from dnsguard.core.names import parse_name, pattern_text
from dnsguard.learning.book import MISSING, MOST_NAMES, NAMES_PER_ADDRESS, Asked, Outcome, PodBook, Went, parent_of

_OUTCOMES: Final = {Outcome.UNKNOWN: "unknown", Outcome.MISSING: "missing", Outcome.EXISTS: "exists"}
_BY_TEXT: Final = {text: outcome for outcome, text in _OUTCOMES.items()}


class NameRow(TypedDict):
    """One name, or `*.parent` for the `names` under it. `rule`: the policies that allow it, empty when none does."""

    name: str
    count: int
    last: int
    rule: str
    outcome: str
    """`exists`, `missing`, or `unknown` when it was never looked up."""
    names: int
    withheld: NotRequired[str]
    """A protected address that an answer had in Audit, and has not in Enforce."""


class FlowRow(TypedDict):
    """Flows to one place; `names` led there, but not always when it is `bare`. `denied`: no rule allowed the last, in
    Audit or in fact."""

    address: str
    protocol: int
    port: int
    count: int
    last: int
    names: list[str]
    bare: bool
    denied: bool


class SeenRow(TypedDict):
    """One pod. `left_out_*`: questions and flows for which there was no room."""

    pod: str
    addresses: list[str]
    last: int
    names: list[NameRow]
    flows: list[FlowRow]
    left_out_names: int
    left_out_flows: int


class RowError(DnsguardError):
    """A row that is not one."""


def pattern_written(pattern: Pattern) -> str:
    """As it is written in a file, such that it is read back as the same, whatever octets it has."""
    text = pattern_text(Pattern(pattern.name))
    if text.replace(".", "").isdigit():  # looks like an address to the reader of names
        text = f"\\{ord(text[0]):03d}{text[1:]}"
    return f"*.{text}" if pattern.wildcard else text


def name_written(name: Name) -> str:
    return pattern_written(Pattern(name))


# ---- out


def row_of(pod: str, book: PodBook, offset: Seconds) -> SeenRow:
    """`offset` is what must be added to the book's clock."""
    folded = [_name_row(Pattern(name, wildcard=True), asked, offset) for name, asked in book.folded.items()]
    kept = [*book.names.items(), *book.missing.items()]
    names = [*folded, *(_name_row(Pattern(name), asked, offset) for name, asked in kept)]
    withheld = {_kept_as(book, name): str(ip_address(address)) for name, address in book.withheld.items()}
    for row in names if withheld else ():
        if (address := withheld.get(row["name"])) is not None:
            row["withheld"] = address
    return {
        "pod": pod,
        "addresses": [str(ip_address(address)) for address in book.addresses],
        "last": round(book.last + offset),
        "names": names,
        "flows": [
            _flow_row(address, place, went, offset) for address, by_port in book.flows.items()
            for place, went in by_port.items()
        ],
        "left_out_names": book.stray_names,
        "left_out_flows": book.stray_flows,
    }  # fmt: skip


def _kept_as(book: PodBook, name: Name) -> str:
    parent = parent_of(name)
    return pattern_written(Pattern(parent, wildcard=True) if parent in book.folded else Pattern(name))


def _name_row(pattern: Pattern, asked: Asked, offset: Seconds) -> NameRow:
    return {
        "name": pattern_written(pattern),
        "count": asked.count,
        "last": round(asked.last + offset),
        "rule": asked.rule,
        "outcome": _OUTCOMES[Outcome(asked.outcome)],
        "names": asked.names,
    }


def _flow_row(address: Address, place: tuple[int, int], went: Went, offset: Seconds) -> FlowRow:
    return {
        "address": str(ip_address(address)),
        "protocol": place[0],
        "port": place[1],
        "count": went.count,
        "last": round(went.last + offset),
        "names": [name_written(name) for name in went.names],
        "bare": went.bare,
        "denied": went.denied,
    }


# ---- in


def book_of(row: SeenRow, offset: Seconds) -> PodBook:
    """The book that `row_of` made it from, but for the names of addresses without a flow. Raises RowError."""
    try:
        return _book(row, offset)
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError, DnsguardError) as error:
        raise RowError(f"what was seen of a pod cannot be read: {error!r}") from error


def _book(row: SeenRow, offset: Seconds) -> PodBook:
    book = PodBook(float(row["last"]) - offset)
    book.changed = False
    book.addresses = tuple(Address(ip_address(text).packed) for text in row["addresses"])
    for name in row["names"]:
        _take_name(book, name, offset)
    for flow in row["flows"]:
        _take_flow(book, flow, offset)
    book.stray_names += int(row["left_out_names"])
    book.stray_flows += int(row["left_out_flows"])
    return book


def _take_name(book: PodBook, row: NameRow, offset: Seconds) -> None:
    last = float(row["last"]) - offset
    outcome = _BY_TEXT[row["outcome"]]
    asked = Asked(int(row["count"]), last, outcome, str(row["rule"]), int(row["names"]))
    text = row["name"]
    if row.get("withheld") and not text.startswith("*."):
        book.withheld[parse_name(text)] = Address(ip_address(row["withheld"]).packed)
    if outcome is Outcome.MISSING and not text.startswith("*."):
        if len(book.missing) < MISSING:
            book.missing[parse_name(text)] = asked
    elif book.names_kept >= MOST_NAMES:
        pass
    elif text.startswith("*."):
        book.folded[parse_name(text[2:])] = asked
    else:
        name = parse_name(text)
        book.names[name] = asked
        parent = parent_of(name)
        book.children[parent] = book.children.get(parent, 0) + 1


def _take_flow(book: PodBook, row: FlowRow, offset: Seconds) -> None:
    went = book.flow(Address(ip_address(row["address"]).packed), int(row["protocol"]), int(row["port"]))
    if went is not None:
        names = tuple(parse_name(text) for text in row["names"][:NAMES_PER_ADDRESS])
        went.count, went.last, went.names = int(row["count"]), float(row["last"]) - offset, names
        went.bare, went.denied = bool(row["bare"]), bool(row["denied"])
