"""A full node: a thousand pods with a program each, and a million leases, all made by asking.

Every pod has a link of its own to one namespace that plays them all (`benchmarks.crowd`), a policy of RULES rules that
no other pod has, and asks for the same names: a lease for each, in the maps and in nftables' set. On a lab of its own,
and within minutes of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import frames, kernel
from benchmarks.bed import TOP, UPSTREAM, Bed, Cores, Server
from benchmarks.names import ALLOWED_ZONE
from dnsguard.control.client import ControlClient, NotRunningError
from dnsguard.core.errors import DnsguardError
from dnsguard.demo.lab import GATEWAY_MAC, Lab

RULES = 10
PORT = 443
TURN = 2.0
"""Seconds between two looks at whether the daemon is ready."""


@dataclasses.dataclass(frozen=True, slots=True)
class Size:
    """Of the node. `minutes`: what all of it may take."""

    pods: int = 1_000
    names: int = 1_000
    minutes: float = 8.0


FULL = Size()
QUICK = Size(pods=20, names=100, minutes=1.0)


@dataclasses.dataclass(frozen=True, slots=True)
class Scale:
    """Seconds, octets and counts."""

    size: Size
    start: float
    """From the start of the process until it is ready, the programs on every link."""
    leases: int
    rate: float
    """Leases made a second, from the question to the answer, each answer another pod's."""
    failed: int
    """Questions that got no address, and were asked again."""
    before: int
    resident: int
    """Octets of the process with the programs alone, and with all leases."""
    maps: dict[str, int]
    """What the kernel accounts for each map."""
    kernel: int
    """By how much the kernel's own memory grew with the leases: maps, nftables' set, and whatever else came."""
    one: float
    """A reload that gives one pod another rule."""
    all: float
    """A reload that gives every pod another rule."""


class TooSlowError(Exception):
    """The minutes were not enough; the text says where they ended."""


def measure(folder: Path, cores: Cores, size: Size) -> Scale:
    """Raises TooSlowError, RuntimeError with what the daemon said."""
    deadline = time.monotonic() + 60 * size.minutes
    (folder / "scale").mkdir()
    with kernel.bpffs(folder / "scale/bpf"), Lab("dnsguard-bench") as lab:
        bed = Bed(lab, folder / "scale")
        bed.start_upstream(cores)
        make_links(bed, size)
        node = Node(bed, size, cores, config(bed, size))
        try:
            return _measure(node, deadline)
        finally:
            node.stop()


def _measure(node: Node, deadline: float) -> Scale:
    started = node.start(deadline)
    resident, memory = node.server.resident(), kernel.memory()
    asked = node.ask(deadline)
    return Scale(
        size=node.size,
        start=started,
        leases=int(node.control.call("status")["leases"]),
        rate=asked["answered"] / asked["seconds"],
        failed=int(asked["failed"]),
        before=resident,
        resident=node.server.resident(),
        maps=kernel.maps(node.bed.pins),
        kernel=kernel.memory() - memory,
        one=node.reload(range(1)),
        all=node.reload(range(node.size.pods)),
    )


class Node:
    """dnsguard on the bed's node, told of all pods."""

    server: Server
    module = "dnsguard"
    """What is run of it."""

    def __init__(self, bed: Bed, size: Size, cores: Cores, config: str) -> None:
        self.bed, self.size, self._cores = bed, size, cores
        self.control = ControlClient(bed.folder / "run")
        self._config, self._allowlist = bed.folder / "config.yaml", bed.folder / "allowlist.yaml"
        self._log = bed.folder / "log"
        self._config.write_text(config)
        self._write_allowlist(range(0))

    @property
    def pid(self) -> int:
        return self.server.process.pid

    def start(self, deadline: float) -> float:
        begun = time.monotonic()
        with self._log.open("w") as log:
            command = (sys.executable, "-m", self.module, "run", "--config", str(self._config))
            process = self.bed.popen(self.bed.lab.node, self._cores.server, *command, stdout=log, stderr=log)
        self.server = Server(process, self._cores)
        while not self._ready():
            if process.poll() is not None:
                raise RuntimeError(f"dnsguard ended: {self._said()}")
            if time.monotonic() > deadline:
                raise TooSlowError(f"not ready with {self.size.pods:,} pods: {self._said()}")
            time.sleep(TURN / 10)
        return time.monotonic() - begun

    def _ready(self) -> bool:
        try:
            status = self.control.call("status")
        except (NotRunningError, DnsguardError):
            return False
        return bool(status["ready"]) and status["pods"] >= self.size.pods

    def _said(self) -> str:
        return self._log.read_text()[-2000:]

    def log_lines(self) -> int:
        with self._log.open("rb") as log:
            return sum(1 for _ in log)

    def ask(self, deadline: float, *turns: int) -> dict[str, float]:
        """Every name for every pod, or these turns of `crowd.mixed`: the first, the one behind the last, the share, and
        the number of answers of which one leads to a connection."""
        seconds = max(1, int(deadline - time.monotonic()))
        numbers = map(str, (self.size.pods, self.size.names, seconds, *turns))
        argv = ("taskset", "-c", str(self._cores.load), sys.executable, "-m", "benchmarks.crowd", *numbers)
        ran = self.bed.lab.run(self.bed.pod.namespace, *argv, cwd=TOP, timeout=seconds + 30)
        asked: dict[str, float] = json.loads(ran.stdout)
        if asked["unanswered"]:
            done = f"{asked['answered']:,} of the questions were answered in {asked['seconds']:.0f} s"
            raise TooSlowError(f"{done}, {asked['failed']:,} failed: {self._said()}")
        return asked

    def reload(self, changed: range) -> float:
        self._write_allowlist(changed)
        begun = time.monotonic()
        self.control.call("reload")
        return time.monotonic() - begun

    def _write_allowlist(self, changed: range) -> None:
        self._allowlist.write_text("".join(allowlist(self.size, changed)))

    def stop(self) -> None:
        with contextlib.suppress(AttributeError):
            self.server.process.send_signal(signal.SIGTERM)
            self.server.process.wait(60)
        cleanup = (sys.executable, "-m", "dnsguard", "cleanup", "--config", str(self._config))
        self.bed.lab.run(self.bed.lab.node, *cleanup, check=False, timeout=120)


def config(bed: Bed, size: Size) -> str:
    leases = size.pods * size.names
    return f"""apiVersion: dnsguard/v1
kind: Configuration
allowlist: {bed.folder}/allowlist.yaml
pods: {{interfaces: ["crowd-*"]}}
upstreams: [{UPSTREAM}]
enforcement: {{ebpf: On}}
limits: {{queriesPerSecond: 1000000, burst: 1000000, inFlight: 60000, uniqueNamesPerMinute: 10000000,
         addressesPerName: 100000, leasesPerPod: {size.names}}}
tables: {{pods: {size.pods}, leases: {leases}}}
log: {{format: json, queries: None}}
metrics: {{listen: null}}
paths: {{runtime: {bed.folder}/run, bpffs: {bed.pins}, state: {bed.folder}/state}}
"""


def allowlist(size: Size, changed: range) -> Iterator[str]:
    """RULES rules for each pod: one of the names, and networks that are its own. `changed` pods get other networks."""
    yield "apiVersion: dnsguard/v1\nkind: Allowlist\npolicies:\n"
    for pod in range(size.pods):
        names = f'to: [{{domainNames: ["*.{ALLOWED_ZONE}"]}}], ports: [{{protocol: TCP, port: {PORT}}}]'
        yield f"  policy-{pod}:\n    egress:\n      - {{{names}}}\n"
        for rule in range(1, RULES):
            network = f"172.{16 + rule + (16 if pod in changed else 0)}.{pod >> 8}.{pod & 255}/32"
            block = f"to: [{{ipBlock: {{cidr: {network}}}}}], ports: [{{protocol: TCP, port: {8000 + rule}}}]"
            yield f"      - {{{block}}}\n"
    yield "pods:\n"
    for pod in range(size.pods):
        yield f"  {_dotted(pod)}: {{name: crowd/pod-{pod}, policies: [policy-{pod}]}}\n"


def _dotted(pod: int) -> str:
    return ".".join(map(str, frames.address(pod)))


def make_links(bed: Bed, size: Size) -> None:
    """Each pod's link, its other end in the namespace of the bed's pod. Without IPv6, which would chatter on each."""
    lab, there = bed.lab, bed.pod.namespace
    for place in (lab.node, there):
        lab.sysctl(place, ipv6__conf__default__disable_ipv6=1)
    for pod in range(size.pods):
        lab.ip(lab.node, *_node_side(pod, there))
        lab.ip(there, f"link set {frames.link_name(pod)} up")


def _node_side(pod: int, there: str) -> Iterator[str]:
    link, end, mac = f"crowd-{pod}", frames.link_name(pod), frames.mac(pod).hex(":")
    yield f"link add {link} address {GATEWAY_MAC} type veth peer name {end} address {mac} netns {there}"
    yield f"link set {link} up"
    yield f"route add {_dotted(pod)}/32 dev {link}"
    yield f"neigh add {_dotted(pod)} lladdr {mac} dev {link} nud permanent"
