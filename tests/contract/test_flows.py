"""Conversations, packet by packet: eBPF remembers flows by itself, and lets what connection tracking would have let."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from itertools import count

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dnsguard.core.model import Address, Program
from tests.contract import ebpf
from tests.contract.nftables import NftSubject, started
from tests.contract.test_enforcer import PEER, PEER6, compiled, element, named, running, tcp, write
from tests.node.nftables_lab import LAYOUT, UDP, ip, udp

pytestmark = pytest.mark.node

WHATEVER, WEB = compiled(named("a.test", ())), compiled(named("a.test", tcp(443)))
SCOPES = {WHATEVER.name: "any", WEB.name: "tcp_443"}
OTHER_PROTOCOL = 253
ports = count(20_001)
Step = tuple[str, str]

_says = st.tuples(st.sampled_from(["pod", "peer"]), st.sampled_from(["datagram", "request", "reply", "error", "other"]))
_lease = st.tuples(st.just("lease"), st.sampled_from(["begins", "ends"]))
conversations = st.lists(st.one_of(_says, _says, _says, _lease), min_size=2, max_size=10)


class Conversation:
    """Between the first pod and a peer, from a port not used before."""

    def __init__(self, subject: NftSubject, peer: Address, port: int) -> None:
        self.subject, self.peer, self.port = subject, peer, port
        self.place = subject.places[0]
        self.pod = self.place.v4 if len(peer) == 4 else self.place.v6

    async def play(self, program: Program, steps: Sequence[Step]) -> list[bool]:
        """Which of what was said arrived. There is no lease in the beginning."""
        await self._lease(program, "ends")
        arrived = []
        for who, what in steps:
            if who == "lease":
                await self._lease(program, what)
            else:
                arrived.append(self._says(who, what))
        return arrived

    async def _lease(self, program: Program, what: str) -> None:
        lease = write(self.place, self.peer, SCOPES[program.name])
        add, remove = ([lease], []) if what == "begins" else ([], [element(lease)])
        await self.subject.enforcer.apply(running({self.place: program}), add, remove)

    def _says(self, who: str, what: str) -> bool:
        lab = self.subject.lab
        ends = (self.pod, lab.pod, self.port), (self.peer, lab.world, 443)
        (source, start, own), (target, end, other) = ends if who == "pod" else ends[::-1]
        data = lab.nonce()
        if what == "datagram":
            packet = ip(source, target, UDP, udp(own, other, data))
        elif what == "other":
            packet = ip(source, target, OTHER_PROTOCOL, data)
        else:
            protocol, kinds = (58, (128, 129, 1)) if len(source) == 16 else (1, (8, 0, 3))
            kind = kinds[("request", "reply", "error").index(what)]
            head = struct.pack(">BBHHH", kind, 0, 0, 0 if what == "error" else self.port, 0)
            quoted = ip(target, source, UDP, udp(other, own, bytes(8))) if what == "error" else b""
            packet = ip(source, target, protocol, head + quoted + data)
        return lab.through(packet, start=start, end=end)


@pytest_asyncio.fixture
async def lines() -> AsyncIterator[tuple[NftSubject, NftSubject]]:
    """nftables alone and eBPF alone."""
    async with AsyncExitStack() as labs:
        yield (
            await labs.enter_async_context(started(LAYOUT, own=True)),
            await labs.enter_async_context(ebpf.started(LAYOUT, own=True, beside_nftables=False)),
        )


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([PEER, PEER6]), st.sampled_from([WHATEVER, WEB]), conversations)
async def test_ebpf_lets_of_a_conversation_what_connection_tracking_lets(
    lines: tuple[NftSubject, NftSubject], peer: Address, program: Program, steps: list[Step]
) -> None:
    port = next(ports)
    by_nftables, by_ebpf = [await Conversation(line, peer, port).play(program, steps) for line in lines]
    assert by_ebpf == by_nftables
