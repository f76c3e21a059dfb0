"""Vetted answers, shared by all pods and independent of policy; what depends on the pod is taken out after it.

An entry stays past its TTL for as long as it may be served stale. The expiry is in the value and the eviction is
plain LRU: 1 us, against 4 us for a cache that orders by time. A long answer takes the place of several.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

from cachetools import LRUCache

from dnsguard.core.answers import Answer
from dnsguard.core.model import Seconds


class Entry(NamedTuple):
    """An answer and the moment its TTL ends."""

    answer: Answer
    ends: Seconds


PLACE = 1024
"""Octets of an answer that take one place: 50,000 places are 50 MB, not the 3 GB of as many longest answers."""


class AnswerCache:
    """Answers by question key; with no `entries` it keeps none. Never a home for leases: it forgets silently."""

    def __init__(self, entries: int) -> None:
        self._entries: LRUCache[Hashable, Entry] = LRUCache(entries, lambda entry: 1 + entry.answer.size // PLACE)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> Entry | None:
        return self._entries.get(key)

    def put(self, key: Hashable, answer: Answer, now: Seconds) -> None:
        """Keep `answer` for its TTL; one with TTL 0 is for those who are waiting for it, and nobody else."""
        if answer.ttl > 0 and answer.size // PLACE < self._entries.maxsize:
            self._entries[key] = Entry(answer, now + answer.ttl)

    def clear(self) -> None:
        self._entries.clear()
