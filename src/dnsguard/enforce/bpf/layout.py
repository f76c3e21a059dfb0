"""Every key and value of the maps, as bytes: `bpf/layout.h` in Python.

Pure. Names and order are the header's; a test compares sizes, offsets and numbers with the object's type information.
Numbers are in host order unless a name ends in `_be`; times are nanoseconds of `time.monotonic_ns()`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from enum import IntEnum
from struct import Struct
from types import MappingProxyType
from typing import NamedTuple

from dnsguard.core.model import Address

LAYOUT = 2

MOST_RULES = 64
TIERS = 3
PAIR_EXCLUDED = 1
PORT_BITS = 96
BLOCK_BITS = 96
FLOW_POD, FLOW_PEER, FLOW_POD_DONE, FLOW_CUT, FLOW_PEER_DONE = 1, 2, 4, 8, 16
FRAGMENTS = 64
NO_RULE = 0xFFFF
ANSWER_NAME = 128
ANSWER_DATA = 512
ANSWER_TTLS = 16
ANSWER_DENIED = 1


class Idle(IntEnum):
    """Indexes into `idle_ns` of the settings."""

    TCP_NEW = 0
    TCP = 1
    TCP_ASKED = 2
    TCP_CLOSING = 3
    TCP_CLOSED = 4
    UDP_NEW = 5
    UDP = 6
    SCTP = 7
    ICMP = 8
    OTHER = 9
    CUT = 10


class What(IntEnum):
    """What is counted, and why a packet is dropped."""

    ANSWERED = 0
    ANSWERED_DENIED = 1
    ASKED = 2
    DROP_SOURCE = 3
    DROP_UNKNOWN = 4
    DROP_LISTENER = 5
    DROP_QUERIES = 6
    DROP_DEFAULT = 7
    DROP_RULE = 8
    DROP_CUT = 9
    DROP_INBOUND = 10
    DROP_MALFORMED = 11
    DROP_VLAN = 12
    DROP_FRAGMENT = 13
    DROP_MULTICAST = 14


class Record:
    """One struct of the header: its fields in order, each with the format that `struct` knows it by.

    An array of numbers takes as many values; padding (`x`) takes none.
    """

    __slots__ = ("fields", "pack", "size", "unpack")

    def __init__(self, description: str) -> None:
        self.fields = dict(field.split(":") for field in description.split())
        packed = Struct("=" + "".join(self.fields.values()))
        self.size = packed.size
        self.pack = packed.pack
        self.unpack = packed.unpack


U32 = Record("number:I")
U64 = Record("number:Q")
ADDRESS = Record("family:I octets:16s")
PAIR_KEY = Record("link:I address:20s")
PAIR = Record("program:Q source:I flags:I")
LEASE_KEY = Record("scope:Q source:I peer:20s")
PROGRAM = Record(f"accept:Q pass:Q any_port:Q leased:Q tiers:{TIERS}Q scopes:{MOST_RULES}Q default_accept:I pad:4x")
PORT_KEY = Record("prefix_bits:I protocol:I program:Q port_be:2s pad:6x")
BLOCK_KEY = Record("prefix_bits:I family:I program:Q octets:16s")
FLOW_KEY = Record("source:I protocol:I pod_port:H peer_port:H peer:20s")
FLOW = Record("ends_ns:Q state:I link:I")
FRAGMENT_KEY = Record("source:I slot:I")
FRAGMENT = Record("ends_ns:Q id:I protocol:I peer:20s pad:4x")
SETTINGS = Record(
    f"idle_ns:{len(Idle)}Q query_ns:Q query_burst_ns:Q report_ns:Q report_burst_ns:Q flows_per_pod:I intercept_any:I "
    "audit:I pad:4x"
)
LINK = Record("queries_until_ns:Q reports_until_ns:Q")
COUNT_KEY = Record("link:I what:H rule:H")
REPORT = Record("packets:Q link:I source:20s peer:20s protocol:I port:H what:H rule:H pad:10x")
DROP_KEY = Record("link:I peer:20s protocol:I port:H what:H")
DROP = Record("packets:Q reported_ns:Q")
ANSWER_KEY = Record(f"source:I type:H length:H name:{ANSWER_NAME}s")
ANSWER = Record(
    "until_ns:Q ttl_ends_ns:Q ttl:I flags:I header_be:2s answers_be:2s authority_be:2s records:H edns:H ttls:H "
    f"ttl_at:{ANSWER_TTLS}H sum_records:I sum_edns:I hits:H pad:2x serial:Q data:{ANSWER_DATA}s"
)

MAPS: Mapping[str, tuple[Record, Record]] = MappingProxyType(
    {
        "pairs": (PAIR_KEY, PAIR),
        "leases": (LEASE_KEY, U64),
        "programs": (U64, PROGRAM),
        "ports": (PORT_KEY, U64),
        "blocks": (BLOCK_KEY, U64),
        "flows": (FLOW_KEY, FLOW),
        "fragments": (FRAGMENT_KEY, FRAGMENT),
        "settings": (U32, SETTINGS),
        "state": (U32, U64),
        "dns_open_until_ns": (U32, U64),
        "intercepted": (ADDRESS, U32),
        "own": (ADDRESS, U32),
        "links": (U32, LINK),
        "peers": (U32, U32),
        "flows_made": (U32, U64),
        "flows_freed": (U32, U64),
        "counts": (COUNT_KEY, U64),
        "drops": (DROP_KEY, DROP),
        "answers": (ANSWER_KEY, ANSWER),
        "scratch": (U32, ANSWER_KEY),
    }
)
"""Key and value of each map but `reports`, the ring buffer of REPORT."""


def address(of: Address) -> bytes:
    """`struct address` of 4 or 16 octets."""
    return ADDRESS.pack(4 if len(of) == 4 else 6, of)


def address_of(octets: bytes) -> Address:
    family, found = ADDRESS.unpack(octets)
    return Address(found[:4] if family == 4 else found)


def scope_number(name: str) -> int:
    """The number that stands for a scope in a lease's key and in a program."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def program_number(name: str) -> int:
    """The number in a program's name (`p_` and hexadecimal digits)."""
    return int(name[2:], 16)


def pair_key(link: int, of: Address) -> bytes:
    return PAIR_KEY.pack(link, address(of))


class LeaseKey(NamedTuple):
    """Which lease of `leases`: `scope` is a `scope_number`, `source` the number of the pod's address."""

    scope: int
    source: int
    peer: Address

    def pack(self) -> bytes:
        return LEASE_KEY.pack(self.scope, self.source, address(self.peer))

    @classmethod
    def unpack(cls, octets: bytes) -> LeaseKey:
        scope, source, peer = LEASE_KEY.unpack(octets)
        return cls(scope, source, address_of(peer))


class FlowKey(NamedTuple):
    """Which flow of `flows`, as the pod sees it."""

    source: int
    protocol: int
    pod_port: int
    peer_port: int
    peer: Address

    def pack(self) -> bytes:
        return FLOW_KEY.pack(self.source, self.protocol, self.pod_port, self.peer_port, address(self.peer))

    @classmethod
    def unpack(cls, octets: bytes) -> FlowKey:
        source, protocol, pod_port, peer_port, peer = FLOW_KEY.unpack(octets)
        return cls(source, protocol, pod_port, peer_port, address_of(peer))


def port_key(program: int, protocol: int, port: int, bits: int = 16) -> bytes:
    """The first `bits` of a port: those that share them."""
    return PORT_KEY.pack(PORT_BITS + bits, protocol, program, port.to_bytes(2, "big"))


def block_key(program: int, network: Address, bits: int) -> bytes:
    """A network of `bits` (of 32 or 128)."""
    return BLOCK_KEY.pack(BLOCK_BITS + bits, 4 if len(network) == 4 else 6, program, network)
