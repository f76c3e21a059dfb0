"""What a busy pod does, as a program of its own inside the pod, and what became of it.

`python -m tests.host.traffic RESOLVER FIRST` runs until its standard input ends, then prints one JSON object. Standard
library only. Fresh names are numbered from FIRST on. Queries are sent as glibc sends them: a socket each, a second try
after 5 s, given up after 10. Nothing here hurries a retry: what is counted as answered at the first try was answered by
the node, not by luck.

    udp          a question every 5 ms, one in ten for a name never asked before; `late` when it was answered, but after
                 it had been sent again, and `retry` when only that one was answered
    tcp          the same, pipelined on one connection that is made again when it breaks
    connections  to every fresh address, and others, as soon as it is answered: one that needs a second SYN is `late`
    flows        long connections to an echo, one octet every 50 ms: `cut` when one ends, and the longest gap
    forbidden    a denied name every 50 ms: what was told. That nothing else opens is for `watch`, beside this
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import struct
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

EVERY: Final = 0.005
FRESH_ONE_IN: Final = 10
"""Over both transports 2,400 a minute: a pod may ask for 3,000."""
TRY: Final = 5.0
"""One try of a stub resolver (resolv.conf(5), timeout)."""
SYN_AGAIN: Final = 0.9
"""A connection that took longer has needed a second SYN, which leaves after 1 s."""
PATIENCE: Final = 10.0
FLOWS: Final = 10

PORT = 8080
KNOWN, DENIED = "db.example.com", "other.example.com"
KNOWN_AT = "198.18.0.1"
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

    def ended(self, how: str, took: float) -> None:
        self.count[how] += 1
        self.slowest = max(self.slowest, took)

    def told(self) -> dict[str, Any]:
        return {**self.count, "slowest": round(self.slowest, 3)}


class _Asking(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.replies: asyncio.Queue[bytes] = asyncio.Queue()

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.replies.put_nowait(data)


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
        return KNOWN if turn % FRESH_ONE_IN else FRESH.format(number=next(self._numbers))

    # ---- UDP

    async def _ask_udp(self, turn: int) -> None:
        how, reply, took = await self._resolve_udp(self._name(turn), turn & 0xFFFF)
        self.udp.ended(how, took)
        if turn % 5 == 0 and how in ("first", "late", "retry"):
            await self._connect(addresses(reply)[0])

    async def _resolve_udp(self, name: str, identity: int) -> tuple[str, bytes, float]:
        """What became of it, the reply, and the seconds until that came, or until it was given up."""
        loop, began = asyncio.get_running_loop(), time.monotonic()
        transport, asking = await loop.create_datagram_endpoint(_Asking, remote_addr=(self._resolver, 53))
        try:
            transport.sendto(question(name, identity))
            if reply := await _within(TRY, asking.replies.get()):
                return _how("first", reply), reply, time.monotonic() - began
            transport.sendto(question(name, identity))
            if reply := await _within(TRY, asking.replies.get()):
                took = time.monotonic() - began
                # Both were answered, or the first was lost.
                also = await _within(TRY, asking.replies.get())
                return _how("late" if also else "retry", reply), reply, took
            return "lost", b"", time.monotonic() - began
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
                self.tcp.ended(_how(how, reply), time.monotonic() - began)

    def _give_up(self, waiting: dict[int, tuple[str, float, str]]) -> None:
        for number, (_, began, _) in list(waiting.items()):
            if time.monotonic() - began > PATIENCE:
                del waiting[number]
                self.tcp.ended("lost", time.monotonic() - began)

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
        _, reply, _ = await self._resolve_udp(DENIED, turn & 0xFFFF)
        self.forbidden["asked"] += 1
        if reply and addresses(reply):
            self.forbidden["told"] += 1


async def _within(seconds: float, reply: Coroutine[Any, Any, bytes]) -> bytes:
    try:
        return await asyncio.wait_for(reply, seconds)
    except TimeoutError:
        return b""


def _how(answered: str, reply: bytes) -> str:
    """`answered` for NOERROR with an address, else what was said."""
    return answered if reply[3] & 15 == 0 and addresses(reply) else f"rcode {reply[3] & 15}"


def _send(writer: asyncio.StreamWriter, name: str, number: int) -> None:
    query = question(name, number)
    writer.write(struct.pack("!H", len(query)) + query)


async def until_told(run: Callable[[asyncio.Event], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
    """Run until standard input ends."""
    stop = asyncio.Event()

    def told() -> None:
        if not os.read(sys.stdin.fileno(), 1024):
            stop.set()

    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), told)
    return await run(stop)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(until_told(lambda stop: Traffic(sys.argv[1], int(sys.argv[2]), stop).run()))))
