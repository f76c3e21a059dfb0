"""From figures to what people read: a table on the terminal, docs/benchmarks.md, and plots."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.aims import aims
from benchmarks.bed import TOP
from benchmarks.names import POOL
from benchmarks.own import own_figures, sections
from benchmarks.results import UPSTREAM_ALONE, Results
from benchmarks.runs import AGAIN, ASKINGS, Workload

WIDTH = 160

COLUMNS = (
    "server", "queries/s", "to first", "us CPU", "us core", "softirq", "us all", "to first", "lost %", "p50", "p99",
    "p50, 1 core", "p99, 1 core", "one by one",
)  # fmt: skip


def rows(results: Results, workload: Workload) -> list[list[str]]:
    """One row a server; the two ratios are against `results.first`, above 1 where that one is better."""
    made = []
    for subject in results.subjects:

        def of(what: str, server: str = subject.name) -> float:
            return results.value(server, workload, what)

        base = {what: results.value(results.first, workload, what) for what in ("qps", "all")}
        ratios = (base["qps"] / of("qps") if of("qps") else 0.0, of("all") / base["all"] if base["all"] else 0.0)
        made.append(
            [subject.name, f"{of('qps'):,.0f}", f"{ratios[0]:.2f}", f"{of('cpu'):.1f}", f"{of('core'):.1f}"]
            + [f"{of('softirq'):.1f}", f"{of('all'):.1f}", f"{ratios[1]:.2f}", f"{100 * of('lost'):.2f}"]
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
    for line in (*machine(results), *aims(results), *own_figures(results)):
        console.print(line, highlight=False)


QUIET = 1.0
"""A load average below which the machine counts as quiet."""


def machine(results: Results) -> list[str]:
    """What it is, when it was, and whether something else was using it."""
    busy = "" if results.load_before < QUIET else " THE MACHINE WAS NOT QUIET: do not rely on these figures."
    return [machine_line(results.load_before) + busy]


def machine_line(load: float) -> str:
    facts = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"Machine: {facts[0] if facts else platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB; "
        f"Linux {platform.release()}; Python {platform.python_version()}. Date: {datetime.date.today()}. "
        f"Load average before the run: {load:.1f}."
    )


INTRODUCTION = f"""# Benchmarks

Written by `make bench`; not edited by hand. One run measures every server on the same bed: a pod on a routed veth, the
server on the node, an upstream behind another veth, each in a network namespace. The server has one core to itself,
load and upstream share the other; latencies are also taken with everything on one core, because a wake-up on another
core costs more than most of what is measured. Names are never asked twice, except under "cached" and "asked again":
{AGAIN:,} names over and over, all of them asked {ASKINGS} times before anything is counted. Addresses come from a pool
of {POOL:,}, so that the kernel's sets fill with new elements. A run fails unless the elements in the kernel are exactly
the addresses answered to the pod. dnsguard runs with both of its lines, and once more without eBPF; nothing else
differs.

Every figure is the median of the rounds. Times are microseconds.

- **us CPU**: user and system time of the server's processes for each query, by the kernel's accounting. What the kernel
  answers by itself costs no process anything: compare **us all** there.
- **us core**: everything that the server's core did for each query; **softirq** is a part of it.
- **us all**: us core, and the interrupts and softirqs of the load's core. A packet is carried by the core of whoever
  sends it, through the link and whatever hangs on it up to the socket that it is for: so this holds every server's
  cost of having its queries delivered, and the whole of what eBPF does. All that both cores did is charged but for the
  processes of load and upstream. Softirqs are counted by the timer's ticks.
- **to first**: above 1 where the first server of the table is better (faster, cheaper; the second: us all).
- **p50**, **p99**: latency at a light load (open loop), on two cores and on one.
- **one by one**: median latency on one core, each question asked when the last was answered; for fresh names that of
  the upstream alone is taken off. Of every wait some 2 us are the client's own: Python, and two system calls; at a
  light load, where it has slept before each question, more.
"""


NOTES = """Only dnsguard decides by the pod that asks; for the others the nearest thing they have stands in.
Only dnsguard and dnsmasq write what they answer into the kernel, and only dnsguard's replies wait for it. unbound does
not believe a CNAME chain of a forwarder and asks for the target again: two upstream queries for each of the pod's."""


def write(results: Results, docs: Path = TOP / "docs") -> None:
    """docs/benchmarks.md and its plots."""
    docs.mkdir(exist_ok=True)
    (docs / "benchmarks.md").write_text(document(results))
    plot(results, docs)


def document(results: Results) -> str:
    parts = [
        INTRODUCTION,
        *machine(results),
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
    if lines := [f"- {line}" for line in aims(results)]:
        parts += ["## dnsguard's aims", "", *lines, ""]
    parts += sections(results)
    parts += ["## Servers", "", "| server | version | denied name | raised limits |", "|---|---|---|---|"]
    parts += [f"| {s.name} | {s.version_text()} | {s.denial} | {s.limits} |" for s in results.subjects]
    parts += ["", NOTES, ""]
    parts += [f"![{title}](benchmarks-{name}.png)" for name, title, _ in PLOTS]
    return "\n".join(parts) + "\n"


PLOTS = (
    ("qps", "Queries a second on one core", "qps"),
    ("cpu", "CPU of all cores for each query, us", "all"),
    ("latency", "Latency one by one on one core, us", "closed_shared"),
)


def plot(results: Results, docs: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [subject.name for subject in results.subjects]
    for file, title, what in PLOTS:
        figure, axes = pyplot.subplots(1, len(Workload), figsize=(17, 0.8 + 0.45 * len(names)), sharey=True)
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
