"""`python -m benchmarks --help`. Exit code: 0 measured; 1 a server failed or its elements are wrong; 77 not root."""

from __future__ import annotations

import argparse
import dataclasses
import os
import pstats
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from benchmarks import dnsguard_alone, memory, memory_report, path, report, scale, told
from benchmarks.bed import RESOLVER, UPSTREAM, Bed, Cores
from benchmarks.kernel import bpffs
from benchmarks.load import Order
from benchmarks.results import UPSTREAM_ALONE, Results
from benchmarks.runs import (
    FULL,
    MEASURED_FIRST,
    QUICK,
    Figures,
    Pace,
    Sheet,
    Workload,
    WrongElementsError,
    latency,
    running,
    saturate,
)
from benchmarks.scale import Scale, TooSlowError
from benchmarks.subjects import SUBJECTS, Subject
from dnsguard.core.errors import MissingFeatureError
from dnsguard.demo.lab import Lab

MISSING = 77
console = Console(stderr=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="dnsguard beside its peers, one after the other"
    )
    parser.add_argument(
        "--quick", action="store_true", help="one short round: a smoke run, its figures are not written to docs/"
    )
    parser.add_argument("--only", help="comma-separated programs of: " + ", ".join(s.program for s in SUBJECTS))
    parser.add_argument("--rounds", type=int, default=FULL.rounds)
    parser.add_argument("--names", type=int, default=10_000, help="fresh names resolved and connected to at once")
    parser.add_argument("--pods", type=int, default=scale.FULL.pods, help="of the full node")
    parser.add_argument("--minutes", type=float, default=scale.FULL.minutes, help="what the full node may take at most")
    parser.add_argument(
        "--memory", action="store_true", help="instead of all else, dnsguard's memory over a long run: docs/memory.md"
    )
    parser.add_argument("--server-cpu", type=int, default=0)
    parser.add_argument("--load-cpu", type=int, default=1)
    parser.add_argument(
        "--profile", action="store_true", help="dnsguard alone, under cProfile: prints where its time goes"
    )
    return parser.parse_args()


def chosen(only: str | None) -> tuple[Subject, ...]:
    """The subjects to measure; SystemExit names a program that is unknown or not there."""
    wanted = only.split(",") if only else [s.program for s in SUBJECTS]
    if unknown := set(wanted) - {s.program for s in SUBJECTS}:
        sys.exit(f"unknown: {', '.join(sorted(unknown))}")
    subjects = tuple(s for s in SUBJECTS if s.program in wanted)
    if absent := [s.program for s in subjects if not s.found()]:
        sys.exit(f"not installed: {', '.join(absent)} (CoreDNS: `python -m tests.coredns`, the others: apt-get)")
    return subjects


def measurements(bed: Bed, subject: Subject, workload: Workload, pace: Pace, cores: Cores) -> Iterator[Figures]:
    yield saturate(bed, subject, workload, pace, cores)
    if pace.two_cores:
        yield latency(bed, subject, workload, pace, cores)
    yield latency(bed, subject, workload, pace, Cores(cores.server, cores.server))


def upstream_alone(bed: Bed, pace: Pace, cores: Cores) -> Iterator[Figures]:
    bed.start_upstream(cores)
    order = Order(UPSTREAM, Workload.FRESH.kind, pace.saturate, 0, Workload.FRESH.distinct)
    outcome = bed.load("saturate", order, cores.load)
    yield Figures(qps=outcome.answered / outcome.seconds)
    yield latency(bed, None, Workload.FRESH, pace, cores)
    yield latency(bed, None, Workload.FRESH, pace, Cores(cores.server, cores.server))


def compare(bed: Bed, subjects: tuple[Subject, ...], pace: Pace, cores: Cores) -> dict[tuple[str, Workload], Sheet]:
    """All rounds, the servers taking turns, so that a slow minute of the machine is nobody's alone."""
    sheets: dict[tuple[str, Workload], Sheet] = {}
    for round_ in range(pace.rounds):
        sheets.setdefault((UPSTREAM_ALONE, Workload.FRESH), Sheet()).rounds += upstream_alone(bed, pace, cores)
        for workload in pace.workloads:
            for subject in subjects:
                sheet = sheets.setdefault((subject.name, workload), Sheet())
                first, *others = measurements(bed, subject, workload, pace, cores)
                sheet.rounds += (first, *others)
                console.print(
                    f"round {round_ + 1}: {subject.name}, {workload}: {first.qps:,.0f}/s, {first.cpu:.1f} us CPU"
                )
    return sheets


def command() -> str:
    """As it was typed."""
    return f'make bench ARGS="{shlex.join(sys.argv[1:])}"' if sys.argv[1:] else "make bench"


def everything(
    bed: Bed, subjects: tuple[Subject, ...], pace: Pace, cores: Cores, options: argparse.Namespace
) -> Results:
    """The comparison, and what only dnsguard has figures for when it is among the servers."""
    first = subjects[0]
    load, _, _ = os.getloadavg()
    results = Results(compare(bed, subjects, pace, cores), subjects, pace, command(), first.name, load_before=load)
    if first.name != "dnsguard":
        return results
    console.print("dnsguard by itself")
    alone = dnsguard_alone.measure(bed, first, pace, cores, options.names)
    by_names = told.measure(bed, first, pace, cores)
    console.print("the packet path")
    through = path.measure(bed, pace, cores)
    console.print("a full node")
    return dataclasses.replace(results, alone=alone, told=by_names, path=through, scale=full_node(bed, cores, options))


def full_node(bed: Bed, cores: Cores, options: argparse.Namespace) -> Scale | str:
    """Or why it was not measured: the rest of a run is not lost over it."""
    size = scale.QUICK if options.quick else scale.Size(pods=options.pods, minutes=options.minutes)
    try:
        return scale.measure(bed.folder, cores, size)
    except (TooSlowError, RuntimeError) as error:
        return str(error)


def profile(bed: Bed, pace: Pace, cores: Cores) -> None:
    """Print where dnsguard's time goes under each workload at saturation, by function."""
    (subject,) = (s for s in SUBJECTS if s.name == "dnsguard")
    out = bed.folder / "profile"

    class Profiled(Subject):
        def found(self) -> str | None:
            return sys.executable

    given = {f.name: getattr(subject, f.name) for f in dataclasses.fields(subject)}
    given["configure"] = lambda folder: ["-m", "benchmarks.profiled", str(out), *subject.configure(folder)]
    for workload in Workload:
        with running(bed, Profiled(**given), cores):
            order = Order(RESOLVER, workload.kind, pace.saturate, workload.first(MEASURED_FIRST), workload.distinct)
            bed.load("saturate", order, cores.load)
        print(f"--- {workload}")
        pstats.Stats(str(out)).sort_stats("tottime").print_stats(40)


def memory_alone(cores: Cores, *, quick: bool) -> int:
    """The exit code: 1 when an aim was missed; of a quick run, in which leases are too few, when anything was left
    or not used."""
    load, _, _ = os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="dnsguard-bench-") as folder:
        found = memory.measure(Path(folder), cores, memory.QUICK if quick else memory.FULL)
    for line in memory_report.lines(found, load):
        print(line)
    if quick:
        return int(not memory_report.nothing_left(found))
    memory_report.write(found, load, command())
    return int(not memory_report.met(found))


def main() -> int:
    options = arguments()
    pace = QUICK if options.quick else dataclasses.replace(FULL, rounds=options.rounds)
    cores = Cores(options.server_cpu, options.load_cpu)
    subjects = () if options.memory else chosen("dnsguard" if options.profile else options.only)
    if os.cpu_count() == 1 or not {cores.server, cores.load} <= os.sched_getaffinity(0):
        sys.exit("two cores are needed: one for the server, one for load and upstream")
    try:
        if options.memory:
            return memory_alone(cores, quick=options.quick)
        with (
            tempfile.TemporaryDirectory(prefix="dnsguard-bench-") as folder,
            bpffs(Path(folder) / "bpf"),
            Lab("dnsguard-bench") as lab,
        ):
            bed = Bed(lab, Path(folder))
            if options.profile:
                profile(bed, pace, cores)
                return 0
            results = everything(bed, subjects, pace, cores, options)
    except MissingFeatureError as error:
        print(error, file=sys.stderr)
        return MISSING
    except subprocess.CalledProcessError as error:
        print(f"{' '.join(error.cmd)} ended with {error.returncode}: {error.stderr}", file=sys.stderr)
        return 1
    except (WrongElementsError, TooSlowError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
    report.show(results)
    if not options.quick and not options.only:
        report.write(results)
    return int(bool(results.alone and results.alone.failed))


if __name__ == "__main__":
    sys.exit(main())
