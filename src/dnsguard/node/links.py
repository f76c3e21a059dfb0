"""Which pod links there are, and which addresses are routed to each: how pods come, change and go.

A follower of the node's `Watch`. It promises the full set of a link's host routes (/32, /128, every routing table)
each time that set changes, None once the link is gone, and the node's own addresses, those included that it shares
with a network (broadcast, anycast). It never follows a route that is wider than one host, nor IPv6 link-local and
multicast ones.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection, Iterable
from typing import TypeVar

from dnsguard.core.model import Address, LinkIndex
from dnsguard.node.rtnetlink import UNICAST, Change, Link, LinkAddress, Route
from dnsguard.node.watch import Watch

K = TypeVar("K")

OnLink = Callable[[LinkIndex, str, frozenset[Address] | None], None]
"""`on_link(link, name, addresses)`; None: the link is gone, and its number may come back for another."""
OnAddresses = Callable[[frozenset[Address]], None]

SERVICE_LINKS = frozenset({"kube-ipvs0"})
"""Hold the addresses of services, not of the node (kube-proxy in IPVS mode)."""


class LinkPatterns:
    """Interface names, each as it is or as a beginning followed by `*`."""

    def __init__(self, patterns: Iterable[str]) -> None:
        every = tuple(patterns)
        self._beginnings = tuple(pattern[:-1] for pattern in every if pattern.endswith("*"))
        self._names = frozenset(every)

    def __contains__(self, name: str) -> bool:
        return name in self._names or (name != "" and name.startswith(self._beginnings))


class Links:
    """The pod links. All callbacks are called in the event loop's thread, first with what is there at the start."""

    def __init__(
        self, patterns: Iterable[str], on_link: OnLink, on_problem: Callable[[str], None], on_addresses: OnAddresses
    ) -> None:
        self._patterns = LinkPatterns(patterns)
        self._on_link, self._on_problem, self._on_addresses = on_link, on_problem, on_addresses
        self._links: dict[LinkIndex, Link] = {}
        self._routes: dict[LinkIndex, set[Route]] = {}
        self._places: dict[tuple[object, ...], set[Route]] = {}
        self._own: set[LinkAddress] = set()
        self._touched: set[LinkIndex] = set()
        self._posts: list[tuple[LinkIndex, str, frozenset[Address] | None]] = []
        self._told: dict[LinkIndex, tuple[str, frozenset[Address]]] = {}
        self._told_own: frozenset[Address] | None = None
        self._wide: dict[LinkIndex, set[Address]] = {}
        """Wide routes already complained of."""

    # -- in the watch's thread ------------------------------------------------------------------------------------

    def attach(self, watch: Watch) -> None:
        self._watch = watch

    def reset(self) -> None:
        for known in (self._links, self._routes, self._places, self._own):
            known.clear()
        self._touched.update(self._told)

    def apply(self, change: Change) -> None:
        match change:
            case Change(Link() as link, there=True):
                self._link_is(link)
            case Change(Link() as link):
                self._link_went(link)
            case Change(LinkAddress() as own, there=True):
                self._own.add(own)
            case Change(LinkAddress() as own):
                self._own.discard(own)
                self._forget_sourced(own.address)
            case Change(Route() as route, there=True, replaces=replaces):
                self._route_is(route, replaces=replaces)
            case Change(Route() as route):
                self._forget(route)

    async def settle(self) -> None:
        for index in self._touched:
            self._tell(index)
        self._touched.clear()
        if self._posts:
            self._watch.post(self._deliver, tuple(self._posts))
            self._posts.clear()
        on_links = [one for one in self._own if self._name(one.link) not in SERVICE_LINKS]
        own = frozenset[Address]().union(*({one.address} | one.shared for one in on_links))
        if own != self._told_own:
            self._told_own = own
            self._watch.post(self._on_addresses, own)

    def _tell(self, index: LinkIndex) -> None:
        told = self._told.get(index)
        if self._name(index) in self._patterns:
            now = self._name(index), frozenset(route.destination for route in self._routes.get(index, ()))
            if now != told:
                self._told[index] = now
                self._posts.append((index, *now))
        elif told is not None:
            del self._told[index]
            self._posts.append((index, told[0], None))

    def _deliver(self, posts: Collection[tuple[LinkIndex, str, frozenset[Address] | None]]) -> None:
        for post in posts:
            self._on_link(*post)

    def _name(self, index: LinkIndex) -> str:
        return self._links[index].name if index in self._links else ""

    # -- links ----------------------------------------------------------------------------------------------------

    def _link_is(self, link: Link) -> None:
        before = self._links.get(link.number)
        self._links[link.number] = link
        self._touched.add(link.number)
        if not link.up:
            self._forget_all(link.number)  # the kernel says nothing of IPv4 routes that end with their link
        if before is not None and before.name not in self._patterns and link.name in self._patterns:
            self._watch.invalidate()  # its routes were passed over so far

    def _link_went(self, link: Link) -> None:
        self._links.pop(link.number, None)
        self._forget_all(link.number)
        self._wide.pop(link.number, None)
        self._own = {own for own in self._own if own.link != link.number}
        self._tell(link.number)  # at once: another link may get its number before the next settling
        self._touched.discard(link.number)

    # -- routes ---------------------------------------------------------------------------------------------------

    def _route_is(self, route: Route, *, replaces: bool) -> None:
        if replaces:
            replaced = self._places.get(route.place, frozenset[Route]())
            if len(replaced) > 1:
                self._watch.invalidate()  # one of several at this place: the kernel does not say which
            for old in tuple(replaced):
                self._forget(old)
        if route.type != UNICAST or self._name(route.link) not in self._patterns or _is_local_matter(route):
            return
        if route.length != 8 * len(route.destination):
            self._complain_of_wide(route)
            return
        self._routes.setdefault(route.link, set()).add(route)
        self._places.setdefault(route.place, set()).add(route)
        self._touched.add(route.link)

    def _forget(self, route: Route) -> None:
        """Forget the route; in a notification of its end its lesser features may differ from what came before."""
        for known in [one for one in self._places.get(route.place, ()) if one.link == route.link]:
            _discard(self._places, known.place, known)
            _discard(self._routes, known.link, known)
            self._touched.add(known.link)

    def _forget_all(self, index: LinkIndex) -> None:
        for route in tuple(self._routes.get(index, ())):
            self._forget(route)

    def _forget_sourced(self, address: Address) -> None:
        """IPv4 routes end with the address they prefer as source, and nothing is said of it (fib_sync_down_addr)."""
        if len(address) == 4:
            for routes in tuple(self._routes.values()):
                for route in [one for one in routes if one.preferred_source == address]:
                    self._forget(route)

    def _complain_of_wide(self, route: Route) -> None:
        if route.destination in self._wide.setdefault(route.link, set()):
            return
        self._wide[route.link].add(route.destination)
        prefix = f"{ipaddress.ip_address(bytes(route.destination))}/{route.length}"
        text = f"{prefix} is routed to pod link {self._name(route.link)}: only routes to single addresses make pods"
        self._watch.post(self._on_problem, text)


def _is_local_matter(route: Route) -> bool:
    """IPv6 link-local (fe80::/10) and multicast routes are on every link and say nothing about pods."""
    first, second = route.destination[0], route.destination[1]
    if route.family == 2:
        return 224 <= first < 240
    return first == 0xFF or (first == 0xFE and second & 0xC0 == 0x80)


def _discard(index: dict[K, set[Route]], key: K, route: Route) -> None:
    routes = index[key]
    routes.discard(route)
    if not routes:
        del index[key]
