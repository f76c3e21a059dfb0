"""The control groups that hold a machine: by them it is ended, whole, whatever it started.

A group is called `<prefix>-<pid of the test run>-<random>`, so that what SIGKILL leaves is found by the next run.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

TOP = Path("/sys/fs/cgroup")
PREFIX = "dghost"
REMOVAL_SECONDS = 5.0
"""The kernel needs a moment to bury what was killed in a group."""
CONTROLLERS = ("memory", "cpu", "cpuacct", "pids", "blkio")
"""What sets limits, as folders of cgroup v1."""
UNIFIED_CONTROLLERS = ("memory", "cpu", "pids", "io")
"""The same, as cgroup v2 calls them."""
BOOT, MACHINE = "boot", "machine"
"""Groups of cgroup v2 below a machine's, if it is limited."""


def hierarchies() -> list[Path]:
    """Those that systemd keeps its units in: one under cgroup v2, two in the mixed set-up."""
    return [TOP / name for name in ("systemd", "unified") if (TOP / name).is_dir()] or [TOP]


def controllers() -> list[Path]:
    """The hierarchies of controllers: none under cgroup v2, which has them in its only one."""
    return [TOP / name for name in CONTROLLERS if (TOP / name).is_dir()]


def enter(name: str, *, limited: bool) -> None:
    """Make the group and put this process into it; with `limited` also where limits are set."""
    if limited and not controllers():
        _enter_unified(name)
        return
    for top in (*hierarchies(), *(controllers() if limited else ())):
        (top / name).mkdir(exist_ok=True)
        (top / name / "cgroup.procs").write_text("0")


def _enter_unified(name: str) -> None:
    """A group of cgroup v2 that hands controllers down has no process: this one goes into a group below it, and the
    machine into the one beside that."""
    for part in (BOOT, MACHINE):
        (TOP / name / part).mkdir(parents=True, exist_ok=True)
    (TOP / name / BOOT / "cgroup.procs").write_text("0")
    there = (TOP / "cgroup.controllers").read_text().split()
    wanted = " ".join(f"+{controller}" for controller in UNIFIED_CONTROLLERS if controller in there)
    for group in (TOP, TOP / name):  # the first has them already, mostly, where a systemd is the machine's
        (group / "cgroup.subtree_control").write_text(wanted)


def entering(name: str) -> list[str]:
    """What a command is run by, to be where the limits of a machine that did `enter` them are."""
    if controllers():
        return []
    return ["sh", "-ec", 'echo 0 >"$0"; exec "$@"', str(TOP / name / MACHINE / "cgroup.procs")]


def sweep() -> list[str]:
    """End the machines of test runs that are dead; returns their names."""
    names = {path.name for top in _everywhere() for path in top.glob(f"{PREFIX}-*-*")}
    dead = sorted(name for name in names if not Path("/proc", name.split("-")[1]).exists())
    for name in dead:
        remove(name)
    return dead


def remove(name: str) -> None:
    """Kill every process of the group and of those under it, and remove them."""
    for top in hierarchies():
        if (kill := top / name / "cgroup.kill").exists():  # cgroup v2 only; it holds the same processes
            kill.write_text("1")
    for top in _everywhere():
        for folder, _, _ in os.walk(top / name, topdown=False):
            _remove_empty(Path(folder))


def _everywhere() -> list[Path]:
    return [*hierarchies(), *controllers()]


def _remove_empty(folder: Path) -> None:
    deadline = time.monotonic() + REMOVAL_SECONDS
    while folder.exists():
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
