"""Which packet may answer which question, and unpredictable numbers for what must not be guessed (RFC 5452).

Pure but for the kernel's random numbers. Any bytes are a packet here; nothing raises.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from dnsguard.engine.contracts import Attempt

HEADER = 12
ONE_QUESTION = b"\x00\x01"
RESPONSE = 0x80

MAX_DISCARDS = 20
"""This many unbelievable packets for one question, and it is asked another way: somebody may be guessing."""

BARE_ERRORS = frozenset({1, 2, 4, 5})
"""FORMERR, SERVFAIL, NOTIMP and REFUSED may come as a header alone, without the question (RFC 6891, 7)."""


@dataclass(frozen=True, slots=True)
class Reports:
    """Where a transport reports to."""

    answered: Callable[[Attempt, bytes], None]
    failed: Callable[[Attempt, str], None]
    """Reasons: refused, unreachable, sockets, send, closed, garbage, overloaded."""
    discarded: dict[str, int] = field(default_factory=dict)
    """Reason -> packets thrown away, counted here: short, id, qr, question, late."""


def identifiers() -> Iterator[bytes]:
    """Two random octets each time, without end; drawn from the kernel 1,024 at a time (0.05 us each)."""
    cut = struct.Struct("2s" * 1024).unpack
    while True:
        yield from cut(os.urandom(2048))


def objection(packet: bytes, section: bytes) -> str | None:
    """Why a packet with the right ID is no answer to the question `section` (QNAME, QTYPE, QCLASS), or None if it is.

    Letters of the name may differ in case; type and class may not, although `lower()` would take type 65 for type 97.
    """
    if len(packet) < HEADER:
        return "short"
    if not packet[2] & RESPONSE:
        return "qr"
    if packet[4:6] == ONE_QUESTION and repeats(packet, section):
        return None
    bare = len(packet) == HEADER or packet[4:6] == b"\x00\x00"
    return None if bare and packet[3] & 0x0F in BARE_ERRORS else "question"


def repeats(packet: bytes, section: bytes) -> bool:
    """Whether the question section of `packet` is `section`, letters of the name in either case."""
    end = HEADER + len(section)
    if len(packet) < end:
        return False
    return packet[end - 4 : end] == section[-4:] and packet[HEADER : end - 4].lower() == section[:-4].lower()


class Suspicions:
    """Counts what one socket had to throw away, in all and against each question it waits for.

    `pending` is shared with the socket: attempts by ID. Only what must be thrown away comes here, so a search through
    `pending` is affordable; it holds at most 1,000.
    """

    __slots__ = ("_discarded", "_late", "_pending", "_strikes")

    def __init__(self, pending: dict[bytes, Attempt], discarded: dict[str, int]) -> None:
        self._pending, self._discarded = pending, discarded
        self._strikes: dict[bytes, int] = {}
        self._late: set[bytes] = set()

    def weigh(self, packet: bytes) -> tuple[bytes, str | None] | None:
        """Judge a packet that is not plainly an answer.

        Gives (ID, None) when it is an answer after all, (ID, "garbage") when it was one too many for that question, and
        None when it was only counted.
        """
        identifier = packet[:2]
        attempt = self._pending.get(identifier)
        reason = self._reason(packet, attempt)
        if attempt is not None and reason is None:
            return identifier, None
        key = reason or "id"
        self._discarded[key] = self._discarded.get(key, 0) + 1
        suspect = identifier if attempt is not None else self._asked(packet)
        return None if suspect is None or reason == "late" else self._strike(suspect)

    def answered(self, identifier: bytes) -> None:
        """The question has its answer."""
        self._strikes.pop(identifier, None)

    def abandoned(self, identifier: bytes) -> None:
        """The question has ended without an answer: one that comes now is late, not wrong."""
        self._strikes.pop(identifier, None)
        self._late.add(identifier)

    def _reason(self, packet: bytes, attempt: Attempt | None) -> str | None:
        if len(packet) < HEADER:
            return "short"
        if attempt is not None:
            return objection(packet, attempt.section)
        return "late" if packet[:2] in self._late else "id"

    def _asked(self, packet: bytes) -> bytes | None:
        """The ID of the question that this packet claims to answer under a wrong ID."""
        return next((i for i, attempt in self._pending.items() if repeats(packet, attempt.section)), None)

    def _strike(self, identifier: bytes) -> tuple[bytes, str] | None:
        strikes = self._strikes[identifier] = self._strikes.get(identifier, 0) + 1
        return (identifier, "garbage") if strikes >= MAX_DISCARDS else None
