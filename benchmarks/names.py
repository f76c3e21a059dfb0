"""The names that are asked and the addresses that are answered: one fixed shape, so that a number tells both.

Name number n of a kind is `n<n as eight digits>.<kind>.<zone>`; its addresses come from a pool of 50,000, in turn.
"""

from __future__ import annotations

import struct
from enum import StrEnum
from ipaddress import IPv4Address

POOL = 50_000
FIRST_ADDRESS = int(IPv4Address("10.128.0.0"))
WORLD_NETWORK = "10.128.0.0/16"
"""Holds the whole pool; the outside world answers on all of it."""
DIGITS = slice(14, 22)
"""Where the eight digits stand in a message: behind the header, a label's length and its `n`."""
ALLOWED_ZONE = "wild.test"
TARGET_ZONE = "edge.test"
DENIED_ZONE = "denied.test"


class Kind(StrEnum):
    """What the upstream answers: one A record; a CNAME and two A records; nothing, for it is never to be asked."""

    ONE_A = "a1"
    CHAIN = "c2"
    TARGET = "e2"
    """What the CNAME of a CHAIN points to; servers that do not believe a chain ask for it too."""
    DENIED = "no"

    @property
    def zone(self) -> str:
        return {Kind.DENIED: DENIED_ZONE, Kind.TARGET: TARGET_ZONE}.get(self, ALLOWED_ZONE)

    @property
    def records(self) -> int:
        """How many addresses an answer holds."""
        return {Kind.ONE_A: 1, Kind.CHAIN: 2, Kind.TARGET: 2, Kind.DENIED: 0}[self]


def name(number: int, kind: Kind) -> str:
    return f"n{number:08d}.{kind}.{kind.zone}"


def wire_name(text: str) -> bytes:
    return b"".join(bytes((len(label),)) + label.encode() for label in text.split(".")) + b"\0"


def query(number: int, kind: Kind) -> bytes:
    """An A question with RD, no EDNS, and 0 as its ID."""
    return struct.pack("!6H", 0, 0x0100, 1, 0, 0, 0) + wire_name(name(number, kind)) + b"\0\1\0\1"


def addresses(number: int, kind: Kind) -> list[bytes]:
    """The addresses of name `number`, four octets each, in the order of the answer."""
    first = FIRST_ADDRESS + number % (POOL // kind.records) * kind.records
    return [(first + k).to_bytes(4, "big") for k in range(kind.records)]
