"""The long run asks for every name by ever other pods, and its page says what was found, also when an aim is missed."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from benchmarks import memory_report
from benchmarks.crowd import OWN, mixed, turns
from benchmarks.frames import DENIED
from benchmarks.held import Books
from benchmarks.memory import FULL, QUICK, Extent, Load, LongRun, Memory, Sample, Usual, names_for

from dnsguard.observe.recent import ENTRIES

START = Books(
    descriptors=50,
    threads=5,
    tasks=9,
    elements=20,
    entries={"leases": 0, "pairs": 20},
    leases=0,
    inside={"cached answers": QUICK.cached, "past denials": QUICK.kept["past denials"]},
)
LOAD = Load(answered=900, denied=100, failed=0, begun=9, stood=9, closed=9, scrapes=2, log_lines=80)
FEW = QUICK.few
USUAL = Usual(90_000_000, 96_000_000, 150_000_000, (FEW, FEW + 100_000))


def sample(seconds: float, megabytes: float, flows: int = 0) -> Sample:
    return Sample(seconds, int(megabytes * 1e6), int(megabytes * 9e5), 60, 6, 0, flows)


def found(
    after: Books = START,
    *,
    heights: tuple[float, float] = (110.0, 111.0),
    end: float = 100.0,
    usual: Usual = USUAL,
    load: Load = LOAD,
    flows: int = 4,
    before: Books = START,
) -> Memory:
    empty, start, last = sample(0, 80.0), sample(20, 99.0), sample(30, end)
    between = [sample(23, heights[0], flows), sample(28, heights[1], flows)]
    samples = [empty, sample(10, 130.0), start, *between, last]
    return Memory(QUICK, LongRun(empty, start, last, samples, [24.0, 29.0], load, before, after), usual)


def test_in_each_round_another_pod_asks_for_a_name() -> None:
    pods, names = 5, 20
    asked = list(turns(pods, names, 0, pods * names))

    assert len(set(asked)) == pods * names
    assert [number for _, number in asked[:names]] == list(range(names))
    assert all(one[0] != other[0] for one, other in pairwise(asked))


def test_turns_taken_in_parts_are_the_same_turns() -> None:
    whole = list(mixed(5, 20, range(90), 4))

    assert [*mixed(5, 20, range(37), 4), *mixed(5, 20, range(37, 90), 4)] == whole


def test_one_in_ten_turns_is_for_what_is_denied_and_the_others_are_as_without() -> None:
    asked = list(mixed(5, 20, range(100), 10))

    assert [number >= DENIED for _, number in asked] == [turn % 10 == 9 for turn in range(100)]
    assert [one for one in asked if one[1] < DENIED] == list(turns(5, 20, 0, 90))


@pytest.mark.parametrize("extent", [FULL, QUICK], ids=["full", "quick"])
def test_after_the_filling_all_answers_and_denials_are_there_that_are_kept(extent: Extent) -> None:
    asked = list(mixed(extent.pods, extent.names, range(extent.filling), 2))
    of_pods: dict[int, set[int]] = {pod: set() for pod in range(extent.pods)}
    for pod, number in asked:
        if number >= DENIED:
            of_pods[pod].add(number)

    assert len({number for _, number in asked if number < DENIED}) >= extent.cached
    assert {len(names) for names in of_pods.values()} == {OWN}
    assert OWN >= ENTRIES


def test_there_are_as_many_leases_as_were_asked_for_or_more() -> None:
    assert names_for(10_000, 110) * 110 >= 10_000
    assert names_for(110_000, 110) * 110 == 110_000


@pytest.mark.parametrize(
    ("memory", "met"),
    [
        (found(), True),
        (found(end=104.5), False),
        (found(heights=(110.0, 116.0)), False),
        (found(usual=Usual(90_000_000, 150_000_000, 151_000_000, (FEW, FEW + 100_000))), False),
        (found(usual=Usual(90_000_000, 96_000_000, 157_000_000, (FEW, FEW + 100_000))), False),
        (found(usual=Usual(90_000_000, 96_000_000, 150_000_000, (FEW - 1, FEW + 100_000))), False),
        (found(replace(START, descriptors=51)), False),
        (found(replace(START, threads=6)), False),
        (found(replace(START, tasks=10)), False),
        (found(replace(START, elements=21)), False),
        (found(replace(START, entries={"leases": 1, "pairs": 20})), False),
        (found(replace(START, inside={**START.inside, "past denials": QUICK.kept["past denials"] + 1})), False),
        (found(replace(START, inside={**START.inside, "exchanges": 1})), False),
        (found(replace(START, inside={**START.inside, "past denials": 63})), True),
    ],
    ids=[
        "all", "grows-at-rest", "grows-at-its-height", "few-leases-dear", "each-lease-dear", "too-few-leases",
        "a-descriptor-left", "a-thread-left", "a-task-left", "an-element-left", "an-entry-left",
        "too-many-denials", "an-exchange-left", "fewer-denials",
    ],
)  # fmt: skip
def test_the_aims_are_met_only_when_memory_is_flat_leases_are_cheap_and_nothing_is_left(
    memory: Memory, met: bool
) -> None:
    assert memory_report.met(memory) is met


FEW_DENIALS = replace(START, inside={"cached answers": QUICK.cached, "past denials": 63})
EMPTY_CACHE = replace(START, inside={"cached answers": QUICK.cached - 1, "past denials": QUICK.kept["past denials"]})


@pytest.mark.parametrize(
    ("memory", "unused"),
    [
        (found(before=EMPTY_CACHE, after=EMPTY_CACHE), "cached answers, as many as are kept"),
        (found(before=FEW_DENIALS, after=FEW_DENIALS), "past denials, as many as are kept"),
        (found(load=replace(LOAD, denied=0)), "denied names"),
        (found(load=replace(LOAD, log_lines=0)), "log lines"),
        (found(load=replace(LOAD, scrapes=0)), "scrapes"),
        (found(load=replace(LOAD, stood=0)), "connections"),
        (found(flows=0), "connections"),
        (found(load=replace(LOAD, closed=0)), "packets to what is closed"),
    ],
    ids=["cache", "denials", "denied", "log", "scrapes", "connections", "flows", "closed"],
)
def test_a_run_that_did_not_use_all_that_it_was_to_use_meets_no_aim(memory: Memory, unused: str) -> None:
    assert not memory_report.met(memory)
    assert f"Not used, and to be: {unused}." in memory_report.lines(memory, 0.5)


def test_the_page_names_what_was_left() -> None:
    left = found(replace(START, tasks=10, entries={"leases": 7, "pairs": 20}))

    assert "As at the start: not tasks, map `leases`." in memory_report.lines(left, 0.5)
    page = memory_report.document(left, 0.5, "make bench")
    assert "| map `leases` | 0 |  | 7 |" in page
    assert "| tasks | 9 |  | 10 |" in page


def test_the_page_tells_what_memory_grows_to_before_the_start_and_from_then_on() -> None:
    page = memory_report.document(found(), 0.5, "make bench")

    assert "from 80 MB when each pod has asked once to 99 MB" in page
    assert "99 MB at the start, at most 111 MB with leases and questions under way, 100 MB when the last" in page
    assert "+1.0 %, or +1000.0 octets a query" in page
