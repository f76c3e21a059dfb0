"""What was seen becomes an allowlist that allows it, and nothing else; what pods choose can neither grow the book nor
forge a line of the file."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnsguard.core.compile import compile_program, decide
from dnsguard.core.model import Action, Address, LinkIndex, Name, Packet, PortRange, Protocol
from dnsguard.core.names import matches, parse_name
from dnsguard.core.pods import assign
from dnsguard.core.policy import Allowed, EffectivePolicy
from dnsguard.core.protected import DEFAULT_PROTECTED, Protected
from dnsguard.learning import book as limits
from dnsguard.learning.book import Book
from dnsguard.learning.needs import is_probe, ports_used
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


FEW = st.sampled_from(["db.example.com", "www.example.com", "a.b.test", "x.co.uk"]).map(parse_name)
SOME = st.sampled_from(["192.0.2.1", "192.0.2.2", "2001:db8::1"]).map(address)
PORTS = st.tuples(st.sampled_from([6, 17]), st.sampled_from([80, 81, 443]))
EVENTS = st.one_of(
    st.tuples(st.just("use"), st.one_of(FEW, NAMES, MANY), st.one_of(SOME, ADDRESSES), PORTS),
    st.tuples(st.just("answer"), st.one_of(FEW, NAMES, MANY), st.lists(ADDRESSES, max_size=3)),
    st.tuples(st.just("deny"), st.one_of(FEW, NAMES)),
    st.tuples(st.just("miss"), st.one_of(FEW, NAMES)),
    st.tuples(st.just("connect"), PLACES, st.booleans()),
)


@given(st.lists(st.tuples(st.sampled_from(list(PODS)), EVENTS), max_size=60))
@settings(max_examples=300, deadline=None)
def test_what_was_seen_is_allowed_and_no_name_besides(events: list[tuple[str, tuple[object, ...]]]) -> None:
    history = played(events)
    rows = rows_of(history.book)

    text = allowlist(rows)

    store = loaded(text)
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
            case "use", name, to, (protocol, port):  # type: ignore[misc]
                history.answer(pod, name, [to])  # type: ignore[has-type]
                history.connect(pod, (to, protocol, port), True)  # type: ignore[has-type]
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


# ---- what the file looks like


def play(book: Book, pod: str, name: str, *addresses: str, times: int = 1, rule: str = "") -> None:
    for _ in range(times):
        book.answered(pod, parse_name(name), told(*addresses), rule, 60.0)  # type: ignore[arg-type]


def go(book: Book, pod: str, to: str, port: int, protocol: int = 6, *, denied: bool = True) -> None:
    book.went(pod, (address(to), protocol, port), 1, 90.0, denied=denied)


def test_the_whole_file_of_two_pods_with_the_same_needs_and_one_with_others() -> None:
    book = Book()
    seen(book, "shop/web-0", "10.244.0.5", "fd00::5")
    seen(book, "shop/web-1", "10.244.0.6")
    seen(book, "10.244.0.7", "10.244.0.7")
    for pod in ("shop/web-0", "shop/web-1"):
        play(book, pod, "db.example.com", "192.0.2.1", times=2, rule="web")
        go(book, pod, "192.0.2.1", 5432, denied=False)
        play(book, pod, "cron.example.com", "192.0.2.2")
        book.answered(pod, parse_name("db.example.com.svc.cluster.local"), NXDOMAIN, "", 61.0)  # type: ignore[arg-type]
    for port in (80, 81, 443):
        go(book, "10.244.0.7", "203.0.113.7", port)
    go(book, "10.244.0.7", "203.0.113.8", 0, 1)

    assert allowlist(rows_of(book)) == FILE
    loaded(FILE)


FILE = """\
# Written by `dnsguard learn` from what was seen of pods. Read it before it is enforced: it allows what they
# did, whether or not they should have. Times are in UTC.
apiVersion: dnsguard/v1
kind: Allowlist
policies:
  pod-10.244.0.7:
    # of 10.244.0.7
    egress:
      # Seen with a protocol that has no ports, like ICMP: only a rule for every port allows it.
      - to:
          - ipBlock: {cidr: 203.0.113.8/32}  # no name led there, once, last 2023-11-14 22:14:50, no rule allowed it
      - to:
          - ipBlock: {cidr: 203.0.113.7/32}  # no name led there, 3 times, last 2023-11-14 22:14:50, no rule allowed it
        ports: [{protocol: TCP, port: 80, endPort: 81}, {protocol: TCP, port: 443}]
  shop/web-0:
    # of shop/web-0, shop/web-1
    # left out, they do not exist: db.example.com.svc.cluster.local
    egress:
      # Resolved, and no connection was seen. Port 9 (discard) opens nothing: write what is needed.
      - to:
          - domainNames:
              - cron.example.com  # 2 times, last 2023-11-14 22:14:20, no rule allowed it
        ports: [{protocol: TCP, port: 9}]
      - to:
          - domainNames:
              - db.example.com  # 4 times, last 2023-11-14 22:14:20
        ports: [{protocol: TCP, port: 5432}]
pods:
  10.244.0.7: {policies: [pod-10.244.0.7]}
  10.244.0.5: {name: shop/web-0, policies: [shop/web-0]}
  "fd00::5": {name: shop/web-0, policies: [shop/web-0]}
  10.244.0.6: {name: shop/web-1, policies: [shop/web-0]}
"""


@pytest.mark.parametrize(
    ("parent", "names", "written"),
    [
        ("shards.example.com", 7, False),
        ("shards.example.com", 8, True),
        ("example.com", 8, True),
        ("com", 8, False),
        ("co.uk", 8, False),
        ("s3.amazonaws.com", 8, False),
        ("\\053.6", 8, True),
    ],
)
def test_a_wildcard_is_written_for_many_names_under_a_parent_of_one_owner(
    parent: str, names: int, written: bool
) -> None:
    book = Book()
    seen(book, "shop/a", "10.244.0.5")
    for number in range(names):
        play(book, "shop/a", f"host{number}.{parent}", "192.0.2.1")
    go(book, "shop/a", "192.0.2.1", 443)

    text = allowlist(rows_of(book))

    quoted = json.dumps(f"*.{parent}")
    assert (f"{quoted}  # {names} names" in text) == written
    loaded(text)
    assert (f"host0.{parent}" in text) == (not written)


@pytest.mark.parametrize(
    ("address", "remarked"), [("169.254.169.254", True), ("fd00:ec2::254", True), ("192.0.2.1", False)]
)
def test_an_address_of_a_metadata_service_is_remarked_upon(address: str, remarked: bool) -> None:
    book = Book()
    seen(book, "shop/a", "10.244.0.5", "fd00::5")
    go(book, "shop/a", address, 80)

    text = allowlist(rows_of(book))

    assert ("PROTECTED RANGE" in text) == remarked
    loaded(text)


@pytest.mark.parametrize("others", [0, 63], ids=["one name", "names that became one record"])
def test_a_name_whose_answer_enforce_would_empty_is_remarked_upon_after_a_restart_too(others: int) -> None:
    book = Book()
    book.is_protected = Protected(DEFAULT_PROTECTED).__contains__
    seen(book, "shop/a", "10.244.0.5")
    play(book, "shop/a", "meta.example.com", "169.254.169.254")
    for number in range(others):
        play(book, "shop/a", f"n{number}.example.com", "192.0.2.1")
    play(book, "shop/a", "db.example.org", "192.0.2.1")
    again = Book()
    for row in rows_of(book):
        again.pod(row["pod"], 0.0).absorb(book_of(row, SINCE_1970))

    for text in (allowlist(rows_of(book)), *([] if others else [allowlist(rows_of(again))])):
        (remarked,) = [line for line in text.splitlines() if "PROTECTED ADDRESS 169.254.169.254, which" in line]
        assert ("meta.example.com" in remarked) == (not others) and ("*.example.com" in remarked) == bool(others)
        loaded(text)


def test_the_address_in_a_remark_cannot_begin_a_line() -> None:
    book = Book()
    book.is_protected = lambda one: True
    seen(book, "shop/a", "10.244.0.5")
    play(book, "shop/a", "db.example.com", "fe80::1")
    (row,) = rows_of(book)
    row["names"][0]["withheld"] += "%\nforged: []"

    text = allowlist([row])

    assert "forged" not in text and "PROTECTED ADDRESS fe80::1, " in text


def test_a_name_whose_address_is_protected_no_longer_is_not_remarked_upon() -> None:
    book = Book()
    seen(book, "shop/a", "10.244.0.5")
    book.is_protected = lambda one: one == address("192.0.2.1")
    play(book, "shop/a", "db.example.com", "192.0.2.1")
    book.is_protected, book.pods["shop/a"].lately = (lambda one: False), {}
    play(book, "shop/a", "db.example.com", "192.0.2.1")

    assert "PROTECTED" not in allowlist(rows_of(book))


def test_an_address_that_serves_several_names_opens_the_port_for_each() -> None:
    book = Book()
    seen(book, "shop/a", "10.244.0.5")
    for name in ("a.example.com", "b.example.com"):
        play(book, "shop/a", name, "192.0.2.1")
    go(book, "shop/a", "192.0.2.1", 443)

    (rule,) = policy(loaded(allowlist(rows_of(book))), "10.244.0.5").rules

    assert [len(peer.patterns) for peer in rule.rule.domains] == [2]
    assert [one.first for one in rule.rule.ports] == [443]


def test_an_address_that_was_used_before_any_name_led_there_is_written_itself_too() -> None:
    book = Book()
    seen(book, "shop/a", "10.244.0.5")
    go(book, "shop/a", "192.0.2.1", 443)
    play(book, "shop/a", "a.example.com", "192.0.2.1")
    go(book, "shop/a", "192.0.2.1", 443)

    (rule,) = policy(loaded(allowlist(rows_of(book))), "10.244.0.5").rules

    assert [str(block.cidr) for block in rule.rule.blocks] == ["192.0.2.1/32"]
    assert len(rule.rule.domains) == 1


def test_a_pod_that_got_a_name_takes_along_what_was_seen_before() -> None:
    book = Book()
    seen(book, "10.244.0.5", "10.244.0.5")
    play(book, "10.244.0.5", "db.example.com", "192.0.2.1")
    seen(book, "shop/a", "10.244.0.5")
    play(book, "shop/a", "mail.example.com", "192.0.2.2")

    store = loaded(allowlist(rows_of(book)))

    found = policy(store, "10.244.0.5")
    assert isinstance(found.verdict(parse_name("db.example.com")), Allowed)
    assert isinstance(found.verdict(parse_name("mail.example.com")), Allowed)


def test_a_pod_without_a_name_is_another_when_it_comes_by_another_link() -> None:
    book = Book()
    for link, name in ((3, "old.example.com"), (3, "same.example.com"), (4, "new.example.com")):
        book.came("10.244.0.5", LinkIndex(link), 1.0)
        book.unanswered("10.244.0.5", parse_name(name), "", 1.0)
        if link == 3:
            assert parse_name("old.example.com") in book.pods["10.244.0.5"].names

    assert list(book.pods["10.244.0.5"].names) == [parse_name("new.example.com")]


def test_a_pod_whose_address_another_has_now_is_left_out_and_named() -> None:
    book = Book()
    seen(book, "shop/old", "10.244.0.5")
    play(book, "shop/old", "db.example.com", "192.0.2.1")
    book.pod("shop/new", 500.0)
    book.lives("shop/new", [address("10.244.0.5")], 500.0)
    play(book, "shop/new", "mail.example.com", "192.0.2.2")

    text = allowlist(rows_of(book))

    assert "# shop/old is left out: it is gone, and other pods have its addresses now.\n" in text
    assert not isinstance(policy(loaded(text), "10.244.0.5").verdict(parse_name("db.example.com")), Allowed)


def test_a_pod_whose_addresses_were_never_seen_is_not_said_to_have_lost_them() -> None:
    book = Book()
    play(book, "10.244.0.9", "db.example.com", "192.0.2.1")

    assert "# 10.244.0.9 is left out: none of its addresses is known.\n" in allowlist(rows_of(book))


@pytest.mark.parametrize(
    ("names", "flows", "probe"),
    [
        (["doctor.dnsguard.invalid"], 0, True),
        (["doctor.dnsguard.invalid", "db.example.com"], 0, False),
        (["doctor.dnsguard.invalid"], 1, False),
        ([], 1, False),
    ],
)
def test_a_pod_that_only_ever_probed_is_known_for_a_probe(names: list[str], flows: int, probe: bool) -> None:
    book = Book()
    for name in names:
        play(book, "203.0.113.253", name)
    for _ in range(flows):
        go(book, "203.0.113.253", "192.0.2.1", 443)

    assert [is_probe(row) for row in rows_of(book)] == [probe]


def test_ports_that_no_rule_allowed_are_told_beside_the_name_that_one_did() -> None:
    book = Book()
    seen(book, "shop/a", "10.244.0.5")
    play(book, "shop/a", "db.example.com", "192.0.2.1", "192.0.2.2", rule="web")
    for to, port, denied in (
        ("192.0.2.1", 8080, False),
        ("192.0.2.2", 8080, True),  # the lease of one of two addresses ended: the port is allowed
        ("192.0.2.1", 9090, True),
        ("192.0.2.1", 9091, True),
    ):
        go(book, "shop/a", to, port, denied=denied)

    text = allowlist(rows_of(book))

    assert "- db.example.com  # once, last 2023-11-14 22:14:20, TCP 9090-9091: no rule allowed it\n" in text
    loaded(text)


def test_a_wildcard_tells_the_ports_that_no_rule_allowed_of_any_of_its_names() -> None:
    book = Book()
    seen(book, "shop/a", "10.244.0.5")
    for number in range(8):
        play(book, "shop/a", f"host{number}.shards.example.com", f"192.0.2.{number}", rule="web")
        go(book, "shop/a", f"192.0.2.{number}", 443, denied=number == 5)

    assert "TCP 443: no rule allowed it" in allowlist(rows_of(book))


def test_more_different_ports_than_a_program_has_room_for_share_a_rule() -> None:
    book = Book()
    seen(book, "shop/a", "10.244.0.5")
    for number in range(100):
        play(book, "shop/a", f"n{number}.d{number}.example.com", f"192.0.2.{number}")
        go(book, "shop/a", f"192.0.2.{number}", 1000 + 2 * number)

    text = allowlist(rows_of(book))

    assert "too many different ports" in text
    found = policy(loaded(text), "10.244.0.5")
    for number in range(100):
        to = address(f"192.0.2.{number}"), 6, 1000 + 2 * number
        assert passes(found, "10.244.0.5", to, [parse_name(f"n{number}.d{number}.example.com")])


@pytest.mark.parametrize(
    "name",
    [
        Name(b"\x08a\nb: [x]\x03com\0"),
        Name(b"\x05*.'\"#\x03com\0"),
        Name(b"\x04true\0"),
        Name(b"\x011\x012\x013\x014\0"),
        Name(b"\x06a\x1b[31m\x00"),
        Name(b"\x02{}\x01\\\x02%p\0"),
        Name(b"\x03\xff\xfe\x80\0"),
    ],
)
def test_a_name_of_odd_octets_is_read_back_as_itself(name: Name) -> None:
    book = Book()
    seen(book, "shop/a", "10.244.0.5")
    book.answered("shop/a", name, told("192.0.2.1"), "", 1.0)  # type: ignore[arg-type]
    go(book, "shop/a", "192.0.2.1", 443)

    text = allowlist(rows_of(book))

    assert text.isascii() and all(letter.isprintable() or letter == "\n" for letter in text)
    (rule,) = policy(loaded(text), "10.244.0.5").rules
    assert [pattern.name for peer in rule.rule.domains for pattern in peer.patterns] == [name]


def test_the_ports_of_a_name_are_those_on_which_its_addresses_were_used() -> None:
    book = Book()
    seen(book, "shop/a", "10.244.0.5")
    play(book, "shop/a", "db.example.com", "192.0.2.1")
    play(book, "shop/a", "idle.example.com", "192.0.2.2")
    go(book, "shop/a", "192.0.2.1", 8080)
    go(book, "shop/a", "192.0.2.1", 0, 1)

    go(book, "shop/a", "192.0.2.1", 53, 17)
    go(book, "shop/a", "192.0.2.9", 443)

    used = ports_used(book.pods["shop/a"])

    assert used == {
        parse_name("db.example.com"): (PortRange(Protocol.TCP, 8080, 8080), PortRange(Protocol.UDP, 53, 53))
    }


# ---- bounds


def test_a_million_random_names_neither_grow_the_book_nor_push_anything_out() -> None:
    book = Book()
    for pod, own in (("shop/good", "10.244.0.5"), ("shop/evil", "10.244.0.6")):
        seen(book, pod, own)
        play(book, pod, "db.example.com", "192.0.2.1")
    for number in range(30_000):
        name = Name(b"\x08%08x\x04evil\x04test\0" % number)
        other = Name(b"\x08%08x\x08%08x\x04test\0" % (number, number))
        for one in (name, other):
            book.answered("shop/evil", one, told("192.0.2.9"), "", 2.0)  # type: ignore[arg-type]
            book.answered("shop/evil", Name(b"\x02nx" + one), NXDOMAIN, "", 2.0)  # type: ignore[arg-type]
            book.unanswered("shop/evil", Name(b"\x02no" + one), "", 2.0)

    evil, good = book.pods["shop/evil"], book.pods["shop/good"]

    assert parse_name("db.example.com") in evil.names and parse_name("db.example.com") in good.names
    assert len(evil.names) <= limits.MOST_NAMES and len(evil.missing) <= limits.MISSING
    assert len(evil.children) <= 2 * limits.MOST_NAMES
    assert len(evil.lately) + len(evil.earlier) <= 2 * limits.MOST_ADDRESSES
    assert evil.folded[parse_name("evil.test")].count >= 29_000
    assert evil.stray_names > 50_000
    assert "questions and 0 flows went beyond" in allowlist(rows_of(book))


def test_many_names_under_each_of_many_parents_do_not_grow_the_book() -> None:
    book = Book()
    for number in range(limits.FOLD * 2 * limits.MOST_NAMES):
        name = Name(b"\x08%08x\x08%08x\x04evil\x04test\0" % (number, number // limits.FOLD))
        book.unanswered("shop/evil", name, "", 1.0)

    (row,) = rows_of(book)
    evil, again = book.pods["shop/evil"], book_of(row, SINCE_1970)

    assert evil.folded and evil.names_kept <= limits.MOST_NAMES and len(evil.children) <= limits.MOST_NAMES
    assert again.folded and again.names_kept <= limits.MOST_NAMES
    assert evil.stray_names > 50_000


def test_a_port_scan_does_not_grow_the_book() -> None:
    book = Book()
    seen(book, "shop/evil", "10.244.0.6")
    for number in range(20_000):
        book.went("shop/evil", (Address(number.to_bytes(4, "big")), 6, 1 + number % 65535), 1, 1.0, denied=True)

    found = book.pods["shop/evil"]

    assert sum(map(len, found.flows.values())) == limits.MOST_FLOWS
    assert found.stray_flows == 20_000 - limits.MOST_FLOWS


def test_all_pods_together_have_a_bound_and_each_has_its_least() -> None:
    book = Book()
    for pod in range(300):
        for number in range(400):
            name = parse_name(f"n{number}.d{number}.p{pod}.example.com")
            book.answered(f"pod{pod}", name, told("192.0.2.1"), "", 1.0)  # type: ignore[arg-type]

    kept = [len(one.names) for one in book.pods.values()]

    assert sum(kept) <= limits.NAMES + 300 * limits.LEAST_NAMES
    assert min(kept) >= limits.LEAST_NAMES


def test_only_the_pods_of_which_something_was_seen_last_are_kept() -> None:
    book = Book()
    for number in range(limits.PODS + 10):
        book.unanswered(f"pod{number}", parse_name("a.example.com"), "", float(number))

    assert len(book.pods) == limits.PODS
    assert "pod0" not in book.pods and f"pod{limits.PODS + 9}" in book.pods


def test_the_names_of_an_address_are_forgotten_after_a_while() -> None:
    book = Book()
    for hour in range(4):
        book.answered("shop/a", parse_name(f"h{hour}.test"), told(f"192.0.2.{hour}"), "", 3600.0 * hour)  # type: ignore[arg-type]

    assert list(book.names("shop/a", address("192.0.2.3"))) == [parse_name("h3.test")]
    assert list(book.names("shop/a", address("192.0.2.2"))) == [parse_name("h2.test")]
    assert list(book.names("shop/a", address("192.0.2.0"))) == []


def test_a_name_that_is_missing_once_and_exists_later_is_written() -> None:
    book = Book()
    seen(book, "shop/a", "10.244.0.5")
    name = parse_name("late.example.com")
    book.answered("shop/a", name, NXDOMAIN, "", 1.0)  # type: ignore[arg-type]
    play(book, "shop/a", "late.example.com", "192.0.2.1")

    assert isinstance(policy(loaded(allowlist(rows_of(book))), "10.244.0.5").verdict(name), Allowed)
