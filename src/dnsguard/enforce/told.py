"""Answers from a kernel that is not there: the documented double of what `bpf/dns.h` and its map do.

`tell` is what the program does with a packet: the whole reply, made as the daemon would make it, or None when the
question has to go up. It keeps no clock and no share; `now` is given.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from dnsguard.core.answers import Answer, reply
from dnsguard.core.model import Seconds
from dnsguard.core.wire import ExtendedError, Question, Rcode, denial, error, read_question
from dnsguard.engine.contracts import Told

Make = Callable[[Question, Seconds], bytes | None]


class MemoryAnswers:
    """Implements `engine.contracts.KernelAnswers`. `told` counts what was answered."""

    def __init__(self) -> None:
        self._entries: dict[Told, tuple[Seconds, Make]] = {}
        self._hits: dict[Told, int] = {}
        self.told = 0

    def put(self, source: int, question: Question, answer: Answer, *, ttl_ends: Seconds, until: Seconds) -> bool:
        if question.dnssec_ok or question.flags & 0x10:
            return False

        def make(asked: Question, now: Seconds) -> bytes | None:
            ttl = int(ttl_ends - now)
            return reply(answer, asked, ttl, stream=False) if ttl >= 1 else None

        return self._write((source, question.name, question.qtype), until, make)

    def put_denial(
        self, source: int, question: Question, *, rcode: int, ede: ExtendedError | None, until: Seconds
    ) -> bool:
        if question.dnssec_ok or question.flags & 0x10:
            return False

        def make(asked: Question, now: Seconds) -> bytes:
            if rcode == Rcode.REFUSED:
                return error(asked, rcode, ede)
            return denial(asked, rcode=rcode, ede=ede, soa=True)

        return self._write((source, question.name, question.qtype), until, make)

    def _write(self, key: Told, until: Seconds, make: Make) -> bool:
        if self._entries.get(key, (None, None))[0] == until:
            return True
        self._entries[key] = until, make
        self._hits[key] = 0
        return True

    def forget(self, source: int) -> None:
        for key in [key for key in self._entries if key[0] == source]:
            del self._entries[key]

    def adopt(self, sources: Collection[int]) -> None:
        for source in {key[0] for key in self._entries} - set(sources):
            self.forget(source)

    def sweep(self, now: Seconds) -> bool:
        self._entries = {key: entry for key, entry in self._entries.items() if entry[0] > now}
        return False

    def hot(self, now: Seconds, within: Seconds) -> list[Told]:
        ending = [key for key, (until, _) in self._entries.items() if until <= now + within and self._hits[key]]
        self._hits.update(dict.fromkeys(ending, 0))
        return ending

    def tell(self, source: int, packet: bytes, now: Seconds) -> bytes | None:
        """The kernel's reply to a packet of this source; None: it goes up."""
        question = read_question(packet)
        if not isinstance(question, Question) or question.dnssec_ok or question.flags & 0x10:
            return None
        key = source, question.name, question.qtype
        until, make = self._entries.get(key, (0.0, None))
        made = make(question, now) if make is not None and now < until else None
        if made is None or made[2] & 2:
            return None
        self._hits[key] += 1
        self.told += 1
        return made
