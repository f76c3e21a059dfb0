"""Resource records of an upstream's message: read with care, and written again without its compression.

Every reader here raises ValueError, IndexError or struct.error on bytes that are not what they should be, and ends in
time that grows with the message's length only: a pointer leads strictly backwards, and where it leads is read once.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from dnsguard.core.model import Name
from dnsguard.core.wire import Qtype, fold

KnownNames = dict[int, bytes]
"""Names already read, by their offset in the message, with their letters as sent."""

_FIXED = Struct(">HHIH").unpack_from
_TYPE_CLASS = Struct(">HH").pack
_LENGTH = Struct(">H").pack
_PARAMETER = Struct(">HH").unpack_from
_MOST_POINTERS = 64

# What RDATA is made of, for the types whose names may be compressed (RFC 1035, RFC 3597 section 4; SRV and later types
# leniently): a number of octets, a (N)ame, a character (S)tring, or the (R)est. Of other types every octet stays.
_SHAPES: dict[int, tuple[int | str, ...]] = {
    2: ("N",),
    3: ("N",),
    4: ("N",),
    5: ("N",),
    6: ("N", "N", 20),
    7: ("N",),
    8: ("N",),
    9: ("N",),
    12: ("N",),
    14: ("N", "N"),
    15: (2, "N"),
    17: ("N", "N"),
    18: (2, "N"),
    21: (2, "N"),
    24: (18, "N", "R"),
    26: (2, "N", "N"),
    30: ("N", "R"),
    33: (6, "N"),
    35: (4, "S", "S", "S", "N"),
    36: (2, "N"),
    39: ("N",),
    46: (18, "N", "R"),
    47: ("N", "R"),
    1: (4,),
    28: (16,),
}

_MANDATORY, _IPV4HINT, _ECH, _IPV6HINT = 0, 4, 5, 6
_HINTS = frozenset((_IPV4HINT, _ECH, _IPV6HINT))


class Record(NamedTuple):
    """One record; `start` and `end` are the offsets of its RDATA in the message."""

    owner: Name
    rtype: int
    rclass: int
    ttl: int
    start: int
    end: int


def read_name(packet: bytes, at: int, known: KnownNames, pointers: int = 0) -> tuple[bytes, int]:
    """The uncompressed name at an offset, letters as sent, and the offset behind it."""
    start = at
    while 0 < (length := packet[at]) < 64:
        at += length + 1
    if length == 0:
        at += 1
        name = packet[start:at]
    elif length < 0xC0:
        raise ValueError("label type")
    else:
        target = (length & 0x3F) << 8 | packet[at + 1]
        if not 12 <= target < start or pointers == _MOST_POINTERS:
            raise ValueError("pointer")
        name = packet[start:at] + (known.get(target) or read_name(packet, target, known, pointers + 1)[0])
        at += 2
    if len(name) > 255:
        raise ValueError("name too long")
    known[start] = name
    return name, at


def read_records(packet: bytes, at: int, count: int, known: KnownNames) -> tuple[list[Record], int]:
    """`count` records from an offset on, and the offset behind them. TTLs of 2^31 and above are 0 (RFC 2181 sec. 8)."""
    records = []
    size = len(packet)
    for _ in range(count):
        name, at = read_name(packet, at, known)
        rtype, rclass, ttl, length = _FIXED(packet, at)
        start = at + 10
        at = start + length
        if at > size:
            raise ValueError("record too long")
        records.append(Record(fold(name), rtype, rclass, ttl if ttl < 0x80000000 else 0, start, at))
    return records, at


def read_rdata(packet: bytes, record: Record, known: KnownNames) -> bytes:
    """The RDATA with its names uncompressed. ValueError or IndexError when it is not what its type demands."""
    at, end = record.start, record.end
    shape = _SHAPES.get(record.rtype)
    if shape is None:
        return packet[at:end]
    parts = []
    for item in shape:
        start = at
        if item == "N":
            name, at = read_name(packet, at, known)
            parts.append(name)
            continue
        at = end if item == "R" else at + 1 + packet[at] if isinstance(item, str) else at + item
        parts.append(packet[start:at])
    if at != end:
        raise ValueError("RDATA length")
    return b"".join(parts)


class Service(NamedTuple):
    """RDATA of SVCB or HTTPS (RFC 9460), without what would tell a client where to connect."""

    target: Name
    rdata: bytes
    stripped: bool
    """Something was taken out: ipv4hint, ipv6hint or ech."""
    broken: bool
    """`mandatory` names one of those, so that the record means nothing without it."""


def read_service(rdata: bytes) -> Service:
    """Take the hints out of a service record. ValueError, IndexError or struct.error when it is malformed."""
    target, at = read_name(rdata, 2, {})
    kept = [rdata[:at]]
    broken = stripped = False
    last = -1
    while at < len(rdata):
        key, length = _PARAMETER(rdata, at)
        end = at + 4 + length
        if key <= last or end > len(rdata):
            raise ValueError("SvcParams")
        if key == _MANDATORY:
            broken = not _HINTS.isdisjoint(_mandatory_keys(rdata[at + 4 : end]))
        if key in _HINTS:
            stripped = True
        else:
            kept.append(rdata[at:end])
        last, at = key, end
    return Service(fold(target), b"".join(kept), stripped, broken)


def _mandatory_keys(value: bytes) -> set[int]:
    if not value or len(value) % 2:
        raise ValueError("mandatory")
    return {value[i] << 8 | value[i + 1] for i in range(0, len(value), 2)}


class Body:
    """The sections behind the question, written record by record with a hole for every TTL.

    `fragments` joined by a TTL's four octets are those sections. Names are compressed only as a whole: to the
    question's, or to one written before, so that a long answer does not outgrow a message.
    """

    __slots__ = ("_pending", "_places", "_size", "fragments")

    def __init__(self, name: Name) -> None:
        self.fragments: list[bytes] = []
        self._pending = b""
        self._places: dict[bytes, bytes] = {name: b"\xc0\x0c"}
        self._size = 12 + len(name) + 4

    def add(self, owner: bytes, rtype: int, rdata: bytes) -> None:
        """Append a record of class IN."""
        head = self._name(owner, self._size) + _TYPE_CLASS(rtype, 1)
        if rtype == Qtype.CNAME:
            rdata = self._name(rdata, self._size + len(head) + 6)
        self.fragments.append(self._pending + head)
        self._pending = _LENGTH(len(rdata)) + rdata
        self._size += len(head) + 4 + len(self._pending)

    def finish(self) -> tuple[bytes, ...]:
        """The fragments, the last one included; nothing may be added after it."""
        return (*self.fragments, self._pending)

    @property
    def message_size(self) -> int:
        """Octets of the message so far, header and question included."""
        return self._size

    def _name(self, name: bytes, offset: int) -> bytes:
        place = self._places.get(folded := fold(name))
        if place is None and offset < 0x4000:
            self._places[folded] = (0xC000 | offset).to_bytes(2, "big")
        return place or name
