"""An enforcer over a line: calls queue work for the writer's thread, and results come back in the event loop."""

from __future__ import annotations

from asyncio import Future
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import TypeVar

from dnsguard.core.model import Flow, Pair
from dnsguard.enforce.denials import Audited
from dnsguard.enforce.lines import Line
from dnsguard.enforce.writer import OnCommit, Writer
from dnsguard.enforce.writes import refuse_faults
from dnsguard.engine.contracts import Acknowledge, Desired, Element, Held, Ticket, Write

T = TypeVar("T")


class LineEnforcer:
    """Implements `engine.contracts.Enforcer`. `open` comes before everything else, `close` in the end."""

    _line: Line

    def __init__(self, acknowledge: Acknowledge, on_commit: OnCommit = lambda seconds, elements: None) -> None:
        self._writer = Writer(self._commit, acknowledge, on_commit)

    async def open(self, make: Callable[[], Line]) -> None:
        """Have the line made, in the thread that it will live in. What `make` raises is raised here."""
        self._line = await self._writer.do(make)

    def _commit(self, writes: Sequence[Write]) -> Mapping[Element, str]:
        return self._line.arm(writes)

    def arm(self, ticket: Ticket, writes: Sequence[Write]) -> None:
        refuse_faults(writes)
        self._writer.arm(ticket, writes)

    def apply(self, desired: Desired, add: Sequence[Write] = (), remove: Collection[Element] = ()) -> Future[None]:
        asked = Desired(desired.programs, dict(desired.pairs), desired.excluded)  # the caller may go on changing it
        added, removed = tuple(add), tuple(remove)
        refuse_faults(added)
        return self._writer.do(lambda: self._line.apply(asked, added, removed))

    def cut(self, flows: Collection[Flow]) -> Awaitable[None]:
        cut = tuple(flows)
        return self._writer.do(lambda: self._line.cut(cut))

    def uncut(self, flows: Collection[Flow]) -> Awaitable[None]:
        uncut = tuple(flows)
        return self._writer.do(lambda: self._line.uncut(uncut))

    def audit(self, on: bool) -> Awaitable[None]:
        return self._writer.do(lambda: self._line.audit(on))

    def audited(self) -> Awaitable[Sequence[Audited]]:
        """What passed in Audit and would have been dropped: each for an hour after its last packet, and while Audit is
        on. What is beyond a link's share is counted, and not here."""
        return self._writer.do(lambda: self._line.audited())

    def read(self) -> Awaitable[Sequence[Held]]:
        return self._writer.do(lambda: self._line.read())

    def running(self) -> Awaitable[Mapping[Pair, str]]:
        """Which program each (link, address) runs in the kernel: an earlier process's, until the first `apply`."""
        return self._writer.do(lambda: self._line.running())

    def cut_before(self) -> Awaitable[Sequence[Flow]]:
        """The flows that an earlier process has cut and that have not fallen silent since."""
        return self._writer.do(lambda: self._line.cut_before())

    def do(self, call: Callable[[], T]) -> Future[T]:
        """Have something else done that belongs to the writer's thread, after what was asked before."""
        return self._writer.do(call)

    @property
    def busy_since(self) -> float | None:
        """The monotonic time at which the writer's present work began, for a watchdog."""
        return self._writer.busy_since

    async def close(self) -> None:
        """End the thread. What the kernel holds stays in force."""
        await self._writer.stop()
