"""Where the demo plays: two pods on a node with dnsguard, and an outside world that answers, until the block ends.

Needs root, curl, iproute2 and util-linux. Everything is in network namespaces, one folder and a bpffs in it, whose
names hold this process's number; what a killed demo left of them is removed by the next one. Where there can be no
eBPF, nftables plays alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dnslib import EDNS0, QTYPE, RCODE, DNSRecord

from dnsguard.control.client import ControlClient, NotRunningError
from dnsguard.core.errors import DnsguardError, MissingFeatureError
from dnsguard.core.model import Seconds
from dnsguard.demo.bpffs import bpffs, sweep_bpffs
from dnsguard.demo.interrupts import Interrupts
from dnsguard.demo.lab import TOOLS, Lab, Pod, require, sweep
from dnsguard.demo.server import Zone
from dnsguard.demo.world import DNS_SERVER, outside_world
from dnsguard.enforce.bpf.events import answered
from dnsguard.enforce.bpf.syscall import Map, get_pinned

PROGRAM: Final = (sys.executable, "-m", "dnsguard")
PREFIX: Final = "dnsguard-demo"
PODS: Final = {"backend": "10.244.0.5", "cron": "10.244.0.6"}
SITES: Final = {
    "api.example.com": "192.0.2.10",
    "files.example.net": "198.51.100.20",
    "evil.example.org": "203.0.113.66",
}
OTHERS: Final = "*.example.net"
"""More names of files.example.net, that the kernel may answer for a while."""
OTHERS_TTL: Final = 60
RESOLVER: Final = "10.96.0.10"
"""In the pods' resolv.conf. Nothing has this address, so whoever answers intercepted the query."""
TTL: Final = 5
LEASE: Final[Seconds] = 6
"""How long an answer opens its addresses: the TTL, which is also the floor, and the grace of the configuration."""

READY_SECONDS: Final[Seconds] = 20
CLIENT_SECONDS: Final[Seconds] = 30
LOG_SECONDS: Final[Seconds] = 5
EDE: Final = 15
"""The EDNS option of RFC 8914."""

CONFIG: Final = """\
apiVersion: dnsguard/v1
kind: Configuration
allowlist: {folder}/allowlist.yaml
pods: {{interfaces: ["veth-*"]}}
upstreams: [{upstream}]
ttl: {{floor: 5s, grace: 1s}}       # short, so that a lease can be seen to end
dns: {{prefetch: false}}
enforcement: {{ebpf: {ebpf}}}
log: {{format: text, queries: All}}
paths: {{runtime: {folder}/run, bpffs: {folder}/bpf, state: {folder}/state}}
"""


@dataclass(frozen=True, slots=True)
class Finished:
    """A client that has ended. `told` is what it printed: on standard output when it succeeded, else on the other."""

    code: int
    told: str


@dataclass(frozen=True, slots=True)
class Timed:
    """A question and what came back: the address, or the rcode, or that there was no reply."""

    told: str
    seconds: Seconds


class Conversation:
    """A connection that stays open: `say` sends a line and gives what came back."""

    def __init__(self, process: subprocess.Popen[str], interrupts: Interrupts) -> None:
        self._process, self._interrupts = process, interrupts

    def say(self, line: str, seconds: Seconds) -> str:
        """The echo, or that there was none within this time."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return "the connection has ended"
        with self._interrupts.waiting():
            readable, _, _ = select.select([self._process.stdout], [], [], seconds)
        if not readable:
            return f"no echo within {seconds:g} s"
        echo = self._process.stdout.readline()
        return f"echo: {echo.strip()}" if echo else "the connection has ended"


class Stage:
    """What the acts of the story can do. Pods are called by their names in PODS."""

    def __init__(self, lab: Lab, folder: Path, zone: Zone, interrupts: Interrupts) -> None:
        self.folder, self.zone, self.interrupts = folder, zone, interrupts
        self.config = folder / "config.yaml"
        self.log = folder / "dnsguard.log"
        self.bpffs = folder / "bpf"
        self.without_ebpf: str | None = None
        """Why nftables enforces alone; None when eBPF does too."""
        self.node = lab.node
        self.conversation: Conversation | None = None
        self._lab = lab
        self._control = ControlClient(folder / "run")
        self._mark = 0
        self._daemon: subprocess.Popen[str] | None = None
        self.pods = {name: lab.pod(name, address) for name, address in PODS.items()}

    # -- clients ------------------------------------------------------------------------------------------------------

    def run_in_pod(self, pod: str, *argv: str) -> Finished:
        """Run a program as it would run in the pod: its network, and a resolv.conf that names RESOLVER."""
        return self._run(self.pods[pod].namespace, "sh", str(self.door(pod)), *argv)

    def run_on_node(self, *argv: str) -> Finished:
        return self._run(self.node, *argv)

    def dnsguard(self, command: str, *argv: str) -> Finished:
        """A command of dnsguard, with the demo's configuration."""
        return self._run(self.node, *PROGRAM, command, "--config", str(self.config), *argv)

    def converse(self, pod: str, *argv: str) -> Conversation:
        """Start a program in the pod that stays, and talk to it."""
        process = self._lab.popen(
            self.pods[pod].namespace,
            *("sh", str(self.door(pod)), *argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        return Conversation(process, self.interrupts)

    def ask(self, pod: str, name: str) -> str:
        """The rcode of a query (A, with EDNS) that the pod sends to RESOLVER, and the reason it was given."""
        query = DNSRecord.question(name)
        query.add_ar(EDNS0(udp_len=1232))
        with self._lab.socket(self.pods[pod].namespace, socket.AF_INET) as client, self.interrupts.waiting():
            client.sendto(query.pack(), (RESOLVER, 53))
            try:
                reply = DNSRecord.parse(client.recv(4096))
            except TimeoutError:
                return "no reply"
        options = (option for record in reply.ar if record.rtype == QTYPE.OPT for option in record.rdata)
        reasons = [option.data for option in options if option.code == EDE]
        told = [f"EDE {int.from_bytes(data[:2])}: {data[2:].decode()}" for data in reasons]
        return ", ".join([str(RCODE[reply.header.rcode]), *told])

    def time_questions(self, pod: str, name: str, times: int, seconds: Seconds) -> list[Timed]:
        """Ask RESOLVER so many times (A) over one connected socket of the pod, each time at most so long."""
        with self._lab.socket(self.pods[pod].namespace, socket.AF_INET) as client, self.interrupts.waiting():
            client.settimeout(seconds)
            client.connect((RESOLVER, 53))
            return [_timed(client, bytes(DNSRecord.question(name).pack())) for _ in range(times)]

    @contextlib.contextmanager
    def borrowed(self, pod: str, address: str) -> Iterator[None]:
        """The pod gives itself this address too, which the node goes on routing to another."""
        self._lab.ip(self.pods[pod].namespace, f"addr add {address}/32 dev eth0")
        try:
            yield
        finally:
            self._lab.ip(self.pods[pod].namespace, f"addr del {address}/32 dev eth0")

    def door(self, pod: str) -> Path:
        """The script that enters the pod, for the demo and for people."""
        return self.folder / f"enter-{pod}"

    def _run(self, place: str, *argv: str) -> Finished:
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = self._lab.popen(place, *argv, **streams)
        try:
            with self.interrupts.waiting():
                out, err = process.communicate(timeout=CLIENT_SECONDS)
        except subprocess.TimeoutExpired:
            raise DnsguardError(f"not ended after {CLIENT_SECONDS:g} s: {shlex.join(argv)}") from None
        return Finished(process.returncode, (err if process.returncode else out or err).strip())

    # -- dnsguard -----------------------------------------------------------------------------------------------------

    def allow(self, allowlist: str) -> None:
        """Write the allowlist. In force after `dnsguard reload`."""
        (self.folder / "allowlist.yaml").write_text(allowlist)

    def start_dnsguard(self, ebpf: str) -> None:
        """`dnsguard run` with eBPF `On` or `Off`, ready when this returns.

        Raises DnsguardError, MissingFeatureError with what it printed.
        """
        self.config.write_text(CONFIG.format(folder=self.folder, upstream=DNS_SERVER, ebpf=ebpf))
        with self.log.open("w") as log:
            command = (*PROGRAM, "run", "--config", str(self.config))
            daemon = self._lab.popen(self.node, *command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._daemon = daemon
        in_time = self.interrupts.until(lambda: daemon.poll() is not None or self._ready(), READY_SECONDS)
        self.interrupts.check()
        if in_time and daemon.poll() is None:
            return
        told = self.log.read_text().strip()
        if daemon.returncode == 77:
            raise MissingFeatureError(told.splitlines()[-1])
        raise DnsguardError(f"dnsguard does not become ready; it said:\n{told}")

    def pause_dnsguard(self) -> bool:
        """As if it hung; whether it stands still now. It goes on with `continue_dnsguard`."""
        assert self._daemon is not None
        self._daemon.send_signal(signal.SIGSTOP)
        state = Path("/proc", str(self._daemon.pid), "stat")
        return self.interrupts.until(lambda: state.read_text().rpartition(")")[2].split()[0] == "T", LOG_SECONDS)

    def continue_dnsguard(self) -> None:
        if self._daemon is not None:
            self._daemon.send_signal(signal.SIGCONT)

    def answered_in_kernel(self, pod: str) -> int:
        """How many of the pod's questions the kernel has answered by itself, as it counts them."""
        link = self._lab.inside(self.node, lambda: socket.if_nametoindex(self.pods[pod].link))
        counts = Map(get_pinned(self.bpffs / "maps" / "counts"))
        try:
            return sum(one.answered + one.denied for one in answered(counts) if one.link == link)
        finally:
            counts.close()

    def has_leases(self, pod: str) -> bool:
        """Whether anything is open to the pod: dnsguard says so, or the kernel, which closes a moment later when it
        was slow to open."""
        if list(self._control.rows("leases", pod=PODS[pod])):
            return True
        table = self.run_on_node("nft", "list", "table", "inet", "dnsguard").told
        return re.search(rf"\b{re.escape(PODS[pod])} \. [0-9.]+ timeout", table) is not None

    def reason_of_drop(self, address: str, port: int) -> str:
        """Why dnsguard last let no packet through to there, in the words of its log."""
        found = re.compile(rf"may not connect to {re.escape(address)} port {port}/tcp: (.+?) pod=")
        self.interrupts.until(lambda: bool(found.search(self._new_log())), LOG_SECONDS)
        reasons = found.findall(self._new_log())
        return reasons[-1] if reasons else "dnsguard's log does not say why"

    def mark_log(self) -> None:
        """From now on `reason_of_drop` looks only at what comes after."""
        self._mark = self.log.stat().st_size

    def _new_log(self) -> str:
        return self.log.read_bytes()[self._mark :].decode()

    def _ready(self) -> bool:
        try:
            return bool(self._control.call("status")["ready"])
        except NotRunningError:
            return False


def _timed(client: socket.socket, question: bytes) -> Timed:
    begin = time.perf_counter()
    try:
        client.send(question)
        reply = client.recv(4096)
    except TimeoutError:
        return Timed("no reply", time.perf_counter() - begin)
    seconds = time.perf_counter() - begin
    parsed = DNSRecord.parse(reply)
    return Timed(", ".join(str(record.rdata) for record in parsed.rr) or str(RCODE[parsed.header.rcode]), seconds)


@contextlib.contextmanager
def stage(allowlist: str, interrupts: Interrupts) -> Iterator[Stage]:
    """Raises MissingFeatureError when something is missing here, DnsguardError when dnsguard does not start."""
    require({**TOOLS, "curl": "curl", "nft": "nftables", "unshare": "util-linux", "mount": "mount"})
    if not Path("/etc/resolv.conf").exists():
        raise MissingFeatureError("/etc/resolv.conf is missing, a pod's is mounted over it: touch /etc/resolv.conf")
    with _folder() as folder, contextlib.ExitStack() as mounts, _lab() as lab, outside_world(lab, SITES, TTL) as zone:
        zone.put(OTHERS, "A", SITES["files.example.net"], ttl=OTHERS_TTL)
        made = Stage(lab, folder, zone, interrupts)
        _write_doors(made)
        made.allow(allowlist)
        _start(made, mounts)
        try:
            yield made
        finally:
            made.continue_dnsguard()  # what stands still does not end when it is told to


def _start(made: Stage, mounts: contextlib.ExitStack) -> None:
    """With eBPF where it can be had. The mount outlives the lab: a daemon that ends still has its pins."""
    try:
        mounts.enter_context(bpffs(made.bpffs, PREFIX))
        made.start_dnsguard("On")
    except MissingFeatureError as error:
        made.without_ebpf = str(error).removeprefix("dnsguard: ")
        made.start_dnsguard("Off")


@contextlib.contextmanager
def _lab() -> Iterator[Lab]:
    try:
        with Lab(PREFIX) as lab:
            yield lab
    except subprocess.CalledProcessError as error:
        told = str(error.stderr).strip()
        raise MissingFeatureError(f"the kernel refuses network namespaces, veth links or routes: {told}") from None


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A folder for this process; those of processes that are gone are removed, after what still ran from them."""
    sweep(PREFIX)
    sweep_bpffs(PREFIX)
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}-*-*"):
        owner = left.name.removeprefix(f"{PREFIX}-").partition("-")[0]
        if owner.isdecimal() and not Path("/proc", owner).exists() and left.lstat().st_uid == os.geteuid():
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}-{os.getpid()}-") as folder:
        yield Path(folder)


# -- entering a pod ---------------------------------------------------------------------------------------------------


def _write_doors(made: Stage) -> None:
    (made.folder / "resolv.conf").write_text(f"nameserver {RESOLVER}\noptions timeout:2 attempts:1\n")
    # Whatever the machine asks otherwise (systemd-resolved, for one) does not live in the pod's network.
    (made.folder / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")
    for name, pod in made.pods.items():
        made.door(name).write_text(_door(made.folder, pod))


def _door(folder: Path, pod: Pod) -> str:
    """Mounts of its own instead of /etc/netns: that works only under `ip netns exec`, and files there would stay."""
    over = [f"mount --bind {folder / file} /etc/{file}" for file in ("resolv.conf", "nsswitch.conf")]
    mounts = " && ".join(line for line in over if Path("/etc", line.rpartition("/")[2]).exists())
    shell = "bash --noprofile --norc" if shutil.which("bash") else "sh"
    return textwrap.dedent(f"""\
        #!/bin/sh
        # Run a program, or a shell, as if in pod {pod.name}: its network, its resolver, and no proxy of this machine.
        [ $# -gt 0 ] || set -- {shell}
        exec nsenter --net=/run/netns/{pod.namespace} unshare --mount sh -c '{mounts} && exec "$@"' {pod.name} \\
          env -i PATH="$PATH" TERM="$TERM" HOME={folder} PS1="{pod.name}$ " "$@"
        """)
