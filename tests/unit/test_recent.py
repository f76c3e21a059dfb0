"""The last denials of each pod: what is remembered, how it is counted, and what a flood puts out."""

from __future__ import annotations

import logging

import pytest

from dnsguard.engine.contracts import EventKind
from dnsguard.observe.events import EventLog
from dnsguard.observe.ratelimit import LineLimiter
from dnsguard.observe.recent import ENTRIES, KEYS, PODS, Recent

DENIED = EventKind.QUERY_DENIED


class Memory:
    """A memory on a clock that each note moves on by a second."""

    def __init__(self) -> None:
        self.now = 0.0
        self.recent = Recent(lambda: self.now)

    def deny(self, pod: str | None = "a", name: bytes = b"\1x\0", reason: str = "no rule", **more: object) -> None:
        self.now += 1.0
        self.recent.note(DENIED, {"pod": pod, "name": name, "type": "A", "reason": reason, **more})

    def names(self, pod: str = "a") -> list[object]:
        return [one.fields["name"] for one in self.recent.of(pod)]


@pytest.fixture
def memory() -> Memory:
    return Memory()


def test_equal_denials_are_one_entry_with_a_count_and_the_times_of_first_and_last(memory: Memory) -> None:
    for _ in range(3):
        memory.deny()

    (entry,) = memory.recent.of("a")
    assert (entry.count, entry.first, entry.last, entry.reason) == (3, 1.0, 3.0, "no rule")


def test_the_reason_of_the_last_is_told(memory: Memory) -> None:
    memory.deny(reason="ended 3 s ago")
    memory.deny(reason="ended 4 s ago")

    assert [one.reason for one in memory.recent.of("a")] == ["ended 4 s ago"]


def test_the_newest_come_first_also_when_they_are_seen_again(memory: Memory) -> None:
    for name in (b"\1x\0", b"\1y\0", b"\1x\0"):
        memory.deny(name=name)

    assert memory.names() == [b"\1x\0", b"\1y\0"]


def test_an_entry_that_stands_for_several_packets_counts_them(memory: Memory) -> None:
    flow = {"pod": "a", "address": b"\xc0\0\2\1", "port": 443, "protocol": "tcp", "count": 5}
    memory.recent.note(EventKind.FLOW_DENIED, flow)
    memory.recent.note(EventKind.FLOW_DENIED, flow)

    assert memory.recent.of("a")[0].count == 10


def test_a_flood_puts_out_the_oldest_of_its_own_pod_only(memory: Memory) -> None:
    memory.deny("b", b"\1b\0")
    for number in range(ENTRIES + 1):
        memory.deny("a", number.to_bytes(2))

    assert memory.names("a") == [number.to_bytes(2) for number in range(ENTRIES, 0, -1)]
    assert memory.names("b") == [b"\1b\0"]


def test_of_too_many_pods_the_one_that_was_quiet_longest_is_forgotten(memory: Memory) -> None:
    for number in range(PODS):
        memory.deny(f"p{number}")
    memory.deny("p0")
    memory.deny("one more")

    assert [pod for pod in ("p0", "p1", "one more") if memory.recent.of(pod)] == ["p0", "one more"]


def test_what_no_pod_is_known_for_is_not_remembered(memory: Memory) -> None:
    memory.deny(None)

    assert memory.recent.of("") == []


def test_a_limit_is_one_entry_whatever_names_are_asked_for(memory: Memory) -> None:
    for name in (b"\1x\0", b"\1y\0"):
        memory.recent.note(EventKind.QUERY_LIMITED, {"pod": "a", "name": name, "limit": "queries"})

    assert [one.count for one in memory.recent.of("a")] == [2]


@pytest.mark.parametrize("kind", EventKind)
def test_only_denials_are_remembered(kind: EventKind, memory: Memory) -> None:
    fields = dict.fromkeys(("name", "type", "limit", "reason", "address", "port", "protocol"), "x")
    memory.recent.note(kind, {"pod": "a", **fields})

    assert bool(memory.recent.of("a")) == (kind in KEYS)


def test_an_event_is_remembered_although_neither_level_nor_rate_lets_it_out() -> None:
    said: list[object] = []
    log = EventLog([said.append], LineLimiter(0), lambda: 1.0, queries="None", level=logging.ERROR)

    log.emit(DENIED, pod="a", name=b"\1x\0", type="A", reason="no rule")

    assert said == []
    assert log.recent.of("a")[0].count == 1
