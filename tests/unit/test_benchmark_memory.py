"""The long run asks for every name by ever other pods, and its page says what was found, also when an aim is missed."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from benchmarks import memory_report
from benchmarks.crowd import turns
from benchmarks.memory import QUICK, Books, LongRun, Memory, Sample, Usual

START = Books(descriptors=50, threads=5, elements=20, entries={"leases": 0, "pairs": 20}, leases=0)


def sample(seconds: float, queries: int, megabytes: float) -> Sample:
    return Sample(seconds, queries, int(megabytes * 1e6), int(megabytes * 9e5), 60, 6, leases=queries // 2)


def found(after: Books = START, *, last: float = 100.0, many: int = 150_000_000) -> Memory:
    samples = [sample(0, 0, 80.0), sample(5, 500, 99.0), sample(10, 1000, last)]
    usual = Usual(90_000_000, 96_000_000, many, (10_000, 110_000))
    return Memory(QUICK, LongRun(samples, [5.0, 10.0], 1000, 0, START, after), usual)


def test_in_each_round_another_pod_asks_for_a_name() -> None:
    pods, names = 5, 20
    asked = list(turns(pods, names, 0, pods * names))

    assert len(set(asked)) == pods * names
    assert [number for _, number in asked[:names]] == list(range(names))
    assert all(one[0] != other[0] for one, other in pairwise(asked))


def test_turns_taken_in_parts_are_the_same_turns() -> None:
    whole = list(turns(5, 20, 0, 90))

    assert [*turns(5, 20, 0, 40), *turns(5, 20, 40, 90)] == whole


@pytest.mark.parametrize(
    ("memory", "met"),
    [
        (found(), True),
        (found(last=120.0), False),
        (found(many=160_000_000), False),
        (found(replace(START, descriptors=51)), False),
        (found(replace(START, entries={"leases": 1, "pairs": 20})), False),
    ],
    ids=["all", "grows", "dear-leases", "a-descriptor-left", "an-entry-left"],
)
def test_the_aims_are_met_only_when_memory_is_flat_leases_are_cheap_and_nothing_is_left(
    memory: Memory, met: bool
) -> None:
    assert memory_report.met(memory) is met


def test_the_page_names_what_was_left() -> None:
    left = found(replace(START, entries={"leases": 7, "pairs": 20}))

    assert "As at the start: not map `leases`." in memory_report.lines(left, 0.5)
    assert "| map `leases` | 0 |  | 7 |" in memory_report.document(left, 0.5, "make bench")
