"""The servers: how each is configured and started, what its denial is, and what it writes into the kernel."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.bed import POD, RESOLVER, TOP, UPSTREAM, Bed
from benchmarks.names import ALLOWED_ZONE, DENIED_ZONE

CACHE_ENTRIES = 1_000_000
LEASES = 200_000
"""dnsguard's raised limit of leases, for the pod and for the node."""
KERNEL_ANSWERS = 20_000
"""dnsguard's raised limit of answers in the kernel, for the pod."""
FLOWS = 100_000
"""dnsguard's raised limit of flows, for the pod."""
PORT = 443
WITHOUT_EBPF = "dnsguard, ebpf Off"


@dataclass(frozen=True, slots=True)
class Subject:
    """A server to measure. `configure(folder)` writes its files and returns the command line."""

    name: str
    program: str
    configure: Callable[[Path], list[str]]
    denial: str
    """What stands for a denied name: only dnsguard decides by pod."""
    version: tuple[str, ...] = ("--version",)
    environment: dict[str, str] = field(default_factory=dict)
    ruleset: str = ""
    """Loaded into the node's namespace before the server starts."""
    lease_set: str = ""
    """`family table set` that it fills; every element is one address, or a pod and an address."""
    remove: Callable[[Bed, Path], None] | None = None
    """Takes away what the server leaves in the kernel on purpose."""
    limits: str = ""
    """Raised limits, as printed in the report."""

    def found(self) -> str | None:
        """The path of the program, or None."""
        local = [TOP / ".cache/bin" / self.program, Path(sys.executable).parent / self.program]
        return next((str(path) for path in local if path.exists()), shutil.which(self.program))

    def version_text(self) -> str:
        asked = subprocess.run([self.found() or "false", *self.version], capture_output=True, text=True, check=False)
        number = re.search(r"\d+\.\d+[.\d]*\S*", asked.stdout + asked.stderr)
        return number.group() if number else "?"


def _dnsmasq(folder: Path) -> list[str]:
    config = folder / "dnsmasq.conf"
    config.write_text(
        f"""listen-address={RESOLVER}
bind-interfaces
no-resolv
no-hosts
user=root
server=/{ALLOWED_ZONE}/{UPSTREAM}
nftset=/{ALLOWED_ZONE}/4#inet#peer#allowed
cache-size={CACHE_ENTRIES}
dns-forward-max=100000
pid-file={folder}/dnsmasq.pid
"""
    )
    return ["--keep-in-foreground", f"--conf-file={config}"]


def _unbound(folder: Path) -> list[str]:
    config = folder / "unbound.conf"
    config.write_text(
        f"""server:
  interface: {RESOLVER}
  access-control: 10.0.0.0/8 allow
  num-threads: 1
  module-config: "iterator"
  username: ""
  chroot: ""
  pidfile: ""
  use-syslog: no
  do-ip6: no
  msg-cache-size: 512m
  rrset-cache-size: 1g
  outgoing-range: 8192
  num-queries-per-thread: 4096
  so-rcvbuf: 4m
  so-sndbuf: 4m
  local-zone: "test." nodefault
  local-zone: "{DENIED_ZONE}." always_nxdomain
remote-control:
  control-enable: no
forward-zone:
  name: "."
  forward-addr: {UPSTREAM}
"""
    )
    return ["-d", "-c", str(config)]


def _coredns(folder: Path) -> list[str]:
    config = folder / "Corefile"
    config.write_text(
        f"""{DENIED_ZONE}:53 {{
    bind {RESOLVER}
    template ANY ANY {{
        rcode NXDOMAIN
    }}
}}
.:53 {{
    bind {RESOLVER}
    cache {{
        success {CACHE_ENTRIES}
    }}
    forward . {UPSTREAM}
}}
"""
    )
    return ["-conf", str(config)]


def _dnsdist(folder: Path) -> list[str]:
    config = folder / "dnsdist.conf"
    config.write_text(
        f"""setLocal("{RESOLVER}:53")
setACL("10.0.0.0/8")
setSecurityPollSuffix("")
newServer({{address="{UPSTREAM}:53", healthCheckMode="up"}})
getPool(""):setCache(newPacketCache({CACHE_ENTRIES}))
addAction("{DENIED_ZONE}.", RCodeAction(DNSRCode.NXDOMAIN))
"""
    )
    return ["--supervised", "--disable-syslog", "-C", str(config)]


def dnsguard_files(folder: Path, *, ebpf: str = "On", protocols: Sequence[str] = ("TCP",)) -> Path:
    """config.yaml and allowlist.yaml for the bed: one pod, one allowed wildcard, limits out of the way."""
    config, allowlist = folder / "config.yaml", folder / "allowlist.yaml"
    config.write_text(
        f"""apiVersion: dnsguard/v1
kind: Configuration
allowlist: {allowlist}
pods: {{interfaces: ["veth-*"]}}
upstreams: [{UPSTREAM}]
enforcement: {{ebpf: {ebpf}}}
limits: {{queriesPerSecond: 1000000, burst: 1000000, inFlight: 60000, uniqueNamesPerMinute: 10000000,
         addressesPerName: 1000, leasesPerPod: {LEASES}, kernelAnswersPerPod: {KERNEL_ANSWERS}, flowsPerPod: {FLOWS}}}
tables: {{leases: {LEASES}, answers: {2 * KERNEL_ANSWERS}, flows: {2 * FLOWS}}}
cache: {{entries: {CACHE_ENTRIES // 10}}}
log: {{format: json, queries: None}}
metrics: {{listen: "127.0.0.1:9353"}}
paths: {{runtime: {folder}/run, bpffs: {folder.parent}/bpf/dnsguard, state: {folder}/state}}
"""
    )
    rules = "".join(
        f"""
      - to: [{{domainNames: ["*.{ALLOWED_ZONE}"]}}]
        ports: [{{protocol: {protocol}, port: {PORT}}}]"""
        for protocol in protocols
    )
    allowlist.write_text(
        f"""apiVersion: dnsguard/v1
kind: Allowlist
policies:
  load:
    egress:{rules}
pods:
  {POD}: {{name: bench/load, policies: [load]}}
"""
    )
    return config


def dnsguard(name: str, **files: Any) -> Subject:
    """dnsguard with files of its own."""
    return Subject(
        name,
        "dnsguard",
        lambda folder: ["run", "--config", str(dnsguard_files(folder, **files))],
        "no rule of the pod's policy allows the name",
        version=("version",),
        lease_set=f"inet dnsguard tcp_{PORT}_v4",
        remove=_dnsguard_cleanup,
        limits=f"queriesPerSecond, burst, inFlight, uniqueNamesPerMinute out of the way; leases {LEASES:,}, "
        f"kernel answers {KERNEL_ANSWERS:,}, flows {FLOWS:,} a pod",
    )


def _dnsguard_cleanup(bed: Bed, folder: Path) -> None:
    program = next(s for s in SUBJECTS if s.name == "dnsguard").found() or "dnsguard"
    bed.lab.run(bed.lab.node, program, "cleanup", "--config", str(folder / "config.yaml"))


SUBJECTS = (
    dnsguard("dnsguard"),
    dnsguard(WITHOUT_EBPF, ebpf="Off"),
    Subject(
        "dnsmasq + nftset",
        "dnsmasq",
        _dnsmasq,
        "no server for the name (REFUSED), for all clients",
        ruleset="table inet peer {\n set allowed {\n type ipv4_addr\n size 200000\n }\n}\n",
        lease_set="inet peer allowed",
        limits=f"cache-size {CACHE_ENTRIES:,}, dns-forward-max 100,000",
    ),
    Subject(
        "unbound",
        "unbound",
        _unbound,
        "local-zone always_nxdomain, for all clients",
        version=("-V",),
        limits="caches 512 MB and 1 GB, outgoing-range 8,192",
    ),
    Subject(
        "CoreDNS",
        "coredns",
        _coredns,
        "template NXDOMAIN, for all clients",
        version=("-version",),
        environment={"GOMAXPROCS": "1"},
        limits=f"cache success {CACHE_ENTRIES:,}, GOMAXPROCS 1",
    ),
    Subject(
        "dnsdist",
        "dnsdist",
        _dnsdist,
        "RCodeAction NXDOMAIN, for all clients",
        limits=f"packet cache {CACHE_ENTRIES:,}",
    ),
)


def elements(bed: Bed, lease_set: str) -> set[tuple[str, ...]]:
    """What the kernel holds in `family table set`: tuples of addresses as text."""
    listed = bed.lab.run(bed.lab.node, "nft", "-j", "list", "set", *lease_set.split())
    held = next(x["set"] for x in json.loads(listed.stdout)["nftables"] if "set" in x).get("elem", [])
    return {_key(element) for element in held}


def _key(element: object) -> tuple[str, ...]:
    if isinstance(element, dict):
        inner = element["elem"]["val"] if "elem" in element else element
        return tuple(inner["concat"]) if isinstance(inner, dict) else (inner,)
    return (str(element),)
