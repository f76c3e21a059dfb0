"""The way of intercepted packets to the listeners: an `ip rule` for the mark and a table that delivers locally.

A follower of the node's `Watch`. Once installed, what someone else removes is put back at once. TPROXY gives a packet
its socket, but routing still decides that it stays on the node (Documentation/networking/tproxy.rst); without the
rule intercepted packets are dropped, not let through.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dnsguard.core.errors import KernelError, MissingFeatureError
from dnsguard.core.model import Address, LinkIndex
from dnsguard.node.rtnetlink import LOCAL, Change, Link, PolicyRule, Route
from dnsguard.node.watch import Watch

OUR_PROTOCOL = 153
"""Tells our rules and routes from others' (`proto 153` in `ip rule` and `ip route`)."""
LOOPBACK = LinkIndex(1)
LOCAL_TABLE = 255
IPV6_PRIORITY = 1024
"""What the kernel makes of an IPv6 route without a priority."""
ABSENT = frozenset({errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT})

OnRepair = Callable[[str], None]
Part = PolicyRule | Route


@dataclass(frozen=True, slots=True)
class InterceptionRoute:
    """Where to put it: packets with `mark` (those bits and whatever others) go by `table`, asked at `priority`."""

    mark: int
    priority: int
    table: int

    def parts(self, family: int) -> tuple[Part, ...]:
        """The route before the rule that leads to it."""
        size, priority = (4, 0) if family == socket.AF_INET else (16, IPV6_PRIORITY)
        everywhere = Address(bytes(size))
        return (
            Route(family, self.table, everywhere, 0, LOOPBACK, LOCAL, OUR_PROTOCOL, priority),
            PolicyRule(family, self.priority, self.table, self.mark, self.mark, OUR_PROTOCOL),
        )


class Interception:
    """Keeps the rule and the route of both families. Callbacks are called in the event loop's thread."""

    def __init__(self, route: InterceptionRoute, on_repair: OnRepair, on_problem: Callable[[str], None]) -> None:
        self._route, self._on_repair, self._on_problem = route, on_repair, on_problem
        self._wanted: tuple[Part, ...] = ()
        self._present: set[Part] = set()
        self._others: set[PolicyRule] = set()
        self._complained: set[PolicyRule] = set()
        self._loopback_up = True

    async def install(self) -> None:
        """Have it in place and nothing stale of ours beside it. Raises KernelError, MissingFeatureError."""
        await asyncio.wrap_future(self._watch.call(self._install))

    async def remove(self) -> list[Part]:
        """Take away everything that is ours, of an earlier process too; what that was."""
        return await asyncio.wrap_future(self._watch.call(self._remove))

    # -- in the watch's thread ------------------------------------------------------------------------------------

    def attach(self, watch: Watch) -> None:
        self._watch = watch

    def reset(self) -> None:
        self._present.clear()
        self._others.clear()

    def apply(self, change: Change) -> None:
        match change.what:
            case PolicyRule() as rule:
                self._rule(rule, change.there)
            case Route(table=table, protocol=protocol) as route if (
                table == self._route.table or protocol == OUR_PROTOCOL
            ):
                self._routed(route, change.there, change.replaces)
            case Link(number=number) as link if number == LOOPBACK and change.there:
                self._loopback(link)

    async def settle(self) -> None:
        missing = [part for part in self._wanted if part not in self._present]
        if missing and self._loopback_up:
            for part in missing:
                await self._add(part)
            texts = ", ".join(map(_text, missing))
            self._watch.post(self._on_repair, f"put back: {texts}")
        if self._wanted:
            self._complain()

    def _rule(self, rule: PolicyRule, there: bool) -> None:
        if rule.protocol == OUR_PROTOCOL:
            (self._present.add if there else self._present.discard)(rule)
        elif there and takes(rule, self._route):
            self._others.add(rule)
        elif not there:
            self._others.discard(rule)
            self._complained.discard(rule)

    def _routed(self, route: Route, there: bool, replaces: bool) -> None:
        if replaces or not there:
            self._present -= {one for one in self._present if isinstance(one, Route) and one.place == route.place}
        if there:
            self._present.add(route)

    def _loopback(self, link: Link) -> None:
        if self._loopback_up and not link.up:
            # The kernel takes the IPv4 route away with its link and says nothing of it.
            self._present = {part for part in self._present if not isinstance(part, Route)}
            if self._wanted:
                self._watch.post(self._on_problem, "the link lo is down: intercepted queries are dropped; set it up")
        self._loopback_up = link.up

    def _complain(self) -> None:
        for rule in self._others - self._complained:
            self._complained.add(rule)
            text = f"an ip rule of priority {rule.priority} stands before ours ({self._route.priority})"
            self._watch.post(self._on_problem, f"{text} and may take intercepted queries to table {rule.table}")

    # -- changing the kernel --------------------------------------------------------------------------------------

    async def _install(self) -> None:
        families = [family for family in (socket.AF_INET, socket.AF_INET6) if await self._add_family(family)]
        self._wanted = tuple(part for family in families for part in self._route.parts(family))
        for stale in [part for part in self._ours() if part not in self._wanted]:
            await self._delete(stale)
        self._complain()

    async def _add_family(self, family: int) -> bool:
        """False when the kernel has no such family."""
        try:
            for part in self._route.parts(family):
                if part not in self._present:
                    await self._add(part)
        except OSError as error:
            if family == socket.AF_INET6 and error.errno in ABSENT:
                return False
            if error.errno == errno.EPERM:
                raise MissingFeatureError("ip rules and routes need CAP_NET_ADMIN; run as root or grant it") from error
            raise KernelError(f"cannot add an ip rule or route ({error.strerror})") from error
        return True

    async def _remove(self) -> list[Part]:
        self._wanted = ()
        ours = self._ours()
        for part in ours:
            await self._delete(part)
        return ours

    def _ours(self) -> list[Part]:
        """Rules first: a rule never leads to an empty table."""
        ours = [part for part in self._present if part.protocol == OUR_PROTOCOL]
        return sorted(ours, key=lambda part: isinstance(part, Route))

    async def _add(self, part: Part) -> None:
        if isinstance(part, Route):
            await self._watch.ask(lambda kernel: kernel.route("replace", **part.fields))
        else:
            with contextlib.suppress(FileExistsError):  # its notification is on the way
                await self._watch.ask(lambda kernel: kernel.rule("add", **part.fields))
        self._present.add(part)

    async def _delete(self, part: Part) -> None:
        try:
            if isinstance(part, Route):
                await self._watch.ask(lambda kernel: kernel.route("del", **part.fields))
            else:
                await self._watch.ask(lambda kernel: kernel.rule("del", **part.fields))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESRCH):  # gone already
                raise
        self._present.discard(part)


def unusable_sysctls(root: Path = Path("/proc/sys/net")) -> list[str]:
    """Settings of this network namespace under which interception or the pods' traffic fails, each with the remedy."""
    expected = {
        "ipv4/ip_forward": ("1", "what pods send over IPv4 is not forwarded"),
        "ipv6/conf/all/forwarding": ("1", "what pods send over IPv6 is not forwarded"),
        "ipv6/conf/lo/disable_ipv6": ("0", "intercepted queries over IPv6 are dropped"),
        # The check of the source then looks along our rule, finds the source to be the node, and drops the packet.
        "ipv4/conf/all/src_valid_mark": ("0", "intercepted queries over IPv4 are dropped"),
        "ipv4/conf/default/src_valid_mark": ("0", "intercepted queries over IPv4 of new pods are dropped"),
    }
    found = []
    for name, (value, otherwise) in expected.items():
        path = root / name
        if path.exists() and path.read_text().strip() != value:
            found.append(f"net.{name.replace('/', '.')} is {path.read_text().strip()}: {otherwise}; set it to {value}")
    return found


def takes(rule: PolicyRule, ours: InterceptionRoute) -> bool:
    """Whether a packet that carries our mark alone may be taken by this rule before it comes to ours."""
    return rule.priority < ours.priority and rule.table != LOCAL_TABLE and ours.mark & rule.mask == rule.mark


def _text(part: Part) -> str:
    family = "IPv4" if part.family == socket.AF_INET else "IPv6"
    if isinstance(part, Route):
        return f"{family} route to the node itself in table {part.table}"
    return f"{family} rule for mark {part.mark:#x}"
