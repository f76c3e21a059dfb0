"""What the tests of the upstream room share: attempts, and a place where reports arrive."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dnsguard.engine.contracts import Attempt
from dnsguard.upstream.matching import Reports


class Server(NamedTuple):
    """Where a resolver of a test listens."""

    address: str
    port: int


def question(name: str, qtype: int = 1) -> bytes:
    """A question section of class IN."""
    labels = [label.encode() for label in name.split(".") if label]
    return b"".join(bytes((len(label),)) + label for label in labels) + b"\x00" + qtype.to_bytes(2) + b"\x00\x01"


@dataclass(slots=True, eq=False)
class Ask:
    """A `contracts.Attempt` for one question section."""

    section: bytes
    server: int = 0
    stream: bool = False
    handle: object = None
    query: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.query = b"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + self.section


def ask(name: str, qtype: int = 1, *, server: int = 0, stream: bool = False) -> Ask:
    return Ask(question(name, qtype), server, stream)


class Inbox:
    """Collects what a transport reports, and lets a test wait for it."""

    def __init__(self) -> None:
        self.answered: dict[Attempt, bytes] = {}
        self.failed: dict[Attempt, str] = {}
        self.reports = Reports(self._answer, self._fail)

    @property
    def ended(self) -> int:
        return len(self.answered) + len(self.failed)

    @property
    def reasons(self) -> dict[str, int]:
        """Discards by reason."""
        return dict(self.reports.discarded)

    def _answer(self, attempt: Attempt, packet: bytes) -> None:
        assert attempt not in self.answered and attempt not in self.failed, "ended twice"
        self.answered[attempt] = packet

    def _fail(self, attempt: Attempt, reason: str) -> None:
        assert attempt not in self.answered and attempt not in self.failed, "ended twice"
        self.failed[attempt] = reason


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait for a condition. Raises TimeoutError when it does not come true."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


class Resolver:
    """A UDP socket on loopback that a test answers from by hand."""

    def __init__(self, family: socket.AddressFamily = socket.AF_INET) -> None:
        self._socket = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        self.server = Server(*self._socket.getsockname()[:2])

    async def query(self) -> Query:
        """The next query to arrive, within 5 s."""
        async with asyncio.timeout(5):
            packet, peer = await asyncio.get_running_loop().sock_recvfrom(self._socket, 4096)
        return Query(packet, peer, self._socket)

    def take(self) -> bytes:
        """A query that has already arrived. Raises BlockingIOError when there is none."""
        return self._socket.recv(4096)

    async def queries(self, count: int) -> list[Query]:
        return [await self.query() for _ in range(count)]

    def close(self) -> None:
        self._socket.close()


class Query(NamedTuple):
    """One that arrived, and the way back."""

    packet: bytes
    peer: tuple[Any, ...]
    socket: socket.socket

    @property
    def port(self) -> int:
        return int(self.peer[1])

    def send(self, packet: bytes) -> None:
        self.socket.sendto(packet, self.peer)

    def reply(
        self,
        *,
        ident: bytes | None = None,
        section: bytes | None = None,
        flags: bytes = b"\x81\x80",
        counts: bytes = b"\x00\x01" + bytes(6),
    ) -> bytes:
        """A well-formed reply with no records, unless told otherwise."""
        return (ident or self.packet[:2]) + flags + counts + (self.packet[12:] if section is None else section)
