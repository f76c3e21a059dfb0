"""The book of leases: which address is open to which pod in which scope, until when, and the names that say so.

A lease is (pod, scope, address). Each name that justifies it does so until a time of its own; the lease is open
until the latest of these. What the kernel was last told is `written`, under the ticket that carried it. The book
counts capacity before the kernel is asked, and remembers what ended leases stood on for as long as a flow may live.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

from dnsguard.core.lease import Element, Lease, Place, PodLeases, Turn, Write
from dnsguard.core.model import Address, Name, PodId, Scope, Seconds

REFUSED = 1e-9
"""`written` of a lease whose last write failed: the next answer writes again, whatever the kernel held before."""

_NONE: dict[Address, Lease] = {}

_write = cast(Callable[[type[Write], tuple[str, bytes, int]], Write], tuple.__new__)
"""A named tuple made in a third of the time that calling its class takes."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """`leases`, `addresses_per_name` and `pairs` of a lease and a name that justifies it are per pod, `elements` is the
    node's (one a pod address of that family)."""

    leases: int = 10_000
    addresses_per_name: int = 1000
    elements: int = 100_000
    pairs: int = 40_000


class Armed(NamedTuple):
    """What an answer needs: `writes` for the enforcer, the `leases` they stand for, and the ticket to wait for."""

    writes: list[Write]
    leases: list[Lease]
    wait: int


@dataclass(frozen=True, slots=True)
class Spared:
    """Ended leases of a pod that are remembered without a flow: those that ended since `first`, but no more of them
    than the `most` that ended last; and whatever has ended since `last`, for its flows are not known yet."""

    first: Seconds
    last: Seconds
    most: int


Touch = tuple[Lease, Name | None]
"""A lease, and a name whose end on it is another now; without a name, all that was known of the lease may be over."""


class Book:
    """All leases of the node. `now` is the monotonic clock in seconds, an argument wherever it is needed."""

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self.pods: dict[PodId, PodLeases] = {}
        self.elements = 0
        self.touched: deque[Touch] = deque(maxlen=0)
        """What happened to the names of leases, in its order. Whoever keeps them puts a deque of its own here."""
        self.moved: deque[PodId] = deque(maxlen=0)
        """Pods that came, went, have other addresses or another policy, likewise."""
        self._turns: dict[int, Turn] = {}

    def __len__(self) -> int:
        return sum(map(len, self.pods.values()))

    def __iter__(self) -> Iterator[Lease]:
        for pod in self.pods.values():
            yield from pod

    # ---- the way of an answer (hot: 1 to 2 us for one address)

    def fitting(
        self, pod: PodId, name: Name, scopes: Sequence[Scope], addresses: Sequence[Address]
    ) -> Sequence[Address]:
        """Those of `addresses` that `name` may open: all of them, or as many as its share still has room for."""
        table = self.pods[pod]
        room = self.capacity.addresses_per_name - table.per_name.get(name, 0)
        if len(addresses) * len(scopes) <= room:
            return addresses
        fits: list[Address] = []
        for address in addresses:
            needed = sum(not table.justified(scope.name, address, name) for scope in scopes)
            if needed <= room:
                room -= needed
                fits.append(address)
        return fits

    def arm(
        self,
        pod: PodId,
        name: Name,
        scopes: Sequence[Scope],
        addresses: Sequence[Address],
        *,
        now: Seconds,
        need: Seconds,
        until: Seconds,
        ticket: int,
    ) -> Armed | str:
        """Open `addresses` to the pod in `scopes` because of `name`, at least until `need`.

        What the kernel holds for long enough is not written again; what it does not is written to last until
        `until`, under `ticket`. Nothing is ever shortened. Returns the name of the limit when there is no room, with
        nothing changed.
        """
        # Written out, for it is run for every answer: 1.9 us for one new lease, 0.7 us for one that stands.
        table = self.pods[pod]
        most = len(scopes) * len(addresses)
        capacity = self.capacity
        if table.count + most > capacity.leases or self.elements + most * table.width > capacity.elements:
            missing = [(s.name, a) for s in scopes for a in addresses if table.get(s.name, a) is None]
            if missing and (over := self._over(table, missing)):
                return over
        if table.pairs + most > capacity.pairs:
            added = sum(not table.justified(s.name, a, name) for s in scopes for a in addresses)
            if added and table.pairs + added > capacity.pairs:
                return "leasesPerPod"
        writes: list[Write] = []
        leases: list[Lease] = []
        wait = 0
        timeout = int((until - now) * 1000.0)
        for scope in scopes:
            label = scope.name
            there = table.by_scope.get(label, _NONE)
            for address in addresses:
                lease = there.get(address)
                if lease is None:
                    lease = self._open(table, pod, label, address)
                    table.first_name(lease, name)
                    there = table.by_scope[label]
                ends = until
                if lease.written < need:
                    if lease.turn is None:
                        self._look_at(lease, until)
                    lasts = timeout
                    lease.written = until
                    if lease.until > until:
                        # A write failed, so what the kernel holds may be longer: it must not become shorter.
                        lease.written = lease.until
                        lasts = int((lease.until - now) * 1000.0)
                    lease.ticket = ticket
                    leases.append(lease)
                    for source in table.v4 if len(address) == 4 else table.v6:
                        writes.append(_write(Write, (label, source + address, lasts)))
                elif until > lease.written:
                    ends = lease.written
                if lease.ticket > wait:
                    wait = lease.ticket
                if name != lease.only:
                    more = lease.more
                    if more is None or name not in more:
                        self._justify(table, lease, name, ends)
                    elif ends > more[name]:
                        more[name] = ends
                        self.touched.append((lease, name))
                elif ends > lease.until:
                    self.touched.append((lease, name))
                if ends > lease.until:
                    lease.until = ends
        return Armed(writes, leases, wait)

    def _over(self, table: PodLeases, missing: Sequence[Place]) -> str | None:
        """The limit that stands against leases on these, or None."""
        if table.count + len(missing) > self.capacity.leases:
            return "leasesPerPod"
        needed = sum(len(table.sources(address)) for _, address in missing)
        return "tables.leases" if self.elements + needed > self.capacity.elements else None

    def _open(self, table: PodLeases, pod: PodId, scope: str, address: Address) -> Lease:
        lease = table.ended.pop((scope, address), None) if table.ended else None
        if lease is None:
            lease = Lease(pod, scope, address)
        lease.until = 0.0
        table.open(lease)
        self.elements += len(table.v4 if len(address) == 4 else table.v6)
        return lease

    def _justify(self, table: PodLeases, lease: Lease, name: Name, until: Seconds) -> None:
        if (forgotten := table.add_name(lease, name, until)) is not None:
            self.touched.append((lease, forgotten))
        self.touched.append((lease, name))

    @staticmethod
    def refuse(leases: Iterable[Lease], ticket: int) -> None:
        """The kernel refused `ticket`: these leases must be written again before anyone is told of them."""
        for lease in leases:
            if lease.ticket == ticket:
                lease.written = REFUSED

    # ---- time

    def _look_at(self, lease: Lease, until: Seconds) -> None:
        """Look at the lease when `until` has come, unless that is done earlier anyway: then it is put off."""
        second = int(until) + 1
        if lease.turn is not None and second >= lease.turn.at:
            return
        turn = self._turns.get(second)
        if turn is None:
            turn = self._turns[second] = Turn(second)
        lease.turn = turn
        turn.append(lease)

    @staticmethod
    def _look_no_more(leases: Iterable[Lease]) -> None:
        """What is forgotten before its time is not kept until then."""
        turns: dict[int, Turn] = {}
        for lease in leases:
            if lease.turn is not None:
                turns[lease.turn.at], lease.turn = lease.turn, None
        for turn in turns.values():
            turn[:] = [lease for lease in turn if lease.turn is turn]

    def due(self, now: Seconds) -> list[Lease]:
        """End the leases whose time is over by `now` (within a second) and return them."""
        ended: list[Lease] = []
        for second in sorted(s for s in self._turns if s <= now):
            turn = self._turns.pop(second)
            for lease in turn:
                if lease.turn is not turn:
                    continue
                lease.turn = None
                table = self.pods.get(lease.pod)
                if table is None or table.get(lease.scope, lease.address) is not lease:
                    continue
                if lease.until > now:
                    self._age(table, lease, now)
                    self._look_at(lease, lease.until)
                else:
                    self._end(table, lease, now)
                    ended.append(lease)
        return ended

    def _age(self, table: PodLeases, lease: Lease, now: Seconds) -> None:
        self.touched.extend([(lease, name) for name in table.age(lease, now)])

    def _end(self, table: PodLeases, lease: Lease, now: Seconds) -> None:
        """Take a lease out of the table; what it stood on is remembered for the flows it let open."""
        if lease.until > now:
            self.touched.extend([(lease, name) for name, until in lease.names.items() if until > now])
        self._age(table, lease, float("inf"))
        # One that is taken back has ended now: a later answer must not find the time that it had left.
        lease.until = min(lease.until, now)
        lease.written = 0.0
        table.end(lease)
        self.elements -= len(table.sources(lease.address))
        if len(table.ended) > self.capacity.leases:
            self.touched.append((table.ended.pop(next(iter(table.ended))), None))

    @property
    def ended(self) -> int:
        """Leases that ended and are remembered."""
        return sum(len(pod.ended) for pod in self.pods.values())

    def forget_ended(self, pod: PodId, flowing: Collection[Address], spared: Spared) -> None:
        """Drop leases that ended, except those on addresses to which a flow is still open, and those `spared`."""
        ended = self.pods[pod].ended
        idle = [place for place, lease in ended.items() if lease.address not in flowing]
        beyond = max(0, len(idle) - spared.most)
        gone = [
            ended.pop(place)
            for number, place in enumerate(idle)
            if ended[place].until < (spared.last if number < beyond else spared.first)
        ]
        self._look_no_more(gone)
        self.touched.extend([(lease, None) for lease in gone])

    def stood_on(self, pod: PodId) -> dict[Address, set[tuple[str, Name]]]:
        """For each address of a lease, living or ended: the scopes and every name that ever justified it there."""
        table = self.pods[pod]
        found: dict[Address, set[tuple[str, Name]]] = {}
        for leases in (table, table.ended.values()):
            for lease in leases:
                names = found.setdefault(lease.address, set())
                names.update((lease.scope, name) for name in (*lease.names, *lease.past))
        return found

    def last_ended(self, pod: PodId, address: Address, now: Seconds) -> Lease | None:
        """The lease on `address` that ended last, for telling why a packet was dropped. `due` may not know yet."""
        table = self.pods[pod]
        over = (lease for lease in table if lease.until <= now)
        ended = (lease for lease in (*table.ended.values(), *over) if lease.address == address)
        return max(ended, key=lambda lease: lease.until, default=None)

    def lasting(self, pod: PodId, scopes: Iterable[Scope], addresses: Collection[Address]) -> Seconds:
        """Until when all of these are open at the least, by what the kernel was told; 0 when one is not."""
        table = self.pods[pod]
        leases = [table.get(scope.name, address) for scope in scopes for address in addresses]
        return min((lease.written if lease is not None else 0.0 for lease in leases), default=0.0)

    def is_open(self, pod: PodId, address: Address, scope: str) -> bool:
        return self.pods[pod].get(scope, address) is not None

    def open_in(self, pod: PodId, address: Address, now: Seconds) -> list[str]:
        """The scopes in which `address` is open."""
        return [lease.scope for lease in self.pods[pod] if lease.address == address and lease.until > now]

    # ---- pods

    def add_pod(self, pod: PodId, addresses: Collection[Address]) -> None:
        self.pods[pod] = PodLeases()
        self.moved.append(pod)
        self.pods[pod].readdressed(addresses)

    def remove_pod(self, pod: PodId) -> list[Element]:
        """Forget everything about a pod; the elements that the enforcer should remove."""
        table = self.pods.pop(pod)
        self.moved.append(pod)
        self._look_no_more((*table, *table.ended.values()))
        gone = [element for lease in table for element in table.elements(lease)]
        self.elements -= len(gone)
        return gone
