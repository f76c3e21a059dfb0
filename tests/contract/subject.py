"""What the contract suite needs of an enforcer under test, and the first such subject: the one in memory.

To add a subject: write a class with these members, an async context manager that makes one with nothing applied and
cleans up after it (a `Maker`), and put it into `SUBJECTS` in conftest.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from typing import Protocol

from dnsguard.core.model import Action, Flow, LinkIndex, Packet
from dnsguard.enforce.denials import Audited
from dnsguard.enforce.memory import MemoryEnforcer
from dnsguard.engine.contracts import Enforcer, Ticket
from tests.contract.generator import Place, address

PATIENCE = 5.0
"""Seconds after which a ticket that was not settled is a failure."""


class Settled:
    """An `Acknowledge` that tests can wait on."""

    def __init__(self) -> None:
        self.upto: Ticket = -1
        self.refused: dict[Ticket, str] = {}
        self._changed = asyncio.Event()

    def __call__(self, upto: Ticket, refused: Mapping[Ticket, str]) -> None:
        assert upto > self.upto, "tickets are settled in order"
        assert all(self.upto < ticket <= upto for ticket in refused), "a ticket is settled once"
        self.upto = upto
        self.refused.update(refused)
        self._changed.set()

    async def __getitem__(self, ticket: Ticket) -> str | None:
        """Wait until the ticket is settled: the reason it was refused, or None."""
        async with asyncio.timeout(PATIENCE):
            while self.upto < ticket:
                self._changed.clear()
                await self._changed.wait()
        return self.refused.get(ticket)


class Subject(Protocol):
    """An enforcer, its acknowledgements, two pods, and a way to send packets from them.

    `crowd` are more pods, the two among them; `capacity` is the number of elements that one lease set can hold.
    `records`: what passes in Audit is recorded, and not only let.
    """

    enforcer: Enforcer
    settled: Settled
    places: tuple[Place, Place]
    crowd: tuple[Place, ...]
    capacity: int
    records: bool

    async def decide(self, packet: Packet, link: LinkIndex | None = None) -> bool:
        """Send the first packet of a new flow into `link` (else into the link of its source): did it pass?

        For TCP that is a SYN. The peer need not answer; the flow's source port is new each time.
        """

    async def decide_all(self, packets: Sequence[Packet]) -> list[bool]:
        """`decide` for each of many packets, all sent before anything else happens."""

    async def begin(self, flow: Flow) -> bool:
        """Send this flow's first packet and, when it passed, a reply to it: is the flow open now?"""

    async def carries(self, flow: Flow) -> tuple[bool, bool]:
        """Send one more packet of this flow from the pod and one from the peer: which of them passed?"""

    async def audited(self) -> Sequence[Audited]:
        """What passed in Audit and would have been dropped."""

    async def elapse(self, seconds: float) -> None:
        """Let time pass."""

    def hindered(self) -> AbstractContextManager[None]:
        """While this lasts, something else keeps the enforcer's writes waiting again and again."""


class Maker(Protocol):
    """`small`: with as little capacity as it can be made with."""

    def __call__(self, *, small: bool = False) -> AbstractAsyncContextManager[Subject]: ...


def crowd(first: LinkIndex, second: LinkIndex) -> tuple[Place, ...]:
    """Four pods, two behind each link."""
    return tuple(
        Place(link, address(f"10.244.0.{number}"), address(f"fd00:10:244::{number}"))
        for number, link in enumerate((first, second, first, second), start=5)
    )


class MemorySubject:
    """The enforcer in memory on a clock that only `elapse` moves."""

    crowd = crowd(LinkIndex(11), LinkIndex(12))
    places = crowd[0], crowd[1]
    records = True

    def __init__(self, capacity: int = 5000, crowd: tuple[Place, ...] = crowd) -> None:
        self.crowd = crowd
        self.places = crowd[0], crowd[1]
        self.time = 1000.0
        self._turn: asyncio.Handle | None = None
        self.settled = Settled()
        self.capacity = capacity
        self.memory = MemoryEnforcer(self.settled, lambda: self.time, capacity=capacity)
        self.enforcer: Enforcer = self.memory

    async def decide(self, packet: Packet, link: LinkIndex | None = None) -> bool:
        return self.memory.decide(packet, link).action is Action.ACCEPT

    async def decide_all(self, packets: Sequence[Packet]) -> list[bool]:
        return [self.memory.decide(packet).action is Action.ACCEPT for packet in packets]

    async def begin(self, flow: Flow) -> bool:
        packet = Packet(flow.pod, flow.peer, flow.protocol, flow.peer_port)
        return self.memory.carries(flow) and await self.decide(packet)

    async def carries(self, flow: Flow) -> tuple[bool, bool]:
        return self.memory.carries(flow), self.memory.carries(flow)

    async def audited(self) -> Sequence[Audited]:
        return await self.memory.audited()

    async def elapse(self, seconds: float) -> None:
        self.time += seconds

    @contextmanager
    def hindered(self) -> Iterator[None]:
        """Each call is settled by a later turn of the event loop."""
        loop = asyncio.get_running_loop()

        def turn() -> None:
            self.memory.release()
            self.memory.hold()
            self._turn = loop.call_soon(turn)

        turn()
        try:
            yield
        finally:
            if self._turn:
                self._turn.cancel()
            self.memory.release()


@asynccontextmanager
async def memory(*, small: bool = False) -> AsyncIterator[Subject]:
    yield MemorySubject(64) if small else MemorySubject()
