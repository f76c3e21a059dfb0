"""What a busy pod does, as a program of its own inside the pod, and what became of it.

`python -m tests.host.traffic RESOLVER FIRST` runs until its standard input ends, then prints one JSON object. Standard
library only. Fresh names are numbered from FIRST on. Queries are sent as glibc sends them: a socket each, a second try
after 5 s, given up after 10. Nothing here hurries a retry: what is counted as answered at the first try was answered by
the node, not by luck.

    udp          a question every 5 ms, half of them for a name never asked before
    tcp          the same, pipelined on one connection that is made again when it breaks
    connections  to every fourth address, as soon as it is answered: a SYN that has to be sent again is `late`
    flows        long connections to an echo, one octet every 50 ms: `cut` when one ends, and the longest gap
    forbidden    a denied name, a denied address, a denied port, every 50 ms each: what opened or was told
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import struct
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

EVERY: Final = 0.005
TRY: Final = 5.0
"""One try of a stub resolver (resolv.conf(5), timeout)."""
TRIES: Final = 2
SYN_AGAIN: Final = 0.9
"""A connection that took longer has needed a second SYN, which leaves after 1 s."""
PATIENCE: Final = 10.0
FLOWS: Final = 10

PORT, WRONG_PORT = 8080, 9090
KNOWN, DENIED = "db.example.com", "other.example.com"
KNOWN_AT, DENIED_AT = "198.18.0.1", "198.18.0.3"
FRESH = "n{number}.fresh.example.com"


def fresh_address(number: int) -> str:
    """Where the world says that the fresh name of this number is."""
    return f"198.18.{1 + number // 250}.{1 + number % 250}"


def question(name: str, identity: int) -> bytes:
    """A query for the A record of `name` (RFC 1035, 4.1), recursion desired."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!6H", identity, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", 1, 1)


def addresses(reply: bytes) -> list[str]:
    """The A records at the end of a reply whose names are compressed or repeated: RDLENGTH 4 is looked for by walking
    the answer section."""
    count, place = struct.unpack_from("!H", reply, 6)[0], 12
    place = _past_name(reply, place) + 4
    found = []
    for _ in range(count):
        place = _past_name(reply, place)
        kind, length = struct.unpack_from("!H6xH", reply, place)
        if kind == 1:
            found.append(".".join(map(str, reply[place + 10 : place + 14])))
        place += 10 + length
    return found


def _past_name(message: bytes, place: int) -> int:
    while length := message[place]:
        if length >= 0xC0:
            return place + 2
        place += 1 + length
    return place + 1


class Queries:
    """What became of the questions of one transport."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self.slowest = 0.0

    def ended(self, how: str, began: float) -> None:
        self.count[how] += 1
        self.slowest = max(self.slowest, time.monotonic() - began)

    def told(self) -> dict[str, Any]:
        return {**self.count, "slowest": round(self.slowest, 3)}


class _Asking(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: object) -> None:
        if not self.reply.done():
            self.reply.set_result(data)


class Traffic:
    """All of it, from `run` until `stop` is set."""

    def __init__(self, resolver: str, first: int, stop: asyncio.Event) -> None:
        self._resolver = resolver
        self._stop = stop
        self._numbers = itertools.count(first)
        self._begun: set[asyncio.Task[None]] = set()
        self.udp, self.tcp = Queries(), Queries()
        self.connections: Counter[str] = Counter()
        self.flows: Counter[str] = Counter()
        self.longest_gap = 0.0
        self.forbidden: Counter[str] = Counter()

    async def run(self) -> dict[str, Any]:
        streams = [
            self._each(EVERY, self._ask_udp),
            self._tcp(),
            self._each(0.05, self._denied_name),
            self._each(0.05, lambda number: self._denied_place(DENIED_AT, PORT)),
            self._each(0.05, lambda number: self._denied_place(KNOWN_AT, WRONG_PORT)),
            *(self._flow() for _ in range(FLOWS)),
        ]
        await self._resolve_udp(KNOWN, 0)
        await asyncio.gather(*streams)
        await asyncio.gather(*self._begun)
        return {
            "udp": self.udp.told(),
            "tcp": self.tcp.told(),
            "connections": dict(self.connections),
            "flows": {**self.flows, "longest_gap": round(self.longest_gap, 3)},
            "forbidden": dict(self.forbidden),
        }

    async def _each(self, seconds: float, do: Callable[[int], Coroutine[Any, Any, None]]) -> None:
        """Begin `do` so often, whether or not the one before has ended."""
        begun = time.monotonic()
        for turn in itertools.count():
            if self._stop.is_set():
                return
            self._begin(do(turn))
            await asyncio.sleep(max(0.0, begun + (turn + 1) * seconds - time.monotonic()))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._begun.add(task)
        task.add_done_callback(self._begun.discard)

    def _name(self, turn: int) -> str:
        return KNOWN if turn % 2 else FRESH.format(number=next(self._numbers))

    # ---- UDP

    async def _ask_udp(self, turn: int) -> None:
        began = time.monotonic()
        how, reply = await self._resolve_udp(self._name(turn), turn & 0xFFFF)
        self.udp.ended(how, began)
        if reply and turn % 4 == 0:
            await self._connect(addresses(reply)[0])

    async def _resolve_udp(self, name: str, identity: int) -> tuple[str, bytes]:
        loop = asyncio.get_running_loop()
        transport, asking = await loop.create_datagram_endpoint(_Asking, remote_addr=(self._resolver, 53))
        try:
            for attempt in range(TRIES):
                transport.sendto(question(name, identity))
                with contextlib.suppress(TimeoutError):
                    reply = await asyncio.wait_for(asyncio.shield(asking.reply), TRY)
                    return ("first", "retry")[attempt] if _answers(reply) else "failed", reply
            return "lost", b""
        finally:
            transport.close()

    # ---- TCP

    async def _tcp(self) -> None:
        waiting: dict[int, tuple[str, float, str]] = {}
        turns = itertools.count()
        while not self._stop.is_set() or waiting:
            try:
                reader, writer = await asyncio.wait_for(asyncio.open_connection(self._resolver, 53), TRY)
            except (OSError, TimeoutError):
                self.tcp.count["not_connected"] += 1
                self._give_up(waiting)
                await asyncio.sleep(0.05)
                continue
            self.tcp.count["connections"] += 1
            waiting = {number: (name, began, "retry") for number, (name, began, _) in waiting.items()}
            for number, (name, _, _) in waiting.items():
                _send(writer, name, number)
            receiving = asyncio.ensure_future(self._receive(reader, waiting))
            with contextlib.suppress(OSError):
                await self._pipeline(writer, waiting, turns, receiving)
            receiving.cancel()
            writer.close()
            self._give_up(waiting)

    async def _pipeline(
        self,
        writer: asyncio.StreamWriter,
        waiting: dict[int, tuple[str, float, str]],
        turns: Any,
        receiving: asyncio.Future[None],
    ) -> None:
        """Ask until the connection breaks, or until all is answered after the stop."""
        while not receiving.done():
            if not self._stop.is_set():
                turn = next(turns)
                waiting[turn & 0xFFFF] = self._name(turn), time.monotonic(), "first"
                _send(writer, waiting[turn & 0xFFFF][0], turn & 0xFFFF)
                await writer.drain()
            elif not waiting:
                return
            self._give_up(waiting)
            await asyncio.sleep(EVERY)

    async def _receive(self, reader: asyncio.StreamReader, waiting: dict[int, tuple[str, float, str]]) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                reply = await reader.readexactly(struct.unpack("!H", await reader.readexactly(2))[0])
                _, began, how = waiting.pop(struct.unpack_from("!H", reply)[0])
                self.tcp.ended(how if _answers(reply) else "failed", began)

    def _give_up(self, waiting: dict[int, tuple[str, float, str]]) -> None:
        for number, (_, began, _) in list(waiting.items()):
            if time.monotonic() - began > PATIENCE:
                del waiting[number]
                self.tcp.ended("lost", began)

    # ---- connections

    async def _connect(self, address: str) -> None:
        began = time.monotonic()
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection(address, PORT), PATIENCE)
        except (OSError, TimeoutError):
            self.connections["failed"] += 1
            return
        self.connections["late" if time.monotonic() - began > SYN_AGAIN else "opened"] += 1
        writer.close()

    async def _flow(self) -> None:
        reader, writer = await asyncio.open_connection(KNOWN_AT, PORT)
        self.flows["opened"] += 1
        try:
            while not self._stop.is_set():
                sent = time.monotonic()
                writer.write(b"x")
                if not await asyncio.wait_for(reader.read(1), PATIENCE):
                    raise ConnectionResetError
                self.longest_gap = max(self.longest_gap, time.monotonic() - sent)
                await asyncio.sleep(0.05)
        except (OSError, TimeoutError):
            self.flows["cut"] += 1
        writer.close()

    # ---- what must not be

    async def _denied_name(self, turn: int) -> None:
        _, reply = await self._resolve_udp(DENIED, turn & 0xFFFF)
        self.forbidden["asked"] += 1
        if reply and addresses(reply):
            self.forbidden["told"] += 1

    async def _denied_place(self, address: str, port: int) -> None:
        self.forbidden["tried"] += 1
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection(address, port), SYN_AGAIN)
        except (OSError, TimeoutError):
            return
        self.forbidden["opened"] += 1
        writer.close()


def _answers(reply: bytes) -> bool:
    """NOERROR with an address."""
    return reply[3] & 15 == 0 and bool(addresses(reply))


def _send(writer: asyncio.StreamWriter, name: str, number: int) -> None:
    query = question(name, number)
    writer.write(struct.pack("!H", len(query)) + query)


async def until_told(run: Callable[[asyncio.Event], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
    """Run until standard input ends."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), lambda: sys.stdin.buffer.read1() or stop.set())
    return await run(stop)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(until_told(lambda stop: Traffic(sys.argv[1], int(sys.argv[2]), stop).run()))))
