"""A history of flows, played to nftables alone, to eBPF alone and to both: each packet's fate, side by side.

Real packets through three labs. In that of nftables a table of its own says what connection tracking calls each
packet. Each history has a peer of its own, so that none knows of another's flows. Needs root.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_network
from itertools import count
from typing import NamedTuple

from dnsguard.core.model import Action, Address, Flow, Program, ProgramRule, Scope, Tier
from dnsguard.enforce.bpf import pins
from dnsguard.enforce.nftables import netlink
from dnsguard.engine.contracts import Desired, Element, Write
from dnsguard.node.conntrack import Conntrack
from tests.contract import ebpf, nftables
from tests.contract.flows import EVENTS, History, Step, Talk, What, Writer, pod_of
from tests.contract.nftables import NftSubject
from tests.node.nftables_lab import LAYOUT, inside

HOUR_MS = 3_600_000
GROUP = 77
PROBE = f"""
table inet probe {{
  chain seen {{
    type filter hook prerouting priority -160; policy accept;
    ct state invalid log prefix "invalid" group {GROUP}
    ct state new log prefix "new" group {GROUP}
    ct state established log prefix "established" group {GROUP}
    ct state related log prefix "related" group {GROUP}
  }}
}}
"""
_ANY = Scope("any", ())
_LEASING = ProgramRule(Tier.POD, Action.ACCEPT, (), scope=_ANY)
_EVERYWHERE = ProgramRule(Tier.POD, Action.ACCEPT, (), (ip_network("0.0.0.0/0"), ip_network("::/0")))
ONLY_LEASES = Program("p_00000000000a", (_LEASING,))
ALL_ALLOWED = Program("p_00000000000b", (_LEASING, _EVERYWHERE))


class Fate(NamedTuple):
    """Whether one packet arrived, by each line and by both.

    `tracked` is what connection tracking calls it beside nftables alone, and `tracked_in_both` where both are;
    `allowed`, whether the pod may begin any flow with the peer just then; `cut`, whether this flow is cut.
    """

    step: Step
    talk: Talk
    tracked: str
    tracked_in_both: str
    allowed: bool
    cut: bool
    nftables: bool
    ebpf: bool
    both: bool

    @property
    def passed(self) -> tuple[bool, bool, bool]:
        return self.nftables, self.ebpf, self.both


class Probe:
    """What connection tracking calls packets, in the lab of an NftSubject."""

    def __init__(self, subject: NftSubject) -> None:
        subject.lab.nft(PROBE)
        with inside(subject.lab.node):
            self._socket = netlink.netfilter_socket()
        self._socket.bind((0, 0))
        for body in (
            netlink.attribute(1, b"\1"),
            netlink.attribute(2, struct.pack(">IBx", 64, 2)),
            netlink.attribute(5, struct.pack(">I", 1)),
        ):
            command = netlink.generic(0, GROUP) + body
            self._socket.send(netlink.message(4 << 8 | 1, netlink.REQUEST | netlink.ACK, 1, command))
            self._socket.recv(4096)
        self._socket.setblocking(False)

    def close(self) -> None:
        self._socket.close()

    def last(self) -> str:
        """Of the packet that was seen since the last call."""
        found = [*self._seen()]
        return found[-1] if found else "untracked"

    def _seen(self) -> Iterator[str]:
        while True:
            try:
                data = self._socket.recv(65536)
            except BlockingIOError:
                return
            for message in netlink.messages(data):
                if message.kind == 4 << 8:
                    yield netlink.string(netlink.attributes(message.payload, 4).get(10, b""))


@dataclass
class Labs:
    """Nftables alone, eBPF alone and both, in this order."""

    subjects: tuple[NftSubject, NftSubject, NftSubject]
    trackers: tuple[Conntrack, ...]
    probes: tuple[Probe, Probe]
    peers: Iterator[int]

    async def play(self, history: History) -> list[Fate]:
        """The fate of every packet."""
        self._check()
        pod, peer = pod_of(self.subjects[0].places[0], history.family), _peer(next(self.peers), history.family)
        stage = Stage(self, pod, peer, history.talks)
        await stage.set_up()
        fates = [fate for step in history.steps if (fate := await stage.take(step))]
        await stage.clear(len(history.talks))
        self._check()
        return fates

    def _check(self) -> None:
        """Whoever removes the pins of others takes the programs off, and everything passes."""
        for subject in self.subjects[1:]:
            if not (pins.MOUNT_POINT / subject.lab.node).exists():
                raise RuntimeError("somebody else has removed the programs of this run")


def _peer(number: int, family: int) -> Address:
    return Address((0xC6120000 + number).to_bytes(4) if family == 4 else (0x20010DB8 << 96 | number).to_bytes(16))


class Stage:
    """One history being played."""

    def __init__(self, labs: Labs, pod: Address, peer: Address, talks: Sequence[Talk]) -> None:
        self._labs, self._talks = labs, talks
        self._writer = Writer(pod, peer, talks)
        self._pod, self._peer = pod, peer
        self._program = ONLY_LEASES
        self._leased = False
        self._cuts: set[Flow] = set()

    async def set_up(self) -> None:
        await self._apply(leased=True)

    async def take(self, step: Step) -> Fate | None:
        if step.what in EVENTS:
            await self._happens(step)
            return None
        nonces = [subject.lab.nonce() for subject in self._labs.subjects]
        passed = [
            self._passes(subject, step, nonce) for subject, nonce in zip(self._labs.subjects, nonces, strict=True)
        ]
        self._writer.sent(step, nonces[0])
        tracked = [probe.last() for probe in self._labs.probes]
        allowed = self._leased or self._program is ALL_ALLOWED
        cut = self._writer.flow(step.talk) in self._cuts
        return Fate(step, self._talks[step.talk], tracked[0], tracked[1], allowed, cut, *passed)

    def _passes(self, subject: NftSubject, step: Step, nonce: bytes) -> bool:
        packet, lab = self._writer.packet(step, nonce), subject.lab
        return lab.through(packet) if step.by_pod else lab.through(packet, start=lab.world, end=lab.pod)

    async def clear(self, talks: int) -> None:
        await self._uncut([self._writer.flow(number) for number in range(talks)])
        self._program = ONLY_LEASES
        await self._apply(leased=False)

    async def _happens(self, step: Step) -> None:
        flow = self._writer.flow(step.talk)
        match step.what:
            case What.LEASED | What.LEASE_ENDS:
                await self._apply(leased=step.what is What.LEASED)
            case What.ALL_ALLOWED | What.ONLY_LEASES:
                self._program = ALL_ALLOWED if step.what is What.ALL_ALLOWED else ONLY_LEASES
                await self._apply()
            case What.CUT:
                await self._cut(flow)
            case What.UNCUT:
                await self._uncut([flow])

    async def _cut(self, flow: Flow) -> None:
        """As the daemon does: connection tracking forgets what is cut. Of ICMP that is what the pod asked."""
        flows = [flow]
        if flow.protocol not in (1, 58):
            peer = flow.peer, flow.peer_port
            flows.append(Flow(flow.protocol, *peer, flow.pod, flow.pod_port, flow.pod, flow.pod_port))
        self._cuts.add(flow)
        for subject, tracker in zip(self._labs.subjects, self._labs.trackers, strict=True):
            await subject.enforcer.cut([flow])
            await tracker.delete(flows)

    async def _uncut(self, flows: list[Flow]) -> None:
        self._cuts.difference_update(flows)
        for subject in self._labs.subjects:
            await subject.enforcer.uncut(flows)

    async def _apply(self, leased: bool | None = None) -> None:
        """Run the program; with `leased` the lease comes or goes, without it stays as it is."""
        if leased is not None:
            self._leased = leased
        key = self._pod + self._peer
        added = [Write(_ANY.name, key, HOUR_MS)] if leased else []
        gone = [Element(_ANY.name, key)] if leased is False else []
        for subject in self._labs.subjects:
            place = subject.places[0]
            pairs = {(place.link, own): self._program.name for own in place.addresses}
            await subject.enforcer.apply(Desired((self._program,), pairs), added, gone)


@asynccontextmanager
async def labs() -> AsyncIterator[Labs]:
    async with AsyncExitStack() as stack:
        subjects = (
            await stack.enter_async_context(nftables.started(LAYOUT, own=True)),
            await stack.enter_async_context(ebpf.started(LAYOUT, own=True, beside_nftables=False)),
            await stack.enter_async_context(ebpf.started(LAYOUT, own=True, beside_nftables=True)),
        )
        trackers = []
        for subject in subjects:
            with inside(subject.lab.node):
                trackers.append(Conntrack())
            stack.push_async_callback(trackers[-1].close)
        probes = Probe(subjects[0]), Probe(subjects[2])
        for probe in probes:
            stack.callback(probe.close)
        yield Labs(subjects, tuple(trackers), probes, count(1))
