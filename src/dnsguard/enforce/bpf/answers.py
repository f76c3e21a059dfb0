"""What the kernel answers by itself: entries are written, taken out, and read for how often they were told.

Needs the map `answers`, and nobody else who writes to it. Runs in the event loop's thread: a call takes some
microseconds, and about a millisecond where it is for many entries. An entry holds the very octets that `core` would
send: it is cut out of two replies made there, to the question with EDNS and without. What the books here say and what
the kernel holds differ only in entries that have ended.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from struct import Struct

from dnsguard.core.answers import Answer, reply
from dnsguard.core.model import Name, Seconds
from dnsguard.core.wire import (
    CD,
    LARGEST_UDP,
    NEGATIVE_TTL,
    ExtendedError,
    Qtype,
    Question,
    Rcode,
    denial,
    error,
    read_question,
)
from dnsguard.enforce.bpf.layout import ANSWER, ANSWER_DATA, ANSWER_DENIED, ANSWER_KEY, ANSWER_NAME, ANSWER_TTLS
from dnsguard.enforce.bpf.syscall import Map
from dnsguard.engine.contracts import Told

LONGEST_NAME = ANSWER_NAME - 1
SLICE = 256
"""Entries that one call takes out or looks at."""

_HEADER = 12
_BARE = b"\0\0\0\0\0\1\0\0\0\0\0\0"
_WITH_OPT = b"\0\0\0\0\0\1\0\0\0\0\0\1"
_LARGEST_OPT = Struct(">BHHIH").pack(0, Qtype.OPT, LARGEST_UDP, 0, 0)
_NO_ROOM = (errno.E2BIG, errno.ENOMEM)


class BpfAnswers:
    """Entries by source: at most `per_source` of each, and `total` of all."""

    def __init__(self, answers: Map, *, per_source: int, total: int) -> None:
        self._map = answers
        self._per_source = per_source
        self._total = total
        self._count = 0
        self._shares: dict[int, dict[Told, Seconds]] = {}
        """Until when each is told, those put first first."""
        self._ending = _Calendar()
        self._unseen = _Calendar()
        """What `hot` has not looked at yet."""
        # An entry's memory may become another's while the kernel reads it; a serial never does, of no process.
        self._serials = itertools.count(time.monotonic_ns())

    def __len__(self) -> int:
        return self._count

    def put(self, source: int, question: Question, answer: Answer, *, ttl_ends: Seconds, until: Seconds) -> bool:
        # One object for all who are told the same.
        told = source, answer.name if answer.name == question.name else question.name, question.qtype
        if self._stands(told, until):
            return True
        asked = _as_asked(question)
        if asked is None:
            return False
        bare, full = (reply(answer, each, 0, stream=True) for each in asked)
        ttls = answer.ttl_offsets
        content = _Content(bare, full, question, ttls)
        if not content.fits:
            return False
        value = content.pack(next(self._serials), _ns(until), ttl_ends_ns=_ns(ttl_ends))
        return self._write(told, value, until)

    def put_denial(
        self, source: int, question: Question, *, rcode: int, ede: ExtendedError | None, until: Seconds
    ) -> bool:
        told = source, question.name, question.qtype
        if self._stands(told, until):
            return True
        asked = _as_asked(question)
        if asked is None:
            return False
        if rcode == Rcode.REFUSED:
            bare, full = (error(each, rcode, ede) for each in asked)
        else:
            bare, full = (denial(each, rcode=rcode, ede=ede, soa=True) for each in asked)
        content = _Content(bare, full, question)
        if not content.fits:
            return False
        value = content.pack(next(self._serials), _ns(until), flags=ANSWER_DENIED)
        return self._write(told, value, until)

    def _stands(self, told: Told, until: Seconds) -> bool:
        """Whether it is in the kernel already; then it is the youngest again. It is not written for each question that
        comes by TCP, or with flags: one by UDP that is answered in that very moment finds its entry changed, and is
        dropped."""
        share = self._shares.get(told[0], {})
        if share.get(told) != until:
            return False
        share[told] = share.pop(told)
        return True

    def forget(self, source: int) -> None:
        share = self._shares.pop(source, {})
        self._map.delete_many([_key(told) for told in share])
        for told, until in share.items():
            self._strike(told, until)

    def adopt(self, sources: Collection[int]) -> None:
        found = []
        strangers = []
        for key, value in self._map.items():
            source, qtype, length, name = ANSWER_KEY.unpack(key)
            if source in sources:
                found.append((ANSWER.unpack(value)[0] / 1e9, (source, Name(name[:length]), qtype)))
            else:
                strangers.append(key)
        for until, told in sorted(found):
            if self._make_room(told):
                self._enter(told, until)
            else:
                strangers.append(_key(told))
        self._map.delete_many(strangers)

    def sweep(self, now: Seconds) -> bool:
        ended = self._ending.take(now, SLICE)
        self._map.delete_many([_key(told) for told in ended])
        for told in ended:
            self._strike(told, self._shares[told[0]].pop(told))
            if not self._shares[told[0]]:
                del self._shares[told[0]]
        return len(ended) == SLICE

    def hot(self, now: Seconds, within: Seconds) -> list[Told]:
        return [told for told in self._unseen.take(now + within, SLICE) if self._hits(told)]

    def _hits(self, told: Told) -> int:
        value = self._map.lookup(_key(told))
        if value is None:
            return 0
        *_, hits, _serial, _data = ANSWER.unpack(value)
        return int(hits)

    def _write(self, told: Told, value: bytes, until: Seconds) -> bool:
        if not self._make_room(told):
            return False
        try:
            self._map.update(_key(told), value)
        except OSError as error:
            if error.errno in _NO_ROOM:
                return False
            raise
        self._enter(told, until)
        return True

    def _make_room(self, told: Told) -> bool:
        """Nobody's entries go but the source's own: a pod that asks for much only crowds out itself."""
        share = self._shares.get(told[0], {})
        if told in share or (len(share) < self._per_source and self._count < self._total):
            return True
        if not share:
            return False
        oldest = next(iter(share))
        self._map.delete(_key(oldest))
        self._strike(oldest, share.pop(oldest))
        return True

    def _enter(self, told: Told, until: Seconds) -> None:
        share = self._shares.setdefault(told[0], {})
        if told in share:
            self._strike(told, share.pop(told))
        share[told] = until
        self._count += 1
        self._ending.add(told, until)
        self._unseen.add(told, until)

    def _strike(self, told: Told, until: Seconds) -> None:
        """Out of the books, but for the share it was taken from."""
        self._count -= 1
        self._ending.discard(told, until)
        self._unseen.discard(told, until)


class _Calendar:
    """Entries by the first whole second at which they have ended."""

    def __init__(self) -> None:
        self._seconds: dict[int, set[Told]] = {}
        self._order: list[int] = []

    def add(self, told: Told, until: Seconds) -> None:
        second = int(until) + 1
        if second not in self._seconds:
            self._seconds[second] = set()
            heapq.heappush(self._order, second)
        self._seconds[second].add(told)

    def discard(self, told: Told, until: Seconds) -> None:
        self._seconds.get(int(until) + 1, set()).discard(told)

    def take(self, upto: Seconds, most: int) -> list[Told]:
        """At most so many of those that have ended by then."""
        taken: list[Told] = []
        while self._order and self._order[0] <= upto:
            those = self._seconds[self._order[0]]
            while those:
                if len(taken) == most:
                    return taken
                taken.append(those.pop())
            del self._seconds[heapq.heappop(self._order)]
        return taken


@dataclass(frozen=True, slots=True)
class _Content:
    """A reply, as one without EDNS and as one with it. `ttls` are counted from the end of the question."""

    bare: bytes
    full: bytes
    question: Question
    ttls: Sequence[int] = ()

    @property
    def fits(self) -> bool:
        return len(self.full) - self._start <= ANSWER_DATA and len(self.ttls) <= ANSWER_TTLS

    @property
    def _start(self) -> int:
        return _HEADER + len(self.question.section)

    def pack(self, serial: int, until_ns: int, *, ttl_ends_ns: int = 0, flags: int = 0) -> bytes:
        full, start, end = self.full, self._start, len(self.bare)
        return ANSWER.pack(
            until_ns,
            ttl_ends_ns,
            NEGATIVE_TTL,
            flags,
            *(full[2:4], full[6:8], full[8:10]),
            *(end - start, len(full) - end, len(self.ttls)),
            *self.ttls,
            *(0,) * (ANSWER_TTLS - len(self.ttls)),
            *(_sum(full, start, end), _sum(full, end, len(full))),
            0,
            serial,
            full[start:],
        )


def _as_asked(question: Question) -> tuple[Question, Question] | None:
    """The question of a client without EDNS, and of one with room for everything. None: the kernel does not read it."""
    if question.dnssec_ok or question.flags & CD or len(question.name) > LONGEST_NAME:
        return None
    bare = read_question(_BARE + question.section)
    full = read_question(_WITH_OPT + question.section + _LARGEST_OPT)
    assert isinstance(bare, Question) and isinstance(full, Question)
    return bare, full


def _key(told: Told) -> bytes:
    source, name, qtype = told
    return ANSWER_KEY.pack(source, qtype, len(name), name)


def _ns(moment: Seconds) -> int:
    return int(moment * 1e9)


def _sum(message: bytes, start: int, end: int) -> int:
    """The one's complement sum of these octets where they stand (RFC 1071), of words as this machine reads them."""
    padded = bytes(start & 1) + message[start:end] + bytes(end & 1)
    return int.from_bytes(padded, sys.byteorder) % 0xFFFF
