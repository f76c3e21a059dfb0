"""DNS messages for tests, written by dnslib: an independent reader and writer beside the code under test."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address, ip_network

from dnslib import EDNS0, QTYPE, RR, DNSHeader, DNSQuestion, DNSRecord

from dnsguard.core.answers import DEFAULT_PROTECTED, Protected, Vetted, vet
from dnsguard.core.model import Address, Name
from dnsguard.core.wire import Question, read_question

NAME = "www.example.com"
GUARD = Protected(DEFAULT_PROTECTED)
CAP = 3600
SOA = "example.com. 300 SOA ns.example.com. host.example.com. 1 2 3 4 60"


def query(
    name: str = NAME, qtype: str = "A", *, edns: int | None = 1232, do: bool = False, rd: int = 1, cd: int = 0
) -> bytes:
    """A pod's packet."""
    message = DNSRecord(DNSHeader(id=0x1234, rd=rd, cd=cd), q=DNSQuestion(name, QTYPE.reverse[qtype]))
    if edns is not None:
        message.add_ar(EDNS0(udp_len=edns, flags="do" if do else ""))
    return bytes(message.pack())


def ask(name: str = NAME, qtype: str = "A", **options: int | None) -> Question:
    """A pod's question, read."""
    question = read_question(query(name, qtype, **options))  # type: ignore[arg-type]
    assert isinstance(question, Question)
    return question


def answer(
    zone: str = "",
    *,
    name: str = NAME,
    qtype: str = "A",
    authority: str = "",
    additional: str = "",
    rcode: int = 0,
    ad: int = 0,
) -> bytes:
    """An upstream's packet; the sections are lines of a zone file."""
    message = DNSRecord(
        DNSHeader(id=0x9999, qr=1, rd=1, ra=1, ad=ad, rcode=rcode), q=DNSQuestion(name, QTYPE.reverse[qtype])
    )
    message.add_answer(*records(zone))
    message.add_auth(*records(authority))
    message.add_ar(*records(additional))
    return bytes(message.pack())


def records(zone: str) -> list[RR]:
    """The records of a zone file's lines, and none for an empty one."""
    return list(RR.fromZone(zone)) if zone.strip() else []


def judge(
    packet: bytes,
    question: Question | None = None,
    *,
    guard: Protected = GUARD,
    allow: Callable[[Name], bool] | None = None,
) -> Vetted:
    """Vet with the defaults of these tests: nothing but the question's own name is allowed."""
    return vet(packet, question or ask(), guard, cap=CAP, allowed=allow or (lambda name: False))


def read(packet: bytes) -> DNSRecord:
    """Read a reply by dnslib."""
    return DNSRecord.parse(packet)


def shown(records: list[RR]) -> list[tuple[str, str, str]]:
    """(owner, type, RDATA) of records that dnslib read, without the last dots."""
    return [(str(r.rname).rstrip("."), QTYPE[r.rtype], str(r.rdata).rstrip(".")) for r in records]


def address(text: str) -> Address:
    return Address(ip_address(text).packed)


def protected(*networks: str, own: tuple[str, ...] = ()) -> Protected:
    return Protected([ip_network(n) for n in networks], [address(o) for o in own])


def ede(packet: bytes) -> tuple[int, str] | None:
    """The Extended DNS Error of a reply."""
    for record in read(packet).ar:
        if record.rtype == QTYPE.OPT:
            for option in record.rdata:
                if option.code == 15:
                    return int.from_bytes(option.data[:2], "big"), option.data[2:].decode()
    return None
