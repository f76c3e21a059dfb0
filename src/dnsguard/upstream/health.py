"""The way back for a server that went down: it is asked `. NS` until it gives any well-formed reply."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Protocol

import asyncio_dgram

from dnsguard.core.model import Seconds
from dnsguard.upstream.endpoint import Endpoint, place
from dnsguard.upstream.matching import objection

TICK: Seconds = 0.25
"""How late a probe may be."""
PATIENCE: Seconds = 1.0
"""How long one probe waits."""

ROOT_NS = b"\x00\x00\x02\x00\x01"
HEADER = b"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00"
"""Of the probe, after its ID: recursion desired, one question."""


class Due(Protocol):
    """What knows who is down (`core.attempts.Servers`)."""

    def due_probes(self, now: Seconds) -> list[int]: ...


class Probes:
    """Probes the servers that are due; `back(server)` is called in the loop's thread when one has replied.

    A refusal is a reply: a server that answers REFUSED for the root may still serve its own names.
    """

    def __init__(
        self,
        servers: Sequence[Endpoint],
        due: Due,
        *,
        back: Callable[[int], None],
        clock: Callable[[], Seconds] = monotonic,
    ) -> None:
        self._places = [place(server) for server in servers]
        self._due, self._back, self._clock = due, back, clock
        self._under_way: set[int] = set()

    async def run(self) -> None:
        """Probe until cancelled; probes under way end with it."""
        async with asyncio.TaskGroup() as probes:
            while True:
                for server in self._due.due_probes(self._clock()):
                    if server not in self._under_way:
                        self._under_way.add(server)
                        probes.create_task(self._probe(server))
                await asyncio.sleep(TICK)

    async def _probe(self, server: int) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                await self._reply(server)
        except (OSError, TimeoutError, asyncio_dgram.TransportClosed):
            return
        finally:
            self._under_way.discard(server)
        self._back(server)

    async def _reply(self, server: int) -> None:
        stream = await asyncio_dgram.connect(self._places[server].sockaddr[:2])
        try:
            identifier = os.urandom(2)
            await stream.send(identifier + HEADER + ROOT_NS)
            while True:
                packet, _ = await stream.recv()
                if packet[:2] == identifier and objection(packet, ROOT_NS) is None:
                    return
        finally:
            stream.close()
