"""Which (link, address) runs which program, and the number that each is known by in every other map.

A number is given once and never again, by a later process neither: leases and flows that still carry it after its
pair has gone are nobody's. The last number given is kept in a map of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from dnsguard.core.model import Address, LinkIndex, Pair
from dnsguard.enforce.bpf import layout
from dnsguard.enforce.bpf.program import name_of
from dnsguard.enforce.bpf.room import refusal
from dnsguard.enforce.bpf.syscall import Map

Source = int
"""The number of a pair."""

_ONLY = layout.U32.pack(0)


class Runs(NamedTuple):
    """What is done with a pair's packets: a program decides (0: none, they are dropped), or they are not governed."""

    program: int = 0
    excluded: bool = False


class Pairs:
    """Reads what an earlier process left when it is made."""

    def __init__(self, maps: Mapping[str, Map]) -> None:
        self._map, self._state = maps["pairs"], maps["state"]
        self._runs: dict[Pair, Runs] = {}
        self._numbers: dict[Pair, Source] = {}
        self.by_source: dict[Source, Pair] = {}
        self.sources: dict[Address, tuple[Source, ...]] = {}
        """The governed pairs of each address; nearly always one."""
        for key, value in self._map.items():
            self._adopt(key, value)
        (last,) = layout.U64.unpack(self._state.lookup(_ONLY) or bytes(8))
        self._last: Source = max(last, *self.by_source, 0)

    def number(self, pair: Pair) -> Source | None:
        return self._numbers.get(pair)

    def _adopt(self, key: bytes, value: bytes) -> None:
        link, address = layout.PAIR_KEY.unpack(key)
        program, source, flags = layout.PAIR.unpack(value)
        pair = LinkIndex(link), layout.address_of(address)
        self._know(pair, source, Runs(program, bool(flags & layout.PAIR_EXCLUDED)))

    def _know(self, pair: Pair, source: Source, runs: Runs) -> None:
        self._numbers[pair], self._runs[pair], self.by_source[source] = source, runs, pair
        self._index(pair[1], source, not runs.excluded)

    def _index(self, address: Address, source: Source, governed: bool) -> None:
        others = tuple(each for each in self.sources.get(address, ()) if each != source)
        if governed:
            self.sources[address] = (*others, source)
        elif others:
            self.sources[address] = others
        else:
            self.sources.pop(address, None)

    def __len__(self) -> int:
        return len(self._runs)

    @property
    def links(self) -> set[LinkIndex]:
        return {link for link, _ in self._runs}

    def running(self) -> dict[Pair, str]:
        """The program of each pair that has one."""
        return {pair: name_of(runs.program) for pair, runs in self._runs.items() if runs.program}

    def reserve(self, wanted: Iterable[Pair]) -> list[Pair]:
        """Give the pairs that are not known a number and a place, without a program; returns them.

        Raises KernelError, with none of them reserved, when there is no room.
        """
        new = [pair for pair in wanted if pair not in self._runs]
        if new:
            # before the first of them is used: a process that dies now must not have its successor give it again
            self._state.update(_ONLY, layout.U64.pack(self._last + len(new)))
        made: list[Pair] = []
        try:
            for pair in new:
                self._last += 1
                self._write(pair, self._last, Runs())
                made.append(pair)
        except OSError as error:
            self.release(made)
            raise refusal("pairs of links and addresses", error, "tables.pods") from error
        return made

    def _write(self, pair: Pair, source: Source, runs: Runs) -> None:
        flags = layout.PAIR_EXCLUDED if runs.excluded else 0
        self._map.update(layout.pair_key(*pair), layout.PAIR.pack(runs.program, source, flags))
        self._know(pair, source, runs)

    def release(self, pairs: Collection[Pair]) -> None:
        """Forget these pairs: what they send is dropped."""
        for pair in pairs:
            self._map.delete(layout.pair_key(*pair))
            source = self._numbers.pop(pair)
            del self._runs[pair], self.by_source[source]
            self._index(pair[1], source, governed=False)

    def turn(self, wanted: Mapping[Pair, Runs]) -> None:
        """From here on each of these pairs, which all have a place, is treated so; all others are forgotten.

        A pair that cannot be turned, for want of memory, is closed. Raises KernelError for the first of those.
        """
        self.release([pair for pair in self._runs if pair not in wanted])
        failed: list[OSError] = []
        for pair, runs in wanted.items():
            if self._runs[pair] != runs:
                try:
                    self._write(pair, self._numbers[pair], runs)
                except OSError as error:
                    self.release([pair])
                    failed.append(error)
        if failed:
            raise refusal("a change of pairs", failed[0], "tables.pods")
