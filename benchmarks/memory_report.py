"""What `benchmarks.memory` has found, as people read it: lines, docs/memory.md and its plot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.bed import TOP
from benchmarks.crowd import OWN
from benchmarks.held import left, rows
from benchmarks.memory import DENIED, SCRAPED, LongRun, Memory
from benchmarks.report import machine_line
from dnsguard.engine.prefetch import DENIED_NAMES

PLOT = "memory.svg"
MOST_RESIDENT, MOST_EACH = 150e6, 600.0
"""The aims: octets with few leases, and octets of each further one."""
FLAT = 0.05
"""By how much of itself memory may grow once all is kept that ever is: at rest from the start to the end, and at its
height from the first half of the run to the second."""

FULL = ("cached answers", "past denials")
"""Of these there are as many as are kept before the long run starts."""

INTRODUCTION = """# Memory

Written by `make bench ARGS=--memory`; not edited by hand. Two runs of the whole daemon with both of its lines, its
log, metrics, limits and tables as they come. Resident memory (RSS) is that of the daemon's process by the kernel's
accounting, everything in it: interpreter, libraries, policies, leases, answers kept.
"""

SHORT_LEASES = f"""Leases of this run end some two seconds after their answer (TTL 1 s, `ttl: {{floor: 1s,
grace: 1s}}`), as those of days do in the end. Every other reload gives half of the pods another rule, and the next
takes it back. Each pod has {OWN} names of its own that it is denied, and asks for one of them again and again; ever
another pod asks for more of them than it has log lines. A connection lasts a second; with each, a packet is sent to
another address, which is closed. Not part of the run is a pod that is denied ever new names: up to
{2 * DENIED_NAMES:,} of them are remembered of each."""


def lines(memory: Memory, load: float) -> list[str]:
    """For the terminal."""
    return [machine_line(load), *_long(memory), *_books(memory), *_usual(memory)]


def met(memory: Memory) -> bool:
    """Whether all aims are."""
    usual, long = memory.usual, memory.long
    cheap = usual.few < MOST_RESIDENT and usual.each < MOST_EACH and usual.leases[0] >= memory.extent.few
    return cheap and at_rest(long) < FLAT and at_height(long) < FLAT and nothing_left(memory)


def nothing_left(memory: Memory) -> bool:
    """Whether everything is as at the start, after a run that has used all that it was to use."""
    return not _left(memory) and all(used for _, used in _uses(memory))


def at_rest(long: LongRun) -> float:
    """By what share of itself memory grew from the start to the end, with nothing under way at both."""
    return long.end.resident / long.start.resident - 1


def at_height(long: LongRun) -> float:
    """By what share of itself the height of the second half of the run is above that of the first."""
    middle = (long.start.seconds + long.end.seconds) / 2
    first = max(each.resident for each in long.samples if long.start.seconds <= each.seconds <= middle)
    return max(each.resident for each in long.samples if each.seconds > middle) / first - 1


def _uses(memory: Memory) -> Iterator[tuple[str, bool]]:
    """What the long run is to use, and whether it did."""
    long, load = memory.long, memory.long.load
    for name in FULL:
        yield f"{name}, as many as are kept", long.before.inside.get(name, 0) >= memory.extent.kept[name]
    yield "denied names", load.denied > 0
    yield "log lines", load.log_lines > 0
    yield "scrapes", load.scrapes > 0
    yield "connections", load.stood > 0 and any(each.flows for each in long.samples)
    yield "packets to what is closed", load.closed > 0


def _long(memory: Memory) -> Iterator[str]:
    extent, long, load = memory.extent, memory.long, memory.long.load
    yield (
        f"{load.asked:,} queries for {extent.names:,} names from {extent.pods:,} pods in "
        f"{long.reloads[-1] - long.start.seconds:.0f} s, {len(long.reloads)} reloads between; {load.failed:,} failed "
        f"and were asked again."
    )
    yield (
        f"{load.denied:,} of them, one in {DENIED}, for names that are denied, not among those; {load.log_lines:,} "
        f"lines of log; {load.stood:,} connections of {load.begun:,} stood, {load.closed:,} packets to closed "
        f"addresses; {load.scrapes:,} scrapes, one every {SCRAPED:.0f} s."
    )
    if unused := [what for what, used in _uses(memory) if not used]:
        yield f"Not used, and to be: {', '.join(unused)}."
    yield from _resident(memory)


def _resident(memory: Memory) -> Iterator[str]:
    long, inside = memory.long, memory.long.before.inside
    yield (
        f"Before the start memory grows, once: from {_mb(long.empty.resident)} when each pod has asked once to "
        f"{_mb(long.start.resident)}, for answers, denials, ended leases and what learn has seen are kept by number. "
        f"{memory.extent.filling:,} questions fill that up to {inside.get('cached answers', 0):,} answers "
        f"(`cache.entries`), {inside.get('past denials', 0):,} denials (64 of each pod) and "
        f"{inside.get('ended leases', 0):,} ended leases, {inside.get('seen flows', 0):,} flows seen; a new one then "
        f"takes the place of an old one, or is not kept. "
        f"The names that a pod asks for are counted for a minute: {memory.extent.warm:.0f} s of the same load fill "
        f"that, too."
    )
    height = _mb(max(each.resident for each in long.samples if each.seconds >= long.start.seconds))
    yield (
        f"From the start on: {_mb(long.start.resident)} at the start, at most {height} with leases and questions "
        f"under way, {_mb(long.end.resident)} when the last lease had ended: {100 * at_rest(long):+.1f} %, or "
        f"{(long.end.resident - long.start.resident) / long.load.asked:+.1f} octets a query (aim: under "
        f"{100 * FLAT:.0f} %). The second half's height is {100 * at_height(long):+.1f} % from the first's (aim: under "
        f"{100 * FLAT:.0f} %)."
    )


def _usual(memory: Memory) -> Iterator[str]:
    usual = memory.usual
    few, many = usual.leases
    yield f"{memory.extent.usual:,} pods without a lease: {_mb(usual.start)} resident."
    yield f"With {few:,} leases: {_mb(usual.few)} (aim: under {_mb(MOST_RESIDENT)} with {memory.extent.few:,})."
    each = f"{usual.each:.0f} octets for each further one (aim: under {MOST_EACH:.0f})"
    yield f"With {many:,} leases: {_mb(usual.many)}, {each}."


def _books(memory: Memory) -> Iterator[str]:
    different = _left(memory)
    yield "As at the start: " + ("everything." if not different else f"not {', '.join(different)}.")


def _left(memory: Memory) -> list[str]:
    return left(memory.long.before, memory.long.after, memory.extent.kept)


def _kept(memory: Memory) -> str:
    of_all = [f"{name} ({most:,})" for name, most in memory.extent.kept.items()]
    return f"Of these there may be as many as are kept, and no more: {', '.join(of_all)}."


def write(memory: Memory, load: float, command: str, docs: Path = TOP / "docs") -> None:
    """docs/memory.md and its plot."""
    (docs / "memory.md").write_text(document(memory, load, command))
    plot(memory, docs / PLOT)


def document(memory: Memory, load: float, command: str) -> str:
    table = ["| | at the start | at its height | at the end |", "|---|---:|---:|---:|"]
    heights, after = dict(_heights(memory.long)), dict(rows(memory.long.after))
    for name, before in rows(memory.long.before):
        table.append(f"| {name} | {before:,} | {heights.get(name, '')} | {after.get(name, 0):,} |")
    parts = [INTRODUCTION, machine_line(load), f"Command: `{command}`.", ""]
    parts += ["## A long run", "", f"![Resident memory over a long run]({PLOT})", ""]
    parts += [
        *(f"- {line}" for line in _long(memory)),
        "",
        SHORT_LEASES,
        "",
        *_books(memory),
        _kept(memory),
        "",
        *table,
        "",
    ]
    parts += ["## A usual node", "", *(f"- {line}" for line in _usual(memory)), ""]
    return "\n".join(parts)


def _heights(long: LongRun) -> Iterator[tuple[str, str]]:
    yield "file descriptors", f"{max(each.descriptors for each in long.samples):,}"
    yield "threads", f"{max(each.threads for each in long.samples):,}"
    yield "leases", f"{max(each.leases for each in long.samples):,}"
    yield "map `flows`", f"{max(each.flows for each in long.samples):,}"


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
    axis.axvline(long.start.seconds, color="#444444", linewidth=1, linestyle="--")
    axis.plot(times, [each.resident / 1e6 for each in long.samples], color="#c8502d", label="resident, MB")
    axis.set_ylim(bottom=0)
    axis.set_xlabel("seconds; dashed: the start, the caches full; grey: a reload, behind the last nothing is asked")
    axis.set_ylabel("MB")
    leases = axis.twinx()
    leases.plot(times, [each.leases for each in long.samples], color="#5b7c99", linewidth=0.8, label="leases")
    leases.set_ylim(bottom=0)
    leases.set_ylabel("leases")
    axis.legend(handles=[*axis.get_lines()[-1:], *leases.get_lines()], loc="lower right", frameon=False)
    for each in (axis, leases):
        each.spines["top"].set_visible(False)
    axis.set_title(f"{long.load.asked:,} queries for {memory.extent.names:,} names from {memory.extent.pods:,} pods")
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)
