"""What `benchmarks.memory` has found, as people read it: lines, docs/memory.md and its plot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.bed import TOP
from benchmarks.memory import Books, LongRun, Memory
from benchmarks.report import machine_line

PLOT = "memory.svg"
MOST_RESIDENT, MOST_EACH = 150e6, 600.0
"""The aims: octets with few leases, and octets of each further one."""
FLAT = 0.05
"""By how much of itself memory may grow over the second half of the long run."""

INTRODUCTION = """# Memory

Written by `make bench ARGS=--memory`; not edited by hand. Two runs of the whole daemon with both of its lines, its
limits and tables as they come. Resident memory (RSS) is that of the daemon's process by the kernel's accounting,
everything in it: interpreter, libraries, policies, leases, answers kept.
"""

SHORT_LEASES = """Leases of this run end some two seconds after their answer (TTL 1 s, `ttl: {floor: 1s, grace: 1s}`),
as those of days do in the end; each answer is cached, and pushes out an older one once 50,000 are there. Every other
reload gives half of the pods another rule, and the next takes it back. The start values are those after each pod has
asked once and the allowlist was reloaded: what is made at its first use is there then. Old answers go by their number,
not by their age, so memory grows until there are as many as are kept, and then no more."""


def lines(memory: Memory, load: float) -> list[str]:
    """For the terminal."""
    return [machine_line(load), *_long(memory), *_books(memory.long), *_usual(memory)]


def met(memory: Memory) -> bool:
    """Whether all aims are."""
    usual, long = memory.usual, memory.long
    return usual.few < MOST_RESIDENT and usual.each < MOST_EACH and _grown(long) < FLAT and long.before == long.after


def _grown(long: LongRun) -> float:
    """By what share of itself memory grew from the middle of the queries to the end of the run."""
    asked = [sample for sample in long.samples if 2 * sample.queries >= long.asked]
    return max(sample.resident for sample in asked) / asked[0].resident - 1 if asked else 0.0


def _long(memory: Memory) -> Iterator[str]:
    extent, long = memory.extent, memory.long
    first, last = long.samples[0], long.samples[-1]
    yield (
        f"{long.asked:,} queries for {extent.names:,} names from {extent.pods:,} pods in {long.reloads[-1]:.0f} s, "
        f"{len(long.reloads)} reloads between; {long.failed:,} failed and were asked again."
    )
    yield (
        f"Resident: {_mb(first.resident)} at the start, at most {_mb(max(each.resident for each in long.samples))}, "
        f"{_mb(last.resident)} when the last lease had ended; from the middle of the run on it grew by "
        f"{100 * _grown(long):.1f} %."
    )


def _usual(memory: Memory) -> Iterator[str]:
    usual = memory.usual
    few, many = usual.leases
    yield f"{memory.extent.usual:,} pods without a lease: {_mb(usual.start)} resident."
    yield f"With {few:,} leases: {_mb(usual.few)} (aim: under {_mb(MOST_RESIDENT)})."
    each = f"{usual.each:.0f} octets for each further one (aim: under {MOST_EACH:.0f})"
    yield f"With {many:,} leases: {_mb(usual.many)}, {each}."


def _books(long: LongRun) -> Iterator[str]:
    different = [name for name, before, after in _rows(long) if before != after]
    yield "As at the start: " + ("everything." if not different else f"not {', '.join(different)}.")


def _rows(long: LongRun) -> Iterator[tuple[str, int, int]]:
    for name, of in _COUNTS.items():
        yield name, of(long.before), of(long.after)
    for name in long.before.entries:
        yield f"map `{name}`", long.before.entries[name], long.after.entries.get(name, 0)


_COUNTS: dict[str, Callable[[Books], int]] = {
    "file descriptors": lambda books: books.descriptors,
    "threads": lambda books: books.threads,
    "leases": lambda books: books.leases,
    "nft elements": lambda books: books.elements,
}


def write(memory: Memory, load: float, command: str, docs: Path = TOP / "docs") -> None:
    """docs/memory.md and its plot."""
    (docs / "memory.md").write_text(document(memory, load, command))
    plot(memory, docs / PLOT)


def document(memory: Memory, load: float, command: str) -> str:
    table = ["| | at the start | at its height | at the end |", "|---|---:|---:|---:|"]
    heights = dict(_heights(memory.long))
    for name, before, after in _rows(memory.long):
        table.append(f"| {name} | {before:,} | {heights.get(name, '')} | {after:,} |")
    parts = [INTRODUCTION, machine_line(load), f"Command: `{command}`.", ""]
    parts += ["## A long run", "", f"![Resident memory over a long run]({PLOT})", ""]
    parts += [*(f"- {line}" for line in _long(memory)), "", SHORT_LEASES, "", *table, ""]
    parts += ["## A usual node", "", *(f"- {line}" for line in _usual(memory)), ""]
    return "\n".join(parts)


def _heights(long: LongRun) -> Iterator[tuple[str, str]]:
    yield "file descriptors", f"{max(each.descriptors for each in long.samples):,}"
    yield "threads", f"{max(each.threads for each in long.samples):,}"
    yield "leases", f"{max(each.leases for each in long.samples):,}"


def _mb(octets: float) -> str:
    return f"{octets / 1e6:.0f} MB"


def plot(memory: Memory, file: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    # The same figures make the same file, whoever draws them and when.
    matplotlib.rcParams.update({"svg.hashsalt": "dnsguard", "svg.fonttype": "none"})
    from matplotlib import pyplot

    long = memory.long
    times = [each.seconds for each in long.samples]
    figure, axis = pyplot.subplots(figsize=(10, 4.5))
    for at in long.reloads:
        axis.axvline(at, color="#dddddd", linewidth=1)
    axis.plot(times, [each.resident / 1e6 for each in long.samples], color="#c8502d", label="resident, MB")
    axis.set_ylim(bottom=0)
    axis.set_xlabel("seconds; a grey line is a reload, and behind the last nothing is asked any more")
    axis.set_ylabel("MB")
    leases = axis.twinx()
    leases.plot(times, [each.leases for each in long.samples], color="#5b7c99", linewidth=0.8, label="leases")
    leases.set_ylim(bottom=0)
    leases.set_ylabel("leases")
    axis.legend(handles=[*axis.get_lines()[-1:], *leases.get_lines()], loc="lower right", frameon=False)
    for each in (axis, leases):
        each.spines["top"].set_visible(False)
    axis.set_title(f"{long.asked:,} queries for {memory.extent.names:,} names from {memory.extent.pods:,} pods")
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)
