"""What an upstream or a pod may send over a connection: frames in any pieces, and packets that claim to be answers.

Both readers keep state, so an input is several parts with SEPARATOR between them, and each part is one event.
"""

from __future__ import annotations

from dataclasses import dataclass

from dnsguard.core.framing import HEADER_LENGTH, LONGEST, FrameReader, framed
from dnsguard.engine.contracts import Attempt
from dnsguard.upstream.matching import BARE_ERRORS, HEADER, MAX_DISCARDS, Suspicions, objection
from tests.upstreams import Ask

SEPARATOR = b"\n~~\n"
REASONS = {"short", "id", "qr", "question", "late"}


def framing(data: bytes) -> None:
    """A TCP stream in the pieces that the parts are: the messages are those of the whole stream, however it is cut."""
    pieces = data.split(SEPARATOR)
    reader, messages = FrameReader(), []
    for piece in pieces:
        messages += reader.feed(piece)
        assert len(reader._buffer) < 2 + LONGEST, "more is held than one unfinished message"
    stream = b"".join(pieces)
    expected, rest = frames(stream)
    assert messages == expected
    assert reader.broken == (rest is None)
    assert rest is None or reader._buffer == rest
    assert stream.startswith(b"".join(map(framed, messages)))
    if reader.broken:
        assert not reader._buffer
        assert reader.feed(framed(bytes(HEADER_LENGTH))) == []


def frames(stream: bytes) -> tuple[list[bytes], bytes | None]:
    """Read slowly, as RFC 1035 says it: the messages, and the unfinished rest or None after one that is too short."""
    found: list[bytes] = []
    while len(stream) >= 2:
        length = int.from_bytes(stream[:2], "big")
        if length < HEADER_LENGTH:
            return found, None
        if len(stream) < 2 + length:
            break
        found.append(stream[2 : 2 + length])
        stream = stream[2 + length :]
    return found, stream


@dataclass
class Waiting:
    """A socket as it uses Suspicions, and what has to hold meanwhile."""

    pending: dict[bytes, Attempt]
    discarded: dict[str, int]
    held: dict[bytes, int]
    """Unbelievable packets since each question was asked: at least as many as are held against it."""


def matching(data: bytes) -> None:
    """Questions and packets on one socket. Each part begins with what happens: `?` a question is asked, `!` a packet
    comes, `.` a question is given up (the next two octets are the ID)."""
    waiting = Waiting({}, {}, {})
    suspicions = Suspicions(waiting.pending, waiting.discarded)
    weighed = believed = 0
    for part in data.split(SEPARATOR):
        what, ident, body = part[:1], part[1:3], part[3:]
        if what == b"?" and len(ident) == 2 and len(body) >= 5 and ident not in waiting.pending:
            waiting.pending[ident] = Ask(body[:259])
            waiting.held[ident] = 0
        elif what == b"." and ident in waiting.pending:
            del waiting.pending[ident]
            suspicions.abandoned(ident)
        elif what == b"!":
            weighed += 1
            believed += weigh(suspicions, waiting, ident + body)
    assert sum(waiting.discarded.values()) + believed == weighed
    assert waiting.discarded.keys() <= REASONS
    assert suspicions._strikes.keys() <= waiting.pending.keys(), "strikes against what nobody waits for"


def weigh(suspicions: Suspicions, waiting: Waiting, packet: bytes) -> bool:
    """Give one packet to be weighed, and do what the socket does then; whether it was believed."""
    waiting.held = {ident: count + 1 for ident, count in waiting.held.items()}
    judged = suspicions.weigh(packet)
    if judged is None:
        return False
    ident, reason = judged
    asked = waiting.pending.pop(ident)
    suspicions.answered(ident)
    if reason is None:
        assert packet[:2] == ident
        assert answers(packet, asked.section)
        assert objection(packet, asked.section) is None
        return True
    assert reason == "garbage"
    assert waiting.held[ident] >= MAX_DISCARDS
    return False


def answers(packet: bytes, section: bytes) -> bool:
    """Whether a packet may answer a question, said octet by octet: a response with this question and no other, or a
    bare failure."""
    if len(packet) < HEADER or packet[2] < 128:
        return False
    asked = packet[HEADER : HEADER + len(section)]
    name = len(section) - 4
    same = len(asked) == len(section) and all(
        one == other or (index < name and alike(one, other))
        for index, (one, other) in enumerate(zip(asked, section, strict=True))
    )
    if packet[4:6] == b"\0\1" and same:
        return True
    return packet[3] % 16 in BARE_ERRORS and (len(packet) == HEADER or packet[4:6] == b"\0\0")


def alike(one: int, other: int) -> bool:
    return one ^ other == 32 and 97 <= one | 32 <= 122
