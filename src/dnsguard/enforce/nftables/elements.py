"""Elements of the table's sets as bytes, and the commit that makes leases real.

Lease sets are named `<scope>_v4` and `<scope>_v6`; a key is the pod's address followed by the peer's. All timeouts are
milliseconds. Everything here runs for every answer of every pod, hence the precomputed structs and the flat loops:
merging and packing an element cost about 1 us together.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache

from dnsguard.core.model import WITH_PORTS, Address, Flow, LinkIndex, Pair
from dnsguard.enforce.nftables import netlink
from dnsguard.enforce.nftables.netlink import Part
from dnsguard.enforce.nftables.session import BATCH, TABLE_ATTRIBUTE, Session
from dnsguard.engine.contracts import Element, Write

SetName = str
Key = bytes
Milliseconds = int
Leases = dict[SetName, dict[Key, Milliseconds]]

CUT_MS = 600_000
_ICMP = (1, 58)

_VALUE, _KEY, _DATA, _FLAGS, _TIMEOUT, _EXPIRATION = 1, 1, 2, 3, 4, 5
EVERY: Key = b""
"""The key of the catch-all `*`, an element without a key that stands for all others. Never ours."""
_CATCH_ALL = 2
_GOTO = 0xFFFFFFFC


def lease_set(scope: str, key: Key) -> SetName:
    return scope + ("_v4" if len(key) == 8 else "_v6")


def scope_of(name: SetName) -> str:
    return name[:-3]


def is_lease_set(name: SetName) -> bool:
    return name.endswith(("_v4", "_v6"))


def _timed_packer(length: int) -> Callable[[Key, Milliseconds], bytes]:
    """A function that packs one timed element whose key has `length` octets (a multiple of four).

    LIST_ELEM { KEY { VALUE } TIMEOUT EXPIRATION }. The expiration is sent too: without it a kernel that refreshes
    re-added elements leaves one alone whose timeout is the same.
    """
    header = struct.pack(
        "=HHHHHH", length + 36, 1 | netlink.NESTED, length + 8, _KEY | netlink.NESTED, length + 4, _VALUE
    )
    timeout, expiration = struct.pack("=HH", 12, _TIMEOUT), struct.pack("=HH", 12, _EXPIRATION)
    pack = struct.Struct(f">12s{length}s4sQ4sQ").pack
    return lambda key, ms: pack(header, key, timeout, ms, expiration, ms)


_TIMED = {length: _timed_packer(length) for length in (8, 12, 20, 32, 36, 44)}


def timed(key: Key, ms: Milliseconds) -> bytes:
    return _TIMED[len(key)](key, ms)


def plain(key: Key) -> bytes:
    """An element without a timeout; it also names the element to delete."""
    if key == EVERY:
        return netlink.nested(1, netlink.attribute(_FLAGS, struct.pack(">I", _CATCH_ALL)))
    return netlink.nested(1, netlink.nested(_KEY, netlink.attribute(_VALUE, key)))


def jump_to(key: Key, chain: str) -> bytes:
    """An element of a verdict map: `key : goto chain`."""
    verdict = netlink.attribute(1, struct.pack(">I", _GOTO)) + netlink.text(2, chain)
    data = netlink.nested(_DATA, netlink.nested(2, verdict))
    return netlink.nested(1, netlink.nested(_KEY, netlink.attribute(_VALUE, key)) + data)


def pair_key(link: LinkIndex, address: Address) -> Key:
    return struct.pack("=I", link) + address


def pair_of(key: Key) -> Pair:
    return LinkIndex(struct.unpack_from("=I", key)[0]), Address(key[4:])


def parts(kind: int, name: SetName, packed: Iterable[bytes]) -> Iterator[Part]:
    """Messages that add or delete these packed elements, split where an attribute would get too long."""
    head = TABLE_ATTRIBUTE + netlink.text(2, name)
    flags = netlink.CREATE if kind == netlink.NEWSETELEM else 0
    chunk: list[bytes] = []
    size = 0
    for element in packed:
        if size + len(element) > netlink.LIST_LIMIT:
            yield Part(kind, flags, head + netlink.nested(3, b"".join(chunk)))
            chunk, size = [], 0
        chunk.append(element)
        size += len(element)
    if chunk:
        yield Part(kind, flags, head + netlink.nested(3, b"".join(chunk)))


def merged(writes: Iterable[Write]) -> Leases:
    """The writes by set, each key once with its longest timeout: one transaction may name a key only once."""
    leases: Leases = {}
    for scope, key, ms in writes:
        name = scope + ("_v4" if len(key) == 8 else "_v6")
        try:
            keys = leases[name]
        except KeyError:
            leases[name] = {key: ms}
            continue
        if keys.get(key, 0) < ms:
            keys[key] = ms
    return leases


class LeaseSets:
    """Commits lease elements. `refreshes` tells whether the kernel lets a re-added element take its new timeout."""

    def __init__(self, session: Session, refreshes: bool) -> None:
        self._session = session
        self._refreshes = refreshes

    def make(self, leases: Leases) -> dict[Element, str]:
        """Make or refresh these elements; returns those refused, with the reason. The others are real."""
        batch = [part for name, keys in leases.items() for part in self._make_parts(name, keys)]
        refused = self._session.transact(batch)
        return self._one_by_one(leases) if refused else {}

    def drop(self, elements: Iterable[Element]) -> None:
        """Delete these elements, present or not. Raises KernelError when that is impossible."""
        keys: dict[SetName, list[Key]] = {}
        for scope, key in dict.fromkeys(elements):
            keys.setdefault(lease_set(scope, key), []).append(key)
        for name, members in keys.items():
            delete_present_or_not(self._session, name, members)

    def _make_parts(self, name: SetName, keys: Mapping[Key, Milliseconds]) -> list[Part]:
        pack = _TIMED[8 if name.endswith("4") else 32]
        make = list(parts(netlink.NEWSETELEM, name, [pack(key, ms) for key, ms in keys.items()]))
        if self._refreshes:
            return make
        return [*make, *parts(netlink.DELSETELEM, name, map(plain, keys)), *make]

    def _one_by_one(self, leases: Leases) -> dict[Element, str]:
        """Try again with a message for each element, then without those that the kernel refuses."""
        waiting = [(name, key, ms) for name, keys in leases.items() for key, ms in keys.items()]
        failed: dict[Element, str] = {}
        while waiting:
            batch, owner = self._single_parts(waiting)
            refused = self._session.transact(batch)
            if not refused:
                break
            bad = self._blamed(refused, owner)
            if not bad:  # not about any element, and for the second time
                bad = dict.fromkeys(range(len(waiting)), refused[BATCH])
            failed.update({_element(waiting[i]): errno.errorcode.get(number, str(number)) for i, number in bad.items()})
            waiting = [item for i, item in enumerate(waiting) if i not in bad]
        return failed

    def _blamed(self, refused: Mapping[int, int], owner: Sequence[int]) -> dict[int, int]:
        """The elements that a refused transaction failed for. Of an add;del;add only its first message counts: one
        element too many leaves no room for the last message of the others either."""
        bad = {index: number for index, number in refused.items() if index != BATCH}
        first = {index: number for index, number in bad.items() if index == 0 or owner[index - 1] != owner[index]}
        return {owner[index]: number for index, number in (first or bad).items()}

    def _single_parts(self, items: Sequence[tuple[SetName, Key, Milliseconds]]) -> tuple[list[Part], list[int]]:
        batch: list[Part] = []
        owner: list[int] = []
        for index, (name, key, ms) in enumerate(items):
            single = self._make_parts(name, {key: ms})
            batch += single
            owner += [index] * len(single)
        return batch, owner


def _element(item: tuple[SetName, Key, Milliseconds]) -> Element:
    return Element(scope_of(item[0]), item[1])


def delete_present_or_not(session: Session, name: SetName, keys: Sequence[Key]) -> None:
    """Delete elements of a timed set that may have expired already.

    Deleting a missing key aborts the transaction, and DESTROYSETELEM is younger than 6.1: so each is added first,
    which leaves an existing one alone. A full set refuses that; then each missing key is left out.
    """
    dead = [timed(key, 1000) for key in keys if key != EVERY]
    batch = [*parts(netlink.NEWSETELEM, name, dead), *parts(netlink.DELSETELEM, name, map(plain, keys))]
    if not session.transact(batch):
        return
    waiting = list(keys)
    for _ in range(5):
        singles = [part for key in waiting for part in parts(netlink.DELSETELEM, name, (plain(key),))]
        refused = session.transact(singles) if singles else {}
        if not refused:
            return
        waiting = [key for index, key in enumerate(waiting) if refused.get(index) != errno.ENOENT]
    session.commit(singles, f"to delete from {name}")


def cut_keys(flow: Flow) -> Iterator[tuple[SetName, Key]]:
    """The cut elements of a flow: as the pod sees it, and as its peer's replies arrive before their source is
    translated back. ICMP needs none: an echo reply begins no flow."""
    if flow.protocol in _ICMP:
        return
    family = "4" if len(flow.pod) == 4 else "6"
    peers = {(flow.peer, flow.peer_port), (flow.reply_peer, flow.reply_port)}
    for peer, port in sorted(peers):
        head = flow.pod + peer + struct.pack("=Bxxx", flow.protocol)
        if flow.protocol in WITH_PORTS:
            yield f"cut{family}", head + struct.pack(">HxxHxx", flow.pod_port, port)
        else:
            yield f"cut_portless{family}", head


CUT_SETS = ("cut4", "cut6", "cut_portless4", "cut_portless6")


def cut_flow(key: Key) -> Flow:
    """The flow that a cut element is about, without what NAT made of it: an element stands for one of its two ends."""
    width = 4 if len(key) in (12, 20) else 16
    pod, peer, protocol = Address(key[:width]), Address(key[width : 2 * width]), key[2 * width]
    ports = key[2 * width + 4 :]
    own, port = struct.unpack(">HxxHxx", ports) if ports else (0, 0)
    return Flow(protocol, pod, own, peer, port, peer, port)


def dump_set(session: Session, name: SetName) -> Iterator[dict[int, bytes]]:
    """The attributes of each element of a set (NFTA_SET_ELEM_*)."""
    for listed in _dump_lists(session, name):
        yield from _elements(listed)


def dump_leases(session: Session, name: SetName) -> dict[Key, Milliseconds]:
    """The keys of a lease set with the time each has left; 0 for one without an end, which is none of ours."""
    held: dict[Key, Milliseconds] = {}
    for listed in _dump_lists(session, name):
        held.update(read_leases(listed, 8 if name.endswith("4") else 32))
    return held


def read_leases(listed: bytes, length: int) -> dict[Key, Milliseconds]:
    """The elements of one message. A hundred thousand are read at a restart and in a repair, so elements that all
    look alike, as they do, are unpacked at once: 0.3 us each and not 8."""
    if len(listed) % (length + 36) == 0:
        rows = list(struct.iter_unpack(f">12s{length}s4s8s4sQ", listed))
        if {row[0] + row[2] + row[4] for row in rows} <= _heads(length):
            return {row[1]: row[5] for row in rows}
    return {key: remaining_ms(each) for each in _elements(listed) if len(key := element_key(each)) in (0, length)}


@cache
def _heads(length: int) -> frozenset[bytes]:
    """The attribute headers of a timed element, as kernels write them: with the flag of a nested one, or without."""
    heads = set()
    for flag in (0, netlink.NESTED):
        front = struct.pack("=HHHHHH", length + 36, 1 | flag, length + 8, _KEY | netlink.NESTED, length + 4, _VALUE)
        for head in (front, front[:6] + struct.pack("=H", _KEY) + front[8:]):
            heads.add(head + struct.pack("=HHHH", 12, _TIMEOUT, 12, _EXPIRATION))
    return frozenset(heads)


def _dump_lists(session: Session, name: SetName) -> Iterator[bytes]:
    for payload in session.dump(netlink.GETSETELEM, TABLE_ATTRIBUTE + netlink.text(2, name)):
        for kind, value in netlink.each(payload):
            if kind == 3:
                yield value


def _elements(listed: bytes) -> Iterator[dict[int, bytes]]:
    for _, element in netlink.each(listed):
        yield netlink.attributes(element)


def element_key(element: Mapping[int, bytes]) -> Key:
    return element.get(_KEY, EVERY)[4:]


def remaining_ms(element: Mapping[int, bytes]) -> Milliseconds:
    """0 for an element without an end, which nothing of ours makes in a lease set."""
    return int.from_bytes(element.get(_EXPIRATION, b""), "big")


def counters(session: Session, name: SetName) -> Iterator[tuple[Key, int]]:
    """Key and packets of each element of a set that counts them."""
    for listed in _dump_lists(session, name):
        yield from read_counters(listed)


def read_counters(listed: bytes) -> Iterable[tuple[Key, int]]:
    """Of one message: KEY { VALUE }, EXPR { NAME, DATA { BYTES, PACKETS } } and more in each element. Elements that all
    look alike, as they do, are unpacked at once: 0.3 us each and not 9, for there may be tens of thousands."""
    size, _, _, _, value = struct.unpack_from("=HHHHH", listed) if len(listed) >= 10 else (0, 0, 0, 0, 0)
    key, rest = value - 4, size - value - 52
    if key > 0 and key % 4 == 0 and rest >= 0 and size % 4 == 0 and len(listed) % size == 0:
        rows = list(struct.iter_unpack(f">12s{key}s24s8x4sQ{rest}x", listed))
        heads = {row[0] + row[2] + row[3] for row in rows}
        if len(heads) == 1 and _COUNTED in heads.pop():
            return [(row[1], row[4]) for row in rows]
    return [(element_key(each), _packets(each)) for each in _elements(listed)]


_COUNTED = netlink.text(1, "counter")


def _packets(element: Mapping[int, bytes]) -> int:
    data = netlink.attributes(netlink.attributes(element.get(7, b"")).get(2, b""))
    return int.from_bytes(data.get(2, b""), "big")


def goto_chain(element: Mapping[int, bytes]) -> str:
    """The chain that an element of a verdict map goes to; empty when it goes to none."""
    verdict = netlink.attributes(netlink.attributes(element.get(_DATA, b"")).get(2, b""))
    return netlink.string(verdict.get(2, b""))
