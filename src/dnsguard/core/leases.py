"""Leases: which address is open to which pod in which scope, until when, and the names that say so.

A lease is (pod, scope, address). Each name that justifies it does so until a time of its own; the lease is open
until the latest of these. What the kernel was last told is `written`, under the ticket that carried it. The table
counts capacity before the kernel is asked, remembers what ended leases stood on for as long as a flow may live, and
works out what a new policy leaves of them. It does no I/O: its results are writes and removals for an enforcer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, cast

from dnsguard.core.model import Address, Name, PodId, Scope, Seconds

UNKNOWN = Name(b"")
"""Stands for the names of a lease that was read back from the kernel: kept until it ends, never extended."""

NAMES_PER_LEASE = 1000
"""Names remembered for one lease; beyond it the one that ends first is forgotten (it then justifies nothing)."""

_NO_NAMES: frozenset[Name] = frozenset()

REFUSED = 1e-9
"""`written` of a lease whose last write failed: the next answer writes again, whatever the kernel held before."""


class Write(NamedTuple):
    """One element to make or refresh: `key` is the pod's address followed by the peer's, 8 or 32 octets."""

    scope: str
    key: bytes
    timeout_ms: int


class Element(NamedTuple):
    """One element as the kernel names it."""

    scope: str
    key: bytes


class Held(NamedTuple):
    """One element read back from the kernel, with the time it has left."""

    scope: str
    key: bytes
    remaining_ms: int


_write = cast(Callable[[type[Write], tuple[str, bytes, int]], Write], tuple.__new__)
"""A named tuple made in a third of the time that calling its class takes."""


class Lease:
    """One lease. `names` maps each justifying name to the end of its justification; `past` held it open before.

    `bucket` is the second in which its end is looked at, 0 for none.
    """

    __slots__ = ("address", "bucket", "names", "past", "pod", "scope", "ticket", "until", "written")

    def __init__(self, pod: PodId, scope: str, address: Address) -> None:
        self.pod = pod
        self.scope = scope
        self.address = address
        self.names: dict[Name, Seconds] = {}
        self.past = _NO_NAMES
        self.until: Seconds = 0.0
        self.written: Seconds = 0.0
        self.ticket = 0
        self.bucket = 0


@dataclass(frozen=True, slots=True)
class Capacity:
    """`leases` and `addresses_per_name` are per pod, `elements` is the node's (one a pod address of that family)."""

    leases: int = 10_000
    addresses_per_name: int = 1000
    elements: int = 100_000


class Armed(NamedTuple):
    """What an answer needs: `writes` for the enforcer, the `leases` they stand for, and the ticket to wait for."""

    writes: list[Write]
    leases: list[Lease]
    wait: int


class PodLeases:
    """The leases of one pod, those that ended while a flow may still live on them, and how many each name justifies."""

    __slots__ = ("by_key", "ended", "per_name", "v4", "v6", "width")

    def __init__(self) -> None:
        self.by_key: dict[tuple[str, Address], Lease] = {}
        self.ended: dict[tuple[str, Address], Lease] = {}
        self.per_name: dict[Name, int] = {}
        self.v4: tuple[Address, ...] = ()
        self.v6: tuple[Address, ...] = ()
        self.width = 0
        """The most elements that one lease can need."""

    def sources(self, address: Address) -> tuple[Address, ...]:
        """The pod's own addresses that can talk to `address`."""
        return self.v4 if len(address) == 4 else self.v6

    def justified(self, scope: str, address: Address, name: Name) -> bool:
        """Whether `name` already justifies this lease."""
        lease = self.by_key.get((scope, address))
        return lease is not None and name in lease.names

    def count(self, name: Name) -> None:
        self.per_name[name] = self.per_name.get(name, 0) + 1

    def rename(self, lease: Lease, names: dict[Name, Seconds]) -> None:
        """Exactly these names justify the lease now."""
        for name in lease.names.keys() - names.keys():
            self.discount(name)
        for name in names.keys() - lease.names.keys():
            self.count(name)
        lease.names = names

    def discount(self, name: Name) -> None:
        left = self.per_name.get(name, 1) - 1
        if left > 0:
            self.per_name[name] = left
        else:
            self.per_name.pop(name, None)


@dataclass(slots=True)
class Changed:
    """What a change asks of the enforcer. `leases` are those that `write` is about; `refused` counts leases for which
    there was no room: they stay closed."""

    write: list[Write] = field(default_factory=list)
    leases: list[Lease] = field(default_factory=list)
    remove: list[Element] = field(default_factory=list)
    purged: list[Lease] = field(default_factory=list)
    refused: int = 0

    def merge(self, more: Changed) -> None:
        self.write += more.write
        self.leases += more.leases
        self.remove += more.remove
        self.purged += more.purged
        self.refused += more.refused


Checkpoint = list[tuple[Lease, dict[Name, Seconds], Seconds]]
"""A pod's leases with their names and ends, as they were."""

Touch = tuple[Lease, Name | None]
"""A lease, and a name whose end on it is another now; without a name, all that was known of the lease may be over."""

Justify = Callable[[Name, Address], Collection[str]]
"""The names of the scopes in which a policy opens `address` because of `name`."""


class Leases:
    """All leases of the node. `now` is the monotonic clock in seconds, an argument wherever it is needed."""

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self.pods: dict[PodId, PodLeases] = {}
        self.elements = 0
        self.touched: deque[Touch] = deque(maxlen=0)
        """What happened to the names of leases, in its order. Whoever keeps them puts a deque of its own here."""
        self.moved: deque[PodId] = deque(maxlen=0)
        """Pods that came, went or have other addresses, likewise."""
        self._buckets: dict[int, list[Lease]] = {}

    def __len__(self) -> int:
        return sum(len(pod.by_key) for pod in self.pods.values())

    def __iter__(self) -> Iterator[Lease]:
        for pod in self.pods.values():
            yield from pod.by_key.values()

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
        by_key = table.by_key
        most = len(scopes) * len(addresses)
        capacity = self.capacity
        if len(by_key) + most > capacity.leases or self.elements + most * table.width > capacity.elements:
            missing = [(s.name, a) for s in scopes for a in addresses if (s.name, a) not in by_key]
            if missing and (over := self._over(table, missing)):
                return over
        writes: list[Write] = []
        leases: list[Lease] = []
        wait = 0
        timeout = int((until - now) * 1000.0)
        for scope in scopes:
            label = scope.name
            for address in addresses:
                lease = by_key.get((label, address))
                if lease is None:
                    lease = self._open(table, pod, label, address)
                ends = until
                if lease.written < need:
                    if not lease.bucket:
                        self._bucket(lease, until)
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
                known = lease.names.get(name)
                if known is None:
                    self._justify(table, lease, name, ends)
                elif ends > known:
                    lease.names[name] = ends
                    self.touched.append((lease, name))
                if ends > lease.until:
                    lease.until = ends
        return Armed(writes, leases, wait)

    def _over(self, table: PodLeases, missing: Sequence[tuple[str, Address]]) -> str | None:
        """The limit that stands against leases on these, or None."""
        if len(table.by_key) + len(missing) > self.capacity.leases:
            return "leasesPerPod"
        needed = sum(len(table.sources(address)) for _, address in missing)
        return "tables.leases" if self.elements + needed > self.capacity.elements else None

    def _open(self, table: PodLeases, pod: PodId, scope: str, address: Address) -> Lease:
        key = scope, address
        lease = (table.ended.pop(key, None) if table.ended else None) or Lease(pod, scope, address)
        table.by_key[key] = lease
        self.elements += len(table.v4 if len(address) == 4 else table.v6)
        return lease

    def _justify(self, table: PodLeases, lease: Lease, name: Name, until: Seconds) -> None:
        names = lease.names
        if len(names) >= NAMES_PER_LEASE:
            first = min(names, key=names.__getitem__)
            del names[first]
            table.discount(first)
            self.touched.append((lease, first))
        names[name] = until
        self.touched.append((lease, name))
        table.per_name[name] = table.per_name.get(name, 0) + 1

    @staticmethod
    def refuse(leases: Iterable[Lease], ticket: int) -> None:
        """The kernel refused `ticket`: these leases must be written again before anyone is told of them."""
        for lease in leases:
            if lease.ticket == ticket:
                lease.written = REFUSED

    # ---- time

    def _bucket(self, lease: Lease, until: Seconds) -> None:
        """Look at the lease when `until` has come, unless that is done earlier anyway: then it is put off."""
        second = int(until) + 1
        if lease.bucket and second >= lease.bucket:
            return
        lease.bucket = second
        bucket = self._buckets.get(second)
        if bucket is None:
            self._buckets[second] = [lease]
        else:
            bucket.append(lease)

    def due(self, now: Seconds) -> list[Lease]:
        """End the leases whose time is over by `now` (within a second) and return them."""
        ended: list[Lease] = []
        for second in sorted(s for s in self._buckets if s <= now):
            for lease in self._buckets.pop(second):
                if lease.bucket != second:
                    continue
                lease.bucket = 0
                table = self.pods.get(lease.pod)
                if table is None or table.by_key.get((lease.scope, lease.address)) is not lease:
                    continue
                self._age(table, lease, now)
                if lease.until > now:
                    self._bucket(lease, lease.until)
                else:
                    self._end(table, lease, now)
                    ended.append(lease)
        return ended

    def _age(self, table: PodLeases, lease: Lease, now: Seconds) -> None:
        """Move the names whose time is over to the past."""
        over = [name for name, until in lease.names.items() if until <= now]
        if not over:
            return
        for name in over:
            del lease.names[name]
            table.discount(name)
        past = [*over, *lease.past]
        lease.past = frozenset(past[:NAMES_PER_LEASE])
        self.touched.extend((lease, name) for name in past[NAMES_PER_LEASE:])

    def _end(self, table: PodLeases, lease: Lease, now: Seconds) -> None:
        """Take a lease out of the table; what it stood on is remembered for the flows it let open."""
        self.touched.extend([(lease, name) for name, until in lease.names.items() if until > now])
        self._age(table, lease, float("inf"))
        # One that is taken back has ended now: a later answer must not find the time that it had left.
        lease.until = min(lease.until, now)
        del table.by_key[lease.scope, lease.address]
        self.elements -= len(table.sources(lease.address))
        lease.written = 0.0
        table.ended[lease.scope, lease.address] = lease
        if len(table.ended) > self.capacity.leases:
            self.touched.append((table.ended.pop(next(iter(table.ended))), None))

    def forget_ended(self, pod: PodId, flowing: Collection[Address], before: Seconds) -> None:
        """Drop what ended before `before`, except leases on addresses to which a flow is still open."""
        ended = self.pods[pod].ended
        for key in [k for k, lease in ended.items() if lease.until < before and lease.address not in flowing]:
            self.touched.append((ended.pop(key), None))

    def stood_on(self, pod: PodId) -> dict[Address, set[tuple[str, Name]]]:
        """For each address of a lease, living or ended: the scopes and every name that ever justified it there."""
        table = self.pods[pod]
        found: dict[Address, set[tuple[str, Name]]] = {}
        for leases in (table.by_key, table.ended):
            for lease in leases.values():
                names = found.setdefault(lease.address, set())
                names.update((lease.scope, name) for name in (*lease.names, *lease.past))
        return found

    def last_ended(self, pod: PodId, address: Address, now: Seconds) -> Lease | None:
        """The lease on `address` that ended last, for telling why a packet was dropped. `due` may not know yet."""
        table = self.pods[pod]
        over = (lease for lease in table.by_key.values() if lease.until <= now)
        ended = (lease for lease in (*table.ended.values(), *over) if lease.address == address)
        return max(ended, key=lambda lease: lease.until, default=None)

    def lasting(self, pod: PodId, scopes: Iterable[Scope], addresses: Collection[Address]) -> Seconds:
        """Until when all of these are open at the least, by what the kernel was told; 0 when one is not."""
        by_key = self.pods[pod].by_key
        leases = [by_key.get((scope.name, address)) for scope in scopes for address in addresses]
        return min((lease.written if lease is not None else 0.0 for lease in leases), default=0.0)

    def is_open(self, pod: PodId, address: Address, scope: str) -> bool:
        return (scope, address) in self.pods[pod].by_key

    def open_in(self, pod: PodId, address: Address, now: Seconds) -> list[str]:
        """The scopes in which `address` is open."""
        leases = self.pods[pod].by_key.values()
        return [lease.scope for lease in leases if lease.address == address and lease.until > now]

    # ---- changes

    def add_pod(self, pod: PodId, addresses: Collection[Address]) -> None:
        self.pods[pod] = PodLeases()
        self.moved.append(pod)
        self._set_addresses(self.pods[pod], addresses)

    def remove_pod(self, pod: PodId) -> list[Element]:
        """Forget everything about a pod; the elements that the enforcer should remove."""
        table = self.pods.pop(pod)
        self.moved.append(pod)
        gone = [element for lease in table.by_key.values() for element in _elements(table, lease)]
        self.elements -= len(gone)
        return gone

    def set_addresses(self, pod: PodId, addresses: Collection[Address], now: Seconds) -> Changed:
        """The pod's addresses are now these: elements for those gained, removal of those lost."""
        table = self.pods[pod]
        before = {e for lease in table.by_key.values() for e in _elements(table, lease)}
        self._set_addresses(table, addresses)
        self.moved.append(pod)
        changed = Changed()
        for lease in table.by_key.values():
            timeout = int((lease.written - now) * 1000.0)
            after = _elements(table, lease)
            gained = [Write(*e, timeout) for e in after if e not in before and timeout > 0]
            if gained:
                changed.write += gained
                changed.leases.append(lease)
            before.difference_update(after)
        changed.remove += before
        self.elements = sum(len(t.sources(lease.address)) for t in self.pods.values() for lease in t.by_key.values())
        return changed

    @staticmethod
    def _set_addresses(table: PodLeases, addresses: Collection[Address]) -> None:
        table.v4 = tuple(sorted(a for a in addresses if len(a) == 4))
        table.v6 = tuple(sorted(a for a in addresses if len(a) == 16))
        table.width = max(len(table.v4), len(table.v6))

    def rejustify(self, pod: PodId, justify: Justify, now: Seconds, *, same_program: bool) -> Changed:
        """Hold the pod's leases against a new policy.

        Names keep their own times: a scope that the new policy gives a living name is opened until that time, a lease
        that no living name justifies any longer is removed, one that only shorter names justify is shortened. A
        lease of unknown names stays only while the program is the same.
        """
        table = self.pods[pod]
        wanted = _wanted(table, justify, now, same_program)
        changed = Changed()
        for key in [k for k in table.by_key if k not in wanted]:
            lease = table.by_key[key]
            changed.remove += _elements(table, lease)
            changed.purged.append(lease)
            self._end(table, lease, now)
        for (scope, address), names in wanted.items():
            self._renew(table, (pod, scope, address), names, changed, now)
        if not same_program:
            self._forget_unknown(table)
        return changed

    def _rename(self, table: PodLeases, lease: Lease, names: dict[Name, Seconds]) -> None:
        if names != lease.names:
            self.touched.extend([(lease, name) for name in lease.names.keys() | names.keys()])
            table.rename(lease, names)

    def _forget_unknown(self, table: PodLeases) -> None:
        """Names that were never known justify nothing under another program, not even flows that are open already."""
        for leases in (table.by_key, table.ended):
            for lease in leases.values():
                if UNKNOWN in lease.past:
                    lease.past -= {UNKNOWN}
                    self.touched.append((lease, UNKNOWN))

    def _renew(
        self,
        table: PodLeases,
        key: tuple[PodId, str, Address],
        names: dict[Name, Seconds],
        changed: Changed,
        now: Seconds,
    ) -> None:
        pod, scope, address = key
        lease = table.by_key.get((scope, address))
        if lease is None:
            if self._over(table, [(scope, address)]):
                changed.refused += 1
                return
            lease = self._open(table, pod, scope, address)
        lease.past = frozenset([*(lease.names.keys() - names.keys()), *lease.past][:NAMES_PER_LEASE])
        self._rename(table, lease, names)
        until = max(names.values())
        if abs(until - lease.written) > 1e-3 and (until > lease.written or until < lease.until):
            lease.written = until
            self._bucket(lease, until)
            _write_out(changed, table, lease, now)
        lease.until = until

    def checkpoint(self, pod: PodId) -> Checkpoint:
        """What `roll_back` needs to undo `rejustify`."""
        return [(lease, dict(lease.names), lease.until) for lease in self.pods[pod].by_key.values()]

    def roll_back(self, pod: PodId, checkpoint: Checkpoint, now: Seconds) -> Changed:
        """Bring the leases of `checkpoint` back, in the kernel too, and take out those that came after it."""
        table = self.pods[pod]
        changed = Changed()
        before = {(lease.scope, lease.address): (names, until) for lease, names, until in checkpoint if until > now}
        for key in [key for key in table.by_key if key not in before]:
            changed.remove += _elements(table, table.by_key[key])
            self._end(table, table.by_key[key], now)
        for (scope, address), (names, until) in before.items():
            lease = table.by_key.get((scope, address)) or self._open(table, pod, scope, address)
            self._rename(table, lease, names)
            lease.until = lease.written = until
            self._bucket(lease, until)
            _write_out(changed, table, lease, now)
        return changed

    def restore(
        self,
        pod: PodId,
        scope: str,
        address: Address,
        *,
        names: dict[Name, Seconds],
        until: Seconds,
        written: Seconds | None = None,
    ) -> None:
        """Take up a lease that the kernel holds until `until`, because of `names`. UNKNOWN among them is kept, and
        never extended. `written` is earlier when not all its elements last so long (0: one is missing), so that the
        next answer writes it anew."""
        table = self.pods[pod]
        lease = self._open(table, pod, scope, address)
        self._rename(table, lease, names)
        lease.until = until
        lease.written = max(REFUSED, until if written is None else written)
        self._bucket(lease, until)

    def restore_past(self, pod: PodId, scope: str, address: Address, names: Mapping[Name, Seconds]) -> None:
        """These names justified a lease, living or ended, until these times, which are over."""
        table = self.pods[pod]
        latest = sorted(names, key=names.__getitem__, reverse=True)[:NAMES_PER_LEASE]
        lease = table.by_key.get((scope, address))
        if lease is None:
            lease = table.ended[scope, address] = Lease(pod, scope, address)
            lease.until = names[latest[0]]
        lease.past = frozenset(latest)

    def writes(self, now: Seconds) -> list[Write]:
        """Every element that should be in the kernel, with the time it has left: what a repair puts back."""
        found: list[Write] = []
        for table in self.pods.values():
            for lease in table.by_key.values():
                timeout = int((lease.written - now) * 1000.0)
                if timeout > 0:
                    found += [Write(*element, timeout) for element in _elements(table, lease)]
        return found


def _elements(table: PodLeases, lease: Lease) -> list[Element]:
    return [Element(lease.scope, source + lease.address) for source in table.sources(lease.address)]


def _write_out(changed: Changed, table: PodLeases, lease: Lease, now: Seconds) -> None:
    """Have the enforcer open the lease until `written`, and no longer."""
    timeout = max(1, int((lease.written - now) * 1000.0))
    changed.write += [Write(*element, timeout) for element in _elements(table, lease)]
    changed.leases.append(lease)


def _wanted(
    table: PodLeases, justify: Justify, now: Seconds, same_program: bool
) -> dict[tuple[str, Address], dict[Name, Seconds]]:
    """Which names open which (scope, address) under the new policy, each until its own time."""
    wanted: dict[tuple[str, Address], dict[Name, Seconds]] = {}
    for lease in table.by_key.values():
        for name, until in lease.names.items():
            if until <= now:
                continue
            scopes = justify(name, lease.address) if name else (lease.scope,) if same_program else ()
            for scope in scopes:
                names = wanted.setdefault((scope, lease.address), {})
                names[name] = max(until, names.get(name, 0.0))
    return wanted
