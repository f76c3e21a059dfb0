"""Story 2: a change, as ordered steps for pods, leases, the enforcer, and open flows.

A change is anything but an answer that alters what is open: a new policy, a pod that came, went, or got another
address. Changes happen one after another. Each decides everything first (in slices, so that the loop goes on), then
in one step without a pause hands the whole to the enforcer and lets new queries be judged by it: whatever those
queries arm is queued behind it. Open flows are judged last, by the names that let them open.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from dnsguard.core.compile import compile_program
from dnsguard.core.errors import KernelError, PolicyError
from dnsguard.core.leases import Changed, Checkpoint, Element, Lease
from dnsguard.core.limits import Limits, Share
from dnsguard.core.model import Action, Address, LinkIndex, Pair, Program, Seconds
from dnsguard.core.names import to_text
from dnsguard.core.pods import Assignment, Lookup, Pod, address_text, assign
from dnsguard.core.policy import EffectivePolicy, deny_all
from dnsguard.engine.contracts import Desired, Enforcer, EventKind, Flows
from dnsguard.engine.exchange import Exchanges, Stores
from dnsguard.engine.revoke import Revocation, justify

SLICE = 20
"""Pods assigned between two turns of the event loop."""

Seen = Mapping[LinkIndex, tuple[str, frozenset[Address]] | None]
"""What the node says of links: name and the addresses routed to it; None when it is gone."""


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
    before: tuple[EffectivePolicy, Program]
    checkpoint: Checkpoint | None = None


class Changes:
    """Applies changes, one after another."""

    def __init__(
        self, settings: ChangeSettings, stores: Stores, exchanges: Exchanges, *, enforcer: Enforcer, flows: Flows,
        revocation: Revocation, now: Callable[[], Seconds],
    ) -> None:  # fmt: skip
        self._settings = settings
        self._pods = stores.pods
        self._leases = stores.leases
        self._events = stores.events
        self._counters = stores.counters
        self._exchanges = exchanges
        self._enforcer = enforcer
        self._flows = flows
        self._revocation = revocation
        self._now = now
        self._one = asyncio.Lock()
        self._excluded: set[Pair] = set()
        self._lookup: Lookup | None = None
        self.generation = 0
        self.unapplied = False
        """The kernel refused the last change of pods; the next `apply` tries again."""

    # ---- a new policy

    async def policy(self, lookup: Lookup) -> Outcome:
        """Go over to what `lookup` says. In force when it returns; KernelError leaves the old policy in force."""
        async with self._one:
            staged = await self._stage(lookup)
            changed = Changed()
            for item in staged:
                item.checkpoint = self._leases.checkpoint(item.pod.id)
                _merge(changed, self._adopt(item, item.assignment.policy, item.program))
            try:
                await self._enforcer.apply(self._desired(), changed.write, changed.remove)
            except KernelError:
                await self._roll_back(staged)
                raise
            self._lookup = lookup
            self.generation += 1
            self._tell_purged(changed)
            cut = await self._revocation.judge([item.pod for item in staged])
            return Outcome(len(staged), len(changed.write), len(changed.remove), cut)

    async def _stage(self, lookup: Lookup) -> list[_Staged]:
        staged = []
        for number, pod in enumerate(list(self._pods)):
            if number % SLICE == SLICE - 1:
                await asyncio.sleep(0)
            assignment, program = self._assign(pod.addresses, lookup, pod.link_name)
            if assignment.policy is not pod.policy or assignment.name != pod.name:
                staged.append(_Staged(pod, assignment, program, (pod.policy, pod.program)))
        return staged

    def _assign(self, addresses: tuple[Address, ...], lookup: Lookup, link: str) -> tuple[Assignment, Program]:
        """What the allowlist says of these addresses; contradictions and too large programs deny all, with an event."""
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
                EventKind.POD_CONFLICT, pod_ip=_texts(addresses), link=link, reason=f"{first} and {second} disagree"
            )
        return assignment, program

    def _adopt(self, item: _Staged, policy: EffectivePolicy, program: Program) -> Changed:
        """From here on the pod's queries are judged by `policy`; what that leaves of its leases."""
        pod = item.pod
        same = program.name == pod.program.name
        pod.policy, pod.program = policy, program
        pod.name = item.assignment.name or pod.name
        pod.entry_origin = item.assignment.origin
        return self._leases.rejustify(pod.id, justify(policy, program), self._now(), same_program=same)

    async def _roll_back(self, staged: list[_Staged]) -> None:
        """The kernel refused the new programs: judge by the old ones again, with the leases they had."""
        changed = Changed()
        for item in staged:
            assert item.checkpoint is not None
            item.pod.policy, item.pod.program = item.before
            _merge(changed, self._leases.roll_back(item.pod.id, item.checkpoint, self._now()))
        try:
            await self._enforcer.apply(self._desired(), changed.write, changed.remove)
        except KernelError as error:
            self.unapplied = True
            self._events.emit(EventKind.KERNEL_STATE_DAMAGED, what="the programs of pods", reason=str(error))

    def _tell_purged(self, changed: Changed) -> None:
        self._counters.leases_purged += len(changed.purged)
        if changed.purged:
            self._events.emit(EventKind.LEASES_PURGED, count=len(changed.purged))
        if changed.refused:
            self._counters.limited["leasesPerPod"] += changed.refused
            self._events.emit(
                EventKind.LEASE_REFUSED,
                address=f"{changed.refused} addresses",
                name="names",
                reason="no room for leases",
            )

    # ---- pods

    async def begin(self, seen: Seen, lookup: Lookup, restore: Callable[[Seconds], list[Element]]) -> None:
        """The first change of a process: all pods at once. `restore` takes up the leases that the kernel still holds,
        once the pods are known, and names the elements that must go."""
        self._lookup = lookup
        self.generation = 1
        await self.links(seen, restore)

    async def links(self, seen: Seen, restore: Callable[[Seconds], list[Element]] = lambda now: []) -> None:
        """Pods came, went, or have other addresses now."""
        async with self._one:
            changed = Changed()
            forget: set[Address] = set()
            for number, (link, state) in enumerate(seen.items()):
                if number % SLICE == SLICE - 1:
                    await asyncio.sleep(0)
                name, addresses = state if state is not None else ("", frozenset[Address]())
                forget |= self._link(link, name, addresses, changed)
            changed.remove += restore(self._now())
            await self._apply(changed)
            self._exchanges.pods_changed()
            if forget:
                await self._flows.forget(forget)

    def _link(self, link: LinkIndex, name: str, addresses: frozenset[Address], changed: Changed) -> set[Address]:
        """One link is now like this; the addresses whose flows must be forgotten."""
        excluded = addresses & self._settings.exclude
        self._excluded = {pair for pair in self._excluded if pair[0] != link} | {(link, a) for a in excluded}
        governed = tuple(sorted(addresses - excluded))
        pod = self._pods.by_link.get(link)
        if pod is None:
            if governed and self._room(name, governed):
                self._came(link, name, governed)
            return set()
        lost = set(pod.addresses) - set(governed)
        if not governed:
            self._went(pod, changed)
        elif set(governed) != set(pod.addresses):
            self._readdressed(pod, governed, changed)
        return lost

    def _room(self, link: str, addresses: tuple[Address, ...]) -> bool:
        if len(self._pods) < self._settings.most_pods:
            return True
        self._events.emit(
            EventKind.POD_CONFLICT, pod_ip=_texts(addresses), link=link, reason="tables.pods is full: raise it"
        )
        return False

    def _came(self, link: LinkIndex, link_name: str, addresses: tuple[Address, ...]) -> None:
        assert self._lookup is not None
        assignment, program = self._assign(addresses, self._lookup, link_name)
        share = Share(self._settings.limits, self._now())
        pod = self._pods.came(link, link_name, addresses, assignment=assignment, program=program, share=share)
        self._leases.add_pod(pod.id, addresses)
        self._tell_pod(EventKind.POD_CAME, pod)

    def _went(self, pod: Pod, changed: Changed) -> None:
        self._exchanges.pod_went(pod)
        self._pods.went(pod.link)
        changed.remove += self._leases.remove_pod(pod.id)
        self._revocation.pod_went(pod)
        self._tell_pod(EventKind.POD_WENT, pod)

    def _readdressed(self, pod: Pod, addresses: tuple[Address, ...], changed: Changed) -> None:
        assert self._lookup is not None
        self._pods.readdressed(pod, addresses)
        _merge(changed, self._leases.set_addresses(pod.id, addresses, self._now()))
        assignment, program = self._assign(addresses, self._lookup, pod.link_name)
        if assignment.policy is not pod.policy:
            item = _Staged(pod, assignment, program, (pod.policy, pod.program))
            _merge(changed, self._adopt(item, assignment.policy, program))
        self._tell_pod(EventKind.POD_CHANGED, pod, reason=f"its addresses are {_texts(addresses)}")

    def _tell_pod(self, kind: EventKind, pod: Pod, **more: object) -> None:
        addresses, policy = _texts(pod.addresses), pod.policy.label
        self._events.emit(kind, pod=pod.name, pod_ip=addresses, link=pod.link_name, policy=policy, **more)

    # ---- the enforcer

    def _desired(self) -> Desired:
        return Desired(self._pods.programs(), self._pods.pairs(), frozenset(self._excluded))

    async def _apply(self, changed: Changed) -> None:
        """Hand a change of pods to the enforcer; what it refuses stays closed and is tried again."""
        written = {(write.scope, write.key) for write in changed.write}
        remove = [element for element in changed.remove if element not in written]
        try:
            await self._enforcer.apply(self._desired(), changed.write, remove)
            self.unapplied = False
        except KernelError as error:
            self.unapplied = True
            self._events.emit(EventKind.KERNEL_STATE_DAMAGED, what="the programs of pods", reason=str(error))

    async def apply_again(self) -> None:
        """Try what the kernel refused before."""
        async with self._one:
            await self._apply(Changed(write=self._leases.writes(self._now())))

    # ---- time

    def tick(self, now: Seconds) -> None:
        """Leases end by themselves in the kernel; here they are taken out of the books and told of."""
        for lease in self._leases.due(now):
            self._tell_ended(lease)

    def _tell_ended(self, lease: Lease) -> None:
        pod = self._pods.by_id[lease.pod]
        names = ", ".join(sorted(to_text(name) for name in lease.past if name)[:3])
        self._events.emit(
            EventKind.LEASE_ENDED, pod=pod.name, name=names, address=address_text(lease.address), scope=lease.scope
        )


def _merge(into: Changed, more: Changed) -> None:
    into.write += more.write
    into.remove += more.remove
    into.purged += more.purged
    into.refused += more.refused


def _texts(addresses: tuple[Address, ...]) -> str:
    return " ".join(map(address_text, addresses))
