"""What a packet that is not for dnsguard itself pays: throughput and new connections through the pod's link, and the
programs by themselves.

The pod is the client, on the load's core; the server is in the outside world, on the other core. A packet is carried
by the core of whoever sends it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address

from benchmarks import kernel
from benchmarks.bed import RESOLVER, TOP, Bed, Cores
from benchmarks.decision import Decision, decisions
from benchmarks.load import Order
from benchmarks.names import Kind, addresses
from benchmarks.runs import Pace, running
from benchmarks.subjects import PORT, WITHOUT_EBPF, Subject, dnsguard

NOTHING = "nothing on the node"
CONNTRACK = "connection tracking alone"
BOTH = "dnsguard"
TRACKING = "table inet tracking {\n chain seen {\n type filter hook forward priority 0;\n ct state new counter\n }\n}\n"
NAME = 7
PEER = str(IPv4Address(addresses(NAME, Kind.ONE_A)[0]))
START_SECONDS = 10.0


@dataclasses.dataclass(frozen=True, slots=True)
class Through:
    """What went through the link: bits a second, and new connections a second."""

    tcp: float
    udp: float
    connections: float


@dataclasses.dataclass(frozen=True, slots=True)
class Path:
    """`through` by what was on the node; `live` are nanoseconds of one run, under iperf3's TCP, by program."""

    through: dict[str, Through]
    live: dict[str, float]
    decisions: dict[int, Decision]
    """By the number of leases in the map."""

    def share(self, what: str) -> float:
        """Of what went through with nothing on the node, that which goes through with dnsguard."""
        return float(getattr(self.through[BOTH], what) / getattr(self.through[NOTHING], what))


def measure(bed: Bed, pace: Pace, cores: Cores) -> Path:
    """What is on the node takes turns; medians of the rounds."""
    rounds: dict[str, list[Through]] = {}
    for _ in range(pace.rounds):
        for name, opened in _nodes(bed, cores).items():
            with opened():
                rounds.setdefault(name, []).append(_through(bed, pace.light, cores))
    with _guarded(bed, BOTH, cores), kernel.statistics():
        before = bed.runs()
        _iperf(bed, pace.light, cores)
        live = {name: (after - before[name]).each for name, after in bed.runs().items()}
    return Path({name: _median(found) for name, found in rounds.items()}, live, decisions())


def _nodes(bed: Bed, cores: Cores) -> dict[str, Callable[[], contextlib.AbstractContextManager[None]]]:
    """What may be on the node, each as it is opened."""
    return {
        NOTHING: contextlib.nullcontext,
        CONNTRACK: lambda: _tracking(bed),
        WITHOUT_EBPF: lambda: _guarded(bed, WITHOUT_EBPF, cores, ebpf="Off"),
        BOTH: lambda: _guarded(bed, BOTH, cores),
    }


@contextlib.contextmanager
def _tracking(bed: Bed) -> Iterator[None]:
    bed.lab.run(bed.lab.node, "nft", "-f", "-", input=TRACKING)
    try:
        yield
    finally:
        bed.lab.run(bed.lab.node, "nft", "flush", "ruleset")


@contextlib.contextmanager
def _guarded(bed: Bed, name: str, cores: Cores, ebpf: str = "On") -> Iterator[None]:
    """dnsguard, and PEER open to the pod: it has resolved a name."""
    subject: Subject = dnsguard(name, ebpf=ebpf, protocols=("TCP", "UDP"))
    with running(bed, subject, cores):
        bed.load("closed", Order(RESOLVER, Kind.ONE_A, 5.0, NAME, 1, most=1), cores.load)
        yield


def _through(bed: Bed, seconds: float, cores: Cores) -> Through:
    return Through(
        tcp=_iperf(bed, seconds, cores),
        udp=_iperf(bed, seconds, cores, "--udp", "--bandwidth", "0"),
        connections=_connections(bed, seconds, cores),
    )


def _iperf(bed: Bed, seconds: float, cores: Cores, *more: str) -> float:
    """Bits a second that the outside world has received."""
    server = ("iperf3", "--server", "--one-off", "--bind", PEER, "--port", str(PORT))
    client = ("iperf3", "--client", PEER, "--port", str(PORT), "--time", f"{max(1, round(seconds))}", "--json", *more)
    with _listening(bed, cores, *server):
        done = bed.lab.run(bed.pod.namespace, "taskset", "-c", str(cores.load), *client, check=False, timeout=120)
    result = json.loads(done.stdout)
    if "error" in result:
        raise RuntimeError(f"iperf3: {result['error']}")
    ended = result["end"]
    return float(ended.get("sum_received", ended.get("sum"))["bits_per_second"])


def _connections(bed: Bed, seconds: float, cores: Cores) -> float:
    with _listening(bed, cores, sys.executable, "-m", "benchmarks.connections", "listen", str(PORT)):
        argv = [sys.executable, "-m", "benchmarks.connections", "one-by-one", PEER, str(PORT), str(seconds)]
        done = bed.lab.run(bed.pod.namespace, "taskset", "-c", str(cores.load), *argv, cwd=TOP, timeout=120)
    return float(json.loads(done.stdout) / seconds)


@contextlib.contextmanager
def _listening(bed: Bed, cores: Cores, *argv: str) -> Iterator[None]:
    """A server in the outside world, once it listens."""
    server = bed.popen(bed.lab.world, cores.server, *argv, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not bed.lab.run(bed.lab.world, "ss", "-Hltn", f"sport = {PORT}").stdout:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{argv[0]} does not listen")
            time.sleep(0.01)
        yield
    finally:
        server.kill()
        server.wait()


def _median(rounds: list[Through]) -> Through:
    fields = [field.name for field in dataclasses.fields(Through)]
    return Through(**{name: statistics.median(getattr(each, name) for each in rounds) for name in fields})
