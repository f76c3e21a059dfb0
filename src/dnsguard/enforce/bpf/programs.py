"""The programs that the maps hold.

The parts of a program are written before it, and taken out after it: one that an earlier process was killed over is
not found by a packet, and is known here by its parts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field

from dnsguard.core.errors import KernelError
from dnsguard.enforce.bpf import layout
from dnsguard.enforce.bpf.program import Entries
from dnsguard.enforce.bpf.room import refusal
from dnsguard.enforce.bpf.syscall import Map


@dataclass(slots=True)
class _Parts:
    """Keys of one program's ports and blocks."""

    ports: set[bytes] = field(default_factory=set)
    blocks: set[bytes] = field(default_factory=set)


class Programs:
    """Reads what an earlier process left when it is made; that counts as not loaded, and is written anew."""

    def __init__(self, maps: Mapping[str, Map]) -> None:
        self._programs, self._ports, self._blocks = maps["programs"], maps["ports"], maps["blocks"]
        self._held: defaultdict[int, _Parts] = defaultdict(_Parts)
        self._loaded: set[int] = set()
        self.scopes: set[int] = set()
        """The scopes of the programs that are in force."""
        for key, value in self._programs.items():
            self._held[layout.U64.unpack(key)[0]] = _Parts()
            self.scopes |= _scopes(value)
        for key, _ in self._ports.items():
            self._held[layout.PORT_KEY.unpack(key)[2]].ports.add(key)
        for key, _ in self._blocks.items():
            self._held[layout.BLOCK_KEY.unpack(key)[2]].blocks.add(key)

    def load(self, wanted: Iterable[Entries]) -> list[int]:
        """Write the programs that are not loaded yet; returns the numbers of those that were not there at all.

        Raises KernelError, with none of those there, when there is no room.
        """
        new: list[int] = []
        try:
            for entries in wanted:
                if entries.number not in self._loaded:
                    if entries.number not in self._held:
                        new.append(entries.number)
                    self._write(entries)
        except KernelError:
            self.unload(new)
            raise
        return new

    def _write(self, entries: Entries) -> None:
        ports, blocks = _port_entries(entries), _block_entries(entries)
        parts = self._held[entries.number]
        stale = _Parts(parts.ports - set(ports), parts.blocks - set(blocks))
        parts.ports |= set(ports)
        parts.blocks |= set(blocks)
        _fill(self._ports, ports, "port ranges")
        _fill(self._blocks, blocks, "IP blocks")
        try:
            self._programs.update(layout.U64.pack(entries.number), _packed(entries))
        except OSError as error:
            raise refusal("programs", error, "tables.pods") from error
        self._take_out(stale)
        parts.ports -= stale.ports
        parts.blocks -= stale.blocks
        self._loaded.add(entries.number)

    def unload(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self._programs.delete(layout.U64.pack(number))
            self._loaded.discard(number)
            self._take_out(self._held.pop(number, _Parts()))

    def _take_out(self, parts: _Parts) -> None:
        self._ports.delete_many(parts.ports)
        self._blocks.delete_many(parts.blocks)

    def keep(self, numbers: Set[int]) -> None:
        """Take out all other programs."""
        self.unload([number for number in self._held if number not in numbers])


def _scopes(program: bytes) -> set[int]:
    _, _, _, leased, *rest = layout.PROGRAM.unpack(program)
    scopes = rest[layout.TIERS : layout.TIERS + layout.MOST_RULES]
    return {scope for number, scope in enumerate(scopes) if leased >> number & 1}


def _packed(entries: Entries) -> bytes:
    scopes = entries.scopes + (0,) * (layout.MOST_RULES - len(entries.scopes))
    masks = entries.accept, entries.passes, entries.any_port, entries.leased
    return layout.PROGRAM.pack(*masks, *entries.tiers, *scopes, entries.default_accept)


def _port_entries(entries: Entries) -> dict[bytes, bytes]:
    return {
        layout.port_key(entries.number, each.protocol, each.port, each.length): layout.U64.pack(each.rules)
        for each in entries.ports
    }


def _block_entries(entries: Entries) -> dict[bytes, bytes]:
    return {
        layout.block_key(entries.number, each.network, each.length): layout.U64.pack(each.rules)
        for each in entries.blocks
    }


def _fill(room: Map, entries: Mapping[bytes, bytes], what: str) -> None:
    try:
        room.update_many(list(entries), list(entries.values()))
    except OSError as error:
        raise refusal(what, error, "tables.prefixes") from error
