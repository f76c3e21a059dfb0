"""The nftables enforcer as a subject of the contract suite: real packets through a node's kernel. Needs root.

The node is a network namespace of its own, with its own connection tracking. The second pod of each link has
addresses there and no route: nothing is sent to it, and its own packets are told by the map of pods, not by routes.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from dnsguard.core.model import Flow, LinkIndex, Packet, Protocol
from dnsguard.enforce.denials import Audited
from dnsguard.enforce.enforcer import LineEnforcer
from dnsguard.enforce.nftables import Layout, NftEnforcer
from tests.contract.subject import Maker, Settled, Subject, crowd
from tests.node.nftables_lab import LAYOUT, WORLD_MAC, Lab, inside, ip, udp

TOP = Path(__file__).resolve().parents[2]
_UPLINK = ("100.64.0.1/24", "100.64.0.2")
"""The lab's own uplink lies in a network that the scenarios have peers in."""


class NftSubject:
    """`enforcer` works in the node of `lab`; it is made by `start`."""

    enforcer: LineEnforcer
    records = True

    def __init__(self, lab: Lab, layout: Layout) -> None:
        self.lab = lab
        self.settled = Settled()
        self.crowd = crowd(lab.link("vetha"), lab.link("vethb"))
        self.places = self.crowd[0], self.crowd[1]
        self.damage: list[str] = []
        self._layout = layout
        self.capacity = layout.lease_set_size
        self._starts = {
            place.link: self.lab.pod if n % 2 == 0 else self.lab.other for n, place in enumerate(self.crowd)
        }
        self._links = {own: place.link for place in self.crowd for own in place.addresses}

    async def start(self, own: bool) -> None:
        with inside(self.lab.node):
            self.enforcer = await NftEnforcer.create(
                self._layout, self.settled, self.damage.append, lambda denial: None, own=own
            )

    async def decide(self, packet: Packet, link: LinkIndex | None = None) -> bool:
        start = self._starts[link or self._links[packet.source]]
        return self.lab.through(self.lab.first(packet), start=start)

    async def decide_all(self, packets: Sequence[Packet]) -> list[bool]:
        frames = [(self._starts[self._links[packet.source]], self.lab.first(packet)) for packet in packets]
        return self.lab.arriving(frames)

    async def begin(self, flow: Flow) -> bool:
        return await self.carries(flow) == (True, True)

    async def carries(self, flow: Flow) -> tuple[bool, bool]:
        """UDP only."""
        assert flow.protocol == Protocol.UDP
        end = self._starts[self._links[flow.pod]]
        out, back = (
            udp(flow.pod_port, flow.peer_port, self.lab.nonce()),
            udp(flow.peer_port, flow.pod_port, self.lab.nonce()),
        )
        return (
            self.lab.through(ip(flow.pod, flow.peer, flow.protocol, out), start=end),
            self.lab.through(ip(flow.peer, flow.pod, flow.protocol, back), start=self.lab.world, end=end),
        )

    async def audited(self) -> Sequence[Audited]:
        return await self.enforcer.audited()

    async def elapse(self, seconds: float) -> None:
        await asyncio.sleep(seconds)  # the kernel's clock cannot be moved

    @contextmanager
    def hindered(self) -> Iterator[None]:
        with loading(self.lab):
            yield


@contextmanager
def loading(lab: Lab) -> Iterator[None]:
    """Another process loads 50,000 elements into a table of its own in the same namespace, again and again."""
    command = ["nsenter", f"--net=/run/netns/{lab.node}", sys.executable, "-m", "tests.contract.loader"]
    path = os.pathsep.join((str(TOP / "src"), str(TOP)))
    child = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=TOP, env=os.environ | {"PYTHONPATH": path})
    try:
        assert child.stdout and child.stdout.readline() == b"loading\n"
        yield
    finally:
        child.kill()
        child.communicate()


@contextmanager
def in_lab() -> Iterator[Lab]:
    """A lab of its own for a subject. Without root the run ends with exit code 77."""
    if os.geteuid() != 0:
        pytest.exit("the tests of the kernel's tables need root", returncode=77)
    lab = Lab()
    try:
        _move_uplink(lab)
        yield lab
    finally:
        lab.close()


@asynccontextmanager
async def started(layout: Layout, *, own: bool) -> AsyncIterator[NftSubject]:
    with in_lab() as lab:
        subject = NftSubject(lab, layout)
        await subject.start(own)
        try:
            yield subject
        finally:
            await subject.enforcer.close()


@asynccontextmanager
async def _made(own: bool, *, small: bool = False) -> AsyncIterator[Subject]:
    async with started(replace(LAYOUT, leases=0) if small else LAYOUT, own=own) as subject:
        yield subject
        assert subject.damage == []


def _move_uplink(lab: Lab) -> None:
    own, gateway = _UPLINK
    lab.ip("addr flush dev uplink scope global")
    lab.ip(f"addr add {own} dev uplink")
    lab.ip(f"neigh replace {gateway} lladdr {WORLD_MAC.hex(':')} dev uplink")
    lab.ip(f"route replace default via {gateway}")
    lab.ip("-6 addr add 2001:db8:f::1/64 dev uplink nodad")
    lab.ip("-6 route replace default via 2001:db8:f::2")


owned: Maker = partial(_made, True)
shared: Maker = partial(_made, False)
