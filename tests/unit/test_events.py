"""Events: what is said, how often, and in which words."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnsguard.core.names import parse_name
from dnsguard.engine.contracts import EventKind
from dnsguard.observe import ratelimit
from dnsguard.observe.catalog import CATALOG, DEBUG, WARNING
from dnsguard.observe.events import Event, EventLog
from dnsguard.observe.ratelimit import LineLimiter
from dnsguard.observe.text import MAX_TEXT, printable

DENIED = EventKind.QUERY_DENIED


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Heard:
    """An event log with a sink that remembers, on a clock that the test turns."""

    def __init__(self, *, rate: float = 1, burst: float = 1, queries: str = "Denied", level: int = DEBUG) -> None:
        self.clock = Clock()
        self.events: list[Event] = []
        self.log = EventLog([self.events.append], LineLimiter(rate, burst), self.clock, queries=queries, level=level)

    def deny(self, pod: str = "shop/a", times: int = 1) -> None:
        for _ in range(times):
            self.log.emit(
                DENIED, pod=pod, pod_ip="10.0.0.5", name="x.test", type="A", reason="no rule allows this name"
            )

    @property
    def kinds(self) -> list[EventKind]:
        return [event.kind for event in self.events]


def test_every_kind_of_event_has_a_description() -> None:
    assert set(CATALOG) == set(EventKind)


def test_no_two_kinds_share_a_message_id() -> None:
    ids = [description.message_id for description in CATALOG.values()]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("kind", EventKind)
def test_a_template_names_only_fields_in_lower_case(kind: EventKind) -> None:
    names = [field for _, field, _, _ in string.Formatter().parse(CATALOG[kind].template) if field is not None]
    assert all(name.isidentifier() and name.islower() for name in names)


@pytest.mark.parametrize("kind", EventKind)
def test_an_event_without_any_field_still_has_a_sentence(kind: EventKind) -> None:
    heard = Heard(queries="All")
    heard.log.emit(kind)
    assert heard.events[0].message and heard.log.failed == 0


def test_a_denial_says_who_what_and_why() -> None:
    heard = Heard()
    heard.deny()
    assert heard.events[0].message == "shop/a may not resolve x.test (A): no rule allows this name"


def test_a_pod_without_a_name_is_called_by_its_address() -> None:
    heard = Heard()
    heard.log.emit(DENIED, pod=None, pod_ip=b"\x0a\x00\x00\x05", name="x.test", type="A")
    assert heard.events[0].message.startswith("10.0.0.5 may not")
    assert "pod" not in heard.events[0].fields


def test_octets_of_a_name_and_of_an_address_become_text() -> None:
    heard = Heard()
    heard.log.emit(
        EventKind.LEASE_ENDED, pod="a", name=[parse_name("db.example.com")], address=bytes(15) + b"\x01", scope="any"
    )
    assert heard.events[0].message == "::1 is closed to a: the lease of db.example.com ended"


def test_lines_beyond_a_pods_share_are_counted_in_its_next_line() -> None:
    heard = Heard(rate=1, burst=2)
    heard.deny(times=7)
    heard.clock.now += 1
    heard.deny()
    assert len(heard.events) == 3
    assert heard.events[2].fields["suppressed"] == "5 query_denied"
    assert heard.log.suppressed == 5


def test_one_pods_flood_costs_no_other_pod_a_line() -> None:
    heard = Heard()
    heard.deny("shop/loud", times=1000)
    heard.deny("shop/quiet")
    assert heard.events[-1].fields["pod"] == "shop/quiet"


def test_a_link_that_comes_and_goes_without_end_has_a_share_of_lines_and_what_was_left_out_is_said() -> None:
    heard = Heard(rate=0)
    for _ in range(1000):
        heard.log.emit(EventKind.POD_CAME, pod="shop/a", link="veth-a")
        heard.log.emit(EventKind.POD_WENT, pod="shop/a", link="veth-a")
    heard.log.emit(EventKind.POD_CAME, pod="shop/b", link="veth-b")
    assert len(heard.events) == 11
    assert heard.events[-1].fields["pod"] == "shop/b"
    heard.clock.now += 10
    heard.log.tick()
    assert heard.events[-1].message.startswith("1990 more lines about link veth-a were left out")


def test_a_pod_that_is_loud_does_not_keep_the_line_of_its_end_out() -> None:
    heard = Heard()
    heard.deny(times=1000)
    heard.log.emit(EventKind.POD_WENT, pod="shop/a", link="veth-a")
    assert heard.kinds == [DENIED, EventKind.POD_WENT]


def test_what_was_left_out_is_said_when_the_pod_falls_quiet() -> None:
    heard = Heard()
    heard.deny(times=4)
    heard.log.tick()
    assert heard.kinds == [DENIED]
    heard.clock.now += 1
    heard.log.tick()
    assert heard.kinds == [DENIED, EventKind.EVENTS_SUPPRESSED]
    assert heard.events[1].message == "3 more lines about shop/a were left out: 3 query_denied"


def test_what_was_left_out_is_said_once() -> None:
    heard = Heard()
    heard.deny(times=4)
    heard.clock.now += 10
    heard.log.tick()
    heard.clock.now += 10
    heard.log.tick()
    assert heard.kinds.count(EventKind.EVENTS_SUPPRESSED) == 1


def test_the_end_says_what_was_left_out_without_waiting_for_the_window() -> None:
    heard = Heard()
    heard.deny(times=4)
    heard.log.close()
    assert heard.kinds[-1] is EventKind.EVENTS_SUPPRESSED


def test_a_flood_at_the_lowest_rate_still_gets_lines_of_its_own_beside_ticks() -> None:
    heard = Heard(rate=1)
    for _ in range(100):
        heard.deny(times=10)
        heard.clock.now += 0.1
        heard.log.tick()
    assert heard.kinds.count(DENIED) >= 9
    assert heard.log.suppressed + heard.kinds.count(DENIED) == 1000


def test_with_no_lines_allowed_a_report_comes_once_a_minute() -> None:
    heard = Heard(rate=0)
    for _ in range(120):
        heard.deny()
        heard.clock.now += 1
        heard.log.tick()
    assert set(heard.kinds) == {EventKind.EVENTS_SUPPRESSED}
    assert len(heard.events) in (2, 3)


def test_sources_that_no_pod_has_share_one_bucket() -> None:
    heard = Heard()
    for number in range(1000):
        heard.log.emit(EventKind.QUERY_UNKNOWN_SOURCE, pod_ip=f"10.1.{number // 250}.{number % 250}", link="veth1")
    assert len(heard.events) == 1


def test_the_table_of_shares_is_bounded_and_still_counts_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ratelimit, "MAX_KEYS", 10)
    heard = Heard()
    for number in range(100):
        heard.deny(f"pod-{number}", times=2)
    heard.log.close()
    reported = sum(int(e.fields["lines"]) for e in heard.events if e.kind is EventKind.EVENTS_SUPPRESSED)
    assert heard.kinds.count(DENIED) + reported == 200
    assert heard.kinds.count(DENIED) == 11


def test_an_idle_key_is_forgotten() -> None:
    limiter = LineLimiter(1, 1)
    limiter.admit("a", "k", 0.0)
    limiter.due(5.0)
    assert limiter._buckets == {}


def test_what_an_operator_does_is_never_left_out() -> None:
    heard = Heard()
    for _ in range(50):
        heard.log.emit(EventKind.POLICY_REJECTED, reason="a.yaml:1:1: error: x")
    assert len(heard.events) == 50


@pytest.mark.parametrize(
    ("queries", "said"), [("None", []), ("Denied", [DENIED]), ("All", [EventKind.QUERY_ALLOWED, DENIED])]
)
def test_log_queries_chooses_which_judged_questions_are_said(queries: str, said: list[EventKind]) -> None:
    heard = Heard(rate=100, burst=100, queries=queries)
    heard.log.emit(EventKind.QUERY_ALLOWED, pod="a")
    heard.log.emit(DENIED, pod="a")
    assert heard.kinds == said
    assert heard.log.all_queries is (queries == "All")


def test_events_below_the_level_are_neither_said_nor_counted() -> None:
    heard = Heard(level=WARNING)
    heard.deny(times=5)
    heard.log.close()
    assert heard.events == [] and heard.log.suppressed == 0


def test_a_sink_that_fails_costs_nobody_anything_but_a_count() -> None:
    heard = Heard()

    def broken(event: Event) -> None:
        raise OSError("no space")

    log = EventLog([heard.events.append, broken], LineLimiter(10), heard.clock)
    log.emit(DENIED, pod="shop/a", name="x.test", type="A", reason="no rule allows this name")
    assert log.failed == len(heard.events) == 1


def test_a_field_that_cannot_be_turned_into_text_is_counted() -> None:
    class Hostile:
        def __str__(self) -> str:
            raise RuntimeError

    heard = Heard()
    heard.log.emit(EventKind.UPSTREAM_DOWN, upstream=Hostile())
    assert heard.log.failed == 1


@given(st.text())
def test_no_text_reaches_a_terminal_with_a_control_character(text: str) -> None:
    assert printable(text).isprintable()


@given(st.binary(max_size=300))
def test_no_octets_of_a_name_reach_a_line_unescaped(octets: bytes) -> None:
    heard = Heard()
    heard.log.emit(DENIED, pod="a", name=octets, type="A", reason="r")
    text = str(heard.events[0].fields["name"])
    assert text.isprintable() and " " not in text
    assert heard.events[0].message.isprintable()


def test_a_name_cannot_write_fields_of_its_own() -> None:
    heard = Heard()
    heard.log.emit(DENIED, pod="a", name="x pod=b", type="A", reason="r")
    assert heard.events[0].fields["name"] == "x\\032pod=b"


def test_a_long_text_is_cut() -> None:
    assert len(printable("x" * 100_000)) == MAX_TEXT + 3
