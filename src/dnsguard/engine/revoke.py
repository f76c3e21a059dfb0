"""What becomes of open flows when what let them open is taken back.

A flow outlives its lease (I7). When a pod's policy changes, each of its open flows is judged by the names that its
address ever stood on: a flow that the new policy would not let open is cut (or left to drain, by choice). What was
cut stays cut, whatever the peer sends, until a lease or a static rule opens it again or the pod goes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from dnsguard.core.book import Spared
from dnsguard.core.compile import closed, decide
from dnsguard.core.lease import UNKNOWN
from dnsguard.core.leases import Justify, Leases
from dnsguard.core.model import Action, Address, Flow, Name, Packet, PodId, Program, Scope, Seconds
from dnsguard.core.pods import Pod, PodTable
from dnsguard.core.policy import Denied, EffectivePolicy
from dnsguard.engine.contracts import Enforcer, EventKind, Events, Flows
from dnsguard.engine.counters import Counters

REMEMBERED: Seconds = 600.0
"""How long what ended leases stood on is kept when no flow is open on their address, to tell why it is closed."""
MOST_REMEMBERED = 10_000
"""How many of these on the whole node, shared out to its pods: 4 MB."""
SETTLED: Seconds = 5.0
"""A flow that an answer let open is in connection tracking this much after its lease has ended."""
LOOK: Seconds = 60.0
"""Between two looks at which flows are open, while few leases end."""

SLICE = 50
"""Flows judged between two turns of the event loop."""
CUTS_PER_POD = 10_000
"""Cut flows remembered for one pod, to open them again; beyond it a cut ends only by ten minutes of silence."""


def justify(policy: EffectivePolicy, program: Program) -> Justify:
    """In which scopes a policy opens an address because of a name."""

    def scopes(name: Name, address: Address) -> Collection[str]:
        verdict = policy.verdict(name)
        if isinstance(verdict, Denied):
            return ()
        return [scope.name for scope in verdict.scopes if not closed(program, scope, address)]

    return scopes


@dataclass(frozen=True, slots=True)
class Kernel:
    """Where flows are: the enforcer that cuts them, and connection tracking that knows them."""

    enforcer: Enforcer
    flows: Flows


class Revocation:
    """Judges open flows, cuts them, and opens them again."""

    def __init__(
        self,
        kernel: Kernel,
        leases: Leases,
        events: Events,
        counters: Counters,
        *,
        drain: bool,
        told: Callable[[Pod, Address], Collection[Name]] = lambda pod, address: (),
    ) -> None:
        """`told`: names of which a pod was told an address without a lease, in Audit."""
        self._told = told
        self.audit = False
        """Nothing is cut."""
        self._enforcer = kernel.enforcer
        self._flows = kernel.flows
        self._leases = leases
        self._events = events
        self._counters = counters
        self.drain = drain
        self.cuts: dict[PodId, dict[Address, set[Flow]]] = {}
        self._looked: Seconds = 0.0
        self._left = 0
        """Ended leases that the last look left."""

    async def judge(self, pods: Sequence[Pod]) -> int:
        """Hold the open flows of `pods` against their policies, after a change of these. The number that was cut."""
        by_address = {address: pod for pod in pods for address in pod.addresses}
        if not by_address:
            return 0
        self._reopen_all(pods)
        unjust = await self._unjust(pods, by_address)
        await self._cut(unjust, by_address)
        return len(unjust)

    async def cut_ahead(self, pods: Sequence[Pod]) -> None:
        """At the end of Audit, which lets through what is cut: once the kernel enforces, no flow that is unjust now
        goes on, though the process should end before it can `judge`."""
        by_address = {address: pod for pod in pods for address in pod.addresses}
        if by_address and (unjust := await self._unjust(pods, by_address)):
            self._keep(unjust, by_address)
            await self._enforcer.cut(unjust)

    async def _unjust(self, pods: Sequence[Pod], by_address: Mapping[Address, Pod]) -> list[Flow]:
        if self.drain or self.audit:
            return []
        judges = {pod.id: _Judge(pod, self._leases, self._told) for pod in pods}
        unjust = []
        for number, flow in enumerate(await self._flows.begun_by(by_address)):
            if number % SLICE == SLICE - 1:
                await asyncio.sleep(0)
            if not judges[by_address[flow.pod].id].accepts(flow):
                unjust.append(flow)
        return unjust

    def just(self, pods: Iterable[Pod], flows: Iterable[Flow]) -> list[Flow]:
        """Those of these flows, begun by `pods`, that their policies would let open; in Audit all of them."""
        if self.audit:
            return list(flows)
        judges = {address: _Judge(pod, self._leases, self._told) for pod in pods for address in pod.addresses}
        return [flow for flow in flows if flow.pod in judges and judges[flow.pod].accepts(flow)]

    async def _cut(self, flows: list[Flow], by_address: Mapping[Address, Pod]) -> None:
        if not flows:
            return
        self._keep(flows, by_address)
        try:
            await self._enforcer.cut(flows)
        finally:
            # A pod may have more flows than there is room to cut: forgotten, they are decided anew by its program.
            await self._flows.delete(flows)
        self._counters.flows_cut += len(flows)
        for pod in {by_address[flow.pod].id: by_address[flow.pod] for flow in flows}.values():
            count = sum(by_address[flow.pod] is pod for flow in flows)
            self._events.emit(EventKind.FLOWS_CUT, pod=pod.name, count=count)

    def _keep(self, flows: list[Flow], by_address: Mapping[Address, Pod]) -> None:
        counts: dict[PodId, int] = {}
        for flow in flows:
            pod = by_address[flow.pod].id
            cuts = self.cuts.setdefault(pod, {})
            if pod not in counts:
                counts[pod] = sum(map(len, cuts.values()))
            if counts[pod] < CUTS_PER_POD and flow not in cuts.get(flow.peer, ()):
                counts[pod] += 1
                cuts.setdefault(flow.peer, set()).add(flow)

    # ---- opening again

    def before_arming(self, pod: Pod, addresses: Iterable[Address], scopes: Sequence[Scope]) -> None:
        """Leases are about to open these addresses: so are the flows to them that were cut and now are just."""
        cuts = self.cuts.get(pod.id)
        if cuts:
            names = {scope.name for scope in scopes}
            for address in addresses:
                if address in cuts:
                    self._reopen(pod, address, names.__contains__)

    def _reopen_all(self, pods: Iterable[Pod]) -> None:
        for pod in pods:
            for address in list(self.cuts.get(pod.id, ())):
                self._reopen(pod, address, partial(self._leases.is_open, pod.id, address))

    def _reopen(self, pod: Pod, address: Address, leased: Callable[[str], bool]) -> None:
        cuts = self.cuts[pod.id]
        just = {flow for flow in cuts[address] if _accepts(pod.program, flow, leased)}
        if not just:
            return
        self._enforcer.uncut(just)
        cuts[address] -= just
        if not cuts[address]:
            del cuts[address]

    def adopt(self, pods: Iterable[Pod], flows: Sequence[Flow]) -> None:
        """Take up what an earlier process has cut; flows of addresses that no pod has any longer are cut no more."""
        by_address = {address: pod for pod in pods for address in pod.addresses}
        known = [flow for flow in flows if flow.pod in by_address]
        self._keep(known, by_address)
        if gone := [flow for flow in flows if flow.pod not in by_address]:
            self._enforcer.uncut(gone)
        self._reopen_all({by_address[flow.pod].id: by_address[flow.pod] for flow in known}.values())

    def pod_went(self, pod: Pod) -> None:
        """Nothing of a pod that is gone stays cut: its address may be another's."""
        gone = [flow for flows in self.cuts.pop(pod.id, {}).values() for flow in flows]
        if gone:
            self._enforcer.uncut(gone)

    def release(self) -> None:
        """Nothing stays cut: Audit begins."""
        cut = [flow for by_peer in self.cuts.values() for flows in by_peer.values() for flow in flows]
        self.cuts.clear()
        if cut:
            self._enforcer.uncut(cut)

    # ---- memory

    async def tick(self, pods: PodTable, now: Seconds) -> None:
        """`remember`, once a minute or when many leases have ended. Called every few seconds."""
        if now - self._looked >= LOOK or self._leases.ended - self._left >= MOST_REMEMBERED:
            await self.remember(pods, now)

    async def remember(self, pods: PodTable, now: Seconds) -> None:
        """Forget what ended leases stood on, where no flow is open on it any longer."""
        self._looked = now
        with_ended = [pod for pod in pods if self._leases.pods[pod.id].ended]
        addresses = {address: pod.id for pod in with_ended for address in pod.addresses}
        flowing: dict[PodId, set[Address]] = {pod.id: set() for pod in with_ended}
        for flow in await self._flows.begun_by(addresses) if addresses else ():
            flowing[addresses[flow.pod]].add(flow.peer)
        spared = Spared(now - REMEMBERED, now - SETTLED, MOST_REMEMBERED // max(1, len(with_ended)))
        for pod, peers in flowing.items():
            if pod in self._leases.pods:
                self._leases.forget_ended(pod, peers, spared)
        self._left = self._leases.ended


class _Judge:
    """One pod's policy, and which names each address ever stood on."""

    def __init__(self, pod: Pod, leases: Leases, told: Callable[[Pod, Address], Collection[Name]]) -> None:
        self._told = partial(told, pod)
        self._program = pod.program
        self._scopes = justify(pod.policy, pod.program)
        self._stood_on = leases.stood_on(pod.id)
        self._open_in: dict[Address, set[str]] = {}

    def accepts(self, flow: Flow) -> bool:
        """Whether the policy would let the flow open, given every name that its address stood on."""
        open_in = self._open_in.get(flow.peer)
        if open_in is None:  # a thousand names may have led there, and as many flows
            open_in = self._open_in[flow.peer] = self._opened(flow.peer)
        return _accepts(self._program, flow, open_in.__contains__)

    def _opened(self, peer: Address) -> set[str]:
        """The scopes in which the names open this address."""
        open_in: set[str] = set()
        for scope, name in self._stood_on.get(peer, ()):
            open_in.update((scope,) if name == UNKNOWN else self._scopes(name, peer))
        for name in self._told(peer):
            open_in.update(self._scopes(name, peer))
        return open_in


def _accepts(program: Program, flow: Flow, leased: Callable[[str], bool]) -> bool:
    packet = Packet(flow.pod, flow.peer, flow.protocol, flow.peer_port)
    return decide(program, packet, leased).action is Action.ACCEPT
