"""Pod entries in a file that has no name: written once by the loader's child, mapped and searched by the daemon.

The daemon never holds the whole; a look-up costs a binary search for each prefix length that occurs and the decoding of
one entry. The file is created unlinked and is inherited as a descriptor, so nobody else can open, replace or leave it
behind: that is what makes `marshal`, the one fast decoder of the standard library, safe to use here.

Layout: 16 octets (offset and length of the directory), records, then for each prefix length a sorted index of
(network octets, offset, length), then the directory.
"""

from __future__ import annotations

import marshal
import mmap
import struct
from bisect import bisect_left
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network
from typing import Any, BinaryIO, overload

from dnsguard.core.model import (
    Action,
    Address,
    BlockPeer,
    DnsMode,
    DomainPeer,
    Name,
    Network,
    Origin,
    Pattern,
    PodEntry,
    Policy,
    PortRange,
    Protocol,
    Rule,
    Tier,
)

_HEAD = struct.Struct("!QQ")
_REFERENCE = struct.Struct("!QI")
_DECODED = 1024
"""Policies kept decoded, so that pods of one policy share one object."""


class StoreWriter:
    """Writes entries one by one; `finish` makes the file readable."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._offset = _HEAD.size
        self._policies: dict[int, tuple[Policy, tuple[int, int]]] = {}
        self._indices: dict[tuple[int, int], list[bytes]] = defaultdict(list)
        file.write(bytes(_HEAD.size))

    def add(self, entry: PodEntry) -> None:
        references = [self._policy(policy, own=policy.origin == entry.origin) for policy in entry.policies]
        record = (entry.name, references, entry.origin.line, entry.origin.column)
        network = entry.network
        place = _REFERENCE.pack(*self._append(record))
        self._indices[network.version, network.prefixlen].append(network.network_address.packed + place)

    def finish(self, file_name: str) -> None:
        """`file_name`: the file that every origin speaks of."""
        directory: list[tuple[int, int, int, int]] = []
        for (version, length), index in sorted(self._indices.items(), reverse=True):
            index.sort()
            directory.append((version, length, self._offset, len(index)))
            self._write(b"".join(index))
        offset, size = self._append((file_name, directory))
        self._file.seek(0)
        self._file.write(_HEAD.pack(offset, size))
        self._file.flush()

    def _policy(self, policy: Policy, *, own: bool) -> tuple[int, int]:
        """Written once for all entries that refer to it, unless it is an entry's own."""
        known = self._policies.get(id(policy))
        if known is not None and known[0] is policy:
            return known[1]
        place = self._append(_packed(policy))
        if not own:
            # Kept, so that the id stays the policy's.
            self._policies[id(policy)] = (policy, place)
        return place

    def _append(self, record: Any) -> tuple[int, int]:
        content = marshal.dumps(record)
        offset = self._offset
        self._write(content)
        return offset, len(content)

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._offset += len(content)


class Store:
    """Pod entries by address, the longest prefix first. Implements the engine's Lookup.

    `content` is a mapped file or octets; `close` lets go of it, and `entry` must not be called afterwards."""

    def __init__(self, content: mmap.mmap | bytes) -> None:
        self._content = content
        offset, size = _HEAD.unpack_from(content)
        self._file, directory = marshal.loads(content[offset : offset + size])
        self._indices = [
            (version, length, _Index(content, version, at, count)) for version, length, at, count in directory
        ]
        self._decoded: OrderedDict[int, Policy] = OrderedDict()

    @classmethod
    def mapped(cls, descriptor: int) -> Store:
        """The store in an open file. The descriptor may be closed afterwards."""
        return cls(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))

    def __len__(self) -> int:
        return sum(len(index) for _, _, index in self._indices)

    def entry(self, address: Address) -> PodEntry | None:
        """What the allowlist says of a pod with this address, or None."""
        version = 4 if len(address) == 4 else 6
        for of, length, index in self._indices:
            if of == version:
                network = _masked(address, length)
                place = index.find(network)
                if place is not None:
                    return self._entry(network, length, place)
        return None

    def named(self, name: str) -> list[PodEntry]:
        """Every entry with this pod name. Reads the whole file: for tools, not for the daemon's loop."""
        return [entry for entry in self.entries() if entry.name == name]

    def entries(self) -> Iterable[PodEntry]:
        """Every entry; as `named`, for tools."""
        for _, length, index in self._indices:
            for record in index:
                yield self._entry(record[: index.width], length, _REFERENCE.unpack_from(record, index.width))

    def close(self) -> None:
        self._decoded.clear()
        self._indices.clear()
        if isinstance(self._content, mmap.mmap):
            self._content.close()

    def _entry(self, network: bytes, length: int, place: tuple[int, int]) -> PodEntry:
        name, references, line, column = self._load(place)
        policies = tuple([self._policy(reference) for reference in references])
        return PodEntry(_network(network, length), name, policies, Origin(self._file, line, column))

    def _policy(self, place: tuple[int, int]) -> Policy:
        policy = self._decoded.get(place[0])
        if policy is None:
            policy = self._decoded[place[0]] = _unpacked(self._load(place), self._file)
            if len(self._decoded) > _DECODED:
                self._decoded.popitem(last=False)
        else:
            self._decoded.move_to_end(place[0])
        return policy

    def _load(self, place: tuple[int, int]) -> Any:
        offset, size = place
        return marshal.loads(self._content[offset : offset + size])


class _Index(Sequence[bytes]):
    """Sorted records of one prefix length; `width` octets of network, then the reference."""

    def __init__(self, content: mmap.mmap | bytes, version: int, offset: int, count: int) -> None:
        self.width = 4 if version == 4 else 16
        self._content = content
        self._offset = offset
        self._count = count
        self._stride = self.width + _REFERENCE.size

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, place: int) -> bytes: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[bytes]: ...
    def __getitem__(self, place: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(place, slice):
            return [self[at] for at in range(*place.indices(self._count))]
        if not 0 <= place < self._count:
            raise IndexError(place)
        start = self._offset + place * self._stride
        return self._content[start : start + self._stride]

    def find(self, network: bytes) -> tuple[int, int] | None:
        """Where the entry of this network stands. A record sorts after its network alone, and before the next one."""
        place = bisect_left(self, network)
        if place == self._count:
            return None
        record = self[place]
        return _REFERENCE.unpack_from(record, self.width) if record.startswith(network) else None


def _masked(address: Address, length: int) -> bytes:
    width = len(address)
    spare = width * 8 - length
    return address if not spare else (int.from_bytes(address, "big") >> spare << spare).to_bytes(width, "big")


def _network(address: bytes, length: int) -> Network:
    return IPv4Network((address, length)) if len(address) == 4 else IPv6Network((address, length))


def _packed(policy: Policy) -> tuple[object, ...]:
    rules = [
        (
            [(_packed_patterns(peer.patterns), _packed_patterns(peer.excepts)) for peer in rule.domains],
            [(_packed_network(block.cidr), [_packed_network(one) for one in block.excepts]) for block in rule.blocks],
            [(int(one.protocol), one.first, one.last) for one in rule.ports],
            (str(rule.action), int(rule.tier), rule.priority),
            (rule.origin.line, rule.origin.column),
        )
        for rule in policy.rules
    ]
    return policy.name, rules, str(policy.dns), policy.origin.line, policy.origin.column


def _packed_patterns(patterns: Iterable[Pattern]) -> list[tuple[bytes, bool]]:
    return [(pattern.name, pattern.wildcard) for pattern in patterns]


def _packed_network(network: Network) -> tuple[bytes, int]:
    return network.network_address.packed, network.prefixlen


def _unpacked(record: Any, file: str) -> Policy:
    name, rules, dns, line, column = record
    return Policy(name, tuple([_unpacked_rule(rule, file) for rule in rules]), DnsMode(dns), Origin(file, line, column))


def _unpacked_rule(record: Any, file: str) -> Rule:
    domains, blocks, ports, (action, tier, priority), (line, column) = record
    return Rule(
        tuple([DomainPeer(_unpacked_patterns(names), _unpacked_patterns(excepts)) for names, excepts in domains]),
        tuple([BlockPeer(_network(*cidr), tuple([_network(*one) for one in excepts])) for cidr, excepts in blocks]),
        tuple([PortRange(Protocol(protocol), first, last) for protocol, first, last in ports]),
        Action(action),
        Tier(tier),
        priority,
        Origin(file, line, column),
    )


def _unpacked_patterns(records: Iterable[tuple[bytes, bool]]) -> tuple[Pattern, ...]:
    return tuple([Pattern(Name(name), wildcard) for name, wildcard in records])
