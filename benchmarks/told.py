"""What the kernel tells by itself: does it cost the same however many names it knows, and what of it is the program?"""

from __future__ import annotations

import dataclasses
import statistics

from benchmarks import kernel
from benchmarks.bed import RESOLVER, Bed, Cores, Spent
from benchmarks.load import Order, Outcome
from benchmarks.runs import Pace, Workload, running, warm
from benchmarks.subjects import Subject

NAMES = (1, 100, 10_000)


@dataclasses.dataclass(frozen=True, slots=True)
class Told:
    """Of so many names known to the kernel: microseconds, but for the queries a second, the share and `program`."""

    qps: float
    all: float
    """Everything that both cores did for each query, but for the load's processes."""
    p50: float
    p99: float
    program: float
    """Nanoseconds of one run of the program that answers."""
    share: float
    """Of the questions, those that the kernel answered."""


def measure(bed: Bed, subject: Subject, pace: Pace, cores: Cores) -> dict[int, Told]:
    """The numbers of names take turns; medians of the rounds."""
    rounds: dict[int, list[Told]] = {names: [] for names in NAMES}
    for _ in range(pace.rounds):
        for names in NAMES:
            rounds[names].append(_told(bed, subject, names, pace, cores))
    return {names: _median(found) for names, found in rounds.items()}


def _told(bed: Bed, subject: Subject, names: int, pace: Pace, cores: Cores) -> Told:
    with running(bed, subject, cores) as server:
        warm(bed, RESOLVER, Workload.CACHED, cores, names)
        before, told = server.spent(), kernel.answered(bed.pins)
        outcome = _ask(bed, "saturate", names, pace.saturate, cores)
        spent, told = server.spent() - before, kernel.answered(bed.pins) - told
        light = sorted(_ask(bed, "light", names, pace.light, cores, rate=pace.rate).latencies)
        program = _program(bed, names, pace, cores)
    return Told(
        qps=outcome.answered / outcome.seconds,
        all=_all(spent) / outcome.answered * 1e6,
        p50=statistics.median(light),
        p99=light[int(len(light) * 0.99)],
        program=program,
        share=told / outcome.asked,
    )


def _ask(bed: Bed, mode: str, names: int, seconds: float, cores: Cores, rate: int = 0) -> Outcome:
    return bed.load(mode, Order(RESOLVER, Workload.CACHED.kind, seconds, 0, names, rate=rate), cores.load)


def _all(spent: Spent) -> float:
    return spent.core + spent.carried


def _program(bed: Bed, names: int, pace: Pace, cores: Cores) -> float:
    """Apart from the rest, for counting costs something."""
    with kernel.statistics():
        before = bed.runs()["from_pod"]
        _ask(bed, "saturate", names, pace.light, cores)
        return (bed.runs()["from_pod"] - before).each


def _median(rounds: list[Told]) -> Told:
    fields = [field.name for field in dataclasses.fields(Told)]
    return Told(**{name: statistics.median(getattr(each, name) for each in rounds) for name in fields})
