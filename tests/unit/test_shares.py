"""Whose share of log lines each kind of event uses, and what happens beyond it."""

from __future__ import annotations

from typing import Final

import pytest

from dnsguard.engine.contracts import EventKind
from dnsguard.observe.catalog import CATALOG
from dnsguard.observe.events import Event, EventLog
from dnsguard.observe.ratelimit import LineLimiter
from dnsguard.observe.shares import NODES_OWN, OFTEN, SELDOM

NOBODY_OUTSIDE: Final = {
    EventKind.STARTED: "once a start; systemd puts seconds between starts",
    EventKind.READY: "once a start",
    EventKind.STOPPING: "once a stop",
    EventKind.STOPPED: "once a stop",
    EventKind.START_FAILED: "once for a cause, and once in a hundred starts",
    EventKind.ENDED_BADLY: "once a start",
    EventKind.FEATURE_LEFT_OUT: "once a start",
    EventKind.EBPF_NOT_USED: "once a start",
    EventKind.SYSCTL_UNUSABLE: "at a start, once for each setting",
    EventKind.BPFFS_UNMOUNTED: "once in a process's life",
    EventKind.POLICY_NOT_TAKEN: "once a reload",
    EventKind.RESTART_NEEDED: "of a reload, once for each key",
    EventKind.SOCKET_NOT_USED: "once a start, for each socket of the unit",
    EventKind.POLICY_LOADED: "once a reload, and only root reloads",
    EventKind.POLICY_REJECTED: "of a reload, for each error; the reader passes on a thousand at most",
    EventKind.POLICY_WARNING: "of a reload, for each warning; the reader passes on a thousand at most",
    EventKind.MODE_CHANGED: "of a reload",
    EventKind.STATE_FILE_SET_ASIDE: "when a file is read, which is at a start",
    EventKind.RUNTIME_LOST: "once: the daemon ends with it",
    EventKind.EVENTS_SUPPRESSED: "takes a line of the share that it is about",
    EventKind.LOG_LINES_DROPPED: "once each time that whoever takes the log is back; made where lines are written",
    EventKind.WATCHER_CUT_OFF: "root alone watches, and 30 s pass before one is cut off",
}
"""Kinds without a limit -> why no pod, and no peer of one, can have them told often."""

TEN_MINUTES: Final = 600


@pytest.mark.parametrize("kind", EventKind)
def test_every_kind_is_limited_by_pod_or_for_the_node_or_nobody_outside_can_provoke_it(kind: EventKind) -> None:
    assert [CATALOG[kind].limited, kind in OFTEN, kind in SELDOM, kind in NOBODY_OUTSIDE].count(True) == 1


class Told:
    """Events as they came through, second by second."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events: list[Event] = []
        self.log = EventLog([self.events.append], LineLimiter(10), lambda: self.now)

    def second(self) -> None:
        self.now += 1.0
        self.log.tick()

    def left_out(self) -> int:
        """As said in lines."""
        said = [str(one.fields["suppressed"]) for one in self.events if "suppressed" in one.fields]
        said += [str(one.fields["kinds"]) for one in self.events if one.kind is EventKind.EVENTS_SUPPRESSED]
        return sum(int(part.split()[0]) for text in said for part in text.split(", "))


@pytest.mark.parametrize("kind", NODES_OWN)
def test_what_the_node_tells_without_end_has_a_share_and_all_beyond_it_is_counted(kind: EventKind) -> None:
    told = Told()
    fields = {NODES_OWN[kind]: "one"}
    for _ in range(TEN_MINUTES):
        for _ in range(10):
            told.log.emit(kind, **fields)
        told.second()
    told.log.close()

    lines = [one for one in told.events if one.kind is kind]
    assert len(lines) <= (50 if kind in SELDOM else TEN_MINUTES + 10)
    assert len(lines) + told.left_out() == 10 * TEN_MINUTES


def test_an_upstream_that_swings_for_ten_minutes_costs_some_lines_and_the_last_word_is_how_it_is_now() -> None:
    told = Told()
    for second in range(TEN_MINUTES):
        if second % 3 == 0:
            told.log.emit(EventKind.UPSTREAM_UP, upstream="10.96.0.10:53")
            told.log.emit(EventKind.UPSTREAM_FAILING, upstream="10.96.0.10:53", reason="SERVFAIL")
        told.second()
    told.log.emit(EventKind.UPSTREAM_UP, upstream="10.96.0.10:53")
    assert len(told.events) <= 50
    for _ in range(60):
        told.second()

    last = told.events[-1]
    assert last.message.startswith(f"{last.fields['lines']} more lines about upstream 10.96.0.10:53 were left out: ")
    assert last.message.endswith(" upstream_up")
    assert "pod" not in last.fields


def test_one_upstream_that_swings_costs_no_other_its_line() -> None:
    told = Told()
    for _ in range(1000):
        told.log.emit(EventKind.UPSTREAM_FAILING, upstream="10.96.0.10:53", reason="SERVFAIL")
    told.log.emit(EventKind.UPSTREAM_DOWN, upstream="10.96.0.11:53", reason="timeout")
    assert told.events[-1].kind is EventKind.UPSTREAM_DOWN


def test_of_what_was_left_out_the_kind_that_came_last_is_named_last() -> None:
    limiter = LineLimiter(1, 1)
    for kind in ("up", "up", "failing", "up"):
        limiter.admit("upstream", kind, 0.0)
    (report,) = limiter.due(60.0)
    assert list(report.left_out.items()) == [("failing", 1), ("up", 2)]
