"""A pod's share."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnsguard.core.limits import CONNECTIONS, IN_FLIGHT, NAMES, QUERIES, Limits, Share
from dnsguard.core.model import Name

SMALL = Limits(queries_per_second=10, burst=20, in_flight=2, connections=1, names_per_minute=2)


@pytest.fixture
def share() -> Share:
    return Share(SMALL, 0.0)


def allowed(share: Share, now: float, asked: int) -> int:
    return sum(share.query(now) is None for _ in range(asked))


def test_a_burst_is_let_through_and_then_the_rate(share: Share) -> None:
    assert allowed(share, 0.0, 100) == 20
    assert allowed(share, 1.0, 100) == 10
    assert allowed(share, 1.05, 100) == 0


def test_a_long_silence_saves_up_no_more_than_the_burst(share: Share) -> None:
    assert allowed(share, 1000.0, 100) == 20


def test_what_came_in_while_nobody_read_is_let_through_once_on_credit(share: Share) -> None:
    share.credit(10.0)

    assert allowed(share, 0.0, 200) == 120
    assert allowed(share, 1000.0, 200) == 20


def test_queries_on_credit_may_be_in_flight_beside_the_share(share: Share) -> None:
    share.credit(10.0)
    share.in_flight = 50

    assert allowed(share, 0.0, 200) == 100


def test_credit_is_good_until_it_is_forgotten(share: Share) -> None:
    share.credit(10.0)
    share.forget(1.0)

    assert allowed(share, 1.0, 200) == 20


def test_nine_refusals_are_due_for_each_query_let_through(share: Share) -> None:
    allowed(share, 0.0, 20)

    assert sum(share.refusal(0.0) for _ in range(300)) == 180
    assert sum(share.refusal(1.0) for _ in range(300)) == 90


def test_names_of_a_minute_that_is_over_are_let_go_of_and_no_sooner(share: Share) -> None:
    for number in range(2):
        assert share.name(Name(b"\1%d\0" % number), 0.0) is None
    share.forget(59.0)
    assert share.name(Name(b"\1x\0"), 59.0) == NAMES
    share.forget(60.0)
    assert len(share._names) == 0


def test_a_refused_query_takes_nothing_from_the_next(share: Share) -> None:
    allowed(share, 0.0, 20)
    for _ in range(100):
        assert share.query(0.01) == QUERIES
        share.refusal(0.01)

    assert share.query(0.2) is None


def test_queries_in_flight_are_counted_by_their_owner(share: Share) -> None:
    share.in_flight = 2

    assert share.query(0.0) == IN_FLIGHT


def test_a_name_counts_once_a_minute(share: Share) -> None:
    a, b, c = (Name(bytes([1, letter, 0])) for letter in b"abc")

    assert [share.name(name, 0.0) for name in (a, a, b, b, c, a)] == [None, None, None, None, NAMES, None]
    assert share.name(c, 60.0) is None


def test_a_connection_given_back_is_free(share: Share) -> None:
    first, second = share.connection(), share.connection()
    share.disconnection()

    assert (first, second, share.connection()) == (None, CONNECTIONS, None)


def test_work_counts_as_queries_and_is_begun_only_when_none_is_owed(share: Share) -> None:
    begun = [share.work(15, 0.0) for _ in range(3)]

    assert begun == [None, None, QUERIES]
    assert allowed(share, 1.0, 100) == 0
    assert share.work(1, 1.0) is None
    assert allowed(share, 2.2, 100) == 11


@given(st.lists(st.integers(0, 400), max_size=600), st.integers(1, 300))
def test_a_minutes_names_are_counted_each_once_up_to_the_limit(asked: list[int], limit: int) -> None:
    share = Share(Limits(names_per_minute=limit), 0.0)
    counted: set[int] = set()
    for number in asked:
        refused = share.name(Name(b"\4%04d\0" % number), 0.0) is not None
        assert refused == (number not in counted and len(counted) >= limit)
        if not refused:
            counted.add(number)
