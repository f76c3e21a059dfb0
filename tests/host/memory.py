"""A control group with little memory: what is put into it meets the kernel's own OOM killer.

It is a group of this machine, and holds one process: a limit in the unit holds all of it, and on a machine that is not
`limited` there is none where memory is a hierarchy of its own (cgroup v1).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from tests.host import groups

V1 = groups.TOP / "memory"
TOP = V1 if V1.is_dir() else groups.TOP


@contextlib.contextmanager
def little_memory(name: str, octets: int) -> Iterator[Path]:
    """A group of this name: what is written to its cgroup.procs has so much, for what it allocates from then on."""
    _sweep()
    group = TOP / f"{groups.PREFIX}-{os.getpid()}-little-{name}"
    group.mkdir()
    try:
        limit = "memory.limit_in_bytes" if V1.is_dir() else "memory.max"
        (group / limit).write_text(str(octets))
        yield group
    finally:
        _end(group)


def _sweep() -> None:
    """What dead test runs have left."""
    for group in TOP.glob(f"{groups.PREFIX}-*-little-*"):
        if not Path("/proc", group.name.split("-")[1]).exists():
            _end(group)


def _end(group: Path) -> None:
    """Processes that are left go up into the group above."""
    deadline = time.monotonic() + groups.REMOVAL_SECONDS
    while True:
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                (group.parent / "cgroup.procs").write_text(pid)
        try:
            group.rmdir()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def kills(group: Path) -> int:
    """How often the OOM killer has chosen in it."""
    file = group / ("memory.oom_control" if V1.is_dir() else "memory.events")
    return next(int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith("oom_kill "))
