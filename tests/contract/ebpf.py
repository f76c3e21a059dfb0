"""The eBPF line as a subject of the contract suite, alone and beside nftables. Needs root, and the lab's packets.

The programs are attached to the lab's links as on a node; what is pinned for that is removed with the lab.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path

from dnsguard.core.model import LinkIndex, Packet
from dnsguard.enforce.bpf import layout, pins
from dnsguard.enforce.bpf.attach import Attachments, remove_all
from dnsguard.enforce.bpf.layout import Idle
from dnsguard.enforce.bpf.load import Loaded, load
from dnsguard.enforce.bpf.syscall import test_run
from dnsguard.enforce.bpf.table import BpfTable
from dnsguard.enforce.enforcer import LineEnforcer
from dnsguard.enforce.nftables import Layout, NftEnforcer
from tests.contract.nftables import NftSubject, in_lab
from tests.contract.subject import Maker, Subject, crowd
from tests.node.nftables_lab import LAYOUT, NODE_MAC, POD_MAC, PREFIX, Lab, inside, ip, transport

SECOND = 10**9
IDLE_NS = {
    Idle.TCP_NEW: 120,
    Idle.TCP: 432_000,
    Idle.TCP_ASKED: 10,
    Idle.TCP_CLOSING: 120,
    Idle.TCP_CLOSED: 10,
    Idle.UDP_NEW: 30,
    Idle.UDP: 120,
    Idle.SCTP: 210,
    Idle.ICMP: 30,
    Idle.OTHER: 600,
    Idle.CUT: 600,
}
"""In seconds: what connection tracking has."""
_LINKS = ("vetha", "vethb")
_UNSPEC, _SHOT = -1, 2


LOOPBACK = LinkIndex(1)
"""The link that a program runs on when nothing else is said."""


class Bench:
    """The programs run on packets made up here, by BPF_PROG_TEST_RUN: no link is needed, and no network. The pods are
    all behind the loopback."""

    def __init__(self, loaded: Loaded) -> None:
        self.maps = loaded.maps
        self._programs = loaded.programs
        self._ports = cycle(range(20_000, 60_000))
        self.crowd = crowd(LOOPBACK, LOOPBACK)

    def lets(self, packet: Packet) -> bool:
        """Whether the first packet of a new flow passes."""
        data = transport(packet, next(self._ports), bytes(8))
        return self.from_pod(ip(packet.source, packet.destination, packet.protocol, data))

    def from_pod(self, packet: bytes) -> bool:
        return self._run("from_pod", packet)

    def to_pod(self, packet: bytes) -> bool:
        return self._run("to_pod", packet)

    def _run(self, program: str, packet: bytes) -> bool:
        kind = b"\x08\x00" if packet[0] >> 4 == 4 else b"\x86\xdd"
        verdict = test_run(self._programs[program], NODE_MAC + POD_MAC + kind + packet).verdict
        assert verdict in (_UNSPEC, _SHOT)
        return verdict == _UNSPEC


@contextmanager
def loaded(layout_of: Layout) -> Iterator[Loaded]:
    """The programs and maps of the size that this layout asks for, pinned nowhere; no limit of queries or reports."""
    pods = {"pairs": 4 * layout_of.pods, "programs": 2 * layout_of.pods}
    made = load(None, {"leases": layout_of.lease_set_size, "flows": 64 * layout_of.flows, **pods})
    try:
        set_up(made)
        yield made
    finally:
        made.close()


def set_up(made: Loaded) -> None:
    idle = [SECOND * IDLE_NS[each] for each in Idle]
    settings = layout.SETTINGS.pack(*idle, 0, 0, 0, 0, 1_000_000, 1, 0)
    made.maps["settings"].update(layout.U32.pack(0), settings)


class BpfSubject(NftSubject):
    """`enforcer` is the eBPF line, and with `beside_nftables` both."""

    def __init__(self, lab: Lab, layout: Layout, loaded: Loaded, *, beside_nftables: bool) -> None:
        super().__init__(lab, layout)
        self.maps = loaded.maps
        self._beside_nftables = beside_nftables
        self.records = beside_nftables

    async def start(self, own: bool) -> None:
        table = BpfTable(self.maps)
        if self._beside_nftables:
            with inside(self.lab.node):
                self.enforcer = await NftEnforcer.create(
                    self._layout, self.settled, self.damage.append, lambda denial: None, own=own, beside=table
                )
        else:
            self.enforcer = LineEnforcer(self.settled)
            await self.enforcer.open(lambda: table)


def _sweep() -> None:
    """Remove what runs that were killed have pinned. Called in a namespace that has no filters of others."""
    for folder in pins.MOUNT_POINT.glob(f"{PREFIX}*"):
        pid = folder.name.removeprefix(PREFIX).split("-")[0]
        if not Path(f"/proc/{pid}").exists():
            remove_all(folder)


@contextmanager
def attached(lab: Lab, loaded: Loaded) -> Iterator[None]:
    """Not for an event loop's thread."""
    bpffs = pins.MOUNT_POINT / lab.node
    pins.prepare(bpffs)
    with inside(lab.node):
        _sweep()
        attachments = Attachments(loaded.programs, bpffs)
    try:
        with inside(lab.node):
            for name in _LINKS:
                attachments.attach(lab.link(name), name)
        yield
    finally:
        attachments.close()
        with inside(lab.node):
            remove_all(bpffs)


@asynccontextmanager
async def started(
    layout: Layout, *, own: bool, beside_nftables: bool, maps: Layout | None = None
) -> AsyncIterator[BpfSubject]:
    """`maps`: what the maps are made for, when that is not what the table is."""
    with in_lab() as lab, loaded(maps or layout) as made:
        attaching = attached(lab, made)
        await asyncio.to_thread(attaching.__enter__)
        try:
            subject = BpfSubject(lab, layout, made, beside_nftables=beside_nftables)
            await subject.start(own)
            try:
                yield subject
            finally:
                await subject.enforcer.close()
        finally:
            await asyncio.to_thread(attaching.__exit__, None, None, None)


@asynccontextmanager
async def _made(beside_nftables: bool, *, small: bool = False) -> AsyncIterator[Subject]:
    layout = replace(LAYOUT, leases=0) if small else LAYOUT
    async with started(layout, own=True, beside_nftables=beside_nftables) as subject:
        yield subject
        assert subject.damage == []


ebpf: Maker = partial(_made, False)
both: Maker = partial(_made, True)
