"""What memory does over a long run: does it stay flat, how much is it, and how much does each lease add?

Two runs of the real daemon as a node runs it, logging and listening for metrics, each on a lab of its own. In the long
run many pods ask for ever other names whose leases end within seconds, are denied some, connect, and are scraped; every
while the allowlist is reloaded. In the second the leases last, and are counted against the octets that they cost.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks import kernel
from benchmarks.bed import UPSTREAM, Bed, Cores
from benchmarks.crowd import OWN
from benchmarks.flows import PORT
from benchmarks.held import Books, books, count, entries_of, left, memory
from benchmarks.scale import Node, Size, make_links
from dnsguard.demo.lab import Lab
from dnsguard.engine.revoke import MOST_REMEMBERED
from dnsguard.learning.book import FLOWS, LEAST_FLOWS, LEAST_NAMES, NAMES
from dnsguard.observe.recent import ENTRIES

EVERY = 1.0
"""Seconds between two looks at the daemon's memory."""
SCRAPED = 5.0
"""Seconds between two scrapes."""
METRICS = "http://127.0.0.1:9353/metrics"
"""Where a node's are, as configured by default."""
SETTLED = 180.0
"""What leases, flows and kernel answers of the long run may take to end."""
TTL = 1
BRIEF = "ttl: {floor: 1s, grace: 1s, cap: 1s}"
"""Leases of the long run: they end while it goes on, as those of a day do."""
LONG_TTL = 3600
CONNECT, FILL = 100, 5
"""Answers to one connection in the run, and while what is kept by number is filled up."""
DENIED = 10
"""Of so many questions of the long run one is for a name that is denied."""
PASSING = ("flows", "answers")
"""Maps that are empty when nothing is under way."""

BY_POD = (
    "pods with past denials",
    "denied names",
    "sources of kernel answers",
    "drops by pod",
    "kernel answers by pod",
)
"""One for each pod that did something since its policy has changed."""


@dataclass(frozen=True, slots=True)
class Extent:
    """`queries` for `names` names from `pods`, a reload after each `between` of them; then `few` and `many` leases on
    a node of `usual` pods. `cached`: how many answers are kept. `warm`: seconds of the same load before the start, and
    `still`: of none at the start and the end; a pod's names are kept for a minute, and what is done every 20 s makes
    its thread at its first use. `minutes`: what each of the two runs may take."""

    pods: int = 500
    names: int = 200_000
    queries: int = 1_000_000
    between: int = 50_000
    cached: int = 50_000
    usual: int = 110
    few: int = 10_000
    many: int = 110_000
    warm: float = 70.0
    still: float = 65.0
    minutes: float = 20.0

    @property
    def filling(self) -> int:
        """Questions, every other of them denied, after which all answers are there that are kept, and each pod was
        denied all of its names: of three that are denied one is the next pod's next."""
        return 2 * max(self.cached, 3 * OWN * self.pods) * 21 // 20

    @property
    def kept(self) -> dict[str, int]:
        """What stays when nothing is under way, and the most that there is of it."""
        return {
            "cached answers": self.cached,
            "past denials": ENTRIES * self.pods,
            "ended leases": MOST_REMEMBERED,
            "seen names": max(NAMES, LEAST_NAMES * self.pods),
            "seen flows": max(FLOWS, LEAST_FLOWS * self.pods),
            **dict.fromkeys(BY_POD, self.pods),
        }


FULL = Extent()
QUICK = Extent(
    pods=20,
    names=2_000,
    queries=10_000,
    between=2_000,
    cached=1_000,
    usual=10,
    few=1_000,
    many=4_000,
    warm=5.0,
    still=25.0,
    minutes=3.0,
)


@dataclass(frozen=True, slots=True)
class Sample:
    """At a moment of the long run; memory in octets."""

    seconds: float
    resident: int
    proportional: int
    """Resident, with pages that are shared counted by their share (PSS)."""
    descriptors: int
    threads: int
    leases: int
    flows: int


@dataclass(frozen=True, slots=True)
class Load:
    """What was done from the start to the end."""

    answered: int
    denied: int
    failed: int
    """Questions that got what they should not, and were asked again."""
    begun: int
    """Connections to what was answered."""
    stood: int
    """Of those, the ones that were answered in turn."""
    closed: int
    """Packets to what is closed."""
    scrapes: int
    log_lines: int

    @property
    def asked(self) -> int:
        return self.answered + self.denied


@dataclass(frozen=True, slots=True)
class LongRun:
    """From `empty`, with nothing kept yet, over `start`, with all kept that ever is, to `end`; at these three nothing
    is under way. `samples` are those of the whole way."""

    empty: Sample
    start: Sample
    end: Sample
    samples: list[Sample]
    reloads: list[float]
    """When each was done, in seconds of the run."""
    load: Load
    before: Books
    """At the start."""
    after: Books
    """At the end."""


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
    brief = f"{BRIEF}\ncache: {{entries: {extent.cached}}}"
    with _node(folder / "long", cores, Size(extent.pods, extent.names), brief) as node, _listening(node, cores):
        long = _Run(node, extent, _deadline(extent)).whole()
    size = Size(extent.usual, names_for(extent.few, extent.usual))
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
        node.module = "tests.node.counted"
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
paths: {{runtime: {bed.folder}/run, bpffs: {bed.pins}, state: {bed.folder}/state}}
"""


@contextlib.contextmanager
def _listening(node: Node, cores: Cores) -> Iterator[None]:
    """While inside all addresses of the world take connections."""
    bed, argv = node.bed, (sys.executable, "-m", "benchmarks.connections", "listen", str(PORT))
    listener = bed.popen(bed.lab.world, cores.load, *argv)
    try:
        yield
    finally:
        listener.kill()
        listener.wait()


# ---- the long run


@dataclass
class _Run:
    node: Node
    extent: Extent
    deadline: float
    samples: list[Sample] = field(default_factory=list)
    reloads: list[float] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    scrapes: int = 0
    begun: float = field(default_factory=time.monotonic)

    def whole(self) -> LongRun:
        empty = self._empty()
        self._fill()
        before = self._rest(self._nothing_under_way)
        start = self._sample()
        load = self._load()
        time.sleep(self.extent.still)
        after = self._rest(lambda found, _: not left(before, found, self.extent.kept))
        return LongRun(empty, start, self._sample(), self.samples, self.reloads, load, before, after)

    def _empty(self) -> Sample:
        """Once each pod has asked, so that what is made at its first use is there."""
        self.node.ask(self.deadline, 0, self.extent.pods, 2 * self.extent.pods, CONNECT)
        self._rest(self._nothing_under_way)
        return self._sample()

    def _fill(self) -> None:
        """With all that is kept by number, and then as the run will, with reloads, for as long as things are kept."""
        with self._watched():
            self._ask(0, self.extent.filling, 2, FILL)
            warm = time.monotonic() + self.extent.warm
            for turn in itertools.count():
                if turn % 2 == 0 and time.monotonic() > warm:
                    break
                self._turn(turn)
        time.sleep(self.extent.still)

    def _turn(self, turn: int) -> None:
        first = turn * self.extent.between
        self._ask(first, first + self.extent.between, DENIED, CONNECT)
        self._reload(turn)

    def _load(self) -> Load:
        self.done.clear()
        self.reloads.clear()
        self.scrapes, lines = 0, self.node.log_lines()
        with self._watched():
            for turn in range(self.extent.queries // self.extent.between):
                self._turn(turn)
        done = {name: self.done[name] for name in ("answered", "denied", "failed", "begun", "stood", "closed")}
        return Load(**done, scrapes=self.scrapes, log_lines=self.node.log_lines() - lines)

    def _ask(self, first: int, last: int, share: int, connecting: int) -> None:
        asked = self.node.ask(self.deadline, first, last, share, connecting)
        self.done.update({name: int(number) for name, number in asked.items()})

    def _reload(self, turn: int) -> None:
        """Every other gives half of the pods another rule, and the next takes it back."""
        self.node.reload(range(0 if turn % 2 else self.extent.pods // 2))
        self.reloads.append(time.monotonic() - self.begun)

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        with _repeatedly(EVERY, self._sample), _repeatedly(SCRAPED, self._scrape):
            yield

    def _scrape(self) -> None:
        def scrape() -> int:
            with urllib.request.urlopen(METRICS, timeout=SCRAPED) as page:
                return len(page.read())

        with contextlib.suppress(OSError):  # one that was late is not counted
            self.scrapes += bool(self.node.bed.lab.inside(self.node.bed.lab.node, scrape))

    def _rest(self, over: Callable[[Books, Books | None], bool]) -> Books:
        """The books once it is over, or as they are at the end of the patience; `over` gets those before, too."""
        patience, earlier = time.monotonic() + SETTLED, None
        while not over(found := books(self.node), earlier) and time.monotonic() < patience:
            earlier = found
            self._sample()
            time.sleep(EVERY)
        return found

    def _nothing_under_way(self, found: Books, earlier: Books | None) -> bool:
        passing = (found.leases, *(found.entries.get(name, 0) for name in PASSING))
        return found == earlier and not any(passing) and not left(found, found, self.extent.kept)

    def _sample(self) -> Sample:
        pid, octets = self.node.pid, memory(self.node.pid)
        sample = Sample(
            time.monotonic() - self.begun,
            octets["Rss"],
            octets["Pss"],
            count(pid, "fd"),
            count(pid, "task"),
            int(self.node.control.call("status")["leases"]),
            entries_of(self.node.bed.pins, "flows")["flows"],
        )
        self.samples.append(sample)
        return sample


@contextlib.contextmanager
def _repeatedly(every: float, do: Callable[[], object]) -> Iterator[None]:
    """In a thread of its own, at once and then every so many seconds."""
    over = threading.Event()

    def work() -> None:
        do()
        while not over.wait(every):
            do()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


# ---- a usual node


def names_for(leases: int, pods: int) -> int:
    """So many names that as many leases are there at least, one for each name and pod."""
    return math.ceil(leases / pods)


def _usual(node: Node, extent: Extent, deadline: float) -> Usual:
    found = [node.server.resident()]
    leases = []
    for most in (extent.few, extent.many):
        node.size = replace(node.size, names=names_for(most, extent.usual))
        node.ask(deadline)
        found.append(_quiet(node))
        leases.append(int(node.control.call("status")["leases"]))
    start, few, many = found
    return Usual(start, few, many, (leases[0], leases[1]))


def _quiet(node: Node) -> int:
    """Octets of the process once nothing is under way."""
    time.sleep(2 * EVERY)
    return memory(node.pid)["Rss"]
