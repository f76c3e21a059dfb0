"""An enforcer without a kernel: a documented double that keeps leases in a dict, on a clock that it is given.

It does what `engine/contracts.Enforcer` promises and decides packets by `core/compile.decide`, so both stories run
without root. By itself it settles every call before the call returns; `hold` and `latency` make it late, `refuse` and
`refuse_changes` make it fail, `forget` is somebody's `nft flush ruleset`. It never waits and starts no task.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from dnsguard.core.compile import MOST_RULES, Decision, decide
from dnsguard.core.errors import KernelError
from dnsguard.core.model import Action, Address, Flow, LinkIndex, Packet, Program, Seconds
from dnsguard.enforce.denials import Audited
from dnsguard.enforce.writes import refuse_faults
from dnsguard.engine.contracts import Acknowledge, Desired, Element, Held, Ticket, Write

CUT_SILENCE: Seconds = 600.0

T = TypeVar("T")


class Outcome(Generic[T]):
    """What a call comes to. Awaiting one that is settled needs no event loop at all."""

    __slots__ = ("_error", "_settled", "_value", "_waiters")

    def __init__(self) -> None:
        self._settled = False
        self._value: T
        self._error: Exception | None = None
        self._waiters: list[asyncio.Future[None]] = []

    @property
    def settled(self) -> bool:
        return self._settled

    def settle(self, work: Callable[[], T]) -> None:
        """Do the work, keep what it returned or the KernelError it raised, and wake who waits."""
        try:
            self._value = work()
        except KernelError as error:
            self._error = error
        self._settled = True
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def __await__(self) -> Generator[Any, None, T]:
        if not self._settled:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            yield from waiter
        if self._error is not None:
            raise self._error
        return self._value


@dataclass(frozen=True, slots=True)
class _Job:
    due: Seconds
    run: Callable[[], None]
    arming: bool


@dataclass(frozen=True, slots=True)
class _Refusal:
    reason: str
    pods: Collection[Address]
    scopes: Collection[str]

    def concerns(self, write: Write) -> bool:
        return (not self.pods or write.key[: len(write.key) // 2] in self.pods) and (
            not self.scopes or write.scope in self.scopes
        )


class MemoryEnforcer:
    """Implements `Enforcer`. Everything that was asked of it is in `calls`, as (method, *arguments), in order.

    `now` is the clock that leases run out by, in seconds; `capacity` the number of live elements it can hold.
    """

    def __init__(
        self,
        acknowledge: Acknowledge,
        now: Callable[[], Seconds],
        *,
        capacity: int | None = None,
        on_damage: Callable[[str], None] | None = None,
    ) -> None:
        self._acknowledge = acknowledge
        self._now = now
        self._capacity = capacity
        self._on_damage = on_damage
        self.calls: list[tuple[object, ...]] = []
        self.desired = Desired()
        self.latency: Seconds = 0.0
        """How long a call stays unsettled; it is then settled by the next call of `settle`."""
        self._intact = True
        self._held = False
        self._jobs: deque[_Job] = deque()
        self._upto: Ticket | None = None
        self._refused: dict[Ticket, str] = {}
        self._refusals: list[_Refusal] = []
        self._change_refusal: str | None = None
        self._ends: dict[Element, Seconds] = {}
        self._programs: dict[str, Program] = {}
        self._scopes: frozenset[str] = frozenset()
        self._cut: dict[Flow, Seconds] = {}
        self._audit = False
        self._audited: Counter[tuple[Address, Address, int, int, int | None]] = Counter()

    # ---- Enforcer

    def arm(self, ticket: Ticket, writes: Sequence[Write]) -> None:
        """A write in a scope that no applied program carries is refused: there would be no set for it."""
        refuse_faults(writes)
        writes = tuple(writes)
        self.calls.append(("arm", ticket, writes))
        self._queue(lambda: self._do_arm(ticket, writes), arming=True)

    def apply(self, desired: Desired, add: Sequence[Write] = (), remove: Collection[Element] = ()) -> Awaitable[None]:
        refuse_faults(add)
        add, remove = tuple(add), tuple(remove)
        self.calls.append(("apply", desired, add, remove))
        return self._later(lambda: self._do_apply(desired, add, remove))

    def cut(self, flows: Collection[Flow]) -> Awaitable[None]:
        flows = tuple(flows)
        self.calls.append(("cut", flows))
        return self._later(lambda: self._cut.update(dict.fromkeys(flows, self._now())))

    def uncut(self, flows: Collection[Flow]) -> Awaitable[None]:
        flows = tuple(flows)
        self.calls.append(("uncut", flows))
        return self._later(lambda: self._do_uncut(flows))

    def audit(self, on: bool) -> Awaitable[None]:
        self.calls.append(("audit", on))
        return self._later(lambda: self._do_audit(on))

    def audited(self) -> Awaitable[Sequence[Audited]]:
        """What `decide` let through for no other reason since Audit began."""
        return self._later(lambda: [Audited(*each, packets) for each, packets in self._audited.items()])

    def read(self) -> Awaitable[Sequence[Held]]:
        self.calls.append(("read",))
        return self._later(self.held)

    # ---- what a test may tell it

    def hold(self) -> None:
        """Settle nothing from here on; calls queue up."""
        self._held = True

    def release(self) -> None:
        """Settle what was held, in order, and hold no more."""
        self._held = False
        self.settle()

    def settle(self) -> None:
        """Do all work that is due; consecutive arms are acknowledged together, as one commit would be."""
        while self._jobs and not self._held and self._jobs[0].due <= self._now():
            job = self._jobs.popleft()
            if not job.arming:
                self._acknowledge_done()
            job.run()
        self._acknowledge_done()

    def next_deadline(self) -> Seconds | None:
        """When `settle` will have something to do; None while it has nothing or holds."""
        return self._jobs[0].due if self._jobs and not self._held else None

    def refuse(self, reason: str, *, pods: Collection[Address] = (), scopes: Collection[str] = ()) -> None:
        """From here on refuse writes, all of them or those of these pods' addresses and in these scopes."""
        self._refusals.append(_Refusal(reason, pods, scopes))

    def refuse_changes(self, reason: str) -> None:
        """From here on `apply` raises KernelError with this reason and changes nothing."""
        self._change_refusal = reason

    def relent(self) -> None:
        """Refuse nothing any more."""
        self._refusals.clear()
        self._change_refusal = None

    def forget(self, elements: Iterable[Element] | None = None) -> None:
        """Somebody deleted these elements; or, with None, everything: then all packets pass until the next `apply`."""
        if elements is None:
            self._intact = False
            self.desired, self._programs, self._scopes = Desired(), {}, frozenset()
            self._ends.clear()
            self._cut.clear()
        else:
            for element in elements:
                self._ends.pop(element, None)
        if self._on_damage is not None:
            self._on_damage("forgotten")

    # ---- what a test may ask it

    def decide(self, packet: Packet, link: LinkIndex | None = None) -> Decision:
        """What happens to the first packet of a flow that enters by `link`, or by the link its source is routed to.

        Rule indices are those of the pod's program. A pair that was never applied is dropped. In Audit a packet passes
        all the same, and is recorded, unless its source is another link's.
        """
        decision = self._decide(packet, link)
        if not self._audit or decision.action is Action.ACCEPT or self._is_forged(packet.source, link):
            return decision
        self._audited[packet.source, packet.destination, packet.protocol, packet.port, decision.rule] += 1
        return Decision(Action.ACCEPT, decision.rule)

    def _is_forged(self, source: Address, link: LinkIndex | None) -> bool:
        """What is known of nobody may be a pod's that has just come to the link."""
        at = {pair[0] for pair in self.desired.pairs if pair[1] == source}
        return bool(at) and link is not None and link not in at

    def _decide(self, packet: Packet, link: LinkIndex | None) -> Decision:
        if not self._intact or self._has(self.desired.excluded, packet.source, link):
            return Decision(Action.ACCEPT, None)
        key = packet.source + packet.destination
        for (at, source), name in self.desired.pairs.items():
            if source == packet.source and link in (None, at):
                return decide(self._programs[name], packet, lambda scope: self._lives(Element(scope, key)))
        return Decision(Action.DENY, None)

    def carries(self, flow: Flow) -> bool:
        """What happens to a later packet of an open flow, either way: it passes unless cut, and renews the cut. In
        Audit it passes, too."""
        since = self._cut.get(flow)
        if since is None:
            return True
        if self._now() - since >= CUT_SILENCE:
            del self._cut[flow]
            return True
        self._cut[flow] = self._now()
        return self._audit

    def held(self) -> list[Held]:
        """Every live element and the time it has left, rounded up to milliseconds."""
        self._sweep()
        now = self._now()
        return [Held(scope, key, -int(-(end - now) * 1000 // 1)) for (scope, key), end in self._ends.items()]

    # ---- the work

    def _queue(self, run: Callable[[], None], *, arming: bool = False) -> None:
        self._jobs.append(_Job(self._now() + self.latency, run, arming))
        self.settle()

    def _later(self, work: Callable[[], T]) -> Outcome[T]:
        outcome: Outcome[T] = Outcome()
        self._queue(lambda: outcome.settle(work))
        return outcome

    def _acknowledge_done(self) -> None:
        if self._upto is None:
            return
        upto, refused = self._upto, self._refused
        self._upto, self._refused = None, {}
        self._acknowledge(upto, refused)

    def _do_arm(self, ticket: Ticket, writes: Sequence[Write]) -> None:
        reason = next((reason for write in writes if (reason := self._objection(write))), None)
        if reason is None:
            reason = self._make(writes)
        if reason is not None:
            self._refused[ticket] = reason
        self._upto = ticket

    def _objection(self, write: Write) -> str | None:
        if write.scope not in self._scopes:
            return f"no set for scope {write.scope}: no applied program carries it"
        return next((refusal.reason for refusal in self._refusals if refusal.concerns(write)), None)

    def _make(self, writes: Sequence[Write]) -> str | None:
        ends = {Element(write.scope, write.key): self._now() + write.timeout_ms / 1000 for write in writes}
        if self._capacity is not None:
            self._sweep()
            if len(self._ends.keys() | ends.keys()) > self._capacity:
                return "set is full"
        self._ends.update(ends)
        return None

    def _do_apply(self, desired: Desired, add: Sequence[Write], remove: Collection[Element]) -> None:
        programs = {program.name: program for program in desired.programs}
        self._check_change(desired, programs)
        before = self._scopes, self._ends
        self._scopes = frozenset(rule.scope.name for p in desired.programs for rule in p.rules if rule.scope)
        self._ends = {element: end for element, end in self._ends.items() if element.scope in self._scopes}
        reason = next((reason for write in add if (reason := self._objection(write))), None) or self._make(add)
        if reason is not None:
            self._scopes, self._ends = before
            raise KernelError(reason)
        for element in remove:
            self._ends.pop(element, None)
        self.desired, self._programs, self._intact = desired, programs, True

    def _check_change(self, desired: Desired, programs: dict[str, Program]) -> None:
        if self._change_refusal is not None:
            raise KernelError(self._change_refusal)
        for pair, name in desired.pairs.items():
            if name not in programs:
                raise KernelError(f"no program {name} for pair {pair}")
        for program in desired.programs:
            if len(program.rules) > MOST_RULES:
                raise KernelError(f"program {program.name} has {len(program.rules)} rules, at most {MOST_RULES}")

    def _do_audit(self, on: bool) -> None:
        if not on:
            self._audited.clear()
        self._audit = on

    def _do_uncut(self, flows: Iterable[Flow]) -> None:
        for flow in flows:
            self._cut.pop(flow, None)

    def _lives(self, element: Element) -> bool:
        return self._ends.get(element, self._now()) > self._now()

    def _sweep(self) -> None:
        now = self._now()
        self._ends = {element: end for element, end in self._ends.items() if end > now}

    @staticmethod
    def _has(pairs: Iterable[tuple[LinkIndex, Address]], source: Address, link: LinkIndex | None) -> bool:
        return any(address == source and link in (None, at) for at, address in pairs)
