"""One measurement each: a fresh server, a workload, and the figures that come of it."""

from __future__ import annotations

import contextlib
import shutil
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address

from benchmarks.bed import POD, RESOLVER, UPSTREAM, Bed, Cores, Server
from benchmarks.load import Order, Outcome
from benchmarks.names import Kind
from benchmarks.subjects import LEASES, Subject, elements

AGAIN = 1000
"""Names that are asked over and over."""
ASKINGS = 3
"""Before anything is counted: an answer is cached at the first asking, and in the kernel at the second."""


class Workload(StrEnum):
    """What is asked. FRESH, CHAIN and DENIED: every name new. CACHED and DENIED_AGAIN: a thousand over and over."""

    FRESH = "fresh, 1 A"
    CHAIN = "fresh, CNAME + 2 A"
    CACHED = "cached"
    DENIED = "denied"
    DENIED_AGAIN = "denied, asked again"

    @property
    def kind(self) -> Kind:
        if self.denied:
            return Kind.DENIED
        return Kind.CHAIN if self is Workload.CHAIN else Kind.ONE_A

    @property
    def denied(self) -> bool:
        return self in (Workload.DENIED, Workload.DENIED_AGAIN)

    @property
    def again(self) -> bool:
        return self in (Workload.CACHED, Workload.DENIED_AGAIN)

    @property
    def distinct(self) -> int:
        return AGAIN if self.again else 90_000_000

    def first(self, otherwise: int) -> int:
        """The number of the first name."""
        return 0 if self.again else otherwise


@dataclass(slots=True)
class Figures:
    """Of one server and one workload: microseconds, except `qps` (a second) and `lost` (a share of 1)."""

    qps: float = 0.0
    cpu: float = 0.0
    """Of the server's process tree for each query."""
    core: float = 0.0
    """Of the server's whole core for each query, softirqs and kernel threads included."""
    softirq: float = 0.0
    all: float = 0.0
    """`core`, and the softirqs of the load's core: everything but the load itself."""
    lost: float = 0.0
    p50: float = 0.0
    p99: float = 0.0
    """Light load, server on a core of its own."""
    p50_shared: float = 0.0
    p99_shared: float = 0.0
    """Light load, all on one core: no wake-up across cores in it."""
    closed_shared: float = 0.0
    """Median of one question after the other, all on one core."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long and how often."""

    rounds: int
    saturate: float
    """Seconds."""
    warm: int
    """Questions before anything is counted."""
    light: float
    """Seconds."""
    rate: int = 1000
    """Questions a second at a light load."""
    workloads: tuple[Workload, ...] = tuple(Workload)
    two_cores: bool = True
    """Measure the latency with the server on a core of its own, too."""


FULL = Pace(rounds=3, saturate=5.0, warm=2000, light=3.0)
QUICK = Pace(1, 1.0, 500, 0.5, workloads=(Workload.FRESH, Workload.CACHED), two_cores=False)

MEASURED_FIRST, LIGHT_FIRST, CLOSED_FIRST = 1_000_000, 70_000_000, 80_000_000
"""Where the names of each phase begin, so that none was asked before."""


class WrongElementsError(Exception):
    """The kernel does not hold exactly what was answered; the text says how many of which are wrong."""


@contextlib.contextmanager
def running(bed: Bed, subject: Subject, cores: Cores) -> Iterator[Server]:
    """The server, answering; stopped afterwards, with everything it had written to the kernel removed."""
    folder = bed.folder / subject.program
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    program = subject.found()
    if program is None:
        raise RuntimeError(f"{subject.name}: no program `{subject.program}`")
    bed.start_upstream(cores)
    if subject.ruleset:
        bed.lab.run(bed.lab.node, "nft", "-f", "-", input=subject.ruleset)
    server = None
    try:
        server = bed.start(cores, [program, *subject.configure(folder)], folder / "log", subject.environment)
        yield server
    finally:
        if server:
            server.stop()
        if subject.remove:
            subject.remove(bed, folder)
        elif subject.ruleset:
            bed.lab.run(bed.lab.node, "nft", "flush", "ruleset")


def saturate(bed: Bed, subject: Subject, workload: Workload, pace: Pace, cores: Cores) -> Figures:
    """Throughput and CPU for each query; raises WrongElementsError when the kernel's sets are not what was answered."""
    with running(bed, subject, cores) as server:
        warmed = warm(bed, RESOLVER, workload, cores, max(1000, pace.warm))
        before = server.spent()
        order = Order(RESOLVER, workload.kind, pace.saturate, workload.first(MEASURED_FIRST), workload.distinct)
        outcome = bed.load("saturate", order, cores.load)
        spent = server.spent() - before
        if subject.lease_set and not workload.denied:
            _check_elements(bed, subject, warmed, outcome)
    answered = _answered(subject, workload, outcome)
    return Figures(
        qps=answered / outcome.seconds,
        cpu=spent.process / answered * 1e6,
        core=spent.core / answered * 1e6,
        softirq=spent.softirq / answered * 1e6,
        all=(spent.core + spent.carried) / answered * 1e6,
        lost=outcome.lost / outcome.asked,
    )


def warm(bed: Bed, server: str, workload: Workload, cores: Cores, names: int) -> Outcome:
    """Ask the first names, as often as it takes for whoever can to answer them from where that is fastest."""
    askings = ASKINGS if workload.again else 1
    return bed.load("saturate", Order(server, workload.kind, 30.0, 0, names, most=askings * names), cores.load)


def _answered(subject: Subject, workload: Workload, outcome: Outcome) -> int:
    """How many answers were right; raises RuntimeError when any was not."""
    right = {3, 5} if workload.denied else {0}
    if not outcome.answered or set(outcome.rcodes) - right:
        raise RuntimeError(f"{subject.name}, {workload}: rcodes {outcome.rcodes}, {outcome.lost} lost")
    return outcome.answered


def _check_elements(bed: Bed, subject: Subject, *outcomes: Outcome) -> None:
    # the bed asked name 0 once to see that the server answers: its address is the pool's first
    answered = {"0a800000"} | {a for outcome in outcomes for a in outcome.addresses}
    expected = {str(IPv4Address(bytes.fromhex(a))) for a in answered}
    held = elements(bed, subject.lease_set)
    pairs = {(POD, a) for a in expected} if held and len(next(iter(held))) > 1 else {(a,) for a in expected}
    if held != pairs:
        lost = sum(outcome.lost for outcome in outcomes)
        raise WrongElementsError(
            f"{subject.name}: {len(pairs - held)} answered addresses are not in the kernel, "
            f"{len(held - pairs)} in the kernel were not answered ({lost} answers were lost)"
        )


def latency(bed: Bed, subject: Subject | None, workload: Workload, pace: Pace, cores: Cores) -> Figures:
    """Light load on these cores; `subject` None asks the upstream itself."""
    if subject is None:
        bed.start_upstream(cores)
        return _latency(bed, UPSTREAM, workload, pace, cores)
    with running(bed, subject, cores):
        return _latency(bed, RESOLVER, workload, pace, cores)


def _latency(bed: Bed, server: str, workload: Workload, pace: Pace, cores: Cores) -> Figures:
    kind, distinct = workload.kind, workload.distinct
    warm(bed, server, workload, cores, AGAIN)
    order = Order(server, kind, pace.light, workload.first(LIGHT_FIRST), distinct, rate=pace.rate)
    light = sorted(bed.load("light", order, cores.load).latencies)
    p50, p99 = statistics.median(light), light[int(len(light) * 0.99)]
    if cores.alone:
        return Figures(p50=p50, p99=p99)
    closed = Order(server, kind, pace.light, workload.first(CLOSED_FIRST), distinct, most=LEASES // 20)
    waits = bed.load("closed", closed, cores.load).latencies
    return Figures(p50_shared=p50, p99_shared=p99, closed_shared=statistics.median(waits))


@dataclass(slots=True)
class Sheet:
    """All rounds of one server and workload."""

    rounds: list[Figures] = field(default_factory=list)

    def median(self, what: str) -> float:
        """Of the rounds that measured `what`; 0 when none did."""
        values = [value for figures in self.rounds if (value := getattr(figures, what))]
        return statistics.median(values) if values else 0.0
