"""What memory does over a long run: does it stay flat, how much is it, and how much does each lease add?

Two runs of the real daemon, each on a lab of its own. In the long run many pods ask for ever other names whose leases
end within seconds, and every while the allowlist is reloaded. In the second the leases last, and are counted against
the octets that they cost.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks import kernel
from benchmarks.bed import UPSTREAM, Bed, Cores
from benchmarks.scale import Node, Size, make_links
from dnsguard.demo.lab import Lab
from dnsguard.enforce.bpf import syscall
from dnsguard.enforce.bpf.syscall import Map, get_pinned

EVERY = 1.0
"""Seconds between two looks at the daemon's memory."""
SETTLED = 120.0
"""What leases, flows and kernel answers of the long run may take to end."""
WARM = 25.0
"""What is done every 20 s has been done by then, in a thread that is made at its first use."""
TTL = 1
BRIEF = "ttl: {floor: 1s, grace: 1s, cap: 1s}"
"""Leases of the long run: they end while it goes on, as those of a day do."""
LONG_TTL = 3600
_HASHES = (syscall.HASH, syscall.LRU_HASH, syscall.LPM_TRIE)


@dataclass(frozen=True, slots=True)
class Extent:
    """`queries` for `names` names from `pods`, a reload after each `between` of them; then `few` and `many` leases on
    a node of `usual` pods. `minutes`: what each of the two may take."""

    pods: int = 500
    names: int = 200_000
    queries: int = 1_000_000
    between: int = 50_000
    usual: int = 110
    few: int = 10_000
    many: int = 110_000
    minutes: float = 15.0


FULL = Extent()
QUICK = Extent(pods=20, names=2_000, queries=10_000, between=2_000, usual=10, few=1_000, many=4_000, minutes=2.0)


@dataclass(frozen=True, slots=True)
class Sample:
    """At a moment of the long run; memory in octets."""

    seconds: float
    queries: int
    resident: int
    proportional: int
    """Resident, with pages that are shared counted by their share (PSS)."""
    descriptors: int
    threads: int
    leases: int


@dataclass(frozen=True, slots=True)
class Books:
    """What the process and the kernel hold for it."""

    descriptors: int
    threads: int
    elements: int
    """In all of the table's sets and maps, those of programs included."""
    entries: dict[str, int]
    """Of each pinned eBPF map."""
    leases: int


@dataclass(frozen=True, slots=True)
class LongRun:
    samples: list[Sample]
    reloads: list[float]
    """When each was done, in seconds of the run."""
    asked: int
    failed: int
    """Questions that got no address, and were asked again."""
    before: Books
    after: Books
    """When the last lease has ended."""


@dataclass(frozen=True, slots=True)
class Usual:
    """Octets of the process on a usual node: with its pods alone, with few leases, with many."""

    start: int
    few: int
    many: int
    leases: tuple[int, int]

    @property
    def each(self) -> float:
        """Octets of each further lease."""
        return (self.many - self.few) / (self.leases[1] - self.leases[0])


@dataclass(frozen=True, slots=True)
class Memory:
    extent: Extent
    long: LongRun
    usual: Usual


def measure(folder: Path, cores: Cores, extent: Extent) -> Memory:
    """Raises scale.TooSlowError, RuntimeError with what the daemon said."""
    with _node(folder / "long", cores, Size(extent.pods, extent.names), BRIEF) as node:
        long = _Run(node, extent, _deadline(extent)).whole()
    size = Size(extent.usual, extent.few // extent.usual)
    with _node(folder / "usual", cores, size, f"tables: {{leases: {2 * extent.many}}}", ttl=LONG_TTL) as node:
        return Memory(extent, long, _usual(node, extent, _deadline(extent)))


def _deadline(extent: Extent) -> float:
    return time.monotonic() + 60 * extent.minutes


@contextlib.contextmanager
def _node(folder: Path, cores: Cores, size: Size, more: str, *, ttl: int = TTL) -> Iterator[Node]:
    """A node with a running dnsguard and its pods, configured as it comes but for `more`."""
    folder.mkdir()
    with kernel.bpffs(folder / "bpf"), Lab("dnsguard-bench") as lab:
        bed = Bed(lab, folder)
        bed.start_upstream(cores, ttl)
        make_links(bed, size)
        node = Node(bed, size, cores, _config(bed, more))
        try:
            node.start(time.monotonic() + 120)
            yield node
        finally:
            node.stop()


def _config(bed: Bed, more: str) -> str:
    return f"""apiVersion: dnsguard/v1
kind: Configuration
allowlist: {bed.folder}/allowlist.yaml
pods: {{interfaces: ["crowd-*"]}}
upstreams: [{UPSTREAM}]
enforcement: {{ebpf: On}}
{more}
log: {{format: json, queries: None}}
metrics: {{listen: null}}
paths: {{runtime: {bed.folder}/run, bpffs: {bed.pins}, state: {bed.folder}/state}}
"""


# ---- the long run


@dataclass
class _Run:
    node: Node
    extent: Extent
    deadline: float
    samples: list[Sample] = field(default_factory=list)
    reloads: list[float] = field(default_factory=list)
    answered: int = 0
    failed: int = 0

    def whole(self) -> LongRun:
        before = self._warm()
        begun = time.monotonic()
        with _repeatedly(lambda: self.samples.append(self._sample(begun))):
            for turn, first in enumerate(range(0, self.extent.queries, self.extent.between)):
                asked = self.node.ask(self.deadline, first, first + self.extent.between)
                self.answered += int(asked["answered"])
                self.failed += int(asked["failed"])
                self.node.reload(range(0 if turn % 2 else self.extent.pods // 2))
                self.reloads.append(time.monotonic() - begun)
            after = self._ended(before)
        return LongRun(self.samples, self.reloads, self.answered, self.failed, before, after)

    def _warm(self) -> Books:
        """The books once all that is made at its first use is there: each pod has asked, and a reload was done."""
        self.node.ask(self.deadline, 0, self.extent.pods)
        self.node.reload(range(1))
        self.node.reload(range(0))
        time.sleep(WARM)
        patience = time.monotonic() + SETTLED
        while (found := books(self.node)).leases and time.monotonic() < patience:
            time.sleep(EVERY)
        return found

    def _ended(self, before: Books) -> Books:
        """The books when they are as before, or as they are at the end of the patience."""
        patience = time.monotonic() + SETTLED
        while (after := books(self.node)) != before and time.monotonic() < patience:
            time.sleep(EVERY)
        return after

    def _sample(self, begun: float) -> Sample:
        pid = self.node.pid
        memory = _rollup(pid)
        return Sample(
            time.monotonic() - begun,
            self.answered,
            memory["Rss"],
            memory["Pss"],
            _count(pid, "fd"),
            _count(pid, "task"),
            int(self.node.control.call("status")["leases"]),
        )


@contextlib.contextmanager
def _repeatedly(do: Callable[[], None]) -> Iterator[None]:
    """In a thread of its own, at once and then every while."""
    over = threading.Event()

    def work() -> None:
        do()
        while not over.wait(EVERY):
            do()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def books(node: Node) -> Books:
    leases = int(node.control.call("status")["leases"])
    elements, entries = _elements(node.bed), _entries(node.bed.pins)
    time.sleep(EVERY)  # the call's own connection is closed by then
    return Books(_count(node.pid, "fd"), _count(node.pid, "task"), elements, entries, leases)


def _count(pid: int, folder: str) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/{folder}").iterdir())


def _rollup(pid: int) -> dict[str, int]:
    """Octets (proc(5), smaps_rollup)."""
    _, *lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return {name: int(value.split()[0]) * 1024 for name, value in (line.split(":") for line in lines)}


def _elements(bed: Bed) -> int:
    listed = bed.lab.run(bed.lab.node, "nft", "-j", "list", "table", "inet", "dnsguard").stdout
    holders = [each.get("set") or each.get("map") or {} for each in json.loads(listed)["nftables"]]
    return sum(len(holder.get("elem", ())) for holder in holders)


def _entries(pins: Path) -> dict[str, int]:
    found = {}
    for path in sorted((pins / "maps").iterdir()):
        with contextlib.closing(Map(get_pinned(path))) as each:
            if each.type in _HASHES:
                found[path.name] = sum(1 for _ in each.items())
    return found


# ---- a usual node


def _usual(node: Node, extent: Extent, deadline: float) -> Usual:
    found = [node.server.resident()]
    leases = []
    for most in (extent.few, extent.many):
        node.size = replace(node.size, names=most // extent.usual)
        node.ask(deadline)
        found.append(_quiet(node))
        leases.append(int(node.control.call("status")["leases"]))
    start, few, many = found
    return Usual(start, few, many, (leases[0], leases[1]))


def _quiet(node: Node) -> int:
    """Octets of the process once nothing is under way."""
    time.sleep(2 * EVERY)
    return _rollup(node.pid)["Rss"]
