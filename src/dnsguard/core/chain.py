"""Which records of an upstream's message may be shown: those on the chain of CNAMEs from the question's name.

The thorough way, for every answer that is more than CNAMEs and addresses in order. Everything else in the answer
section is taken out and counted; of the authority section a denial's SOA stays and, with DO, its proofs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import ip_address
from struct import error as StructError  # noqa: N812
from typing import NamedTuple

from dnsguard.core.model import Address, Name
from dnsguard.core.names import ROOT, ancestors, to_text
from dnsguard.core.protected import Protected
from dnsguard.core.records import Body, KnownNames, Record, read_rdata, read_records, read_service
from dnsguard.core.wire import AD, Qtype, Question, Rcode, fold

_MOST_LINKS = 16
# A CNAME answers these itself: a zone may hold them beside it (RFC 4034 section 2.5, RFC 6672).
_NOT_FOLLOWED = frozenset((Qtype.CNAME, Qtype.RRSIG, Qtype.NSEC))
_PROOFS = frozenset((Qtype.NSEC, Qtype.NSEC3))
_MOST_TEXTS = 3

Shown = tuple[Record, bytes]
"""A record and its RDATA without compression."""


class Rules(NamedTuple):
    """What vetting goes by besides the question."""

    guard: Protected
    allowed: Callable[[Name], bool]
    cap: int


class Losses:
    """Records taken out: how many for each reason, and for some reasons the first few as text."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._texts: dict[str, list[str]] = {}

    def add(self, reason: str) -> None:
        """Count a record that means nothing to an operator."""
        self.counts[reason] = self.counts.get(reason, 0) + 1

    def withhold(self, reason: str, text: Callable[[], str]) -> None:
        """Count a record that an operator should hear of."""
        self.add(reason)
        texts = self._texts.setdefault(reason, [])
        if len(texts) < _MOST_TEXTS:
            texts.append(text())

    def texts(self) -> Iterator[tuple[str, str]]:
        """(reason, text), once for each reason that was given a text."""
        for reason, texts in self._texts.items():
            more = self.counts[reason] - len(texts)
            yield reason, ", ".join(texts) + (f" and {more} more" if more else "")


class Selection(NamedTuple):
    """What is left of a message."""

    body: Body
    counts: tuple[int, int]
    """Records in the answer and in the authority section."""
    flags: int
    """AD and the rcode."""
    ttl: int
    addresses: tuple[Address, ...]
    negative: bool
    withheld: str | None
    """Why, when records of the type asked for were there and policy took out all of them."""
    losses: Losses


def select(packet: bytes, question: Question, rules: Rules) -> Selection:
    """Vet a message whose header and question were found to fit. Raises ValueError, IndexError or struct.error."""
    known: KnownNames = {}
    counts = [packet[i] << 8 | packet[i + 1] for i in (6, 8)]
    records, at = read_records(packet, 12 + len(question.section), counts[0], known)
    sieve = _Sieve(packet, question, rules, known)
    shown = sieve.answers(records)
    negative = not any(r.rtype == question.qtype and r.owner == sieve.last for r, _ in shown)
    proofs: list[Shown] = []
    if counts[1] and (negative or question.dnssec_ok):
        others, _ = read_records(packet, at, counts[1], known)
        proofs = sieve.authority(others, negative)
    flags = packet[3] & (15 if sieve.losses.counts else 15 | AD)
    body = Body(question.name)
    for record, rdata in (*shown, *proofs):
        body.add(record.owner, record.rtype, rdata)
    return Selection(
        body,
        (len(shown), len(proofs)),
        flags=flags,
        ttl=_lowest_ttl([*shown, *proofs], negative, rules.cap),
        addresses=tuple(dict.fromkeys(Address(rdata) for r, rdata in shown if r.rtype in (Qtype.A, Qtype.AAAA))),
        negative=negative,
        withheld=_withheld(sieve.losses) if negative else None,
        losses=sieve.losses,
    )


def _lowest_ttl(shown: list[Shown], negative: bool, cap: int) -> int:
    """The chain's lowest. A denial lives as its SOA says (RFC 2308 section 5), without one not at all."""
    if negative and not any(record.rtype == Qtype.SOA for record, _ in shown):
        return 0
    lowest = cap
    for record, rdata in shown:
        lowest = min(lowest, record.ttl)
        if negative and record.rtype == Qtype.SOA:
            lowest = min(lowest, _ttl(int.from_bytes(rdata[-4:], "big")))
    return lowest


def _ttl(value: int) -> int:
    return value if value < 0x80000000 else 0


def _withheld(losses: Losses) -> str | None:
    return "; ".join(f"{WITHHELD[reason]} {text}" for reason, text in losses.texts()) or None


WITHHELD = {
    "protected": "protected address",
    "target": "no rule allows the target",
    "mandatory": "hints are not passed on, and mandatory for",
}
"""What is said before the texts of a reason."""


class _Sieve:
    """Judges the records of one message."""

    def __init__(self, packet: bytes, question: Question, rules: Rules, known: KnownNames) -> None:
        self.losses = Losses()
        self.last = question.name
        self._packet = packet
        self._question = question
        self._rules = rules
        self._known = known
        self._links: dict[Name, tuple[Record, Name]] = {}
        self._exists = packet[3] & 15 == Rcode.NOERROR

    def answers(self, records: list[Record]) -> list[Shown]:
        """The records of the answer section that may be shown, in the order they came."""
        self._follow(records)
        shown: dict[int, Shown] = {}
        signatures = []
        for place, record in enumerate(records):
            if record.rtype == Qtype.RRSIG and self._question.dnssec_ok and self._question.qtype != Qtype.RRSIG:
                signatures.append(place)
            elif (rdata := self._judge(record)) is not None:
                shown[place] = (record, rdata)
        signed = {(record.owner, record.rtype) for record, _ in shown.values()}
        for place in signatures:
            if (rdata := self._signature(records[place], signed)) is not None:
                shown[place] = (records[place], rdata)
        return [shown[place] for place in sorted(shown)] if signatures else list(shown.values())

    def authority(self, records: list[Record], negative: bool) -> list[Shown]:
        """A denial's SOA, and with DO the proofs and signatures; the rest only helps those who ask on."""
        shown: list[Shown] = []
        if negative:
            soa = next((record for record in records if record.rtype == Qtype.SOA and self._is_above(record)), None)
            if soa and (rdata := self._rdata(soa)):
                shown.append((soa, rdata))
        if not self._question.dnssec_ok:
            return shown
        for record in records:
            if record.rtype in _PROOFS and record.rclass == 1 and (rdata := self._rdata(record)):
                shown.append((record, rdata))
        signed = {(record.owner, record.rtype) for record, _ in shown}
        for record in records:
            if record.rtype == Qtype.RRSIG and (rdata := self._signature(record, signed, count=False)):
                shown.append((record, rdata))
        return shown

    def _follow(self, records: list[Record]) -> None:
        """Find the links from the question's name on; the first CNAME of an owner counts."""
        if self._question.qtype in _NOT_FOLLOWED:
            return
        cnames: dict[Name, Record] = {}
        for record in records:
            if record.rtype == Qtype.CNAME and record.rclass == 1:
                cnames.setdefault(record.owner, record)
        while len(self._links) < _MOST_LINKS and self.last not in self._links and self.last in cnames:
            record = cnames[self.last]
            target = self._target(record)
            if target is None:
                return
            self._links[self.last] = (record, target)
            self.last = target

    def _judge(self, record: Record) -> bytes | None:
        """The RDATA to show, or None and the loss counted."""
        if record.rclass != 1:
            return self._drop("class")
        owner, rtype = record.owner, record.rtype
        link = self._links.get(owner)
        if link is not None and link[0] is record:
            return self._rdata(record)
        if owner == self.last and rtype == self._question.qtype:
            return self._asked_for(record) if self._exists else self._drop("nxdomain")
        if rtype == Qtype.DNAME and self._made_link(record):
            return self._rdata(record)
        if link is None and owner != self.last:
            return self._drop("owner")
        return self._drop("chain" if rtype == Qtype.CNAME else "type")

    def _asked_for(self, record: Record) -> bytes | None:
        rdata = self._rdata(record)
        if rdata is None:
            return None
        if record.rtype in (Qtype.A, Qtype.AAAA):
            if Address(rdata) in self._rules.guard:
                return self._withhold("protected", lambda: str(ip_address(rdata)))
        elif record.rtype in (Qtype.SVCB, Qtype.HTTPS):
            return self._service(record, rdata)
        return rdata

    def _service(self, record: Record, rdata: bytes) -> bytes | None:
        try:
            service = read_service(rdata)
        except (IndexError, StructError, ValueError):
            return self._drop("malformed")
        if service.target != ROOT and not self._rules.allowed(service.target):
            return self._withhold("target", lambda: to_text(service.target))
        if service.broken:
            return self._withhold("mandatory", lambda: to_text(record.owner))
        if service.stripped:
            self.losses.add("hint")
        return service.rdata

    def _signature(self, record: Record, signed: set[tuple[Name, int]], *, count: bool = True) -> bytes | None:
        covered = int.from_bytes(self._packet[record.start : record.start + 2], "big")
        if record.rclass == 1 and (record.owner, covered) in signed:
            return self._rdata(record)
        return self._drop("signature") if count else None

    def _made_link(self, record: Record) -> bool:
        """True for a DNAME from which one of the chain's CNAMEs was made (RFC 6672 section 2.2)."""
        target = self._target(record)
        if target is None:
            return False
        for owner, (_, made) in self._links.items():
            if record.owner == ROOT or record.owner in ancestors(owner):
                rest = len(owner) - len(record.owner)
                if made == owner[:rest] + target:
                    return True
        return False

    def _is_above(self, record: Record) -> bool:
        """True for a SOA of a zone that holds a name of the chain."""
        if record.rclass != 1:
            return False
        return any(
            record.owner in (ROOT, name) or record.owner in ancestors(name) for name in (self.last, *self._links)
        )

    def _target(self, record: Record) -> Name | None:
        """The one name that a CNAME or DNAME holds; None when it is malformed, which the judgement counts."""
        try:
            return fold(read_rdata(self._packet, record, self._known))
        except (IndexError, ValueError):
            return None

    def _rdata(self, record: Record) -> bytes | None:
        try:
            return read_rdata(self._packet, record, self._known)
        except (IndexError, ValueError):
            return self._drop("malformed")

    def _drop(self, reason: str) -> bytes | None:
        self.losses.add(reason)
        return None

    def _withhold(self, reason: str, text: Callable[[], str]) -> bytes | None:
        self.losses.withhold(reason, text)
        return None
