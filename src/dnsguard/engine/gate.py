"""Holds answers until the enforcer has acknowledged every lease they depend on.

Each batch of writes has a ticket, and tickets settle in order. An answer waits for the newest ticket among its
leases, also when another answer had that lease written: a write under way is awaited, never assumed. An answer
leaves once: released, failed because a write it depends on was refused, or failed because the kernel was late.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

from dnsguard.core.leases import Armed, Lease, Leases
from dnsguard.core.model import Seconds
from dnsguard.engine.contracts import Enforcer, Ticket

T = TypeVar("T")

PATIENCE: Seconds = 1.0
"""How long the kernel may take before the pod is told SERVFAIL."""


class _Batch(Generic[T]):
    """What hangs on one ticket: the leases it writes and the answers that wait for it."""

    __slots__ = ("leases", "submitted", "waiting")

    def __init__(self, leases: Sequence[Lease], submitted: Seconds) -> None:
        self.leases = leases
        self.submitted = submitted
        self.waiting: list[tuple[T, Seconds]] = []


class Gate(Generic[T]):
    """`release(answer)` and `fail(answer, reason)` are called exactly once for each held answer."""

    def __init__(self, enforcer: Enforcer, release: Callable[[T], None], fail: Callable[[T, str], None]) -> None:
        self._enforcer = enforcer
        self._release = release
        self._fail = fail
        self._batches: dict[Ticket, _Batch[T]] = {}
        self._refused: dict[Ticket, str] = {}
        self.next_ticket: Ticket = 1
        self.settled: Ticket = 0

    def submit(self, armed: Armed, now: Seconds) -> None:
        """Hand the writes of `armed`, made under `next_ticket`, to the enforcer."""
        ticket = self.next_ticket
        self.next_ticket = ticket + 1
        self._batches[ticket] = _Batch(armed.leases, now)
        self._enforcer.arm(ticket, armed.writes)

    def hold(self, answer: T, ticket: Ticket, now: Seconds) -> bool:
        """Keep `answer` until `ticket` settles; False when it has, and the answer may leave now."""
        batch = self._batches.get(ticket)
        if batch is None:
            return False
        batch.waiting.append((answer, now))
        return True

    def acknowledge(self, upto: Ticket, refused: Mapping[Ticket, str]) -> None:
        """The enforcer has settled every ticket up to `upto`; those in `refused` were not written."""
        first, self.settled = self.settled + 1, upto
        for ticket, reason in refused.items():
            if batch := self._batches.get(ticket):
                Leases.refuse(batch.leases, ticket)
                self._refused[ticket] = reason
        for ticket in range(first, upto + 1):
            batch = self._batches.pop(ticket, None)
            if batch is not None:
                self._let_go(batch, self._refused.pop(ticket, None))

    def _let_go(self, batch: _Batch[T], refused: str | None) -> None:
        if refused is None:
            release = self._release
            for answer, _ in batch.waiting:
                release(answer)
        else:
            for answer, _ in batch.waiting:
                self._fail(answer, refused)

    def tick(self, now: Seconds) -> None:
        """Fail the answers that have waited too long. Their leases stay under way for those that come after."""
        for batch in list(self._batches.values()):
            if now - batch.submitted < PATIENCE:
                break
            late = [answer for answer, since in batch.waiting if now - since >= PATIENCE]
            batch.waiting = [held for held in batch.waiting if now - held[1] < PATIENCE]
            for answer in late:
                self._fail(answer, "the kernel did not acknowledge the address within 1 s")

    @property
    def holding(self) -> int:
        return sum(len(batch.waiting) for batch in self._batches.values())
