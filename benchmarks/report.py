"""From figures to what people read: a table on the terminal, docs/benchmarks.md, and plots."""

from __future__ import annotations

import datetime
import math
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.bed import TOP
from benchmarks.dnsguard_alone import Alone
from benchmarks.names import POOL
from benchmarks.runs import Pace, Sheet, Workload
from benchmarks.subjects import Subject

UPSTREAM_ALONE = "upstream alone"
WIDTH = 150


@dataclass(frozen=True, slots=True)
class Results:
    """Of a whole run: sheets by (server, workload), UPSTREAM_ALONE being a server too."""

    sheets: dict[tuple[str, Workload], Sheet]
    subjects: tuple[Subject, ...]
    pace: Pace
    command: str
    first: str
    """The server that the others are compared with."""
    alone: Alone | None = None

    def value(self, server: str, workload: Workload, what: str) -> float:
        sheet = self.sheets.get((server, workload))
        return sheet.median(what) if sheet else 0.0

    def added(self, server: str, workload: Workload, what: str) -> float:
        """Latency over that of the upstream alone; nothing is taken off where an answer needs no upstream."""
        asks = workload in (Workload.FRESH, Workload.CHAIN)
        direct = self.value(UPSTREAM_ALONE, Workload.FRESH, what) if asks else 0.0
        return max(0.0, self.value(server, workload, what) - direct)


@dataclass(frozen=True, slots=True)
class Aim:
    """A figure that dnsguard should reach."""

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
)

COLUMNS = (
    "server", "queries/s", "to first", "us CPU", "to first", "us core", "softirq", "lost %", "p50", "p99",
    "p50, 1 core", "p99, 1 core", "one by one",
)  # fmt: skip


def rows(results: Results, workload: Workload) -> list[list[str]]:
    """One row a server; the two ratios are against `results.first`, above 1 where that one is better."""
    made = []
    for subject in results.subjects:

        def of(what: str, server: str = subject.name) -> float:
            return results.value(server, workload, what)

        base = {what: results.value(results.first, workload, what) for what in ("qps", "cpu")}
        ratios = (base["qps"] / of("qps") if of("qps") else 0.0, of("cpu") / base["cpu"] if base["cpu"] else 0.0)
        made.append(
            [subject.name, f"{of('qps'):,.0f}", f"{ratios[0]:.2f}", f"{of('cpu'):.1f}", f"{ratios[1]:.2f}"]
            + [f"{of('core'):.1f}", f"{of('softirq'):.1f}", f"{100 * of('lost'):.2f}"]
            + [f"{of(what):.0f}" if of(what) else "" for what in ("p50", "p99", "p50_shared", "p99_shared")]
            + [f"{results.added(subject.name, workload, 'closed_shared'):.0f}"]
        )
    return made


def show(results: Results) -> None:
    """Print it; a pipe or a narrow terminal gets the whole width all the same."""
    console = Console(width=max(WIDTH, Console().width))
    for workload in results.pace.workloads:
        table = Table(*COLUMNS, title=workload.value)
        for row in rows(results, workload):
            table.add_row(*row)
        console.print(table)
    for line in (*aims(results), *alone_lines(results)):
        console.print(line, highlight=False)


def aims(results: Results) -> list[str]:
    """One line for each aim: what was reached and whether that is enough. None without dnsguard."""
    if all(subject.name != "dnsguard" for subject in results.subjects):
        return []
    made = []
    for aim in (aim for aim in AIMS if aim.workload in results.pace.workloads):
        measure = results.added if "latency" in aim.text else results.value
        reached = measure("dnsguard", aim.workload, aim.what)
        bound = f"at least {aim.least:,.0f}" if aim.least else f"at most {aim.most:,.0f}"
        verdict = "reached" if aim.least <= reached <= aim.most else "MISSED"
        made.append(f"{aim.workload}: {reached:,.1f} {aim.text}, aim {bound}: {verdict}")
    return made


def alone_lines(results: Results) -> list[str]:
    alone = results.alone
    if alone is None:
        return []
    verdicts = ", ".join(f"{cost:.2f} us with {count:,}" for count, cost in alone.verdicts.items())
    return [
        f"From an answer's leases handed over to the kernel's acknowledgement: median {alone.commit_p50:.0f} us, "
        f"p99 {alone.commit_p99:.0f} us at saturation; median {alone.commit_light_p50:.0f} us at a light load.",
        f"Memory for 10,000 leases, their answers' cache entries included: {alone.memory / 1e6:.1f} MB.",
        f"A verdict (patterns): {verdicts}.",
        f"Fresh names resolved and connected to at once: {alone.connected:,} at the first SYN, {alone.failed} failed.",
    ]


def machine() -> list[str]:
    facts = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return [
        f"Machine: {facts[0] if facts else platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB; "
        f"Linux {platform.release()}; Python {platform.python_version()}. Date: {datetime.date.today()}.",
    ]


INTRODUCTION = f"""# Benchmarks

Written by `make bench`; not edited by hand. One run measures every server on the same bed: a pod on a routed veth, the
server on the node, an upstream behind another veth, each in a network namespace. The server has one core to itself,
load and upstream share the other; latencies are also taken with everything on one core, because a wake-up on another
core costs more than most of what is measured. Names are never asked twice (except under "cached": 1,000 names over and
over) and addresses come from a pool of {POOL:,}, so that the kernel's sets fill with new elements. A run fails unless
the elements in the kernel are exactly the addresses answered to the pod.

Every figure is the median of the rounds. Times are microseconds.

- **us CPU**: user and system time of the server's processes for each query, by the kernel's accounting.
- **us core**: everything that the server's core did for each query; **softirq** is a part of it.
- **to first**: above 1 where the first server of the table is better (faster, cheaper).
- **p50**, **p99**: latency at a light load (open loop), on two cores and on one.
- **one by one**: median latency on one core, each question asked when the last was answered; for fresh names that of
  the upstream alone is taken off.
"""


NOTES = """Only dnsguard decides by the pod that asks; for the others the nearest thing they have stands in.
Only dnsguard and dnsmasq write what they answer into the kernel, and only dnsguard's replies wait for it. unbound does
not believe a CNAME chain of a forwarder and asks for the target again: two upstream queries for each of the pod's."""


def write(results: Results, docs: Path = TOP / "docs") -> None:
    """docs/benchmarks.md and its plots."""
    docs.mkdir(exist_ok=True)
    parts = [
        INTRODUCTION,
        *machine(),
        f"Command: `{results.command}`; {results.pace.rounds} x {results.pace.saturate:g} s.",
        "",
    ]
    for workload in Workload:
        parts += [
            f"## {workload.value[:1].upper()}{workload.value[1:]}",
            "",
            "| " + " | ".join(COLUMNS) + " |",
            "|---" + "|---:" * (len(COLUMNS) - 1) + "|",
        ]
        parts += ["| " + " | ".join(row) + " |" for row in rows(results, workload)]
        parts += [""]
    direct = results.value(UPSTREAM_ALONE, Workload.FRESH, "qps")
    parts += [f"Load and upstream without a server reach {direct:,.0f} queries/s on their core.", ""]
    if lines := [f"- {line}" for line in (*aims(results), *alone_lines(results))]:
        parts += ["## dnsguard's aims, and figures of its own", "", *lines, ""]
    parts += ["## Servers", "", "| server | version | denied name | raised limits |", "|---|---|---|---|"]
    parts += [f"| {s.name} | {s.version_text()} | {s.denial} | {s.limits} |" for s in results.subjects]
    parts += ["", NOTES, ""]
    parts += [f"![{title}](benchmarks-{name}.png)" for name, title, _ in PLOTS]
    (docs / "benchmarks.md").write_text("\n".join(parts) + "\n")
    plot(results, docs)


PLOTS = (
    ("qps", "Queries a second on one core", "qps"),
    ("cpu", "CPU for each query, us", "cpu"),
    ("latency", "Latency one by one on one core, us", "closed_shared"),
)


def plot(results: Results, docs: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [subject.name for subject in results.subjects]
    for file, title, what in PLOTS:
        figure, axes = pyplot.subplots(1, len(Workload), figsize=(14, 0.8 + 0.45 * len(names)), sharey=True)
        for axis, workload in zip(axes, Workload, strict=True):
            values = [results.value(name, workload, what) for name in names]
            bars = axis.barh(names, values, color=["#c8502d" if name == results.first else "#5b7c99" for name in names])
            axis.bar_label(
                bars, labels=[f"{value:,.0f}" if value > 100 else f"{value:.1f}" for value in values], padding=3
            )
            axis.set_title(workload.value, fontsize=10)
            axis.margins(x=0.3)
            axis.locator_params(axis="x", nbins=4)
            axis.spines[["top", "right"]].set_visible(False)
        axes[0].invert_yaxis()
        figure.suptitle(title)
        figure.tight_layout()
        figure.savefig(docs / f"benchmarks-{file}.png", dpi=110)
        pyplot.close(figure)
