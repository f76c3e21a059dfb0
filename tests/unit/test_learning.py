"""What was seen becomes an allowlist that allows it, and nothing else; what pods choose can neither grow the book nor
forge a line of the file."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from dnsguard.core.compile import compile_program, decide
from dnsguard.core.model import Action, Address, Name, Packet
from dnsguard.core.names import matches, parse_name
from dnsguard.core.pods import assign
from dnsguard.core.policy import Allowed, EffectivePolicy
from dnsguard.learning.book import Book
from dnsguard.learning.rows import SeenRow, book_of, row_of
from dnsguard.learning.suffixes import is_shared
from dnsguard.learning.writing import allowlist
from dnsguard.sources.allowlist import AllowlistReader
from dnsguard.sources.store import Store, StoreWriter

SINCE_1970 = 1_700_000_000.0


def address(text: str) -> Address:
    return Address(ip_address(text).packed)


class Told(NamedTuple):
    """As much of an answer as is looked at."""

    addresses: tuple[Address, ...] = ()
    rcode: int = 0


NXDOMAIN = Told(rcode=3)


def told(*addresses: str) -> Told:
    return Told(tuple(map(address, addresses)))


def rows_of(book: Book) -> list[SeenRow]:
    return [row_of(pod, each, SINCE_1970) for pod, each in book.pods.items()]


def loaded(text: str) -> Store:
    """Read by the real loader; errors and warnings of the file fail the test."""
    reader = AllowlistReader(text, "allowlist.yaml")
    content = io.BytesIO()
    writer = StoreWriter(content)
    for entry in reader.entries():
        writer.add(entry)
    assert [str(one) for one in reader.diagnostics()] == [], text
    writer.finish("allowlist.yaml")
    return Store(content.getvalue())


def policy(store: Store, *addresses: str) -> EffectivePolicy:
    return assign([address(text) for text in addresses], store, Action.DENY).policy


def seen(book: Book, pod: str, *addresses: str) -> None:
    book.pod(pod, 0.0)
    book.lives(pod, [address(text) for text in addresses], 0.0)


def passes(found: EffectivePolicy, source: str, to: tuple[Address, int, int], names: list[Name]) -> bool:
    """Whether a flow is let through when the pod was told its address for these names."""
    verdicts = [found.verdict(name) for name in names]
    open_in = {scope.name for one in verdicts if isinstance(one, Allowed) for scope in one.scopes}
    packet = Packet(address(source), *to)
    return decide(compile_program(found), packet, open_in.__contains__).action is Action.ACCEPT


# ---- any history


LABELS = st.one_of(
    st.sampled_from([b"www", b"db", b"example", b"com", b"co", b"uk", b"true", b"1", b"27", b"*", b"_tcp"]),
    st.binary(min_size=1, max_size=6).map(bytes.lower),
)
NAMES = st.lists(LABELS, min_size=0, max_size=4).map(
    lambda labels: Name(b"".join(bytes([len(label)]) + label for label in labels) + b"\0")
)
MANY = st.builds(lambda number: parse_name(f"host{number}.shards.example.com"), st.integers(0, 100))
ADDRESSES = st.one_of(
    st.sampled_from(["192.0.2.1", "192.0.2.2", "198.51.100.7", "2001:db8::1"]).map(address),
    st.binary(min_size=4, max_size=4).map(Address),
    st.binary(min_size=13, max_size=13).map(lambda tail: Address(b"\x20\x01\x0d" + tail)),
)
PODS = {"shop/a": ["10.244.0.5", "fd00::5"], "shop/b": ["10.244.0.6"], "10.244.0.7": ["10.244.0.7"]}
PLACES = st.tuples(ADDRESSES, st.sampled_from([6, 17, 132, 1, 58, 47]), st.sampled_from([0, 53, 80, 81, 443, 5432]))


@dataclass
class History:
    """What happened, played on a book, and what of it must be allowed."""

    book: Book = field(default_factory=Book)
    answered: set[tuple[str, Name]] = field(default_factory=set)
    denied: set[tuple[str, Name]] = field(default_factory=set)
    missing: set[tuple[str, Name]] = field(default_factory=set)
    flows: list[tuple[str, tuple[Address, int, int], list[Name]]] = field(default_factory=list)
    told: dict[tuple[str, Address], list[Name]] = field(default_factory=dict)

    def answer(self, pod: str, name: Name, addresses: list[Address]) -> None:
        self.book.answered(pod, name, Told(tuple(addresses)), "", 1.0)  # type: ignore[arg-type]
        self.answered.add((pod, name))
        for one in addresses:
            names = self.told.setdefault((pod, one), [])
            if name not in names:
                names.append(name)

    def connect(self, pod: str, place: tuple[Address, int, int], denied: bool) -> None:
        self.book.went(pod, place, 1, 2.0, denied=denied)
        self.flows.append((pod, place, list(self.told.get((pod, place[0]), []))))


EVENTS = st.one_of(
    st.tuples(st.just("answer"), st.one_of(NAMES, MANY), st.lists(ADDRESSES, max_size=3)),
    st.tuples(st.just("deny"), NAMES),
    st.tuples(st.just("miss"), NAMES),
    st.tuples(st.just("connect"), PLACES, st.booleans()),
)


@given(st.lists(st.tuples(st.sampled_from(list(PODS)), EVENTS), max_size=60))
@settings(max_examples=300, deadline=None)
def test_what_was_seen_is_allowed_and_no_name_besides(events: list[tuple[str, tuple[object, ...]]]) -> None:
    history = played(events)
    rows = rows_of(history.book)

    text = allowlist(rows)

    store = loaded_with_warnings(text)
    policies = {pod: policy(store, *addresses) for pod, addresses in PODS.items()}
    root = parse_name(".")
    for pod, name in history.answered | (history.denied - history.missing):
        assert name == root or isinstance(policies[pod].verdict(name), Allowed), text
    for pod, place, names in history.flows:
        source = next(one for one in ("10.244.0.5", "fd00::5") if len(address(one)) == len(place[0]))
        assert passes(policies[pod], source, place, names), (place, text)
    for found in policies.values():
        patterns = [one for rule in found.rules for peer in rule.rule.domains for one in peer.patterns]
        for name in (
            *(name for _, name in history.answered | history.missing),
            parse_name("stranger.test"),
            parse_name("example.com"),
        ):
            allowed = isinstance(found.verdict(name), Allowed)
            assert allowed == any(matches(pattern, name) for pattern in patterns)
            assert not any(pattern.wildcard and is_shared(pattern.name) for pattern in patterns)


@given(st.lists(st.tuples(st.sampled_from(list(PODS)), EVENTS), max_size=40))
@settings(max_examples=100, deadline=None)
def test_the_same_history_gives_the_same_file_after_a_restart_too(
    events: list[tuple[str, tuple[object, ...]]],
) -> None:
    rows = rows_of(played(events).book)
    again = Book()
    for row in rows:
        again.pods[row["pod"]] = book_of(row, SINCE_1970)

    assert allowlist(rows_of(again)) == allowlist(rows) == allowlist(rows[::-1])


def played(events: list[tuple[str, tuple[object, ...]]]) -> History:
    history = History()
    for pod, addresses in PODS.items():
        seen(history.book, pod, *addresses)
    for pod, event in events:
        match event:
            case "answer", name, found:
                history.answer(pod, name, found)  # type: ignore[arg-type]
            case "deny", name:
                history.book.unanswered(pod, name, "", 1.0)  # type: ignore[arg-type]
                history.denied.add((pod, name))  # type: ignore[arg-type]
            case "miss", name:
                history.book.answered(pod, name, NXDOMAIN, "", 1.0)  # type: ignore[arg-type]
                history.missing.add((pod, name))  # type: ignore[arg-type]
            case "connect", place, denied:
                history.connect(pod, place, bool(denied))  # type: ignore[arg-type]
    return history


def loaded_with_warnings(text: str) -> Store:
    """Warnings are about blocks in protected ranges and the like, which pods may really have used."""
    reader = AllowlistReader(text, "allowlist.yaml")
    content = io.BytesIO()
    writer = StoreWriter(content)
    for entry in reader.entries():
        writer.add(entry)
    assert not [str(one) for one in reader.diagnostics() if one.severity == "error"], text
    writer.finish("allowlist.yaml")
    return Store(content.getvalue())
