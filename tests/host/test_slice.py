"""The slice's limits are the kernel's, and they bite: what takes too much of the node is stopped, the pods stay closed.

On a machine with cgroup v2, and on one where each controller is a hierarchy of its own (cgroup v1), for which systemd
translates. MemoryHigh= has no translation: on cgroup v1 nothing slows down what is between it and MemoryMax=, and only
on v2 is it looked at here. That weights are there is looked at, but not what they do: that shows only on a node where
others want the same.
"""

from __future__ import annotations

import contextlib
import errno
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.host import groups
from tests.host.host import UNIT, Host, hosting
from tests.host.machine import TOP
from tests.host.test_faults_system import ask_much
from tests.host.troubles import PATIENCE, WHOLE, events, flow_of, is_whole, restarts
from tests.host.watch import closed

pytestmark = pytest.mark.node

SLICE = "dnsguard.slice"
V1 = bool(groups.controllers())
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
PERIOD = 100_000
"""Microseconds in which a quota of CPU is used up and given anew: systemd's default."""


def lines() -> dict[str, str]:
    """What the unit says, its section [Slice]."""
    text = (TOP / f"systemd/{SLICE}").read_text().partition("[Slice]")[2]
    return dict(line.split("=") for line in text.splitlines() if line and not line.startswith("#"))


def octets(value: str) -> str:
    return str(int(value[:-1]) * UNITS[value[-1]])


def share(value: str) -> str:
    """Of a period; systemd's percents are of one CPU."""
    return str(int(value.rstrip("%")) * PERIOD // 100)


@dataclass(frozen=True)
class Limit:
    """Where the kernel has a line of the slice: a file of a controller of cgroup v1, and one of v2."""

    old: str
    new: str
    old_value: Callable[[str], str] = str
    new_value: Callable[[str], str] = str

    @property
    def file(self) -> str:
        return file(self.old, self.new)

    def wanted(self, value: str) -> str:
        return self.old_value(value) if V1 else self.new_value(value)


def file(old: str, new: str) -> str:
    """Of the slice's group, in the machine."""
    return f"/sys/fs/cgroup/{old.partition('.')[0]}/{SLICE}/{old}" if V1 else f"/sys/fs/cgroup/{SLICE}/{new}"


LIMITS = {
    "MemoryMax": Limit("memory.limit_in_bytes", "memory.max", octets, octets),
    "CPUWeight": Limit("cpu.shares", "cpu.weight", lambda value: str(int(value) * 1024 // 100)),
    "CPUQuota": Limit("cpu.cfs_quota_us", "cpu.max", share, lambda value: f"{share(value)} {PERIOD}"),
    "TasksMax": Limit("pids.max", "pids.max"),
} | ({} if V1 else {"MemoryHigh": Limit("", "memory.high", octets, octets)})
IO_WEIGHTS = ("blkio.bfq.weight", "blkio.weight") if V1 else ("io.bfq.weight", "io.weight")
"""Which of them there is depends on the kernel's schedulers. Each has a scale of its own; 100 is for who says nothing
(500 in blkio.weight)."""
HUGE = 100_000
"""Pods."""
SYS_RESOURCE = 24
"""The capability that a machine's systemd needs for a negative OOMScoreAdjust=. Without it it says nothing."""
HOG = """
held = [b"x" * (1 << 20) for _ in range(512)]
"""
BUSY = """
import time
started, used = time.monotonic(), time.process_time()
while time.process_time() - used < {seconds}:
    pass
print(time.monotonic() - started)
"""
FORKS = """
import os, signal, sys
try:
    for _ in range(1000):
        if not os.fork():
            signal.pause()
except OSError as error:
    print(error.errno, flush=True)
else:
    print("nothing stopped it", flush=True)
sys.stdin.read()
"""
"""Its children end with its group."""


@pytest.fixture(scope="module")
def node(image: Path) -> Iterator[Host]:
    with hosting([image], limited=True) as host:
        host.scene.zone.put("*.fresh.example.com", "A", "198.18.0.9")
        yield host


def read(host: Host, path: str) -> str:
    return host.machine.read(path).strip()


def count(host: Host, path: str, key: str) -> int:
    """A number that the kernel keeps in a file of lines `key number`."""
    return int(dict(line.split() for line in read(host, path).splitlines())[key])


@contextlib.contextmanager
def edited(host: Host, line: str) -> Iterator[None]:
    """Inside, the slice has this line instead of its own, as `systemctl edit` does it; nothing is restarted."""
    name, value = line.split("=")
    drop_in = f"/run/systemd/system/{SLICE}.d/override.conf"
    host.machine.write(drop_in, f"[Slice]\n{line}\n")
    host.machine.systemctl("daemon-reload")
    try:
        assert read(host, LIMITS[name].file) == LIMITS[name].wanted(value)
        yield
    finally:
        (host.machine.root / drop_in[1:]).unlink()
        host.machine.systemctl("daemon-reload")


@contextlib.contextmanager
def beside(host: Host, name: str, program: str) -> Iterator[subprocess.Popen[str]]:
    """A program of Python in the slice, in a unit of its own. It says something in its first line, or it ends."""
    run = ("systemd-run", "--quiet", "--pipe", "--wait", "--collect", f"--slice={SLICE}", f"--unit={name}")
    process = host.machine.popen(*run, "/usr/bin/python3", "-c", program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        host.machine.systemctl("stop", f"{name}.service", check=False)
        process.communicate(timeout=PATIENCE)


def killed(host: Host) -> list[str]:
    """The units in which the kernel has killed because the slice had no more memory, from the kernel's own log."""
    log = subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout
    place = rf"\S*{host.machine.name}\S*/{re.escape(SLICE)}"
    return re.findall(rf"oom_memcg={place},task_memcg={place}/([^,/]+)", log)


# -- they are there ---------------------------------------------------------------------------------------------------


def test_every_line_of_the_slice_is_looked_at() -> None:
    assert set(lines()) == {*LIMITS, "IOWeight", "MemoryHigh"}


@pytest.mark.parametrize("name", LIMITS)
def test_the_kernel_has_the_limit_that_the_unit_says(node: Host, name: str) -> None:
    assert read(node, LIMITS[name].file) == LIMITS[name].wanted(lines()[name])


def test_the_kernel_has_a_weight_for_disks_above_the_default(node: Host) -> None:
    paths = [file(name, name) for name in IO_WEIGHTS]
    found = {path: read(node, path) for path in paths if (node.machine.root / path[1:]).exists()}

    assert found, "this kernel cannot weigh who uses a disk"
    for path, text in found.items():
        assert int(text.split()[-1]) > (500 if path.endswith("blkio.weight") else 100)


def test_the_daemon_is_where_the_limits_are(node: Host) -> None:
    groups_of_daemon = node.machine.read(f"/proc/{node.daemon.pid}/cgroup").splitlines()
    places = {line.split(":")[1]: line.split(":")[2] for line in groups_of_daemon}

    for controller in ("memory", "cpu", "pids", "blkio") if V1 else ("",):
        assert f"/{SLICE}" in places[controller]


# -- they bite --------------------------------------------------------------------------------------------------------


def spares(host: Host) -> bool:
    """Whether the machine's systemd may tell the kernel to spare a process."""
    capabilities = re.search(r"^CapEff:\s*(\w+)$", host.machine.read("/proc/1/status"), re.MULTILINE)
    assert capabilities
    return bool(int(capabilities[1], 16) >> SYS_RESOURCE & 1)


def test_the_kernel_is_told_to_spare_the_daemon(node: Host) -> None:
    """As far as the machine's systemd may: without CAP_SYS_RESOURCE it may not, and says nothing."""
    assert read(node, f"/proc/{node.daemon.pid}/oom_score_adj") == ("-900" if spares(node) else "0")


def test_what_takes_too_much_memory_in_the_slice_is_killed_and_not_the_daemon(node: Host) -> None:
    """Where the kernel is told to spare the daemon, even what is smaller than that."""
    pid, before, room = node.daemon.pid, killed(node), 32 if spares(node) else 256

    with flow_of(node) as flow, edited(node, f"MemoryMax={needed(node) + room}M"), closed(node):
        with beside(node, "hog", HOG) as hog:
            assert hog.wait(PATIENCE) != 0
        assert is_whole(node)
        assert flow.alive()

    assert killed(node)[len(before) :] == ["hog.service"]
    assert node.daemon.pid == pid


def test_a_daemon_that_takes_too_much_memory_is_killed_closed_until_it_is_back_and_loses_no_flow(node: Host) -> None:
    before, deaths = restarts(node), len(killed(node))

    with flow_of(node) as flow:
        with edited(node, f"MemoryMax={needed(node) + 1}M"), closed(node):
            node.until(lambda: ask_much(node) and len(killed(node)) > deaths, PATIENCE)
            node.until(lambda: restarts(node) > before, PATIENCE)

        node.until(lambda: is_whole(node), WHOLE)
        assert flow.alive()
    assert set(killed(node)[deaths:]) == {UNIT}
    assert "killed by SIGKILL; the kernel has killed a process" in events(node, "ended_badly")[-1]["DNSGUARD_REASON"]


def needed(host: Host) -> int:
    """The memory that the slice holds and the kernel cannot take back, in MiB."""
    stat, total = file("memory.stat", "memory.stat"), "total_" if V1 else ""
    cache = sum(count(host, stat, f"{total}{state}_file") for state in ("active", "inactive"))
    return (int(read(host, file("memory.usage_in_bytes", "memory.current"))) - cache) >> 20


def test_a_reload_that_takes_too_much_memory_is_refused_and_the_daemon_goes_on(node: Host) -> None:
    """The process that reads is the first to be killed."""
    pid, before, deaths = node.daemon.pid, len(events(node, "policy_not_taken")), len(killed(node))

    with edited(node, f"MemoryMax={needed(node) * 5 // 2}M"), closed(node), huge_allowlist(node):
        assert node.machine.systemctl("reload", UNIT, check=False).returncode != 0
        assert killed(node)[deaths:] == [UNIT]
        assert is_whole(node)

    (told,) = events(node, "policy_not_taken")[before:]
    assert "the process that reads it was killed (out of memory?)" in told["DNSGUARD_REASON"]
    assert node.daemon.pid == pid


@contextlib.contextmanager
def huge_allowlist(host: Host) -> Iterator[None]:
    """Inside, the file is one that takes more than twice the daemon's memory to read."""
    path = "/etc/dnsguard/allowlist.yaml"
    good = host.machine.read(path)
    pods = (f"  10.{100 + n // 65536}.{n // 256 % 256}.{n % 256}: [db.example.com]\n" for n in range(HUGE))
    host.machine.write(path, "apiVersion: dnsguard/v1\nkind: Allowlist\npods:\n" + "".join(pods))
    try:
        yield
    finally:
        host.machine.write(path, good)
        host.machine.systemctl("reload", UNIT)


def test_a_busy_process_in_the_slice_gets_no_more_of_a_cpu_than_the_quota(node: Host) -> None:
    stat = file("cpu.stat", "cpu.stat")
    used, quota = 0.4, 0.2

    with edited(node, f"CPUQuota={quota:.0%}"), closed(node):
        throttled = count(node, stat, "nr_throttled")
        with beside(node, "busy", BUSY.format(seconds=used)) as busy:
            assert busy.stdout
            took = float(busy.stdout.readline())
        assert count(node, stat, "nr_throttled") > throttled

    assert took > 0.8 * used / quota  # the first period begins whenever it does
    node.until(lambda: is_whole(node), WHOLE)


def test_when_the_slice_is_full_of_tasks_no_more_are_made_and_the_daemon_goes_on(node: Host) -> None:
    pid, before = node.daemon.pid, len(events(node, "policy_not_taken"))

    with closed(node), beside(node, "forks", FORKS) as forks:
        assert forks.stdout
        assert forks.stdout.readline() == f"{errno.EAGAIN}\n"
        assert read(node, file("pids.current", "pids.current")) == lines()["TasksMax"]
        assert is_whole(node)
        assert node.machine.systemctl("reload", UNIT, check=False).returncode != 0
        assert is_whole(node)

    (told,) = events(node, "policy_not_taken")[before:]
    assert "the process that reads it could not be started" in told["DNSGUARD_REASON"]
    assert node.daemon.pid == pid
    node.machine.systemctl("reload", UNIT)
    assert is_whole(node)


# -- and are gone after a run that was killed -------------------------------------------------------------------------


def test_a_machine_of_a_dead_run_is_ended_and_removed_from_every_hierarchy() -> None:
    enter = "import os\nfrom tests.host import groups\nname = f'{groups.PREFIX}-{os.getpid()}-left'\n"
    rest = "groups.enter(name, limited=True)\nprint(name, flush=True)\nos.fork() or os.execlp('sleep', 'sleep', '600')"
    left = subprocess.Popen(
        [sys.executable, "-c", enter + rest], cwd=TOP, env={"PYTHONPATH": str(TOP)}, stdout=subprocess.PIPE, text=True
    )
    with left:
        assert left.stdout
        name = left.stdout.readline().strip()
        left.wait()
        folders = [top / name for top in (*groups.hierarchies(), *groups.controllers())]
        assert all(any(file.read_text() for file in folder.rglob("cgroup.procs")) for folder in folders)

        assert name in groups.sweep()

        assert not any(folder.exists() for folder in folders)
        assert left.stdout.read() == ""  # its end: nobody is left who has it open
