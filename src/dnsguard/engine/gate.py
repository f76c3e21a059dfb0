"""Holds answers until the enforcer has acknowledged every lease they depend on.

Each batch of writes has a ticket, and so has each change; tickets settle in order. An answer waits for the newest
ticket among its leases, also when another answer or a change had that lease written: a write under way is awaited,
never assumed. An answer leaves once: released, failed because its own writes were refused, or failed because the
kernel was late. One that may count on somebody else's refused write is doubted first: its owner arms it again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from dnsguard.core.book import Armed
from dnsguard.core.lease import Lease
from dnsguard.core.leases import Leases
from dnsguard.core.model import PodId, Seconds
from dnsguard.engine.contracts import Enforcer, Ticket

T = TypeVar("T")

PATIENCE: Seconds = 1.0
"""How long the kernel may take before the pod is told SERVFAIL."""


class _Batch(Generic[T]):
    """What hangs on one ticket: the leases it writes and the answers that wait for it."""

    __slots__ = ("leases", "refused", "submitted", "waiting")

    def __init__(self, leases: Sequence[Lease], submitted: Seconds) -> None:
        self.leases = leases
        self.submitted = submitted
        self.refused: str | None = None
        self.waiting: list[tuple[T, Seconds]] = []


@dataclass(frozen=True, slots=True)
class Exits(Generic[T]):
    """Where held answers go: `release(answer)` or `fail(answer, reason)`, once each. `doubt(answer, pods)` comes before
    a release: writes of these pods were refused, and if the answer is for one of them it must be armed again."""

    release: Callable[[T], None]
    fail: Callable[[T, str], None]
    doubt: Callable[[T, Collection[PodId]], None]


class Gate(Generic[T]):
    """The answers that wait for the kernel."""

    def __init__(self, enforcer: Enforcer, exits: Exits[T]) -> None:
        self._enforcer = enforcer
        self._exits = exits
        self._batches: dict[Ticket, _Batch[T]] = {}
        self._changes: dict[Ticket, bool] = {}
        """Changes that have not settled: whether the enforcer has ended them."""
        self._acknowledged: Ticket = 0
        self.next_ticket: Ticket = 1
        self.settled: Ticket = 0

    def submit(self, armed: Armed, now: Seconds) -> str | None:
        """Hand the writes of `armed`, made under `next_ticket`, to the enforcer. The reason when it refused at once."""
        ticket = self.next_ticket
        self.next_ticket = ticket + 1
        batch = self._batches[ticket] = _Batch(armed.leases, now)
        self._enforcer.arm(ticket, armed.writes)
        return batch.refused

    def hold(self, answer: T, ticket: Ticket, now: Seconds) -> bool:
        """Keep `answer` until `ticket` settles; False when it has, and the answer may leave now."""
        batch = self._batches.get(ticket)
        if batch is None:
            return False
        batch.waiting.append((answer, now))
        return True

    def acknowledge(self, upto: Ticket, refused: Mapping[Ticket, str]) -> None:
        """The enforcer has done every write up to `upto`; those in `refused` failed."""
        self._acknowledged = upto
        if refused:
            self._refuse(refused)
        if self._changes:
            self._advance()
            return
        first, self.settled = self.settled + 1, upto
        for ticket in range(first, upto + 1):
            self._settle(ticket)

    def _refuse(self, refused: Mapping[Ticket, str]) -> None:
        pods: set[PodId] = set()
        for ticket, reason in refused.items():
            if batch := self._batches.get(ticket):
                batch.refused = reason
                Leases.refuse(batch.leases, ticket)
                pods.update(lease.pod for lease in batch.leases)
        self._doubt(pods)

    def _doubt(self, pods: Collection[PodId]) -> None:
        for batch in self._batches.values():
            for answer, _ in batch.waiting:
                self._exits.doubt(answer, pods)

    def _advance(self) -> None:
        """Settle what can be, in order: a change is settled by its end, a write by its acknowledgement."""
        while True:
            ticket = self.settled + 1
            ended = self._changes.get(ticket)
            if ended is False or (ended is None and ticket > self._acknowledged):
                return
            self._changes.pop(ticket, None)
            self.settled = ticket
            self._settle(ticket)

    def _settle(self, ticket: Ticket) -> None:
        batch = self._batches.pop(ticket, None)
        if batch is None:
            return
        if batch.refused is None:
            release = self._exits.release
            for answer, _ in batch.waiting:
                release(answer)
        else:
            for answer, _ in batch.waiting:
                self._exits.fail(answer, batch.refused)

    # ---- changes

    def begin_change(self, leases: Sequence[Lease], now: Seconds) -> Ticket:
        """A change is about to be handed to the enforcer, and these leases are open when it is done."""
        ticket = self.next_ticket
        self.next_ticket = ticket + 1
        self._batches[ticket] = _Batch(leases, now)
        self._changes[ticket] = False
        for lease in leases:
            lease.ticket = ticket
        return ticket

    def end_change(self, ticket: Ticket, *, done: bool, pods: Collection[PodId] = ()) -> None:
        """The enforcer has ended the change. When it is not `done`, whoever counts on its leases must arm them again,
        and so must every answer for one of `pods`."""
        self._changes[ticket] = True
        if not done:
            leases = self._batches[ticket].leases
            Leases.refuse(leases, ticket)
            self._doubt({*pods, *(lease.pod for lease in leases)})
        self._advance()

    # ---- time

    def tick(self, now: Seconds) -> None:
        """Fail the answers that have waited too long. Their leases stay under way for those that come after."""
        for batch in list(self._batches.values()):
            if now - batch.submitted < PATIENCE:
                break
            late = [answer for answer, since in batch.waiting if now - since >= PATIENCE]
            batch.waiting = [held for held in batch.waiting if now - held[1] < PATIENCE]
            for answer in late:
                self._exits.fail(answer, "the kernel did not acknowledge the address within 1 s")

    @property
    def holding(self) -> int:
        return sum(len(batch.waiting) for batch in self._batches.values())
