"""One lease, the leases of one pod, and the elements that they are in the kernel.

A lease is open until the latest of the times to which names justify it. Most leases have one name, which then ends
when the lease does: it costs no dictionary, and half the memory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from dnsguard.core.model import Address, Name, PodId, Seconds

UNKNOWN = Name(b"")
"""Stands for the names of a lease that was read back from the kernel: kept until it ends, never extended."""

NAMES_PER_LEASE = 1000
"""Names remembered for one lease; beyond it the one that ends first is forgotten (it then justifies nothing)."""

PAST_PER_LEASE = 50
"""Names remembered that held it open before, the latest: a flow that is open was most likely let by one of them."""

_FEW = 8


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


class Turn(list["Lease"]):
    """The leases to look at when the second `at` has come; they know the list, so that it is the same number in all."""

    __slots__ = ("at",)

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at


class Lease:
    """One lease. `only` is the one name that justifies it, until its end, or else `more` maps each to an end of its
    own; `past` held it open before. `turn` is when its end is looked at."""

    __slots__ = ("address", "more", "only", "past", "pod", "scope", "ticket", "turn", "until", "written")

    def __init__(self, pod: PodId, scope: str, address: Address) -> None:
        self.pod = pod
        self.scope = scope
        self.address = address
        self.only: Name | None = None
        self.more: dict[Name, Seconds] | None = None
        self.past: Collection[Name] = ()
        self.until: Seconds = 0.0
        self.written: Seconds = 0.0
        self.ticket = 0
        self.turn: Turn | None = None

    @property
    def names(self) -> Mapping[Name, Seconds]:
        """Until when each name justifies it; not to be changed."""
        if self.more is not None:
            return self.more
        return {} if self.only is None else {self.only: self.until}

    def justified_by(self, name: Name) -> bool:
        return name == self.only or (self.more is not None and name in self.more)

    def justify(self, name: Name, until: Seconds) -> Name | None:
        """One more name, before `until` of the lease is put off by it; the name that had to be forgotten for it."""
        more = self.more
        if more is None:
            more = self.more = {} if self.only is None else {self.only: self.until}
            self.only = None
        forgotten = None
        if len(more) >= NAMES_PER_LEASE:
            forgotten = min(more, key=more.__getitem__)
            del more[forgotten]
        more[name] = until
        return forgotten

    def rename(self, names: dict[Name, Seconds], until: Seconds) -> None:
        """Exactly these names justify it now, the last until `until`."""
        self.until = until
        self.only, self.more = None, names or None
        if len(names) == 1:
            ((name, ends),) = names.items()
            if ends == until:
                self.only, self.more = name, None

    def over(self, now: Seconds) -> Collection[Name]:
        """Take out the names whose time is over."""
        if self.only is not None:
            if self.until > now:
                return ()
            over, self.only = self.only, None
            return (over,)
        names = [name for name, until in self.names.items() if until <= now]
        if names:
            self.rename({name: until for name, until in self.names.items() if until > now}, self.until)
        return names

    def remember(self, names: Collection[Name]) -> Collection[Name]:
        """These held it open, and do no longer. Returns the names that had to be forgotten for it."""
        if not self.past and len(names) <= PAST_PER_LEASE:
            self.past = past_of(names)
            return ()
        past = list(dict.fromkeys((*names, *self.past)))
        self.past = past_of(past[:PAST_PER_LEASE])
        return past[PAST_PER_LEASE:]


def past_of(names: Iterable[Name]) -> Collection[Name]:
    """Each name once. A set of one is four times a tuple; many are to be found fast."""
    found = tuple(names)
    return found if len(found) <= _FEW else frozenset(found)


Place = tuple[str, Address]
"""A scope and an address: what a pod has one lease of."""


class PodLeases:
    """The leases of one pod by scope and address, those that ended while a flow may still live on them, and how many
    each name justifies."""

    __slots__ = ("by_scope", "count", "ended", "pairs", "per_name", "v4", "v6", "width")

    def __init__(self) -> None:
        self.by_scope: dict[str, dict[Address, Lease]] = {}
        self.count = 0
        """Of living leases."""
        self.ended: dict[Place, Lease] = {}
        """In the order in which they ended."""
        self.per_name: dict[Name, int] = {}
        self.pairs = 0
        """Of a living lease and a name that justifies it."""
        self.v4: tuple[Address, ...] = ()
        self.v6: tuple[Address, ...] = ()
        self.width = 0
        """The most elements that one lease can need."""

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Lease]:
        for leases in self.by_scope.values():
            yield from leases.values()

    def get(self, scope: str, address: Address) -> Lease | None:
        """The living lease, or None."""
        leases = self.by_scope.get(scope)
        return None if leases is None else leases.get(address)

    def open(self, lease: Lease) -> None:
        """It lives from here on."""
        leases = self.by_scope.get(lease.scope)
        if leases is None:
            leases = self.by_scope[lease.scope] = {}
        leases[lease.address] = lease
        self.count += 1

    def end(self, lease: Lease) -> None:
        """It is remembered only."""
        leases = self.by_scope[lease.scope]
        del leases[lease.address]
        if not leases:
            del self.by_scope[lease.scope]
        self.count -= 1
        self.ended[lease.scope, lease.address] = lease

    def readdressed(self, addresses: Collection[Address]) -> None:
        """The pod's addresses are these."""
        self.v4 = tuple(sorted(a for a in addresses if len(a) == 4))
        self.v6 = tuple(sorted(a for a in addresses if len(a) == 16))
        self.width = max(len(self.v4), len(self.v6))

    def sources(self, address: Address) -> tuple[Address, ...]:
        """The pod's own addresses that can talk to `address`."""
        return self.v4 if len(address) == 4 else self.v6

    def elements(self, lease: Lease) -> list[Element]:
        """One for each address of the pod in that family."""
        return [Element(lease.scope, source + lease.address) for source in self.sources(lease.address)]

    def justified(self, scope: str, address: Address, name: Name) -> bool:
        """Whether `name` already justifies this lease."""
        lease = self.get(scope, address)
        return lease is not None and lease.justified_by(name)

    def first_name(self, lease: Lease, name: Name) -> None:
        """`name` justifies the lease, which has no other, until its end."""
        lease.only = name
        self.per_name[name] = self.per_name.get(name, 0) + 1
        self.pairs += 1

    def add_name(self, lease: Lease, name: Name, until: Seconds) -> Name | None:
        """`name` justifies the lease too, until then. Returns the name that had to be forgotten for it."""
        forgotten = lease.justify(name, until)
        if forgotten is not None:
            self.discount((forgotten,))
        self.per_name[name] = self.per_name.get(name, 0) + 1
        self.pairs += 1
        return forgotten

    def rename(self, lease: Lease, names: dict[Name, Seconds], until: Seconds) -> None:
        """Exactly these names justify the lease now, the last until `until`."""
        before = lease.names
        self.discount(name for name in before if name not in names)
        for name in names.keys() - before.keys():
            self.per_name[name] = self.per_name.get(name, 0) + 1
            self.pairs += 1
        lease.rename(names, until)

    def age(self, lease: Lease, now: Seconds) -> Collection[Name]:
        """Move the names whose time is over to the past. Returns those that had to be forgotten for it."""
        over = lease.over(now)
        self.discount(over)
        return lease.remember(over) if over else ()

    def discount(self, names: Iterable[Name]) -> None:
        for name in names:
            self.pairs -= 1
            left = self.per_name.get(name, 1) - 1
            if left > 0:
                self.per_name[name] = left
            else:
                self.per_name.pop(name, None)
