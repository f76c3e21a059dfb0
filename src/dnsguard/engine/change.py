"""Story 2: a change, as ordered steps for pods, leases, the enforcer, and open flows.

A change is anything but an answer that alters what is open: a new policy, a pod that came, went, or got another
address. Changes happen one after another. Each decides everything first (in slices, so that the loop goes on), then
in one step without a pause hands the whole to the enforcer and lets new queries be judged by it: whatever those
queries arm is queued behind it, and the gate holds what counts on the change itself until it has ended. Open flows are
judged last, by the names that let them open: what a change owes them is written down before the kernel goes over, for
the next process to do should this one be killed between. What the kernel would not do is owed, and done by
`apply_again`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from dnsguard.core.compile import compile_program
from dnsguard.core.errors import KernelError, PolicyError
from dnsguard.core.lease import Element, Lease
from dnsguard.core.leases import Changed, Checkpoint
from dnsguard.core.limits import Limits, Share
from dnsguard.core.model import Action, Address, LinkIndex, Origin, Pair, Program, Seconds
from dnsguard.core.pods import Assignment, Lookup, Pod, address_text, assign
from dnsguard.core.policy import EffectivePolicy, deny_all
from dnsguard.engine.contracts import NOTHING, Desired, Enforcer, EventKind, Flows, Owed, Reminder, Ticket
from dnsguard.engine.exchange import Exchanges
from dnsguard.engine.owed import OwedFlows
from dnsguard.engine.prefetch import KernelFeed
from dnsguard.engine.revoke import Revocation, justify
from dnsguard.engine.stores import Stores

UNREAD: Seconds = 10.0
"""Queries of pods may have waited for so long that nobody read them: they are let up no longer without a daemon."""
SLICE = 20
"""Pods assigned between two turns of the event loop."""

Seen = Mapping[LinkIndex, tuple[str, frozenset[Address]] | None]
"""What the node says of links: name and the addresses routed to it; None when it is gone."""

Restore = Callable[[Seconds], Changed]
"""Takes up leases of an earlier process at this moment; what the enforcer must do to them."""


def no_leases(now: Seconds) -> Changed:
    return Changed()


@dataclass(frozen=True, slots=True)
class ChangeSettings:
    """`default` is for pods that no policy selects; `exclude` are addresses that are never governed; links beyond
    `most_pods` get no program, so that all they send is dropped."""

    default: Action = Action.DENY
    exclude: frozenset[Address] = frozenset()
    limits: Limits = field(default_factory=Limits)
    most_pods: int = 1000


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a change did, for the event, the log and the caller of `reload`."""

    pods: int
    opened: int
    purged: int
    cut: int


@dataclass(slots=True)
class _Staged:
    """One pod on its way to a new policy."""

    pod: Pod
    assignment: Assignment
    program: Program
    before: tuple[str, Origin | None, EffectivePolicy, Program]
    checkpoint: Checkpoint = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Link:
    """What a link is from now on; `assigned` when its pod is new or has other addresses."""

    link: LinkIndex
    name: str
    governed: tuple[Address, ...]
    excluded: frozenset[Address]
    assigned: tuple[Assignment, Program] | None


class Changes:
    """Applies changes, one after another."""

    def __init__(
        self, settings: ChangeSettings, stores: Stores, exchanges: Exchanges, *, enforcer: Enforcer, flows: Flows,
        revocation: Revocation, feed: KernelFeed, reminder: Reminder, now: Callable[[], Seconds],
    ) -> None:  # fmt: skip
        self._settings = settings
        self._feed = feed
        self._pods = stores.pods
        self._leases = stores.leases
        self._events = stores.events
        self._counters = stores.counters
        self._exchanges = exchanges
        self._enforcer = enforcer
        self._revocation = revocation
        self._flows = OwedFlows(stores.pods, revocation, flows, reminder, stores.events)
        self._now = now
        self._one = asyncio.Lock()
        self._excluded: set[Pair] = set()
        self._lookup: Lookup | None = None
        self._left_out: dict[LinkIndex, tuple[str, frozenset[Address]]] = {}
        """Links for which there was no room."""
        self._refused = False
        self._owed: list[Element] = []
        self.generation = 0

    @property
    def unapplied(self) -> bool:
        """Something is owed that the kernel would not do; `apply_again` tries once more."""
        return self._refused or bool(self._flows)

    # ---- a new policy

    async def policy(self, lookup: Lookup) -> Outcome:
        """Go over to what `lookup` says. In force when it returns. When the kernel refuses (KernelError), or whoever
        waits for it gives up before it is in force, the old policy stays."""
        async with self._one:
            staged = await self._stage(lookup)
            changed = Changed()
            for item in staged:
                item.checkpoint = self._leases.checkpoint(item.pod.id)
                changed.merge(self._adopt(item))
            # The same program is justified by the same names: nothing that is open is forbidden by it.
            with self._flows.unless_refused(item.pod for item in staged if item.program.name != item.before[3].name):
                ticket = self._begin(changed)
                try:
                    await self._enforcer.apply(self._desired(), changed.write, changed.remove)
                except BaseException:
                    await self._roll_back(staged, ticket)
                    raise
            self._exchanges.gate.end_change(ticket, done=True)
            self._done()
            self._lookup = lookup
            self.generation += 1
            self._tell_purged(changed)
            cut = await self._flows.judge(in_force=True)
            return Outcome(len(staged), len(changed.write), len(changed.remove), cut)

    async def audit(self, on: bool) -> int:
        """Go over to Audit, or to enforcing; returns how many open flows were cut for it. In force when it returns.
        When the kernel refuses (KernelError), all stays as it was."""
        async with self._one:
            if on:
                await self._enforcer.audit(True)
                self._audit_is(True)
                self._revocation.release()
                return 0
            # Judged before the kernel is: whatever is told from here on, the kernel opens first.
            self._audit_is(False)
            self._flows.judge_later(self._pods)
            try:
                for pod in list(self._pods):
                    self._exchanges.open_audited(pod)
                    await asyncio.sleep(0)
                with contextlib.suppress(KernelError):  # told of, and owed, below
                    await self._revocation.cut_ahead(list(self._pods))
                await self._enforcer.audit(False)
            except BaseException:
                self._audit_is(True)
                self._revocation.release()
                raise
            return await self._flows.judge(in_force=not self._refused)

    def _audit_is(self, on: bool) -> None:
        self._revocation.audit = on
        self._exchanges.audit_is(on)

    async def _stage(self, lookup: Lookup) -> list[_Staged]:
        staged = []
        for number, pod in enumerate(list(self._pods)):
            if number % SLICE == SLICE - 1:
                await asyncio.sleep(0)
            assignment, program = self._assign(pod.addresses, pod.link_name, lookup)
            if assignment.policy is not pod.policy or assignment.name not in (None, pod.name):
                staged.append(_staged(pod, assignment, program))
        return staged

    def _assign(
        self, addresses: tuple[Address, ...], link: str, lookup: Lookup | None = None
    ) -> tuple[Assignment, Program]:
        """What the allowlist says of these addresses; contradictions and too large programs deny all, with an event."""
        lookup = lookup if lookup is not None else self._lookup
        assert lookup is not None
        try:
            assignment = assign(addresses, lookup, self._settings.default)
            program = compile_program(assignment.policy)
        except PolicyError as error:
            self._events.emit(EventKind.POD_CONFLICT, pod_ip=_texts(addresses), link=link, reason=str(error))
            policy = deny_all(str(error))
            return Assignment(None, policy), compile_program(policy)
        if assignment.conflict is not None:
            first, second = assignment.conflict
            self._events.emit(
                EventKind.POD_CONFLICT,
                pod_ip=_texts(addresses),
                link=link,
                reason=f"its allowlist entries {first} and {second} disagree",
            )
        return assignment, program

    def _adopt(self, item: _Staged) -> Changed:
        """From here on the pod's queries are judged by the new policy; what that leaves of its leases."""
        pod, policy, program = item.pod, item.assignment.policy, item.program
        same = program.name == pod.program.name
        if not same or (policy.label, policy.pass_through) != (pod.policy.label, pod.policy.pass_through):
            self._feed.forget(pod)
        pod.policy, pod.program = policy, program
        pod.name = item.assignment.name or pod.name
        pod.entry_origin = item.assignment.origin
        return self._leases.rejustify(pod.id, justify(policy, program), self._now(), same_program=same)

    async def _roll_back(self, staged: list[_Staged], refused: Ticket) -> None:
        """The new programs are not in force: judge by the old ones again, with the leases they had."""
        changed = Changed()
        for item in staged:
            pod = item.pod
            pod.name, pod.entry_origin, pod.policy, pod.program = item.before
            self._feed.forget(pod)
            changed.merge(self._leases.roll_back(pod.id, item.checkpoint, self._now()))
        # Whoever was answered meanwhile is judged by the old policy again, and waits for its leases.
        await self._apply(changed, after=refused)

    def _tell_purged(self, changed: Changed) -> None:
        self._counters.leases_purged += len(changed.purged)
        if changed.purged:
            self._events.emit(EventKind.LEASES_PURGED, count=len(changed.purged))
        if changed.refused:
            self._counters.limited["leasesPerPod"] += changed.refused
            self._events.emit(
                EventKind.LEASE_REFUSED,
                count=changed.refused,
                reason="no room for the leases that a new policy justifies",
            )

    # ---- pods

    async def begin(
        self,
        seen: Seen,
        lookup: Lookup,
        restore: Restore = no_leases,
        running: Mapping[Pair, str] | None = None,
        *,
        owed: Owed = NOTHING,
    ) -> None:
        """The first change of a process: all pods at once. `restore` takes up the leases that the kernel still holds,
        once the pods are known, and says what must be done to them. `running` is what the kernel ran for whom: open
        flows are judged where that is another program now, and forgotten where it is another pod. `owed` is what an
        earlier process had not done when it ended."""
        self._lookup = lookup
        self.generation = 1
        before = running or {}

        def take_up(now: Seconds) -> Changed:
            # Before the first change is in force: nothing of an older policy is told after it.
            self._feed.adopt(lambda pod: all(before.get(pair) == program for pair, program in pod.pairs()))
            self._inherit(before, owed)
            return restore(now)

        await self.links(seen, take_up)
        for pod in self._pods:
            if any(pair in before for pair, _ in pod.pairs()):
                pod.share.credit(UNREAD)

    def _inherit(self, before: Mapping[Pair, str], owed: Owed) -> None:
        now = self._pods.pairs()
        gone = {pair[1] for pair in before if pair not in now and pair not in self._excluded}
        self._flows.forget_later(gone | owed.forget)
        changed = {pair[1] for pair, program in now.items() if before.get(pair, program) != program} | owed.judge
        self._flows.judge_later(pod for pod in self._pods if not changed.isdisjoint(pod.addresses))

    async def links(self, seen: Seen, restore: Restore = no_leases) -> None:
        """Pods came, went, or have other addresses now."""
        async with self._one:
            links = await self._decide(seen)
            changed = Changed()
            before = {pod.id: (pod.policy, pod.addresses) for pod in self._pods}
            for one in links:
                self._flows.forget_later(self._link(one, changed))
            changed.merge(restore(self._now()))
            new = [pod for pod in self._pods if before.get(pod.id) != (pod.policy, pod.addresses)]
            self._flows.judge_later(pod for pod in new if pod.id in before)
            await self._apply(changed, new=new)
            self._tell_purged(changed)
            self._exchanges.pods_changed()
            await self._flows.settle(in_force=not self._refused)

    async def _decide(self, seen: Seen) -> list[_Link]:
        """What each link is from now on, those first that give room to others."""
        links = []
        for number, (link, state) in enumerate({**self._left_out, **seen}.items()):
            if number % SLICE == SLICE - 1:
                await asyncio.sleep(0)
            self._left_out.pop(link, None)
            name, addresses = state if state is not None else ("", frozenset[Address]())
            excluded = addresses & self._settings.exclude
            governed = tuple(sorted(addresses - excluded))
            pod = self._pods.by_link.get(link)
            known = governed and pod is not None and set(pod.addresses) == set(governed)
            assigned = self._assign(governed, name) if governed and not known else None
            links.append(_Link(link, name, governed, excluded, assigned))
        return sorted(links, key=lambda one: bool(one.governed))

    def _link(self, one: _Link, changed: Changed) -> set[Address]:
        """One link is now like this; the addresses whose flows must be forgotten."""
        self._excluded = {pair for pair in self._excluded if pair[0] != one.link}
        self._excluded |= {(one.link, address) for address in one.excluded}
        pod = self._pods.by_link.get(one.link)
        if pod is None:
            if one.assigned is not None and self._room(one):
                self._came(one, one.assigned)
            return set()
        lost = set(pod.addresses) - set(one.governed)
        if not one.governed:
            self._went(pod, changed)
        elif one.assigned is not None:
            self._readdressed(pod, one.governed, one.assigned, changed)
        return lost

    def _room(self, one: _Link) -> bool:
        if len(self._pods) < self._settings.most_pods:
            return True
        self._left_out[one.link] = one.name, frozenset(one.governed) | one.excluded
        self._events.emit(
            EventKind.POD_CONFLICT,
            pod_ip=_texts(one.governed),
            link=one.name,
            reason="tables.pods is full: raise it",
        )
        return False

    def _came(self, one: _Link, assigned: tuple[Assignment, Program]) -> None:
        assignment, program = assigned
        share = Share(self._settings.limits, self._now())
        pod = self._pods.came(one.link, one.name, one.governed, assignment=assignment, program=program, share=share)
        self._leases.add_pod(pod.id, one.governed)
        self._exchanges.pod_came(pod, named=assignment.name is not None)
        self._tell_pod(EventKind.POD_CAME, pod)

    def _went(self, pod: Pod, changed: Changed) -> None:
        self._exchanges.pod_went(pod)
        self._pods.went(pod.link)
        changed.remove += self._leases.remove_pod(pod.id)
        self._revocation.pod_went(pod)
        self._tell_pod(EventKind.POD_WENT, pod)

    def _readdressed(
        self, pod: Pod, addresses: tuple[Address, ...], assigned: tuple[Assignment, Program], changed: Changed
    ) -> None:
        self._feed.forget(pod)
        self._pods.readdressed(pod, addresses)
        moved = self._leases.set_addresses(pod.id, addresses, self._now())
        if assigned[0].policy is not pod.policy:
            adopted = self._adopt(_staged(pod, *assigned))
            gone = set(adopted.remove)
            moved.write = [write for write in moved.write if (write.scope, write.key) not in gone]
            moved.merge(adopted)
        changed.merge(moved)
        self._tell_pod(EventKind.POD_CHANGED, pod, reason=f"its addresses are {_texts(addresses)}")

    def _tell_pod(self, kind: EventKind, pod: Pod, **more: object) -> None:
        addresses, policy = _texts(pod.addresses), pod.policy.label
        self._events.emit(kind, pod=pod.name, pod_ip=addresses, link=pod.link_name, policy=policy, **more)

    # ---- the enforcer

    def _desired(self) -> Desired:
        return Desired(self._pods.programs(), self._pods.pairs(), frozenset(self._excluded))

    def _begin(self, changed: Changed) -> Ticket:
        """Complete a change by what is owed, and let the gate hold whatever counts on it. It is handed over next."""
        if self._refused:
            changed.write, changed.leases = self._leases.writes(self._now()), list(self._leases)
        written = {(write.scope, write.key) for write in changed.write}
        changed.remove = [element for element in (*self._owed, *changed.remove) if element not in written]
        return self._exchanges.gate.begin_change(changed.leases, self._now())

    async def _apply(self, changed: Changed, *, new: Sequence[Pod] = (), after: Ticket | None = None) -> None:
        """Hand a change to the enforcer; what it refuses is owed. `new` are pods the kernel knows otherwise, or not
        at all; `after` is a change that this one takes the place of."""
        gate = self._exchanges.gate
        ticket = self._begin(changed)
        if after is not None:
            gate.end_change(after, done=False)
        self._refused, self._owed = True, changed.remove
        try:
            await self._enforcer.apply(self._desired(), changed.write, changed.remove)
            self._done()
        except KernelError as error:
            self._events.emit(EventKind.KERNEL_STATE_DAMAGED, what="the programs of pods", reason=str(error))
        finally:
            if self._refused:
                self._exchanges.opening.unenforced |= {pod.id for pod in new}
            gate.end_change(ticket, done=not self._refused, pods=self._exchanges.opening.unenforced)

    def _done(self) -> None:
        """The kernel does all that it should."""
        self._refused, self._owed = False, []
        self._exchanges.opening.unenforced.clear()

    async def apply_again(self) -> None:
        """Try what the kernel refused before."""
        async with self._one:
            if self._refused:
                await self._apply(Changed())
            await self._flows.settle(in_force=not self._refused)

    # ---- time

    def tick(self, now: Seconds) -> None:
        """Leases end by themselves in the kernel; here they are taken out of the books and told of."""
        for lease in self._leases.due(now):
            self._tell_ended(lease)

    def _tell_ended(self, lease: Lease) -> None:
        pod = self._pods.by_id[lease.pod]
        names = sorted(name for name in lease.past if name)[:3]
        self._events.emit(EventKind.LEASE_ENDED, pod=pod.name, name=names, address=lease.address, scope=lease.scope)


def _staged(pod: Pod, assignment: Assignment, program: Program) -> _Staged:
    return _Staged(pod, assignment, program, (pod.name, pod.entry_origin, pod.policy, pod.program))


def _texts(addresses: tuple[Address, ...]) -> str:
    return ", ".join(map(address_text, addresses))
