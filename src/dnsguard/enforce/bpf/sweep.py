"""Takes out of the maps what has ended, a slice at a time: nothing in the kernel does.

An entry that a packet may be writing to is looked at once more before it goes, and only a while after its end.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from itertools import islice

from dnsguard.enforce.bpf import layout
from dnsguard.enforce.bpf.flows import TAKEN_UP_NS, Flows
from dnsguard.enforce.bpf.leases import Leases
from dnsguard.enforce.bpf.pairs import Pairs
from dnsguard.enforce.bpf.syscall import Map

SLICE = 2048
"""Entries that are looked at in one step: some 4 ms."""


class Sweep:
    """Lives in the writer's thread, as everything that writes to these maps."""

    def __init__(self, maps: Mapping[str, Map], pairs: Pairs, leases: Leases, flows: Flows) -> None:
        self._maps = maps
        self._pairs, self._leases, self._flows = pairs, leases, flows
        self._steps = self._once()

    def step(self) -> bool:
        """Go on by one slice; False when that was the last of a whole turn, and the next begins at the start."""
        if next(self._steps, None) is not None:
            return True
        self._steps = self._once()
        return False

    def _once(self) -> Iterator[int]:
        links = self._pairs.links
        for chunk in _slices(self._maps["flows"]):
            self._flows.sweep(chunk)
            yield len(chunk)
        yield from self._leases.sweep(_slices(self._maps["leases"]))
        for chunk in _slices(self._maps["fragments"]):
            self._sweep_fragments(chunk)
            yield len(chunk)
        self._forget_links(links | self._pairs.links)

    def _sweep_fragments(self, chunk: list[tuple[bytes, bytes]]) -> None:
        before, fragments = time.monotonic_ns() - TAKEN_UP_NS, self._maps["fragments"]
        for key, value in chunk:
            gone = layout.FRAGMENT_KEY.unpack(key)[0] not in self._pairs.by_source
            if gone or layout.FRAGMENT.unpack(value)[0] < before:
                fragments.delete(key)

    def _forget_links(self, living: set[int]) -> None:
        """What is counted by link, of links that had no pod when this turn began: none of their flows is left."""
        for name in ("flows_made", "flows_freed", "links"):
            gone = [key for key, _ in self._maps[name].items() if layout.U32.unpack(key)[0] not in living]
            self._maps[name].delete_many(gone)


def _slices(entries: Map) -> Iterator[list[tuple[bytes, bytes]]]:
    items = entries.items()
    while chunk := list(islice(items, SLICE)):
        yield chunk
