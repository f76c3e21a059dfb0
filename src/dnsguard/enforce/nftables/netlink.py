"""Netlink messages of nf_tables as bytes: how they are packed and how they are read.

Keeps no state. Numbers are those of linux/netfilter/nf_tables.h and nfnetlink.h. Readers take bytes
that the kernel wrote; a truncated message ends the iteration.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

NETLINK_NETFILTER = 12
SUBSYSTEM = 10
INET = 1
"""NFPROTO_INET, the family of the table."""

ERROR, DONE = 2, 3
BATCH_BEGIN, BATCH_END = 0x10, 0x11
REQUEST, ACK, DUMP = 0x1, 0x4, 0x300
DUMP_INTERRUPTED = 0x10
CREATE = 0x400

NEWTABLE, GETTABLE, DELTABLE = 0, 1, 2
NEWCHAIN, GETCHAIN, DELCHAIN = 3, 4, 5
NEWRULE, GETRULE, DELRULE = 6, 7, 8
NEWSET, GETSET, DELSET = 9, 10, 11
NEWSETELEM, GETSETELEM, DELSETELEM = 12, 13, 14
NEWGEN = 15

NESTED = 0x8000
_TYPE_MASK = 0x3FFF
LIST_LIMIT = 60_000
"""The length of an attribute has 16 bits: longer lists of elements are split."""

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")


def netfilter_socket() -> socket.socket:
    """A socket to the kernel's netfilter, not bound yet, in this thread's network namespace."""
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)


class Part(NamedTuple):
    """One message of a transaction, before it has a sequence number. `body` holds its attributes."""

    kind: int
    flags: int
    body: bytes


class Message(NamedTuple):
    """One message as received; `payload` begins with the four octets of nfgenmsg."""

    kind: int
    flags: int
    sequence: int
    payload: bytes


def attribute(kind: int, data: bytes) -> bytes:
    return _ATTRIBUTE.pack(4 + len(data), kind) + data + bytes(-len(data) & 3)


def nested(kind: int, data: bytes) -> bytes:
    return _ATTRIBUTE.pack(4 + len(data), kind | NESTED) + data


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    return _HEADER.pack(16 + len(body), kind, flags, sequence, 0) + body


def generic(family: int, resource: int = 0) -> bytes:
    """struct nfgenmsg: the family, version 0, and a resource number (a subsystem or a log group)."""
    return struct.pack(">BBH", family, 0, resource)


def table_message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """A message of nf_tables itself, about family inet."""
    return message(SUBSYSTEM << 8 | kind, flags, sequence, generic(INET) + body)


def messages(data: bytes) -> Iterator[Message]:
    offset = 0
    while offset + 16 <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < 16 or offset + length > len(data):
            return
        yield Message(kind, flags, sequence, data[offset + 16 : offset + length])
        offset += length + 3 & ~3


def each(data: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Attributes in order, as (kind, value)."""
    while offset + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4 or offset + length > len(data):
            return
        yield kind & _TYPE_MASK, data[offset + 4 : offset + length]
        offset += length + 3 & ~3


def attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    return dict(each(data, offset))


def string(value: bytes) -> str:
    return value.rstrip(b"\0").decode("utf-8", "replace")


def error_number(payload: bytes) -> int:
    """The errno of an NLMSG_ERROR message; 0 is an acknowledgement."""
    return -int(struct.unpack_from("=i", payload)[0]) if len(payload) >= 4 else 0
