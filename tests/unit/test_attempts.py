"""Which upstream is asked next."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from dnsguard.core.attempts import EDNS_MEMORY, FAILURES_TO_DOWN, LONGEST_PROBE, Servers


def down_at(servers: Servers, index: int, now: float) -> None:
    for _ in range(FAILURES_TO_DOWN):
        servers.failed(index, now)


def test_the_first_upstream_in_configured_order_is_asked() -> None:
    assert Servers(3).choose((), 0) == 0


def test_upstreams_already_tried_are_not_asked_again() -> None:
    servers = Servers(2)
    assert servers.choose({0}, 0) == 1
    assert servers.choose({0, 1}, 0) is None


def test_one_failure_does_not_take_an_upstream_down_and_two_in_a_row_do() -> None:
    servers = Servers(2)
    assert servers.failed(0, 1.0) is False
    assert not servers.down(0)
    assert servers.failed(0, 2.0) is True
    assert servers.down(0)
    assert servers.failed(0, 3.0) is False
    assert servers.choose((), 3.0) == 1


def test_an_answer_between_two_failures_keeps_it_up() -> None:
    servers = Servers(1)
    servers.failed(0, 1.0)
    servers.answered(0, 1.5)
    servers.failed(0, 2.0)
    assert not servers.down(0)


def test_when_all_are_down_the_one_that_failed_longest_ago_is_asked() -> None:
    servers = Servers(3)
    for index, at in ((0, 5.0), (1, 3.0), (2, 4.0)):
        down_at(servers, index, at)
    assert servers.choose((), 6.0) == 1
    assert servers.choose({1}, 6.0) == 2


def test_an_answer_brings_an_upstream_back_and_ends_its_probes() -> None:
    servers = Servers(2)
    down_at(servers, 0, 0.0)
    assert servers.answered(0, 1.0) is True
    assert servers.answered(0, 1.0) is False
    assert servers.choose((), 1.0) == 0
    assert servers.due_probes(1e9) == []
    assert servers.next_probe() is None


def test_probes_begin_after_a_second_and_double_to_four() -> None:
    servers = Servers(2)
    assert servers.next_probe() is None
    down_at(servers, 1, 100.0)
    times = [100.0]
    for _ in range(8):
        at = servers.next_probe()
        assert at is not None
        assert servers.due_probes(at - 0.001) == []
        assert servers.due_probes(at) == [1]
        times.append(at)
    assert [b - a for a, b in pairwise(times)] == [1, 2, 4, 4, 4, 4, 4, LONGEST_PROBE]


def test_probes_start_anew_after_a_second_outage() -> None:
    servers = Servers(1)
    down_at(servers, 0, 0.0)
    servers.due_probes(1.0)
    servers.answered(0, 2.0)
    down_at(servers, 0, 10.0)
    assert servers.next_probe() == 11.0


def test_late_failures_do_not_put_the_probe_off() -> None:
    servers = Servers(1)
    down_at(servers, 0, 0.0)
    servers.failed(0, 0.9)
    assert servers.next_probe() == 1.0


def test_an_upstream_that_refused_edns_is_asked_without_it_for_an_hour() -> None:
    servers = Servers(2)
    servers.edns_refused(0, 10.0)
    assert not servers.speaks_edns(0, 10.0)
    assert not servers.speaks_edns(0, 9.0 + EDNS_MEMORY)
    assert servers.speaks_edns(0, 10.0 + EDNS_MEMORY)
    assert servers.speaks_edns(1, 10.0)


_STEPS = st.lists(st.tuples(st.sampled_from(["failed", "answered", "due"]), st.integers(0, 2), st.floats(0, 10)))


@settings(deadline=None)
@given(_STEPS)
def test_as_long_as_one_is_up_a_downed_one_is_never_chosen(steps: list[tuple[str, int, float]]) -> None:
    servers, now = Servers(3), 0.0
    for what, index, pause in steps:
        now += pause
        if what == "due":
            assert all(servers.down(probed) for probed in servers.due_probes(now))
        else:
            getattr(servers, what)(index, now)
        chosen = servers.choose((), now)
        assert chosen is not None
        assert servers.down(chosen) == all(servers.down(i) for i in range(3))
        assert (servers.next_probe() is None) == (not any(servers.down(i) for i in range(3)))


def test_an_upstream_is_of_no_use_after_five_such_answers_over_two_seconds_and_that_is_said_once() -> None:
    servers = Servers(2)

    assert [servers.useless(0, now) for now in (0.0, 0.1, 0.2, 0.3, 0.4, 1.9)] == [False] * 6
    assert [servers.useless(0, now) for now in (2.0, 2.1, 60.0)] == [True, False, False]
    assert not servers.useless(1, 2.0)
    assert (servers.useful(0), servers.useful(0), servers.useful(1)) == (True, False, False)
    assert not servers.useless(0, 61.0)


def test_one_answer_of_use_in_between_begins_the_count_anew() -> None:
    servers = Servers(1)
    for now in (0.0, 1.0, 2.0, 3.0):
        assert not servers.useless(0, now)
    assert not servers.useful(0)

    assert [servers.useless(0, 4.0 + n) for n in range(5)] == [False] * 4 + [True]


def test_an_upstream_that_answers_probes_and_no_query_is_not_told_of_again_and_again() -> None:
    servers, told = Servers(1), []
    for _ in range(4):
        told.append([servers.failed(0, 0.0), servers.failed(0, 0.0), servers.probed(0)])

    assert told == [[False, True, True], [False, True, False], [False, False, False], [False, False, False]]
    assert (servers.answered(0, 9.0), servers.answered(0, 9.0)) == (True, False)
    assert [servers.failed(0, 9.0), servers.failed(0, 9.0), servers.probed(0)] == [False, True, True]
