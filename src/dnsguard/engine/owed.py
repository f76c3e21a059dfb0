"""Open flows that a change owes something: to be judged by what is in force now, or to be forgotten with their pod.

What is owed is written down before the kernel goes over, for the next process to do should this one be killed between,
and stays owed until it is done and the kernel has gone over. What fails is told of, and tried again by who owns this.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from dnsguard.core.errors import KernelError
from dnsguard.core.model import Address, PodId
from dnsguard.core.pods import Pod, PodTable
from dnsguard.engine.contracts import EventKind, Events, Flows, Owed, Reminder
from dnsguard.engine.revoke import Revocation


class OwedFlows:
    """Flows of pods to be judged, and flows of addresses to be forgotten."""

    def __init__(
        self, pods: PodTable, revocation: Revocation, flows: Flows, reminder: Reminder, events: Events
    ) -> None:
        self._pods = pods
        self._revocation = revocation
        self._flows = flows
        self._reminder = reminder
        self._events = events
        self._unjudged: dict[PodId, Pod] = {}
        self._unforgotten: set[Address] = set()

    def __bool__(self) -> bool:
        return bool(self._unjudged or self._unforgotten)

    def judge_later(self, pods: Iterable[Pod]) -> None:
        """The kernel is about to go over for these."""
        self._unjudged |= {pod.id: pod for pod in pods}
        self._remind()

    def forget_later(self, addresses: Iterable[Address]) -> None:
        """These are no pod's any longer, or another's; to be followed by `judge_later`, which writes both down."""
        self._unforgotten.update(addresses)

    @contextmanager
    def unless_refused(self, pods: Iterable[Pod]) -> Iterator[None]:
        """Inside, the kernel goes over for these; when that raises, they owe nothing that they did not owe before."""
        before = dict(self._unjudged)
        self.judge_later(pods)
        try:
            yield
        except BaseException:
            self._unjudged = before
            self._remind()
            raise

    async def settle(self, *, in_force: bool) -> None:
        """Do all that is owed. Not `in_force`: the kernel has not gone over, and it stays owed."""
        await self.judge(in_force=in_force)
        await self._forget(in_force=in_force)

    async def judge(self, *, in_force: bool) -> int:
        """Judge what is to be; the number of flows that were cut."""
        try:
            cut = await self._revocation.judge(self._here())
        except KernelError as error:
            self._failed(error)
            return 0
        if in_force:
            self._unjudged.clear()
            self._remind()
        return cut

    async def _forget(self, *, in_force: bool) -> None:
        # Whoever has these addresses next inherits no flow.
        if not self._unforgotten:
            return
        try:
            await self._flows.forget(self._unforgotten)
        except KernelError as error:
            self._failed(error)
            return
        if in_force:
            self._unforgotten = set()
            self._remind()

    def _here(self) -> list[Pod]:
        return [pod for pod in self._unjudged.values() if pod.id in self._pods.by_id]

    def _remind(self) -> None:
        judge = frozenset(address for pod in self._here() for address in pod.addresses)
        self._reminder.keep(Owed(judge, frozenset(self._unforgotten)))

    def _failed(self, error: KernelError) -> None:
        self._events.emit(EventKind.KERNEL_STATE_DAMAGED, what="open flows", reason=str(error))
