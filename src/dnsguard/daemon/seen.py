"""What pods asked for and where they connected, gathered for `learn`: from the engine, the kernel, and the state file.

The engine tells the book of questions. Flows are looked up in connection tracking, where the closed ones stay for a
while, and in what the kernel records in Audit; denied ones are told of one by one while enforcing. Now and then what
changed is written to `paths.state`, in a thread of its own: nobody waits for a disk.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from dnsguard.core.errors import KernelError
from dnsguard.core.leases import Leases
from dnsguard.core.model import Address, Flow, Name, Ports, Seconds
from dnsguard.core.pods import Pod, PodTable
from dnsguard.enforce.denials import Audited, Denial
from dnsguard.engine.contracts import EventKind, Events, Flows
from dnsguard.learning.book import PODS, Book, PodBook
from dnsguard.learning.needs import ports_used
from dnsguard.learning.rows import SeenRow, book_of, row_of
from dnsguard.learning.state import SeenFile

T = TypeVar("T")

LOOK: Final[Seconds] = 20.0
"""Between two looks at flows. A UDP flow that nobody answered, and a TCP connection that was refused, are gone from
connection tracking after 30 s and 10 s."""
FLUSH: Final[Seconds] = 300.0
"""Between two writes of what changed: a busy node's 40,000 names take a second of the thread's time."""
REPAIR: Final[Seconds] = 3.0
"""Between two attempts to write what could not be written."""
SLICE: Final = 200
"""Flows between two turns of the event loop."""
_DNS: Final = 53
_DENIED: Final = frozenset(("default", "rule"))
"""Reasons that another policy would change."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Where flows are seen. `audited` reads what the kernel let through in Audit only; `intercepted` are the addresses
    whose port 53 is, None for all."""

    pods: PodTable
    leases: Leases
    flows: Flows
    audited: Callable[[], Awaitable[Sequence[Audited]]]
    intercepted: Collection[Address] | None = None


class Seen:
    """Fills one book. `close` comes last."""

    def __init__(self, book: Book, sources: Sources, folder: Path, events: Events) -> None:
        self._book = book
        self._sources = sources
        self._file = SeenFile(folder)
        self._events = events
        self._thread = ThreadPoolExecutor(1, "dnsguard-seen")
        self._one = asyncio.Lock()
        self._beginning = asyncio.Lock()
        self._begun = False
        self._open: set[int] = set()
        self._audited: Mapping[Hashable, int] | None = None
        self._told = ""
        self._unwritten = False

    async def begin(self) -> None:
        """Take up what an earlier process has seen, if that has not been done: by the first look at the latest, so that
        no start waits for it."""
        async with self._beginning:
            if self._begun:
                return
            books, problem = await self._in_thread(self._read)
            self._tell(problem)
            for pod, earlier in books:
                if (book := self._book.pods.setdefault(pod, earlier)) is not earlier:
                    book.absorb(earlier)
                await asyncio.sleep(0)
            self._book.share()
            self._begun = True

    def _read(self) -> tuple[list[tuple[str, PodBook]], str]:
        rows, problem = self._file.read()
        offset = time.time() - time.monotonic()
        latest = sorted(rows, key=lambda row: row["last"])[-PODS:]
        return [(row["pod"], book_of(row, offset)) for row in latest], problem

    # ---- flows

    def denied(self, denial: Denial) -> None:
        """A packet was dropped."""
        pod = self._sources.pods.by_link.get(denial.link)
        if pod is None or denial.peer is None or denial.reason not in _DENIED or not denial.begins:
            return
        to = denial.peer, denial.protocol, denial.port
        self._book.went(pod.name, to, denial.packets, time.monotonic(), denied=True)

    async def look(self) -> None:
        """See which flows there are."""
        await self.begin()
        async with self._one:
            owners = {address: pod for pod in self._sources.pods for address in pod.addresses}
            self._live(owners)
            try:
                found = await self._sources.audited()
                self._take_audited(owners, found)
                counted = {one[:4] for one in found}
                await self._take_open(owners, await self._sources.flows.begun_by(owners) if owners else (), counted)
            except (KernelError, OSError) as error:
                self._tell(f"flows cannot be seen: {error}")

    def _live(self, owners: Mapping[Address, Pod]) -> None:
        by_name: dict[str, list[Address]] = {}
        for address, pod in owners.items():
            by_name.setdefault(pod.name, []).append(address)
        for name, addresses in by_name.items():
            self._book.lives(name, addresses, time.monotonic())

    async def _take_open(
        self, owners: Mapping[Address, Pod], flows: Iterable[Flow], counted: Collection[Hashable]
    ) -> None:
        """Flows that are open. Those that the kernel let through in Audit only are counted by its records."""
        before, self._open = self._open, set()
        behind = _Behind(self._sources.leases)
        for number, flow in enumerate(flows):
            if number % SLICE == SLICE - 1:
                await asyncio.sleep(0)
            if self._is_question(flow):
                continue
            self._open.add(hash(flow))
            pod, to = owners[flow.pod], (flow.peer, flow.protocol, flow.peer_port)
            if hash(flow) in before or (flow.pod, *to) in counted:
                self._book.goes_on(pod.name, to, time.monotonic())
                continue
            named = behind.names(pod, flow.peer) if not self._book.names(pod.name, flow.peer) else ()
            self._book.went(pod.name, to, 1, time.monotonic(), denied=False, named=named)

    def _is_question(self, flow: Flow) -> bool:
        addresses = self._sources.intercepted
        return flow.peer_port == _DNS and flow.protocol in (6, 17) and (addresses is None or flow.peer in addresses)

    def _take_audited(self, owners: Mapping[Address, Pod], found: Sequence[Audited]) -> None:
        """Records that grew. Those of an earlier process have been seen where the book has them."""
        before, self._audited = self._audited, {one[:-1]: one.packets for one in found}
        for one in found:
            pod = owners.get(one.pod)
            if pod is None:
                continue
            more = one.packets - (before or {}).get(one[:-1], 0)
            if more < 0:
                more = one.packets
            if before is None and self._has(pod.name, one):
                more = 0
            if more:
                to = one.peer, one.protocol, one.port
                self._book.went(pod.name, to, more, time.monotonic(), denied=True)

    def _has(self, pod: str, one: Audited) -> bool:
        book = self._book.pods.get(pod)
        return book is not None and (one.protocol, one.port) in book.flows.get(one.peer, {})

    # ---- out

    def used(self, pod: str) -> Mapping[Name, Ports]:
        """The ports on which this pod connected to where each name led, as `ports_used`."""
        book = self._book.pods.get(pod)
        return ports_used(book) if book is not None else {}

    async def rows(self) -> list[SeenRow]:
        """Everything that was seen, until now. What changed is written, too."""
        await self.look()
        await self.flush()
        copies = [(name, book.copy()) for name, book in sorted(self._book.pods.items())]
        return await self._in_thread(lambda: list(_rows(copies, time.time() - time.monotonic())))

    async def flush(self) -> None:
        """Write what changed since the last time."""
        await self.begin()
        copies = [(name, book.copy()) for name, book in self._book.changed()]
        if not copies:
            return
        problem = await self._in_thread(lambda: self._file.write(_rows(copies, time.time() - time.monotonic())))
        self._tell(problem)
        for name in [name for name, _ in copies if problem and name in self._book.pods]:
            self._book.pods[name].changed = True
        if self._unwritten and not problem:
            self._events.emit(EventKind.STATE_FILE_WRITTEN, path=str(self._file.path))
        self._unwritten = bool(problem)

    async def flush_again(self) -> None:
        """Write what could not be written the last time."""
        if self._unwritten:
            await self.flush()

    async def close(self) -> None:
        """Write what is left, then end the thread."""
        await self.look()
        await self.flush()
        self._thread.shutdown(wait=False)

    def _in_thread(self, call: Callable[[], T]) -> Awaitable[T]:
        return asyncio.get_running_loop().run_in_executor(self._thread, call)

    def _tell(self, problem: str) -> None:
        """Once for each problem, until there is another or none."""
        if problem and problem != self._told:
            self._events.emit(EventKind.SEEN_FILE_FAILED, what="what learn has seen", reason=problem)
        self._told = problem


class _Behind:
    """The names behind leases, looked up once for each pod: they outlive a restart, and the book's memory of answers
    does not."""

    def __init__(self, leases: Leases) -> None:
        self._leases = leases
        self._known: dict[int, Mapping[Address, Collection[tuple[str, Name]]]] = {}

    def names(self, pod: Pod, address: Address) -> list[Name]:
        if pod.id not in self._leases.pods:
            return []
        stood_on = self._known.get(pod.id)
        if stood_on is None:
            stood_on = self._known[pod.id] = self._leases.stood_on(pod.id)
        return sorted({name for _, name in stood_on.get(address, ()) if name})


def _rows(copies: Iterable[tuple[str, PodBook]], offset: Seconds) -> Iterator[SeenRow]:
    """One at a time: those of a whole node at once would take 20 MB, which the process would keep."""
    return (row_of(name, book, offset) for name, book in copies)
