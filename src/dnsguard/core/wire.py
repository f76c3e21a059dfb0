"""Questions and replies as bytes: reads what a pod asks, and writes every reply that needs no upstream.

Bytes in, bytes out. `read_question` is total: any bytes at all give a Question or a Rejection. Nothing of the pod's
message goes further than its question section and the flags RD, CD and DO; what is sent upstream is written anew.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from struct import Struct
from struct import error as StructError  # noqa: N812
from typing import cast

from dnsguard.core.model import Name


class Rcode(IntEnum):
    """Response codes (RFC 6895); those above 15 need an OPT record."""

    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5
    BADVERS = 16


class Ede(IntEnum):
    """Extended DNS Error codes (RFC 8914)."""

    OTHER = 0
    STALE_ANSWER = 3
    BLOCKED = 15
    PROHIBITED = 18
    STALE_NXDOMAIN_ANSWER = 19
    NO_REACHABLE_AUTHORITY = 22
    NETWORK_ERROR = 23


class Qtype(IntEnum):
    """The record types that dnsguard treats or prints by name; every other number is passed as it is."""

    A = 1
    NS = 2
    CNAME = 5
    SOA = 6
    PTR = 12
    HINFO = 13
    MX = 15
    TXT = 16
    AAAA = 28
    SRV = 33
    NAPTR = 35
    DNAME = 39
    OPT = 41
    DS = 43
    RRSIG = 46
    NSEC = 47
    DNSKEY = 48
    NSEC3 = 50
    NSEC3PARAM = 51
    TLSA = 52
    SVCB = 64
    HTTPS = 65
    IXFR = 251
    AXFR = 252
    ANY = 255
    CAA = 257


ExtendedError = tuple[int, str]
"""An EDE info-code and its text, which is cut where the reply has no room for it."""

Key = tuple[Name, int, bool, int]
"""Name, type, DO, the CD bit: two questions with equal keys have the same answer."""

QR, TC, RD, RA, AD, CD = 0x8000, 0x0200, 0x0100, 0x0080, 0x0020, 0x0010
NEGATIVE_TTL = 5
"""Seconds for which a denial may be cached: short, because a policy may change at any time."""
EDNS_SIZE = 1232
"""The UDP size we announce, to upstreams and to pods (DNS Flag Day 2020: never fragmented)."""
LARGEST_UDP = 4096
"""The largest UDP reply, whatever size the pod announced."""

# The letters of a length octet (at most 63) are never folded: A-Z begin at 65.
fold = cast(Callable[[bytes], Name], bytes.lower)

_HEADER = Struct(">2sHQ").unpack_from
_TYPE_CLASS = Struct(">HH").unpack_from
_TYPE_CLASS_PACK = Struct(">HH").pack
_OPT = Struct(">3sHHHH").unpack_from
_RECORD = Struct(">HHIH").unpack_from
_OPT_WITH_EDE = Struct(">BHHBBHHHHH").pack
_ONE_QUESTION = 1 << 48
_ONE_QUESTION_AND_OPT = _ONE_QUESTION | 1
_DO = 0x8000
_OPT_RECORD = Struct(">BHHIH").pack
_OPT_PLAIN = _OPT_RECORD(0, Qtype.OPT, EDNS_SIZE, 0, 0)
_OPT_DO = _OPT_RECORD(0, Qtype.OPT, EDNS_SIZE, _DO, 0)
_OPT_BADVERS = _OPT_RECORD(0, Qtype.OPT, EDNS_SIZE, (Rcode.BADVERS >> 4) << 24, 0)
# An honest query has an OPT, perhaps a signature and the SOA of an IXFR; thousands of records are only work.
_MOST_EXTRA_RECORDS = 8

FLAG_BYTES = {
    flags: flags.to_bytes(2, "big")
    for bits in range(16)
    for rcode in range(16)
    for flags in [QR | RA | (bits & 1) * RD | (bits >> 1 & 1) * CD | (bits >> 2 & 1) * AD | (bits >> 3) * TC | rcode]
}
"""The flags of every reply that dnsguard can send, as they stand in its header."""

_ASK = {
    (flags, edns): Struct(">HHHHH").pack(RD | flags & CD, 1, 0, 0, edns)
    for flags in (0, RD, CD, RD | CD)
    for edns in (False, True)
}
_QUERY = bytes(2) + Struct(">HHHHH").pack(RD, 1, 0, 0, 0)
_OWNER = b"\xc0\x0c"
"""A compression pointer to the name in the question section."""
NEGATIVE_SOA_START = _OWNER + Struct(">HH").pack(Qtype.SOA, 1)
NEGATIVE_SOA_END = Struct(">H2s2sIIIII").pack(24, _OWNER, _OWNER, 1, 3600, 600, 86400, NEGATIVE_TTL)
"""The SOA of a denial, owned by the name asked for, before and after its TTL field."""
_NEGATIVE_SOA = NEGATIVE_SOA_START + NEGATIVE_TTL.to_bytes(4, "big") + NEGATIVE_SOA_END
_RFC8482 = _OWNER + Struct(">HHIH").pack(Qtype.HINFO, 1, 300, 9) + b"\7RFC8482\0"


class Question:
    """One well-formed question of class IN. Never changed after it was read."""

    # Not a frozen dataclass: its __init__ alone costs 1 us, and this is made once for every packet.
    __slots__ = ("dnssec_ok", "edns", "flags", "id", "key", "name", "opt", "qtype", "section", "size")

    id: bytes
    """Two octets."""
    section: bytes
    """QNAME with its letters as sent, QTYPE, QCLASS."""
    name: Name
    qtype: int
    flags: int
    """RD and CD as asked."""
    size: int
    """The largest UDP reply that the client takes, 512 to 4096 octets."""
    edns: bool
    dnssec_ok: bool
    key: Key
    opt: bytes
    """The OPT record for a reply without options; empty when the question had none."""

    def __repr__(self) -> str:
        return f"Question({self.name!r}, {type_text(self.qtype)})"


class Rejection:
    """A packet that is not asked any further."""

    __slots__ = ("reason", "reply")

    def __init__(self, reply: bytes | None, reason: str) -> None:
        self.reply = reply
        """The whole reply; None when the packet is to be dropped (over TCP: the connection closed)."""
        self.reason = reason
        """A metric label: short, response, opcode, question_count, malformed, opt_count, edns_version, class."""

    def __repr__(self) -> str:
        return f"Rejection({self.reply!r}, {self.reason!r})"


def read_question(packet: bytes) -> Question | Rejection:
    """Read a pod's packet; every row of header abuse ends here, ANY and AXFR are questions like others."""
    # Longer than it should be, and without calls of our own: this is run once for every packet.
    try:
        ident, flags, counts = _HEADER(packet)
        if flags & 0xF800 or counts >> 32 != 0x10000:
            return _reject_header(packet)
        at = 12
        while length := packet[at]:
            if length > 63 or at > 266:
                return _malformed(packet)
            at += length + 1
        name = fold(packet[12 : at + 1])
        qtype, qclass = _TYPE_CLASS(packet, at + 1)
        at += 5
        edns = _USUAL_EDNS.get((counts, packet[at:])) or _read_edns(packet, at, counts)
    except (IndexError, StructError):
        return _malformed(packet)
    if at > 271 or isinstance(edns, Rejection):
        return edns if isinstance(edns, Rejection) else _malformed(packet)
    question = _new(Question)
    question.id = ident
    question.section = packet[12:at]
    question.name = name
    question.qtype = qtype
    question.flags = flags & 0x0110
    question.size, dnssec_ok, question.opt = edns
    question.dnssec_ok = dnssec_ok
    question.edns = question.opt != b""
    question.key = (name, qtype, dnssec_ok, flags & 0x10)
    if qclass != 1 or question.opt is _OPT_BADVERS:
        return _reject_question(question)
    return question


def forwarded(question: Question, edns: bool = True) -> bytes:
    """The message for an upstream, after the ID: RD=1, CD as asked, and an OPT of our own (1232, DO as asked)."""
    if not edns:
        return _ASK[question.flags, False] + question.section
    return _ASK[question.flags, True] + question.section + (_OPT_DO if question.dnssec_ok else _OPT_PLAIN)


def query(name: Name, qtype: int) -> Question:
    """The question for a name and type, as a client without EDNS would ask it."""
    question = read_question(_QUERY + name + _TYPE_CLASS_PACK(qtype, 1))
    assert isinstance(question, Question)
    return question


def denial(question: Question, *, rcode: int, ede: ExtendedError | None, soa: bool) -> bytes:
    """A whole reply that says no: NXDOMAIN, NODATA (rcode 0) or REFUSED, with a SOA owned by the name when `soa`."""
    if soa:
        return compose(question, rcode, b"\0\1\0\0\0\1", _NEGATIVE_SOA, ede=ede)
    return compose(question, rcode, b"\0\1\0\0\0\0", b"", ede=ede)


def error(question: Question, rcode: int, ede: ExtendedError | None = None) -> bytes:
    """A whole reply without records: SERVFAIL, REFUSED, NOTIMP."""
    return compose(question, rcode, b"\0\1\0\0\0\0", b"", ede=ede)


def minimal_any(question: Question) -> bytes:
    """The whole reply to a question of type ANY (RFC 8482 section 4.2)."""
    return compose(question, 0, b"\0\1\0\1\0\0", _RFC8482, ede=None)


def truncated(question: Question) -> bytes:
    """A whole reply that says: ask again over TCP."""
    return compose(question, TC, b"\0\1\0\0\0\0", b"", ede=None)


def compose(question: Question, flags: int, counts: bytes, body: bytes, *, ede: ExtendedError | None) -> bytes:
    """A whole reply: `flags` are those besides QR, RA and the client's own, `counts` those of the first three sections.

    The EDE is left out when the question had no OPT, and cut when it would make the reply larger than `question.size`.
    """
    ident = question.id
    head = FLAG_BYTES[QR | RA | question.flags | flags]
    section = question.section
    if not question.edns:
        return b"".join((ident, head, counts, b"\0\0", section, body))
    if ede is None:
        return b"".join((ident, head, counts, b"\0\1", section, body, question.opt))
    code, words = ede
    text = words.encode("utf-8", "replace")
    room = question.size - 29 - len(section) - len(body)
    if len(text) > room:
        text = text[: max(room, 0)].decode("utf-8", "ignore").encode()
    size = len(text)
    do = _DO if question.dnssec_ok else 0
    opt = _OPT_WITH_EDE(0, 41, EDNS_SIZE, 0, 0, do, size + 6, 15, size + 2, code)
    return b"".join((ident, head, counts, b"\0\1", section, body, opt, text))


def type_text(qtype: int) -> str:
    """The name of a record type, `TYPE65280` (RFC 3597) where it has none here."""
    return _TYPE_NAMES.get(qtype) or f"TYPE{qtype}"


_TYPE_NAMES = {int(member): member.name for member in Qtype}
_new = cast(Callable[[type[Question]], Question], object.__new__)

_Edns = tuple[int, bool, bytes]
"""The size that the client takes, DO, and the OPT of the reply."""


def _client_edns(size: int, flags: int) -> _Edns:
    do = flags & _DO != 0
    return min(max(size, 512), LARGEST_UDP), do, _OPT_DO if do else _OPT_PLAIN


_NO_EDNS: _Edns = (512, False, b"")
# What resolver libraries send, ready made: saves 0.5 us a question.
_USUAL_EDNS: dict[tuple[int, bytes], _Edns] = {
    (_ONE_QUESTION_AND_OPT, _OPT_RECORD(0, 41, size, flags, 0)): _client_edns(size, flags)
    for size in (512, 1200, 1220, 1232, 1280, 1400, 1410, 1432, 1440, 1452, 1472, 2048, 4000, 4096, 8192, 65494, 65535)
    for flags in (0, _DO)
} | {(_ONE_QUESTION, b""): _NO_EDNS}


def _reject_header(packet: bytes) -> Rejection:
    flags, questions = _TYPE_CLASS(packet, 2)
    if flags & QR:
        return Rejection(None, "response")
    if flags & 0x7800:
        return Rejection(_bare(packet, Rcode.NOTIMP), "opcode")
    if questions != 1:
        return Rejection(_bare(packet, Rcode.FORMERR), "question_count")
    return _malformed(packet)


def _malformed(packet: bytes) -> Rejection:
    if len(packet) < 12:
        return Rejection(None, "short")
    return Rejection(_bare(packet, Rcode.FORMERR), "malformed")


def _bare(packet: bytes, rcode: int) -> bytes:
    """A header alone, for a packet whose question cannot be echoed: its ID, opcode and RD, and the rcode."""
    flags = int.from_bytes(packet[2:4], "big")
    return packet[:2] + (QR | RA | rcode | flags & 0x7900).to_bytes(2, "big") + bytes(8)


def _reject_question(question: Question) -> Rejection:
    if question.opt is not _OPT_BADVERS:
        return Rejection(error(question, Rcode.REFUSED), "class")
    return Rejection(compose(question, 0, b"\0\1\0\0\0\0", b"", ede=None), "edns_version")


def _read_edns(packet: bytes, at: int, counts: int) -> _Edns | Rejection:
    """What the records behind the question say of EDNS, or why the packet is refused."""
    authority, additional = counts >> 16 & 0xFFFF, counts & 0xFFFF
    if authority + additional > _MOST_EXTRA_RECORDS:
        return _malformed(packet)
    found = []
    for number in range(authority + additional):
        start = at
        at = skip_name(packet, at)
        rtype, _, _, length = _RECORD(packet, at)
        at += 10 + length
        if rtype == Qtype.OPT:
            if packet[start] or number < authority:
                return _malformed(packet)
            found.append(_OPT(packet, start))
    if at != len(packet):
        return _malformed(packet)
    if len(found) > 1:
        return Rejection(_bare(packet, Rcode.FORMERR), "opt_count")
    return _read_opt(*found[0]) if found else _NO_EDNS


def _read_opt(_start: bytes, size: int, version: int, flags: int, _length: int) -> _Edns:
    known = _client_edns(size, flags)
    # The upper octet is the extended rcode, which means nothing in a question.
    return (known[0], known[1], _OPT_BADVERS) if version & 0xFF else known


def skip_name(packet: bytes, at: int) -> int:
    """The offset behind a name that is of no interest."""
    while length := packet[at]:
        if length >= 0xC0:
            return at + 2
        if length > 63:
            raise IndexError(at)
        at += length + 1
    return at + 1
