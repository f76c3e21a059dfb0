"""Flows that the kernel remembers: cutting them, taking over those of connection tracking, and their number by link.

The kernel counts the flows it makes on a link; what is taken out is counted here, and so is, as less than nothing,
what is put in here: made less freed is what a link's pod has used of its share.
"""

from __future__ import annotations

import errno
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress

from dnsguard.core.errors import KernelError
from dnsguard.core.model import ICMP_REQUESTS, WITH_PORTS, Flow, LinkIndex, Protocol
from dnsguard.enforce.bpf import layout
from dnsguard.enforce.bpf.layout import FlowKey, Idle
from dnsguard.enforce.bpf.pairs import Pairs
from dnsguard.enforce.bpf.room import Search
from dnsguard.enforce.bpf.syscall import Map

_NOEXIST = 1
_ONLY = layout.U32.pack(0)
_WRAP = (1 << 64) - 1
_UDP = (Protocol.UDP, 136)
_OPEN = layout.FLOW_POD | layout.FLOW_PEER
_NEVER_NS = 1 << 63
TAKEN_UP_NS = 5_000_000_000
"""How long after its end a flow is let alone: a packet that came just then may be writing a new end to it."""


class Shares:
    """How many flows of each link were taken out. Reads the counts, and the flows there are, when it is made."""

    def __init__(self, maps: Mapping[str, Map]) -> None:
        self._made, self._freed = maps["flows_made"], maps["flows_freed"]
        # Made before there: a flow that begins between is then one too many in use, never one too few.
        made = {layout.U32.unpack(key)[0]: layout.U64.unpack(value)[0] for key, value in self._made.items()}
        there = Counter(layout.FLOW.unpack(value)[2] for _, value in maps["flows"].items())
        for link in made.keys() | there.keys():
            self._write(link, made.get(link, 0) - there[link])

    def _write(self, link: int, freed: int) -> None:
        self._freed.update(layout.U32.pack(link), layout.U64.pack(freed & _WRAP))

    def took_out(self, flows: Mapping[int, int]) -> None:
        """So many flows by link; less than nothing for flows that were put in."""
        for link, number in flows.items():
            if not number:
                continue
            key = layout.U32.pack(link)
            freed = _number(self._freed.lookup(key)) + number
            made = _number(self._made.lookup(key))
            # A flow that the kernel had no room to count would leave the link less than nothing: a full share.
            used = (made - freed) & _WRAP
            self._write(link, made if used >> 63 else freed)


def _number(value: bytes | None) -> int:
    return layout.U64.unpack(value)[0] if value else 0


class Flows:
    """Cuts flows and takes them over, for the governed pairs of the pod's address."""

    def __init__(self, maps: Mapping[str, Map], pairs: Pairs) -> None:
        self._map, self._settings = maps["flows"], maps["settings"]
        self._pairs = pairs
        self._search = Search(lambda: self.sweep(self._map.items()))
        self.shares = Shares(maps)

    def cut(self, flows: Iterable[Flow]) -> None:
        """When there is no room for the flows of some pod, it is cut none more, and the others theirs before this
        raises KernelError. Those of ICMP are forgotten: an answer begins none."""
        keys: dict[FlowKey, None] = {key: None for flow in flows for key in self._keys(flow)}
        self._forget(key for key in keys if key.protocol in ICMP_REQUESTS)
        ends_ns = time.monotonic_ns() + self._idle_ns(Idle.CUT)
        full: dict[int, OSError] = {}
        put_in: Counter[int] = Counter()
        # those with the fewest first: a pod with too many leaves room for the others'
        count = Counter(key.source for key in keys)
        for key in sorted(keys, key=lambda key: (count[key.source], key.source)):
            if key.source not in full and key.protocol not in ICMP_REQUESTS:
                try:
                    put_in[self._link(key)] -= self._put(key, ends_ns, layout.FLOW_CUT, replace=True)
                except OSError as error:
                    full[key.source] = error
        self.shares.took_out(put_in)
        if full:
            why = errno.errorcode.get(next(iter(full.values())).errno or 0, "?")
            raise KernelError(f"the flows of {len(full)} pod addresses are not cut ({why}): raise tables.flows")

    def _forget(self, keys: Iterable[FlowKey]) -> None:
        self.shares.took_out(Counter(self._link(key) for key in keys if self._map.delete(key.pack())))

    def uncut(self, flows: Iterable[Flow]) -> None:
        freed: Counter[int] = Counter()
        for key in {key.pack() for flow in flows for key in self._keys(flow)}:
            _, state, link = self._now(key)
            freed[link] += bool(state & layout.FLOW_CUT) and self._map.delete(key)
        self.shares.took_out(freed)

    def cut_flows(self) -> list[Flow]:
        """Those that are cut now, without what NAT makes of them."""
        now = time.monotonic_ns()
        found = []
        for packed, value in self._map.items():
            ends_ns, state, _ = layout.FLOW.unpack(value)
            key = FlowKey.unpack(packed)
            pair = self._pairs.by_source.get(key.source)
            if state & layout.FLOW_CUT and ends_ns > now and pair:
                peer = key.peer, key.peer_port
                found.append(Flow(key.protocol, pair[1], key.pod_port, *peer, *peer))
        return found

    def seed(self, outbound: Iterable[Flow], inbound: Iterable[Flow] = ()) -> None:
        """Take these flows, which were judged, for open: connection tracking knew them before the kernel's program
        did. ICMP needs none of it: its next request is decided as any other. What there is no room for is left out;
        its next packet is decided."""
        put_in: Counter[int] = Counter()
        keys = (key for flow in (*outbound, *inbound) if flow.protocol not in ICMP_REQUESTS for key in self._keys(flow))
        with suppress(OSError):
            for key in keys:
                ends_ns = time.monotonic_ns() + self._idle_ns(_idle(key.protocol))
                put_in[self._link(key)] -= self._put(key, ends_ns, _OPEN, replace=False)
        self.shares.took_out(put_in)

    def _keys(self, flow: Flow) -> Iterator[FlowKey]:
        """Of each pair that has the pod's address. The link sees the flow as the pod does, whatever NAT does."""
        if flow.protocol in ICMP_REQUESTS:
            ports = [(flow.pod_port, 2 * request) for request in ICMP_REQUESTS[flow.protocol]]
        else:
            ports = [(flow.pod_port, flow.peer_port) if flow.protocol in WITH_PORTS else (0, 0)]
        for source in self._pairs.sources.get(flow.pod, ()):
            for pod_port, peer_port in ports:
                yield FlowKey(source, flow.protocol, pod_port, peer_port, flow.peer)

    def _link(self, key: FlowKey) -> LinkIndex:
        return self._pairs.by_source[key.source][0]

    def _put(self, key: FlowKey, ends_ns: int, state: int, *, replace: bool) -> bool:
        """True when the flow is new in the map."""
        packed, value = key.pack(), layout.FLOW.pack(ends_ns, state, self._link(key))
        try:
            self._insert(packed, value)
        except FileExistsError:
            if replace:
                self._map.update(packed, value)
            return False
        return True

    def _insert(self, key: bytes, value: bytes) -> None:
        try:
            self._map.update(key, value, _NOEXIST)
        except OSError as error:
            if error.errno != errno.E2BIG or not self._search.make_room():
                raise
            self._map.update(key, value, _NOEXIST)

    def _now(self, key: bytes) -> tuple[int, int, int]:
        """End, state and link of a flow at this moment; zeroes when it is not there."""
        ends_ns, state, link = layout.FLOW.unpack(self._map.lookup(key) or bytes(layout.FLOW.size))
        return ends_ns, state, link

    def _idle_ns(self, idle: Idle) -> int:
        settings = layout.SETTINGS.unpack(self._settings.lookup(_ONLY) or bytes(layout.SETTINGS.size))
        return int(settings[idle])

    def sweep(self, items: Iterable[tuple[bytes, bytes]]) -> None:
        """Take out those of these flows that have ended a while ago, or whose pod has gone."""
        before = time.monotonic_ns() - TAKEN_UP_NS
        living = self._pairs.by_source
        freed: Counter[int] = Counter()
        for key, value in items:
            limit = before if layout.FLOW_KEY.unpack(key)[0] in living else _NEVER_NS
            if layout.FLOW.unpack(value)[0] < limit:
                ends_ns, _, link = self._now(key)
                freed[link] += ends_ns < limit and self._map.delete(key)
        self.shares.took_out(freed)


def _idle(protocol: int) -> Idle:
    if protocol == Protocol.TCP:
        return Idle.TCP
    if protocol in _UDP:
        return Idle.UDP
    return Idle.SCTP if protocol == Protocol.SCTP else Idle.OTHER
