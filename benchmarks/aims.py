"""What dnsguard should reach, and whether it has: one line for each, REACHED or not said plainly."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.results import Results
from benchmarks.runs import Workload
from benchmarks.subjects import WITHOUT_EBPF


@dataclass(frozen=True, slots=True)
class Aim:
    """A figure of a workload that dnsguard should reach by itself."""

    workload: Workload
    what: str
    text: str
    least: float = 0.0
    most: float = math.inf


AIMS = (
    Aim(Workload.FRESH, "qps", "queries/s", least=50_000),
    Aim(Workload.FRESH, "cpu", "us CPU", most=20),
    Aim(Workload.CHAIN, "qps", "queries/s", least=40_000),
    Aim(Workload.CHAIN, "cpu", "us CPU", most=25),
    Aim(Workload.FRESH, "closed_shared", "us added latency", most=40),
    Aim(Workload.CACHED, "qps", "queries/s", least=50_000),
    Aim(Workload.CACHED, "cpu", "us CPU", most=20),
    Aim(Workload.DENIED, "cpu", "us CPU", most=12),
    Aim(Workload.CACHED, "p99", "us p99", most=50),
    Aim(Workload.DENIED_AGAIN, "p99", "us p99", most=50),
)

AGAINST_PEERS = (
    ("all", "CPU on all cores", 10.0),
    ("p50", "p50", 5.0),
    ("p50_shared", "p50 on one core", 5.0),
    ("closed_shared", "latency one by one", 5.0),
)
"""A figure, its name, and how many times better than the best peer it should be under the workloads asked again."""
AGAINST_ITSELF = (
    ("cpu", "CPU of the process"),
    ("all", "CPU on all cores"),
    ("closed_shared", "latency one by one"),
)
"""What is compared with dnsguard without eBPF under the others."""
EBPF_COSTS = 1.1
"""How much dearer than without eBPF a name may be that nobody has asked for."""
SPREAD = 1.15
"""Between the most and the fewest names that the kernel knows: more is no noise."""
THROUGHPUT = 0.97


def aims(results: Results) -> list[str]:
    """None without dnsguard."""
    if all(subject.name != "dnsguard" for subject in results.subjects):
        return []
    return [*_own(results), *_against_peers(results), *_without_ebpf(results), *_spread(results), *_path(results)]


def _line(what: str, aim: str, reached: bool) -> str:
    return f"{what}, aim {aim}: {'reached' if reached else 'MISSED'}"


def _own(results: Results) -> Iterator[str]:
    for aim in AIMS:
        measure = results.added if "latency" in aim.text else results.value
        found = measure("dnsguard", aim.workload, aim.what)
        if found:
            bound = f"at least {aim.least:,.0f}" if aim.least else f"at most {aim.most:,.0f}"
            yield _line(f"{aim.workload}: {found:,.1f} {aim.text}", bound, aim.least <= found <= aim.most)


def _against_peers(results: Results) -> Iterator[str]:
    for workload in (each for each in results.pace.workloads if each.again):
        for what, text, times in AGAINST_PEERS:
            found = {name: results.value(name, workload, what) for name in results.peers}
            own = results.value("dnsguard", workload, what)
            if own and found and all(found.values()):
                best = min(found, key=lambda name: found[name])
                ratio = found[best] / own
                compared = f"{own:.1f} us, {ratio:.1f} times less than the best peer ({best}, {found[best]:.1f} us)"
                yield _line(f"{workload}: {text} {compared}", f"at least {times:.0f} times", ratio >= times)


def _without_ebpf(results: Results) -> Iterator[str]:
    for workload in (each for each in results.pace.workloads if not each.again):
        for what, text in AGAINST_ITSELF:
            on, off = (results.value(name, workload, what) for name in ("dnsguard", WITHOUT_EBPF))
            if on and off:
                compared = f"{on:.1f} us with eBPF, {off:.1f} without ({100 * (on / off - 1):+.1f} %)"
                yield _line(f"{workload}: {text} {compared}", "at most 10 % more", on <= EBPF_COSTS * off)


def _spread(results: Results) -> Iterator[str]:
    if results.told:
        costs = [told.all for told in results.told.values()]
        known = ", ".join(f"{told.all:.2f} us with {names:,}" for names, told in results.told.items())
        spread = max(costs) / min(costs)
        within = f"within {100 * (SPREAD - 1):.0f} %"
        yield _line(f"CPU on all cores by names that the kernel knows: {known}", within, spread <= SPREAD)


def _path(results: Results) -> Iterator[str]:
    if results.path:
        for what, text in (("tcp", "TCP throughput"), ("udp", "UDP throughput")):
            share = results.path.share(what)
            compared = f"{100 * share:.1f} % of that with nothing on the node"
            yield _line(f"{text}: {compared}", f"at least {100 * THROUGHPUT:.0f} %", share >= THROUGHPUT)
