"""Histories of flows: what a pod and a peer send each other, and what happens to the pod's leases meanwhile.

A history is a list of steps. Most are packets, in orders that make sense and in orders that make none; the others
change what the pod may reach. `Writer` makes the packets of a history, octet by octet, with the sequence numbers that
connection tracking wants to see.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from hypothesis import strategies as st

from dnsguard.core.model import Address, Flow
from tests.contract.generator import Place
from tests.node.nftables_lab import ACK, RST, SYN, SYN_ACK, crc32c, ip, tcp, udp

TCP, UDP, SCTP, OTHER, PING = 6, 17, 132, 254, 1
"""PING is ICMPv6 between IPv6 addresses."""
FIN = 1
_PING6 = 58


class What(Enum):
    """A packet's kind, or what happens to the pod."""

    SYN = auto()
    SYN_ACK = auto()
    ACK = auto()
    FIN = auto()
    RST = auto()
    NULL = auto()
    SYN_FIN = auto()
    DATA = auto()
    INIT = auto()
    INIT_ACK = auto()
    COOKIE = auto()
    COOKIE_ACK = auto()
    REQUEST = auto()
    REPLY = auto()
    ERROR = auto()
    LEASE_ENDS = auto()
    LEASED = auto()
    ALL_ALLOWED = auto()
    ONLY_LEASES = auto()
    CUT = auto()
    UNCUT = auto()


EVENTS = frozenset(
    (What.LEASE_ENDS, What.LEASED, What.ALL_ALLOWED, What.ONLY_LEASES, What.CUT, What.UNCUT)
)  # fmt: skip
PACKETS = {
    TCP: (What.SYN, What.SYN_ACK, What.ACK, What.FIN, What.RST, What.NULL, What.SYN_FIN),
    UDP: (What.DATA,),
    OTHER: (What.DATA,),
    SCTP: (What.INIT, What.INIT_ACK, What.COOKIE, What.COOKIE_ACK, What.DATA),
    PING: (What.REQUEST, What.REPLY),
}
_FLAGS = {
    What.SYN: SYN,
    What.SYN_ACK: SYN_ACK,
    What.ACK: ACK,
    What.FIN: FIN | ACK,
    What.RST: RST | ACK,
    What.NULL: 0,
    What.SYN_FIN: SYN | FIN,
}
_CHUNKS = {What.DATA: 0, What.INIT: 1, What.INIT_ACK: 2, What.COOKIE: 10, What.COOKIE_ACK: 11}


class Talk(NamedTuple):
    """A flow's protocol and ports; of PING `pod_port` is the identifier."""

    protocol: int
    pod_port: int
    peer_port: int


class Step(NamedTuple):
    """`by_pod` says who sends it, and nothing for what is no packet."""

    what: What
    talk: int
    by_pod: bool

    def __repr__(self) -> str:
        who = "" if self.what in EVENTS else " by the pod" if self.by_pod else " by the peer"
        return f"{self.what.name}({self.talk}){who}"


@dataclass(frozen=True)
class History:
    """`family` is 4 or 6. `talks` may be one flow twice."""

    family: int
    talks: tuple[Talk, ...]
    steps: tuple[Step, ...]


# ---- packets


@dataclass
class _Numbers:
    """Of one flow, each for (pod, peer): the next sequence number, the verification tag, the last packet sent."""

    following: list[int]
    tags: list[int]
    last: list[bytes]


class Writer:
    """The packets of one history between two addresses."""

    def __init__(self, pod: Address, peer: Address, talks: Sequence[Talk]) -> None:
        self._ends = pod, peer
        self._talks = talks
        self._numbers = {talk: _Numbers([1000, 5000], [7, 9], [b"", b""]) for talk in talks}
        self._begins = 0

    def packet(self, step: Step, nonce: bytes) -> bytes:
        """The same for each nonce, but for the nonce. Call `sent` once before the next step."""
        talk = self._talks[step.talk]
        source, target = self._ends if step.by_pod else self._ends[::-1]
        protocol = _PING6 if talk.protocol == PING and len(source) == 16 else talk.protocol
        if step.what is What.ERROR:
            protocol = PING if len(source) == 4 else _PING6
            return ip(source, target, protocol, self._error(talk, step, nonce))
        return ip(source, target, protocol, self._data(talk, step, nonce))

    def sent(self, step: Step, nonce: bytes) -> None:
        talk = self._talks[step.talk]
        numbers, side = self._numbers[talk], 0 if step.by_pod else 1
        if step.what is What.ERROR:
            return
        numbers.last[side] = self.packet(step, nonce)
        if talk.protocol == TCP and step.what not in _SENSELESS:
            numbers.following[side] = self._sequence(numbers, step) + len(nonce) + (step.what in _COUNTED)
            self._begins += step.what in _BEGIN

    def flow(self, number: int) -> Flow:
        protocol, pod_port, peer_port = self._talks[number]
        pod, peer = self._ends
        if protocol == PING and len(pod) == 16:
            protocol = _PING6
        return Flow(protocol, pod, pod_port, peer, peer_port, peer, peer_port)

    def _sequence(self, numbers: _Numbers, step: Step) -> int:
        """Whoever begins does so far from where the last one ended."""
        side = 0 if step.by_pod else 1
        if step.what in _BEGIN:
            return 100_000 * (self._begins + 1) + 1000 * side
        return numbers.following[side]

    def _data(self, talk: Talk, step: Step, nonce: bytes) -> bytes:
        ports = (talk.pod_port, talk.peer_port) if step.by_pod else (talk.peer_port, talk.pod_port)
        numbers = self._numbers[talk]
        if talk.protocol == TCP:
            other = numbers.following[1 if step.by_pod else 0]
            flags = _FLAGS[step.what]
            return tcp(*ports, flags, nonce, seq=self._sequence(numbers, step), ack=other if flags & ACK else 0)
        if talk.protocol == UDP:
            return udp(*ports, nonce)
        if talk.protocol == SCTP:
            return _sctp(ports, numbers.tags, step, nonce)
        if talk.protocol == PING:
            return self._ping(talk, step, nonce)
        return nonce

    def _ping(self, talk: Talk, step: Step, nonce: bytes) -> bytes:
        request, reply = (8, 0) if len(self._ends[0]) == 4 else (128, 129)
        kind = request if step.what is What.REQUEST else reply
        return struct.pack(">BBHHH", kind, 0, 0, talk.pod_port, 1) + nonce

    def _error(self, talk: Talk, step: Step, nonce: bytes) -> bytes:
        """Port unreachable, of the last packet that came from the other side; of one like it when none did."""
        side = 1 if step.by_pod else 0
        began = {TCP: What.ACK, SCTP: What.DATA, PING: What.REQUEST}.get(talk.protocol, What.DATA)
        quoted = self._numbers[talk].last[side] or self.packet(Step(began, step.talk, not step.by_pod), bytes(8))
        kind, code = (3, 3) if len(self._ends[0]) == 4 else (1, 4)
        return struct.pack(">BBHI", kind, code, 0, 0) + quoted.ljust(128, b"\0") + nonce


_BEGIN = (What.SYN, What.SYN_ACK)
_COUNTED = (*_BEGIN, What.FIN)
_SENSELESS = (What.NULL, What.SYN_FIN)
"""No combination of flags that anybody takes up."""


def _sctp(ports: tuple[int, int], tags: list[int], step: Step, nonce: bytes) -> bytes:
    """One chunk (RFC 9260 3.1 and 3.3) with the tag that its receiver gave."""
    own, other = tags if step.by_pod else tags[::-1]
    begins = struct.pack(">IIHHI", own, 65535, 1, 1, 1)
    body = {What.INIT: begins, What.INIT_ACK: begins, What.COOKIE: bytes(8), What.DATA: bytes(12)}.get(step.what, b"")
    chunk = struct.pack(">BBH", _CHUNKS[step.what], 0, 4 + len(body + nonce)) + body + nonce
    head = struct.pack(">HHI", *ports, 0 if step.what is What.INIT else other)
    return head + struct.pack("<I", crc32c(head + bytes(4) + chunk)) + chunk


# ---- strategies


def _begun(talk: int, protocol: int, by_pod: bool) -> list[Step]:
    """How a flow of this protocol is opened."""
    whole = {
        TCP: (What.SYN, What.SYN_ACK, What.ACK),
        SCTP: (What.INIT, What.INIT_ACK, What.COOKIE, What.COOKIE_ACK),
        PING: (What.REQUEST, What.REPLY),
    }.get(protocol, (What.DATA, What.DATA))
    return [Step(what, talk, by_pod == (number % 2 == 0)) for number, what in enumerate(whole)]


_EVENTS = (
    *(What.LEASE_ENDS, What.LEASE_ENDS, What.LEASE_ENDS, What.LEASED, What.ONLY_LEASES, What.ALL_ALLOWED),
    *(What.CUT, What.UNCUT),
)
"""What closes comes oftener: where everything is open, nothing is to be seen."""


@st.composite
def _phrases(draw: st.DrawFn, talks: Sequence[Talk]) -> list[Step]:
    talk = draw(st.integers(0, len(talks) - 1))
    protocol = talks[talk].protocol
    by_pod = draw(st.booleans())
    kind = draw(st.sampled_from(["one", "one", "event", "event", "begun", "begun", "said", "ended"]))
    if kind == "begun":
        return _begun(talk, protocol, by_pod)[: draw(st.integers(1, 4))]
    if kind == "event":
        return [Step(draw(st.sampled_from(_EVENTS)), talk, True)]
    if kind == "said" and protocol != PING:
        what = What.ACK if protocol == TCP else What.DATA
        return [Step(what, talk, by_pod), Step(what, talk, not by_pod)]
    if kind == "ended" and protocol == TCP:
        return [Step(What.FIN, talk, by_pod), Step(What.FIN, talk, not by_pod), Step(What.ACK, talk, by_pod)]
    return [Step(draw(st.sampled_from((*PACKETS[protocol], What.ERROR))), talk, by_pod)]


@st.composite
def histories(draw: st.DrawFn) -> History:
    protocol = st.sampled_from([TCP, TCP, TCP, UDP, SCTP, PING, OTHER])
    ports = st.sampled_from([(40001, 443), (40002, 443), (40001, 444)])
    talks = tuple(
        Talk(kind, *((0, 0) if kind == OTHER else (pair[0], 0) if kind == PING else pair))
        for kind, pair in draw(st.lists(st.tuples(protocol, ports), min_size=1, max_size=2))
    )
    steps = [step for phrase in draw(st.lists(_phrases(talks), min_size=2, max_size=8)) for step in phrase]
    return History(draw(st.sampled_from([4, 6])), talks, tuple(steps))


def pod_of(place: Place, family: int) -> Address:
    return place.v4 if family == 4 else place.v6
