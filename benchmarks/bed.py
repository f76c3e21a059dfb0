"""Where every server is measured: a pod on a routed veth, a node, and the upstream on the far side of another veth.

Two cores: the server under test has `server_cpu` to itself, load and upstream share `load_cpu`; or all share one.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.kernel import Runs, runs_on
from benchmarks.load import Order, Outcome
from benchmarks.names import WORLD_NETWORK
from benchmarks.upstream import TTL
from dnsguard.demo.lab import Lab, Pod

TOP = Path(__file__).resolve().parent.parent
POD = "10.99.1.2"
RESOLVER = "10.99.1.1"
"""What the pod asks: an address of the node, where peers listen; dnsguard intercepts it."""
UPSTREAM = "10.99.2.2"
TICK = 1 / os.sysconf("SC_CLK_TCK")


@dataclasses.dataclass(frozen=True, slots=True)
class Cores:
    """Which core runs what; `alone` is False when the server shares its core with load and upstream."""

    server: int
    load: int

    @property
    def alone(self) -> bool:
        return self.server != self.load


@dataclasses.dataclass(frozen=True, slots=True)
class Spent:
    """Seconds, by the kernel's accounting."""

    process: float
    """User and system time of the server's process, its threads and its children."""
    core: float
    """Everything that the server's core did, whoever caused it."""
    softirq: float
    """What of that was softirqs: packets carried."""
    carried: float
    """Interrupts and softirqs of the load's core: packets carried there, and what eBPF does with them."""

    def __sub__(self, before: Spent) -> Spent:
        return Spent(
            self.process - before.process,
            self.core - before.core,
            self.softirq - before.softirq,
            self.carried - before.carried,
        )


class Server:
    """A running server under test and what it has cost so far."""

    def __init__(self, process: subprocess.Popen[str], cores: Cores) -> None:
        self.process, self._cores = process, cores

    def spent(self) -> Spent:
        """Until now; of cores, since boot."""
        process = sum(_stat_seconds(pid) for pid in _family(self.process.pid))
        core, softirq = _busy(self._cores.server)
        return Spent(process, core, softirq, _busy(self._cores.load)[1])

    def resident(self) -> int:
        """Octets of memory of the process and its children."""
        return sum(_resident(pid) for pid in _family(self.process.pid))

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Bed:
    """One lab with an upstream running in it. Use inside `with Lab(...)`."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab, self.folder = lab, folder
        self.pins = folder / "bpf" / "dnsguard"
        self.pod: Pod = lab.pod("load", POD)
        # the world answers on the whole pool, so that what was resolved can be connected to
        lab.ip(lab.node, f"addr add {RESOLVER}/32 dev lo")
        lab.ip(lab.world, f"addr add {UPSTREAM}/32 dev lo", f"route add local {WORLD_NETWORK} dev lo")
        self._upstream: subprocess.Popen[str] | None = None
        self._cores: Cores | None = None

    def start_upstream(self, cores: Cores, ttl: int = TTL) -> None:
        """Start the upstream on the load's core; one that already runs there is kept."""
        if self._cores == cores:
            return
        if self._upstream:
            self._upstream.kill()
            self._upstream.wait()
        self._cores = cores
        argv = (sys.executable, "-m", "benchmarks.upstream", UPSTREAM, str(ttl))
        self._upstream = self.popen(self.lab.world, cores.load, *argv)
        self.wait_for_answer(UPSTREAM)

    def popen(self, place: str, cpu: int, *argv: str, **options: object) -> subprocess.Popen[str]:
        return self.lab.popen(place, "taskset", "-c", str(cpu), *argv, cwd=TOP, **options)

    def runs(self) -> dict[str, Runs]:
        """Of dnsguard's programs on the pod's link."""
        return self.lab.inside(self.lab.node, lambda: runs_on(socket.if_nametoindex(self.pod.link)))

    def start(self, cores: Cores, argv: list[str], log: Path, environment: dict[str, str]) -> Server:
        """Start a server on the node and wait until it answers the pod. Raises RuntimeError with the end of its log."""
        with log.open("w") as out:
            process = self.popen(
                self.lab.node, cores.server, *argv, stdout=out, stderr=out, env=os.environ | environment
            )
        try:
            self.wait_for_answer(RESOLVER, process)
        except RuntimeError as error:
            raise RuntimeError(f"{argv[0]}: {error}; its log ends:\n{log.read_text()[-2000:]}") from None
        return Server(process, cores)

    def wait_for_answer(self, server: str, process: subprocess.Popen[str] | None = None) -> None:
        deadline = time.monotonic() + 20
        order = {"server": server, "kind": "a1", "seconds": 1.0, "first": 0, "distinct": 1, "most": 1, "mode": "closed"}
        while time.monotonic() < deadline:
            if process and process.poll() is not None:
                raise RuntimeError(f"ended with {process.returncode} before it answered")
            if self._load(order, 0).get("rcodes") == {"0": 1}:
                return
        raise RuntimeError("no answer within 20 s")

    def load(self, mode: str, order: Order, cpu: int) -> Outcome:
        """Run the load in the pod. Raises RuntimeError with what it printed when it could not."""
        result = self._load(dataclasses.asdict(order) | {"mode": mode}, cpu)
        if "error" in result:
            raise RuntimeError(result["error"])
        return Outcome(**result | {"rcodes": {int(k): v for k, v in result["rcodes"].items()}})

    def _load(self, order: dict[str, object], cpu: int) -> dict[str, Any]:
        argv = ["taskset", "-c", str(cpu), sys.executable, "-m", "benchmarks.load", json.dumps(order)]
        done = self.lab.run(self.pod.namespace, *argv, cwd=TOP, check=False, timeout=300)
        result: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {"error": done.stderr[-2000:]}
        return result


def _family(pid: int) -> Iterator[int]:
    yield pid
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from _family(int(child))
    except FileNotFoundError:
        return


def _busy(cpu: int) -> tuple[float, float]:
    """(busy seconds, of these seconds of interrupts and softirqs) of a core since boot."""
    line = next(x for x in Path("/proc/stat").read_text().splitlines() if x.startswith(f"cpu{cpu} "))
    user, nice, system, _idle, _iowait, irq, softirq, *_ = (int(x) * TICK for x in line.split()[1:])
    return user + nice + system + irq + softirq, irq + softirq


def _stat_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK


def _resident(pid: int) -> int:
    line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024
