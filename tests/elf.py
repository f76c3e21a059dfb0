"""What an eBPF object holds, read without a library: its sections, and the structs and enums of its type information.

The format of .BTF: https://docs.kernel.org/bpf/btf.html
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NamedTuple

_SECTION = struct.Struct("<IIQQQQIIQQ")
_INT, _ARRAY, _STRUCT, _UNION, _ENUM, _FUNC_PROTO, _VAR, _DATASEC, _DECL_TAG, _ENUM64 = (
    1,
    3,
    4,
    5,
    6,
    13,
    14,
    15,
    17,
    19,
)
_FIXED = {_INT: 4, _ARRAY: 12, _VAR: 4, _DECL_TAG: 4}
_EACH = {_STRUCT: 12, _UNION: 12, _ENUM: 8, _FUNC_PROTO: 8, _DATASEC: 12, _ENUM64: 12}


class Section(NamedTuple):
    offset: int
    size: int


class Struct(NamedTuple):
    size: int
    offsets: dict[str, int]
    """In octets, by field, in order."""


def sections(octets: bytes) -> dict[str, Section]:
    """Sections of a little-endian object of 64 bits, by name."""
    (start,) = struct.unpack_from("<Q", octets, 40)
    count, names = struct.unpack_from("<HH", octets, 60)
    headers = [_SECTION.unpack_from(octets, start + index * _SECTION.size) for index in range(count)]
    return {_text(octets, headers[names][4] + header[0]): Section(header[4], header[5]) for header in headers}


def _text(octets: bytes, offset: int) -> str:
    return octets[offset : octets.index(b"\0", offset)].decode()


def structs(octets: bytes) -> Mapping[str, Struct]:
    """Every named struct of the object's .BTF."""
    section = sections(octets)[".BTF"]
    btf = octets[section.offset : section.offset + section.size]
    header, types, length, names, _ = struct.unpack_from("<5I", btf, 4)
    found, at = {}, header + types
    while at < header + types + length:
        name, info, size = struct.unpack_from("<3I", btf, at)
        at += 12
        kind, count = info >> 24 & 31, info & 0xFFFF
        if kind == _STRUCT and name:
            members = [struct.unpack_from("<3I", btf, at + 12 * index) for index in range(count)]
            offsets = {_text(btf, header + names + member): bits // 8 for member, _, bits in members}
            found[_text(btf, header + names + name)] = Struct(size, offsets)
        at += _FIXED.get(kind, 0) + count * _EACH.get(kind, 0)
    return found
