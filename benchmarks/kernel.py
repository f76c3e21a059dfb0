"""The kernel's own accounting: time in eBPF programs, memory of maps, memory in all; and a bpffs for the run."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dnsguard.enforce.bpf import events
from dnsguard.enforce.bpf.syscall import TCX_EGRESS, TCX_INGRESS, Map, get_pinned, prog_by_id, prog_query

BPFFS = "dnsguard-bench"
"""What the bpffs of benchmarks are called in the table of mounts."""
STATISTICS = Path("/proc/sys/kernel/bpf_stats_enabled")
HOOKS = {"from_pod": TCX_INGRESS, "to_pod": TCX_EGRESS}


@contextlib.contextmanager
def bpffs(folder: Path) -> Iterator[None]:
    """A bpffs of the run's own there. With it go its pins, and with them what they kept in the kernel."""
    _unmount_what_killed_runs_left()
    folder.mkdir()
    subprocess.run(["mount", "-t", "bpf", f"{BPFFS}-{os.getpid()}", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _unmount_what_killed_runs_left() -> None:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        source, target, *_ = line.split()
        name, _, pid = source.rpartition("-")
        if name == BPFFS and not Path("/proc", pid).exists():
            subprocess.run(["umount", "--lazy", target], check=False)


# ---- programs


@contextlib.contextmanager
def statistics() -> Iterator[None]:
    """While inside the kernel counts every run of a program and its time; that costs each run two looks at the clock,
    of which one is in the time."""
    before = STATISTICS.read_text()
    STATISTICS.write_text("1")
    try:
        yield
    finally:
        STATISTICS.write_text(before)


@dataclass(frozen=True, slots=True)
class Runs:
    """How often a program has run while `statistics` were on, and for how many nanoseconds in all."""

    count: int
    nanoseconds: int

    def __sub__(self, before: Runs) -> Runs:
        return Runs(self.count - before.count, self.nanoseconds - before.nanoseconds)

    @property
    def each(self) -> float:
        """Nanoseconds of one run."""
        return self.nanoseconds / self.count if self.count else 0.0


def runs(program: int) -> Runs:
    """Of a program's file descriptor."""
    facts = _facts(program)
    return Runs(facts["run_cnt"], facts["run_time_ns"])


def runs_on(link: int) -> dict[str, Runs]:
    """Of dnsguard's programs on this link of the calling thread's network namespace, which stand first there."""
    found = {}
    for name, hook in HOOKS.items():
        program = prog_by_id(prog_query(link, hook)[0].program)
        try:
            found[name] = runs(program)
        finally:
            os.close(program)
    return found


# ---- maps


def answered(pins: Path) -> int:
    """Questions that the kernel has answered by itself."""
    with contextlib.closing(Map(get_pinned(pins / "maps" / "counts"))) as counts:
        return sum(each.answered + each.denied for each in events.answered(counts))


def maps(pins: Path) -> dict[str, int]:
    """Octets that the kernel accounts for each pinned map."""
    sizes = {}
    for path in (pins / "maps").iterdir():
        descriptor = get_pinned(path)
        try:
            sizes[path.name] = _facts(descriptor)["memlock"]
        finally:
            os.close(descriptor)
    return sizes


def _facts(descriptor: int) -> dict[str, int]:
    lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()
    pairs = (line.split(":") for line in lines)
    return {name: int(value) for name, value in pairs if value.strip().isdecimal()}


def memory() -> int:
    """Octets of the kernel's own memory, whatever they are for: slabs, vmalloc, per processor."""
    facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return sum(int(facts[name].split()[0]) for name in ("Slab", "VmallocUsed", "Percpu")) * 1024
