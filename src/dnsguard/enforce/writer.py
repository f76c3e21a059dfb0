"""The one thread that writes to the kernel: a queue of work, done in the order it was handed in.

Lease writes that have gathered while the last transaction ran go together into the next (a commit costs about as
much as ten elements). Each batch is acknowledged in the event loop, once. Needs a `commit` that takes the writes of a
batch and returns the elements refused, with the reason.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from queue import SimpleQueue
from typing import Any, TypeVar

from dnsguard.core.model import Seconds
from dnsguard.engine.contracts import Acknowledge, Element, Ticket, Write

T = TypeVar("T")
Commit = Callable[[Sequence[Write]], Mapping[Element, str]]
Armed = tuple[Ticket, Sequence[Write]]
OnCommit = Callable[[Seconds, int], None]
"""`on_commit(seconds, elements)`: how long one transaction of leases took, and how many it made. In the writer's
thread."""
BusySince = Callable[[], float | None]
"""When the thread's present piece of work began, by the monotonic clock; None while it has none."""

_BATCH_WRITES = 4096
"""More would keep the first of them waiting longer than the saving is worth: some 15 ms."""


class _Job:
    """A call to be made in the thread, and the future that its result goes to."""

    __slots__ = ("call", "future")

    def __init__(self, call: Callable[[], Any], future: asyncio.Future[Any]) -> None:
        self.call = call
        self.future = future


class Writer:
    """Made in the event loop; runs until `stop`. `arm` and `do` are for the loop's thread."""

    def __init__(self, commit: Commit, acknowledge: Acknowledge, on_commit: OnCommit = lambda s, n: None) -> None:
        self._commit = commit
        self._acknowledge = acknowledge
        self._on_commit = on_commit
        self._loop = asyncio.get_running_loop()
        self._jobs: deque[Armed | _Job] = deque()
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._idle = False
        self._waking = False
        self._stopped = False
        self.busy_since: float | None = None
        """The monotonic time at which the work under way began; a watchdog's measure of progress."""
        self._thread = threading.Thread(target=self._run, name="dnsguard-writer", daemon=True)
        self._thread.start()

    def arm(self, ticket: Ticket, writes: Sequence[Write]) -> None:
        # For every answer: an append. The thread is woken once the loop has done all that it has at hand, so that the
        # answers of one wake-up go into one transaction: woken at the first, it made one for every second answer.
        self._jobs.append((ticket, writes))
        if not self._waking:
            self._waking = True
            self._loop.call_soon(self._wake_up)

    def do(self, call: Callable[[], T]) -> asyncio.Future[T]:
        """Have `call` made in the thread, behind everything handed in before; its result or error is the future's."""
        if self._stopped:
            raise RuntimeError("the writer has stopped")
        future: asyncio.Future[T] = self._loop.create_future()
        self._jobs.append(_Job(call, future))
        self._wake_up()
        return future

    def _wake_up(self) -> None:
        """A token too many does no harm."""
        self._waking = False
        if self._idle:
            self._idle = False
            self._wake.put(None)

    async def stop(self) -> None:
        """Do what was handed in, then end the thread. A second call does nothing."""
        if not self._stopped:
            last = self.do(self._leave)
            self._stopped = True
            await last
            self._thread.join()

    def _leave(self) -> None:
        self._running = False

    def _run(self) -> None:
        self._running = True
        while self._running:
            # The order matters: who appends after this look at the queue sees `_idle` and sends a token.
            self._idle = True
            if not self._jobs:
                self._wake.get()
            self._idle = False
            self.busy_since = time.monotonic()
            self._work()
            self.busy_since = None

    def _work(self) -> None:
        jobs = self._jobs
        while jobs and self._running:
            self.busy_since = time.monotonic()
            batch: list[Armed] = []
            size = 0
            while jobs and size < _BATCH_WRITES and isinstance(jobs[0], tuple):
                armed: Armed = jobs.popleft()  # type: ignore[assignment]
                batch.append(armed)
                size += len(armed[1])
            if batch:
                self._arm(batch)
            elif isinstance(job := jobs.popleft(), _Job):
                self._do(job)

    def _arm(self, batch: list[Armed]) -> None:
        writes = list(chain.from_iterable([writes for _, writes in batch]))
        failed: dict[Ticket, str] = {}
        begun = time.monotonic()
        try:
            refused = self._commit(writes)
            self._on_commit(time.monotonic() - begun, len(writes) - len(refused))
            if refused:
                failed = _owners(batch, refused)
        except Exception as error:  # the boundary of this thread: whatever it was, these answers must not go out
            failed = dict.fromkeys((ticket for ticket, _ in batch), str(error) or type(error).__name__)
        self._in_loop(self._acknowledge, batch[-1][0], failed)

    def _do(self, job: _Job) -> None:
        try:
            result = job.call()
        except BaseException as error:
            self._in_loop(_fail, job.future, error)
        else:
            self._in_loop(_fulfil, job.future, result)

    def _in_loop(self, call: Callable[..., None], *arguments: object) -> None:
        if self._loop.is_closed():  # nobody is left to be told
            self._running = False
        else:
            self._loop.call_soon_threadsafe(call, *arguments)


def _owners(batch: Sequence[Armed], refused: Mapping[Element, str]) -> dict[Ticket, str]:
    """The tickets that own a refused element, each with the first reason."""
    failed: dict[Ticket, str] = {}
    for ticket, writes in batch:
        for scope, key, _ in writes:
            if why := refused.get(Element(scope, key)):
                failed.setdefault(ticket, why)
    return failed


def _fulfil(future: asyncio.Future[Any], result: object) -> None:
    if not future.done():  # else the caller has given up
        future.set_result(result)


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
