"""What was seen of each pod: the names it asked for, and the flows it began, with the names that led there.

Pure and bounded: a pod has room for so many names and flows, less of it the more pods there are. What finds no room is
counted. Many names under one parent become one record, and names that do not exist have a room of their own, so that
neither pushes out what a policy will be made of. Nothing that is in is ever pushed out by another pod, but for whole
pods that are long gone. Times are seconds on whatever clock the caller keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from enum import IntEnum
from typing import Final, NamedTuple

from dnsguard.core.answers import Answer
from dnsguard.core.model import Address, LinkIndex, Name, Seconds
from dnsguard.core.wire import Rcode
from dnsguard.learning.suffixes import is_shared

NAMES: Final = 40_000
"""Names of all pods together, shared equally: 16 MB."""
MOST_NAMES, LEAST_NAMES = 1000, 50
"""What one pod has room for in any case."""
MISSING: Final = 50
"""Names that do not exist, for each pod; as many of which an answer would be withheld."""
FLOWS: Final = 20_000
"""Flows that differ in pod, address, protocol or port, shared likewise."""
MOST_FLOWS, LEAST_FLOWS = 500, 20
ADDRESSES: Final = 50_000
"""Addresses whose names are known, shared likewise; as many again from before."""
MOST_ADDRESSES, LEAST_ADDRESSES = 2000, 100
NAMES_PER_ADDRESS: Final = 16
FOLD: Final = 64
"""Names under one parent that become one record."""
PODS: Final = 500
_OFTEN: Final = 256
"""New records between two looks at how many there are."""
LASTING: Final[Seconds] = 3600.0
"""How long at least the names of an address are known after it was told: the longest TTL. At most twice as long."""

_NXDOMAIN: Final = int(Rcode.NXDOMAIN)


class Room(NamedTuple):
    """What one pod may fill."""

    names: int = MOST_NAMES
    flows: int = MOST_FLOWS
    addresses: int = MOST_ADDRESSES


class Outcome(IntEnum):
    """What is known of a name."""

    UNKNOWN = 0
    """It was never looked up: it was denied, or no upstream answered."""
    MISSING = 1
    """It does not exist."""
    EXISTS = 2


_EXISTS: Final = int(Outcome.EXISTS)
"""A plain number: an enum's member costs more to look up."""


class Asked:
    """One name, or with `names` over 1 as many under one parent. `rule` is empty when the last was allowed by none."""

    __slots__ = ("count", "last", "names", "outcome", "rule")

    def __init__(self, count: int = 0, last: Seconds = 0.0, outcome: int = 0, rule: str = "", names: int = 1) -> None:
        self.count = count
        self.last = last
        self.outcome = outcome
        self.rule = rule
        self.names = names

    def add(self, other: Asked) -> None:
        """Another name under the same parent."""
        self.names += other.names
        self.again(other)

    def again(self, other: Asked) -> None:
        """The same, seen at another time."""
        self.count += other.count
        self.last, self.rule = max((self.last, self.rule), (other.last, other.rule))
        self.outcome = max(self.outcome, other.outcome)


class Went:
    """Flows to one address, protocol and port; `names` led there, but not always when it was `bare`. `denied`: no rule
    allowed the last."""

    __slots__ = ("bare", "count", "denied", "last", "names")

    def __init__(self, count: int, last: Seconds, names: tuple[Name, ...], *, denied: bool) -> None:
        self.bare = False
        self.count = count
        self.last = last
        self.names = names
        self.denied = denied


class PodBook:
    """What was seen of one pod. `changed` since it was last asked for."""

    __slots__ = (
        *("addresses", "changed", "children", "earlier", "flows", "flows_kept", "folded", "last", "lately", "missing"),
        *("names", "room", "stray_flows", "stray_names", "turned", "withheld"),
    )

    def __init__(self, now: Seconds, room: Room = Room()) -> None:  # noqa: B008 (immutable)
        self.room = room
        self.addresses: tuple[Address, ...] = ()
        self.names: dict[Name, Asked] = {}
        self.missing: dict[Name, Asked] = {}
        self.folded: dict[Name, Asked] = {}
        self.children: dict[Name, int] = {}
        self.flows: dict[Address, dict[tuple[int, int], Went]] = {}
        self.flows_kept = 0
        self.lately: dict[Address, Name | tuple[Name, ...]] = {}
        self.earlier: dict[Address, Name | tuple[Name, ...]] = {}
        self.turned = now
        self.withheld: dict[Name, Address] = {}
        """A protected address that an answer for the name had: told in Audit, and no longer in Enforce."""
        self.stray_names = 0
        """Questions for names that found no room."""
        self.stray_flows = 0
        self.last = now
        self.changed = True

    def copy(self) -> PodBook:
        """One that another thread may read while this goes on; the records are shared."""
        copy = PodBook(self.last)
        copy.addresses, copy.last, copy.withheld = self.addresses, self.last, dict(self.withheld)
        copy.names, copy.missing, copy.folded = dict(self.names), dict(self.missing), dict(self.folded)
        copy.flows = {peer: dict(ports) for peer, ports in self.flows.items()}
        copy.stray_names, copy.stray_flows = self.stray_names, self.stray_flows
        return copy

    def absorb(self, earlier: PodBook) -> None:
        """Take over what an earlier process has seen of the pod."""
        for table, before in (
            (self.names, earlier.names),
            (self.missing, earlier.missing),
            (self.folded, earlier.folded),
        ):
            for name, asked in before.items():
                mine = table.setdefault(name, asked)
                if mine is not asked:
                    mine.again(asked)
        for name in self.missing.keys() & self.names.keys():
            del self.missing[name]
        for parent, count in earlier.children.items():
            self.children[parent] = max(count, self.children.get(parent, 0))
        for peer, ports in earlier.flows.items():
            for place, went in ports.items():
                self._absorb_flow((peer, *place), went)
        self.addresses = self.addresses or earlier.addresses
        self.withheld = {**earlier.withheld, **self.withheld}
        self.stray_names += earlier.stray_names
        self.stray_flows += earlier.stray_flows

    def _absorb_flow(self, to: tuple[Address, int, int], before: Went) -> None:
        went = self.flow(*to)
        if went is not None:
            went.count += before.count
            went.bare |= before.bare
            went.names = tuple(dict.fromkeys((*before.names, *went.names)))[-NAMES_PER_ADDRESS:]
            if before.last > went.last:
                went.last, went.denied = before.last, before.denied

    def told(self, address: Address, name: Name, now: Seconds) -> None:
        """An answer for `name` held this address."""
        if len(self.lately) >= self.room.addresses or now - self.turned >= LASTING:
            self.earlier, self.lately, self.turned = self.lately, {}, now
        known = _each(self.lately.get(address, ()))
        if not known:
            self.lately[address] = name
        elif name not in known:
            self.lately[address] = (*known, name)[-NAMES_PER_ADDRESS:]

    def judged(self, address: Address, name: Name, *, protected: bool) -> None:
        """Whether an address of the name is one that no answer may contain."""
        if protected and len(self.withheld) < MISSING:
            self.withheld[name] = address
        elif not protected and self.withheld.get(name) == address:
            del self.withheld[name]

    def names_of(self, address: Address) -> list[Name]:
        """The names that led to this address, as far as that is known."""
        names = [*_each(self.lately.get(address, ())), *_each(self.earlier.get(address, ()))]
        for went in self.flows.get(address, {}).values():
            names += went.names
        return list(dict.fromkeys(names))

    @property
    def names_kept(self) -> int:
        """Records of names that take of the pod's room: one for all names under a parent, too."""
        return len(self.names) + len(self.folded)

    def find(self, name: Name, outcome: Outcome) -> Asked:
        """The record of a name that is not in `names`; one that is kept nowhere when there is no room."""
        found = self.folded.get(parent_of(name))
        if found is not None:
            return found
        if outcome is Outcome.MISSING:
            return self._missing(name)
        before = self.missing.pop(name, None)
        if self.names_kept >= self.room.names:
            self.stray_names += 1
            return Asked()
        asked = self.names[name] = before or Asked()
        return self._fold(name) or asked

    def _missing(self, name: Name) -> Asked:
        found = self.missing.get(name)
        if found is None:
            found = Asked()
            if len(self.missing) < MISSING:
                self.missing[name] = found
            else:
                self.stray_names += 1
        return found

    def _fold(self, name: Name) -> Asked | None:
        """Make one record of all names under a parent once there are many; None when there are not."""
        parent = parent_of(name)
        count = self.children[parent] = self.children.get(parent, 0) + 1
        if count < FOLD or is_shared(parent):
            return None
        del self.children[parent]
        whole = self.folded[parent] = Asked(names=0)
        for child in [child for child in self.names if parent_of(child) == parent]:
            whole.add(self.names.pop(child))
        return whole

    def flow(self, peer: Address, protocol: int, port: int) -> Went | None:
        """The record of flows that go there; None when there is no room for another."""
        ports = self.flows.get(peer)
        if ports is not None and (found := ports.get((protocol, port))) is not None:
            return found
        if self.flows_kept >= self.room.flows:
            self.stray_flows += 1
            return None
        self.flows_kept += 1
        went = self.flows.setdefault(peer, {})[protocol, port] = Went(0, 0.0, (), denied=False)
        return went


class Book:
    """Implements `engine.contracts.Witness` for every pod, by its name."""

    def __init__(self) -> None:
        self.pods: dict[str, PodBook] = {}
        self._links: dict[str, LinkIndex] = {}
        """By which link a pod came that has no name."""
        self._room = Room()
        self._new = 0
        self.is_protected: Callable[[Address], bool] = lambda address: False

    def came(self, pod: str, link: LinkIndex, now: Seconds) -> None:
        """By another link comes another pod: what the one before did with that address is not to be allowed to it."""
        if len(self._links) > 4 * PODS:
            self._links = {name: by for name, by in self._links.items() if name in self.pods}
        if self._links.get(pod, link) != link and pod in self.pods:
            self.pods[pod] = PodBook(now, self._room)
        self._links[pod] = link

    def pod(self, name: str, now: Seconds) -> PodBook:
        """The book of this pod, begun when there is none."""
        found = self.pods.get(name)
        if found is None:
            if len(self.pods) >= PODS:
                del self.pods[min(self.pods, key=lambda one: self.pods[one].last)]
            found = self.pods[name] = PodBook(now, self._room)
            self.share()
        return found

    def share(self) -> None:
        """Give every pod its part of the room; when it is all used, the least. What is in stays in."""
        books, pods = self.pods.values(), max(1, len(self.pods))
        names, flows = sum(book.names_kept for book in books), sum(book.flows_kept for book in books)
        self._new = 0
        self._room = Room(
            _part(MOST_NAMES, LEAST_NAMES, NAMES // pods if names < NAMES else 0),
            _part(MOST_FLOWS, LEAST_FLOWS, FLOWS // pods if flows < FLOWS else 0),
            _part(MOST_ADDRESSES, LEAST_ADDRESSES, ADDRESSES // pods),
        )
        for book in books:
            book.room = self._room

    def _another(self) -> None:
        """There may be one more record."""
        self._new += 1
        if self._new >= _OFTEN:
            self.share()

    # ---- questions (run for every one of them: 0.3 us)

    def answered(self, pod: str, name: Name, answer: Answer, rule: str, now: Seconds) -> None:
        book = self.pods.get(pod) or self.pod(pod, now)
        addresses = answer.addresses
        asked = book.names.get(name)
        if asked is None:
            self._another()
            missing = not addresses and answer.rcode == _NXDOMAIN
            asked = book.find(name, Outcome.MISSING if missing else Outcome.EXISTS)
            asked.outcome = max(asked.outcome, Outcome.MISSING if missing else Outcome.EXISTS)
        elif asked.outcome != _EXISTS:
            asked.outcome = Outcome.MISSING if not addresses and answer.rcode == _NXDOMAIN else Outcome.EXISTS
        asked.count += 1
        asked.last = now
        asked.rule = rule
        book.changed = True
        lately = book.lately
        for address in addresses:
            if lately.get(address) != name:
                book.told(address, name, now)
                book.judged(address, name, protected=self.is_protected(address))

    def unanswered(self, pod: str, name: Name, rule: str, now: Seconds) -> None:
        book = self.pods.get(pod) or self.pod(pod, now)
        asked = book.names.get(name) or book.missing.get(name)
        if asked is None:
            self._another()
            asked = book.find(name, Outcome.UNKNOWN)
        asked.count += 1
        asked.last = now
        asked.rule = rule
        book.changed = True

    def names(self, pod: str, address: Address) -> Collection[Name]:
        book = self.pods.get(pod)
        return book.names_of(address) if book is not None else ()

    # ---- flows

    def went(
        self,
        pod: str,
        to: tuple[Address, int, int],
        count: int,
        now: Seconds,
        *,
        denied: bool,
        named: Iterable[Name] = (),
    ) -> None:
        """`count` more flows of a pod to an address, protocol and port; `named` are names that are known to lead there
        besides those of its answers."""
        book = self.pod(pod, now)
        self._another()
        went = book.flow(*to)
        if went is None:
            return
        went.count += count
        went.last = now
        went.denied = denied
        names = dict.fromkeys((*went.names, *book.names_of(to[0]), *named))
        went.bare |= not names
        went.names = tuple(names)[-NAMES_PER_ADDRESS:]
        book.changed = True

    def goes_on(self, pod: str, to: tuple[Address, int, int], now: Seconds) -> None:
        """A flow that was counted before is still open."""
        book = self.pods.get(pod)
        went = book.flows.get(to[0], {}).get(to[1:]) if book is not None else None
        if book is not None and went is not None:
            went.last = now
            book.changed = True

    def lives(self, pod: str, addresses: Collection[Address], now: Seconds) -> None:
        """A pod is on the node, with these addresses."""
        book = self.pods.get(pod)
        if book is not None:
            ordered = tuple(sorted(addresses, key=lambda one: (len(one), one)))
            book.changed |= book.addresses != ordered
            book.addresses, book.last = ordered, now

    def changed(self) -> Iterator[tuple[str, PodBook]]:
        """The pods of which something was seen since the last time, each marked as told."""
        for name, book in list(self.pods.items()):
            if book.changed:
                book.changed = False
                yield name, book


def _each(names: Name | tuple[Name, ...]) -> tuple[Name, ...]:
    """Most addresses have one name: half the memory without a tuple for it."""
    return (names,) if isinstance(names, bytes) else names


def _part(most: int, least: int, share: int) -> int:
    return max(least, min(most, share))


def parent_of(name: Name) -> Name:
    """The name without its first label; the root's own is the root."""
    return Name(name[1 + name[0] :] or name)
