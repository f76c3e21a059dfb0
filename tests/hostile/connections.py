"""A connection to an upstream over TCP, and what whoever is at its other end may send and do."""

from __future__ import annotations

import asyncio
import atexit
from functools import cache
from itertools import count
from typing import Any

from dnsguard.core.framing import LONGEST, framed
from dnsguard.engine.contracts import Attempt
from dnsguard.upstream.matching import Reports
from dnsguard.upstream.tcp import CONNECTIONS, TcpUpstream
from tests.hostile.streams import SEPARATOR, answers
from tests.upstreams import Ask, Server

MOST_ASKED = 200


class End(asyncio.Transport):
    """One end of a connection, without a socket: `told` is all that was written to it."""

    def __init__(self) -> None:
        super().__init__({"peername": "", "sockname": ""})
        self.told = bytearray()
        self._closing = False

    def write(self, data: Any) -> None:
        self.told += data

    def writelines(self, pieces: Any) -> None:
        self.told += b"".join(pieces)

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._closing = True

    abort = close

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def is_reading(self) -> bool:
        return True


@cache
def loop() -> asyncio.AbstractEventLoop:
    made = asyncio.new_event_loop()
    atexit.register(made.close)
    return made


async def turns() -> None:
    for _ in range(40):
        await asyncio.sleep(0)


class Questions:
    """Questions on connections that open at once. Each must end once: answered by a packet that may, or failed."""

    def __init__(self) -> None:
        self.waiting: dict[Attempt, None] = {}
        self.upstream = TcpUpstream([Server("127.0.0.1", 53)], Reports(self.answered, self.failed))
        # IDs that the next input can name; their randomness is not what is tried here.
        self.upstream._identifier = (number.to_bytes(2, "big") for number in count()).__next__
        self.asked = 0

    def answered(self, attempt: Attempt, packet: bytes) -> None:
        del self.waiting[attempt]
        assert answers(packet, attempt.section)

    def failed(self, attempt: Attempt, reason: str) -> None:
        del self.waiting[attempt]
        assert reason in ("garbage", "closed", "overloaded")

    def ask(self, section: bytes) -> None:
        if len(section) < 5 or self.asked == MOST_ASKED:
            return
        self.asked += 1
        attempt = Ask(section[:259], stream=True)
        self.waiting[attempt] = None
        self.upstream.ask(attempt)
        assert attempt.handle is not None or attempt not in self.waiting

    def abandon(self, choice: int) -> None:
        if self.waiting:
            attempt = list(self.waiting)[choice // 2 % len(self.waiting)]
            del self.waiting[attempt]
            connection, identifier = place(attempt)
            connection.abandon(identifier, timed_out=bool(choice % 2))

    def arrive(self, choice: int, octets: bytes) -> None:
        """Octets from the server, in two pieces."""
        open_ones = self.upstream._connections[0]
        if open_ones:
            connection = open_ones[choice % len(open_ones)]
            for piece in (octets[:choice], octets[choice:]):
                connection.data_received(piece)

    def answer(self, choice: int, rest: bytes) -> None:
        """A packet with the ID of a question, and with the question itself where the choice is even."""
        if self.waiting:
            attempt = list(self.waiting)[choice // 2 % len(self.waiting)]
            connection, identifier = place(attempt)
            head = b"" if choice % 2 else b"\x81\x80\0\1\0\0\0\0\0\0" + attempt.section
            connection.data_received(framed((identifier + head + rest)[:LONGEST]))

    def lose(self, choice: int) -> None:
        open_ones = self.upstream._connections[0]
        if open_ones:
            open_ones[choice % len(open_ones)].connection_lost(None)

    def settle(self) -> None:
        """What the event loop does between two events: connections open, and those that were aborted end."""
        for connection in list(self.upstream._connections[0]):
            if connection._transport is None:
                assert connection._opening is not None
                connection._opening.cancel()
                connection.connection_made(End())
        assert self.upstream.connections <= CONNECTIONS
        for connection in self.upstream._connections[0]:
            assert connection._transport is not None and not connection._transport.is_closing()
            assert all(attempt in self.waiting for attempt in connection._pending.values())
            assert connection._suspicions._strikes.keys() <= connection._pending.keys()
        pending = sum(len(connection._pending) for connection in self.upstream._connections[0])
        assert pending == len(self.waiting), "a question has neither an end nor a connection"


def place(attempt: Attempt) -> Any:
    """The connection that an attempt waits on, and its ID there."""
    return attempt.handle


def connection(data: bytes) -> None:
    """Each part is an event, `?` a question, `.` one given up, `!` a packet, `=` any octets, `x` the connection ends;
    the second octet chooses which."""
    loop().run_until_complete(_connection(data))


async def _connection(data: bytes) -> None:
    questions = Questions()
    for part in data.split(SEPARATOR):
        what, choice, rest = part[:1], part[1] if len(part) > 1 else 0, part[2:]
        if what == b"?":
            questions.ask(rest)
        elif what == b".":
            questions.abandon(choice)
        elif what == b"!":
            questions.answer(choice, rest)
        elif what == b"=":
            questions.arrive(choice, rest)
        elif what == b"x":
            questions.lose(choice)
        questions.settle()
    questions.upstream.close()
    assert questions.upstream.connections == 0
    await turns()
