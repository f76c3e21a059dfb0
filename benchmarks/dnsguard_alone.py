"""What only dnsguard has figures for: the wait for the kernel, memory of leases, verdicts, first connections."""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import time
from urllib.request import urlopen

from benchmarks.bed import RESOLVER, TOP, Bed, Cores
from benchmarks.load import Order
from benchmarks.names import ALLOWED_ZONE, POOL, Kind, name, wire_name
from benchmarks.runs import Pace, running
from benchmarks.subjects import PORT, Subject
from dnsguard.core.model import Action, DomainPeer, Name, Pattern, Policy, Rule
from dnsguard.core.policy import Allowed, EffectivePolicy, effective

PATTERNS = (10, 1_000, 10_000, 100_000)
METRICS = "http://127.0.0.1:9353/metrics"
HISTOGRAM = "dnsguard_enforce_commit_duration_seconds"
LEASES_MEASURED = 40_000
LINES = ("ebpf", "nftables")


@dataclasses.dataclass(frozen=True, slots=True)
class Commit:
    """From handing leases over to a line to the kernel's acknowledgement, microseconds."""

    p50: float
    p99: float
    """At saturation: those of many answers in one transaction."""
    light: float
    """Median at a light load: nothing to share a transaction with."""


@dataclasses.dataclass(frozen=True, slots=True)
class Alone:
    """Microseconds, octets and counts; see the fields."""

    commits: dict[str, Commit]
    """By the line that the leases are written to, one after the other."""
    memory: float
    """Octets of memory for 10,000 leases: the growth of the process, its answer cache included."""
    verdicts: dict[int, float]
    """Of one verdict, for each number of patterns."""
    connected: int
    failed: int
    """Fresh names resolved and connected to at once: first connections that stood, and that did not."""


def measure(bed: Bed, subject: Subject, pace: Pace, cores: Cores, names: int) -> Alone:
    """All of it; one fresh server for each part."""
    with running(bed, subject, cores):
        light = Order(RESOLVER, Kind.ONE_A, pace.light, 0, POOL, rate=pace.rate)
        bed.load("light", light, cores.load)
        before = {line: _histogram(bed, line) for line in LINES}
        bed.load("saturate", Order(RESOLVER, Kind.ONE_A, pace.saturate, POOL, 90_000_000), cores.load)
        commits = {line: _commit(before[line], _histogram(bed, line)) for line in LINES}
    connected, failed = _first_connections(bed, subject, cores, names)
    return Alone(
        commits=commits,
        memory=_memory(bed, subject, cores),
        verdicts={count: verdict_cost(count) for count in PATTERNS},
        connected=connected,
        failed=failed,
    )


def _commit(light: dict[float, float], both: dict[float, float]) -> Commit:
    saturated = {bound: count - light.get(bound, 0) for bound, count in both.items()}
    return Commit(_quantile(saturated, 0.5), _quantile(saturated, 0.99), _quantile(light, 0.5))


def _histogram(bed: Bed, line: str) -> dict[float, float]:
    """Cumulative counts of a line's commit histogram by upper bound."""
    text = bed.lab.inside(bed.lab.node, lambda: urlopen(METRICS, timeout=5).read().decode())
    lines = [x for x in text.splitlines() if x.startswith(f"{HISTOGRAM}_bucket") and f'"{line}"' in x]
    return {float(x.split('le="')[1].split('"')[0]): float(x.rsplit(" ", 1)[1]) for x in lines}


def _quantile(buckets: dict[float, float], share: float) -> float:
    """Microseconds below which `share` of the commits ended, linear within a bucket; infinity beyond the last."""
    wanted, below, lower = share * max(buckets.values(), default=0.0), 0.0, 0.0
    for bound, count in sorted(buckets.items()):
        if count >= wanted and count > below:
            return (lower + (bound - lower) * (wanted - below) / (count - below)) * 1e6
        below, lower = count, bound
    return 0.0


def _memory(bed: Bed, subject: Subject, cores: Cores) -> float:
    """Growth of the resident size for 10,000 leases, between 10,000 leases and 10,000 + LEASES_MEASURED - 10,000."""
    with running(bed, subject, cores) as server:
        first = Order(RESOLVER, Kind.ONE_A, 30.0, 0, POOL, window=64, most=POOL - LEASES_MEASURED)
        bed.load("saturate", first, cores.load)
        before = server.resident()
        rest = Order(RESOLVER, Kind.ONE_A, 60.0, POOL - LEASES_MEASURED, POOL, window=64, most=LEASES_MEASURED)
        bed.load("saturate", rest, cores.load)
        return (server.resident() - before) / LEASES_MEASURED * 10_000


def _first_connections(bed: Bed, subject: Subject, cores: Cores, names: int) -> tuple[int, int]:
    """(connections that stood at the first SYN, those that did not), each made the moment its answer came."""
    listener = bed.popen(bed.lab.world, cores.load, sys.executable, "-m", "benchmarks.connections", "listen", str(PORT))
    try:
        with running(bed, subject, cores):
            argv = [sys.executable, "-m", "benchmarks.connections", "connect", RESOLVER, str(PORT), str(names)]
            done = bed.lab.run(bed.pod.namespace, "taskset", "-c", str(cores.load), *argv, cwd=TOP, timeout=120)
    finally:
        listener.kill()
        listener.wait()
    result = json.loads(done.stdout)
    return result["connected"], result["failed"]


def policy(patterns: int) -> EffectivePolicy:
    """A pod's policy of that many patterns, one in ten a wildcard, over ten rules."""
    made = [
        Pattern(Name(wire_name(f"host{n}.{'zone' if n % 10 else 'wild'}{n % 97}.pattern.test")), wildcard=n % 10 == 0)
        for n in range(patterns)
    ]
    share = max(1, patterns // 10)
    rules = [Rule(domains=(DomainPeer(tuple(made[at : at + share])),)) for at in range(0, patterns, share)]
    last = Rule(domains=(DomainPeer((Pattern(Name(wire_name(ALLOWED_ZONE)), wildcard=True),)),))
    return effective([Policy("load", (*rules, last))], Action.DENY)


def verdict_cost(patterns: int, names: int = 20_000) -> float:
    """Microseconds of one verdict on a name not asked before, median of five rounds; half of them are denied."""
    judged, rounds = policy(patterns), []
    for round_ in range(5):
        asked = [Name(wire_name(name(round_ * names + n, Kind.DENIED if n % 2 else Kind.ONE_A))) for n in range(names)]
        start = time.perf_counter()
        verdicts = [judged.verdict(each) for each in asked]
        rounds.append((time.perf_counter() - start) / names * 1e6)
        if sum(isinstance(v, Allowed) for v in verdicts) != names // 2:
            raise RuntimeError(f"{patterns} patterns: the verdicts are wrong")
    return statistics.median(rounds)
