"""What the kernel sends: reports of dropped packets (their payloads are the pods' own), notifications, dumps, flows.

The messages come from the kernel, so what is damaged here should never arrive; but the readers run in the daemon's
loop, where an exception would end more than the reading of one message.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dnsguard.core.errors import KernelError
from dnsguard.core.model import Address
from dnsguard.enforce.nftables import denied, elements, netlink
from dnsguard.enforce.nftables.inventory import inventory
from dnsguard.enforce.nftables.session import Session
from dnsguard.enforce.nftables.watch import Changes
from dnsguard.node.conntrack import Conntrack
from tests.hostile.streams import SEPARATOR

KEYS = {"4": 8, "6": 32}
DENIED, DROPPED, LEASES = "denied_default_4", "dropped_source", "any_v"


def reports(data: bytes) -> None:
    """One datagram of NFLOG messages: what is told of each packet stands in it, and a shorter copy tells no other."""
    assert len(list(denied.denials(data))) <= len(list(netlink.messages(data)))
    for denial in denied.denials(data):
        assert len(denial.pod) == len(denial.peer) and len(denial.pod) in (4, 16)
        assert denial.pod + denial.peer in data
        assert 0 <= denial.protocol <= 255 and 0 <= denial.port <= 65_535
        assert (denial.reason == "rule") == (denial.rule is not None) or denial.reason in data.decode("latin-1")
    whole = denied.read_addresses(data)
    for length in {*range(min(len(data), 64)), len(data) // 2}:
        check_shorter(denied.read_addresses(data[:length]), whole)


def check_shorter(part: tuple[Any, ...] | None, whole: tuple[Any, ...] | None) -> None:
    """What was read of the beginning of a packet, beside what was read of all of it."""
    if part is None:
        return
    assert whole is not None and part[:2] == whole[:2]
    assert part[2:] == whole[2:] or part[3] == 0


def notifications(data: bytes) -> None:
    """Datagrams of nftables' notifications: one report at most for each transaction, and only of our table."""
    changes, told, ends = Changes(), [], 0
    for datagram in data.split(SEPARATOR):
        told += list(changes.read(datagram))
        ends += sum(message.kind & 0xFF == netlink.NEWGEN for message in netlink.messages(datagram))
    assert len(told) <= ends
    assert not told or b"dnsguard" in data
    assert all(text.partition(" by ")[2].endswith("]") for text in told)


class Answers:
    """A netlink socket on which the datagrams of an input arrive, whatever is asked."""

    def __init__(self, datagrams: Iterable[bytes]) -> None:
        self._datagrams = iter(datagrams)

    def send(self, data: bytes, flags: int = 0) -> int:
        return len(data)

    def recv(self, size: int, flags: int = 0) -> bytes:
        datagram = next(self._datagrams, None)
        if datagram is None:
            raise BlockingIOError if flags else TimeoutError
        return datagram[:size]


def dumps(data: bytes) -> None:
    """The kernel's answers to a dump and to a transaction: read, or refused as a KernelError; read alike twice."""
    datagrams = data.split(SEPARATOR)
    for family, length in KEYS.items():
        for key, left in listed(elements.dump_leases, session(datagrams), LEASES + family):
            assert len(key) in (0, length) and left >= 0
        for message in (m for datagram in datagrams for m in netlink.messages(datagram)):
            check_leases(message.payload, length)
    listed(denied.dropped, session(datagrams), (DENIED, DROPPED))
    listed(lambda asked: map(elements.goto_chain, elements.dump_set(asked, DENIED)), session(datagrams))
    listed(lambda asked: inventory(asked).chains, session(datagrams))
    listed(lambda asked: [asked.table()], session(datagrams))
    for refused in session(datagrams)._outcome(1, 3):
        assert -1 <= refused <= 2


def session(datagrams: list[bytes]) -> Session:
    """A Session whose sockets are the input, three times over (it reads some things in several dumps)."""
    made = Session.__new__(Session)
    made._sequence = 0
    made._dumps = Answers(datagrams * 3)  # type: ignore[assignment]
    made._socket = Answers(datagrams)  # type: ignore[assignment]
    return made


def listed(read: Any, *given: Any) -> list[Any]:
    try:
        found = read(*given)
        return list(found.items() if isinstance(found, dict) else found)
    except KernelError:
        return []


def check_leases(payload: bytes, length: int) -> None:
    """Elements unpacked all at once are those that are read one by one."""
    one_by_one = {}
    for element in elements._elements(payload):
        if len(key := elements.element_key(element)) in (0, length):
            one_by_one[key] = elements.remaining_ms(element)
    assert elements.read_leases(payload, length) == one_by_one


def flows(data: bytes) -> None:
    """A dump of connection tracking: flows with addresses of one family that stand in it, or a KernelError."""
    datagrams = data.split(SEPARATOR)
    places = [(datagram, at) for datagram in datagrams for at in range(32, min(len(datagram), 400), 4)]
    sources = {Address(datagram[at : at + size]) for datagram, at in places for size in (4, 16)}
    conntrack = Conntrack.__new__(Conntrack)
    for ask in (conntrack._begun_by, conntrack._involving):
        conntrack._sequence = 0
        conntrack._socket = Answers([*datagrams, *datagrams, done(1), done(2)])  # type: ignore[assignment]
        try:
            found = ask(frozenset(sources))
        except (KernelError, TimeoutError):
            continue
        for flow in found:
            assert len(flow.pod) == len(flow.peer) == len(flow.reply_peer) and len(flow.pod) in (4, 16)
            assert 0 <= flow.protocol <= 255
            assert max(flow.pod_port, flow.peer_port, flow.reply_port) <= 65_535
            assert bytes(flow.pod) in data and bytes(flow.peer) in data


def done(sequence: int) -> bytes:
    return netlink.message(netlink.DONE, 0, sequence, bytes(4))
