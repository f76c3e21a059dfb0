"""Leases as the kernel holds them: (scope, source, peer) and the moment each ends.

What is written here is written for every answer of every pod: one call packs a key, and one writes a batch. Leases
that have ended, or that are nobody's any more, open nothing; they take room until they are purged.
"""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from struct import Struct

from dnsguard.core.model import Address
from dnsguard.enforce.bpf import layout
from dnsguard.enforce.bpf.pairs import Pairs
from dnsguard.enforce.bpf.room import Search
from dnsguard.enforce.bpf.syscall import Map
from dnsguard.engine.contracts import Element, Held, Write

Ends = dict[bytes, int]
"""Keys of the map, and when each lease ends, in nanoseconds; 0 for one that is not there."""

_MILLISECOND = 1_000_000
_pack4, _pack6 = Struct("=QII4s12x").pack, Struct("=QII16s").pack
_unpack = Struct("=QII16s").unpack
_pack_end = layout.U64.pack


class Leases:
    """`carried` are the scopes, by number, of the programs that an earlier process left."""

    def __init__(self, leases: Map, pairs: Pairs, carried: Iterable[int]) -> None:
        self._map = leases
        self._pairs = pairs
        self._scopes: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._carried = frozenset(carried)
        self._dropped_scopes = 1
        """How often scopes ceased to be carried. What an earlier process did is not known."""
        self._clean = 0
        """As of which of these times no lease is left in them."""
        self._search = Search(self.purge)

    # Scopes

    def learn(self, scopes: Iterable[str]) -> None:
        """Know these scopes by their numbers: only so can what an earlier process left be read."""
        self._names.update((layout.scope_number(scope), scope) for scope in scopes)

    def expect(self, scopes: Iterable[str]) -> Callable[[], None]:
        """Take leases in these scopes too; returns how to take that back. None of an earlier time, when one of them
        was carried before, comes to life again."""
        numbers = frozenset(map(layout.scope_number, scopes))
        if self._clean < self._dropped_scopes and not numbers <= self._carried:
            self.purge()
            self._clean = self._dropped_scopes
        before, self._carried = self._carried, self._carried | numbers
        return lambda: self._carry(before)

    def carry(self, scopes: Iterable[str]) -> None:
        """Take leases in these scopes, and no others."""
        self._scopes = {scope: layout.scope_number(scope) for scope in scopes}
        self._names = {number: scope for scope, number in self._scopes.items()}
        self._carry(frozenset(self._names))

    def _carry(self, numbers: frozenset[int]) -> None:
        self._dropped_scopes += not self._carried <= numbers
        self._carried = numbers

    # Writing

    def arm(self, writes: Iterable[Write]) -> dict[Element, str]:
        """Make or refresh leases; returns the refused elements with the reason."""
        writes = list(writes)
        ends, refused = self._ends(writes, self._scopes)
        if failed := self.write(ends):
            for scope, key, _ in writes:
                for each in self._keys(scope, key):
                    if why := failed.get(each):
                        refused[Element(scope, key)] = why
        return refused

    def ends(self, writes: Collection[Write]) -> Ends:
        """What these writes, in scopes that are expected, mean in the map. Those of no pair mean nothing."""
        return self._ends(writes, {scope: layout.scope_number(scope) for scope in {write.scope for write in writes}})[0]

    def _ends(self, writes: Iterable[Write], scopes: Mapping[str, int]) -> tuple[Ends, dict[Element, str]]:
        """Each key once, with its latest end; and the elements that are in none of these scopes, or of no pair."""
        now = time.monotonic_ns()
        sources_of = self._pairs.sources
        ends: Ends = {}
        refused: dict[Element, str] = {}
        for scope, key, ms in writes:
            half = 4 if len(key) == 8 else 16
            number, sources = scopes.get(scope), sources_of.get(Address(key[:half]))
            if number is None or sources is None:
                refused[Element(scope, key)] = "ENOENT"
                continue
            end = now + ms * _MILLISECOND
            for source in sources:
                packed = _pack4(number, source, 4, key[4:]) if half == 4 else _pack6(number, source, 6, key[16:])
                if ends.get(packed, 0) < end:
                    ends[packed] = end
        return ends, refused

    def write(self, ends: Ends) -> dict[bytes, str]:
        """Write what has an end and take out what has none; returns the keys refused, with the errno's name."""
        if gone := [key for key, end in ends.items() if not end]:
            self._map.delete_many(gone)
        made = {key: _pack_end(end) for key, end in ends.items() if end}
        try:
            self._map.update_many(list(made), list(made.values()))
        except OSError:
            return self._one_by_one(made)
        return {}

    def _one_by_one(self, made: Mapping[bytes, bytes]) -> dict[bytes, str]:
        """Once one was refused: those that there is room for, or that are there already."""
        self._search.make_room()
        refused: dict[bytes, str] = {}
        for key, end in made.items():
            try:
                self._map.update(key, end)
            except OSError as error:
                refused[key] = errno.errorcode.get(error.errno or 0, str(error))
        return refused

    def before(self, ends: Ends) -> Ends:
        """What `write` of these would replace: writing it takes that back."""
        return {key: int.from_bytes(self._map.lookup(key) or b"", sys.byteorder) for key in ends}

    def drop(self, elements: Iterable[Element]) -> None:
        """Take these out, present or not."""
        self._map.delete_many([packed for scope, key in elements for packed in self._keys(scope, key)])

    def keep(self, elements: Iterable[Element]) -> None:
        """Take out all others."""
        kept = {packed for scope, key in elements for packed in self._keys(scope, key)}
        self._map.delete_many([packed for packed, _ in self._map.items() if packed not in kept])

    def _keys(self, scope: str, key: bytes) -> list[bytes]:
        """An element's keys, one for each pair that has its address."""
        number, half = self._scopes.get(scope) or layout.scope_number(scope), len(key) // 2
        peer = layout.address(Address(key[half:]))
        sources = self._pairs.sources.get(Address(key[:half]), ())
        return [layout.LEASE_KEY.pack(number, source, peer) for source in sources]

    # Reading

    def read(self) -> list[Held]:
        """Every element that is alive for all pairs of its address and whose scope is known, with the shortest time."""
        now = time.monotonic_ns()
        pairs, names, sources = self._pairs.by_source, self._names, self._pairs.sources
        found: dict[tuple[str, bytes], list[int]] = {}
        for packed, value in self._map.items():
            number, source, family, peer = _unpack(packed)
            end = int.from_bytes(value, sys.byteorder)
            if end > now and number in names and source in pairs:
                key = pairs[source][1] + (peer[:4] if family == 4 else peer)
                found.setdefault((names[number], key), []).append(end)
        return [
            Held(scope, key, -(-(min(ends) - now) // _MILLISECOND))
            for (scope, key), ends in found.items()
            if len(ends) >= len(sources.get(Address(key[: len(key) // 2]), ()))
        ]

    # Room

    def purge(self) -> None:
        """Take out every lease that opens nothing."""
        self._map.delete_many([key for key, value in self._map.items() if self.is_dead(key, value)])

    def sweep(self, slices: Iterable[list[tuple[bytes, bytes]]]) -> Iterator[int]:
        """Take out what opens nothing, slice by slice. Each was read a while ago, and is looked up again."""
        begun = self._dropped_scopes
        for items in slices:
            doomed = [key for key, value in items if self.is_dead(key, value)]
            self._map.delete_many([key for key in doomed if (now := self._map.lookup(key)) and self.is_dead(key, now)])
            yield len(items)
        self._clean = max(self._clean, begun)

    def is_dead(self, key: bytes, value: bytes) -> bool:
        """Whether a lease has ended, or is of a pair that has gone or in a scope that nothing carries any more."""
        scope, source, _ = layout.LEASE_KEY.unpack(key)
        (end,) = layout.U64.unpack(value)
        return end <= time.monotonic_ns() or source not in self._pairs.by_source or scope not in self._carried
