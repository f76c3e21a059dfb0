"""The eBPF line in the daemon's life: opened where the node can, put on every pod link, vouched for, and kept first.

`Auto` goes on with nftables alone where something is missing, and says what; `On` does not start then, and is not
ready while the programs are not the first on a link. Queries go up only while somebody vouches that what goes up is
intercepted: that stops at the first sign of damage, and by itself when the daemon is gone for longer than a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

from dnsguard.core.errors import DnsguardError, KernelError, MissingFeatureError, OldKernelError
from dnsguard.core.model import LinkIndex, Seconds
from dnsguard.core.pods import PodTable
from dnsguard.core.words import some
from dnsguard.daemon.drops import AnsweredInKernel, Drops
from dnsguard.enforce.bpf.attach import remove_all
from dnsguard.enforce.bpf.events import DropReader, answered, dropped, left_over
from dnsguard.enforce.bpf.layout import COUNT_KEY
from dnsguard.enforce.bpf.second import EbpfLayout, SecondLine
from dnsguard.enforce.denials import OnDenial
from dnsguard.enforce.nftables import NftEnforcer
from dnsguard.engine.contracts import EventKind, Events
from dnsguard.engine.counters import Counters
from dnsguard.engine.revoke import Revocation
from dnsguard.node.conntrack import Conntrack

VOUCH: Final[Seconds] = 0.1
"""Often, because queries wait for it once damage is repaired; 4 us each."""
VERIFY: Final[Seconds] = 1.0
SWEEP: Final[Seconds] = 5.0
NAMED: Final = 6
"""So many of what is alike are named in one event."""
BETWEEN_SLICES: Final[Seconds] = 0.01
LINE: Final = "ebpf"
"""The name of this line where enforcers are told apart: `nftables` is the other."""

Every = Callable[[Seconds, str, Callable[[], Coroutine[Any, Any, None]]], Coroutine[Any, Any, None]]
"""`every(seconds, where, do)`: runs until the stop, containing what goes wrong."""


def open_line(layout: EbpfLayout, events: Events, *, required: bool) -> tuple[SecondLine | None, str]:
    """The line, or None and why, with an event, where the node cannot and that is allowed."""
    try:
        return SecondLine(layout), ""
    except DnsguardError as error:
        if required:
            raise _as_missing(error) from error
        _tell_absent(error, events)
        remove_line(layout)
        return None, str(error)


def _tell_absent(error: DnsguardError, events: Events) -> None:
    """Where another kernel is all that would do, nothing is amiss on this node."""
    if isinstance(error, OldKernelError):
        events.emit(EventKind.FEATURE_LEFT_OUT, feature="enforcement.ebpf: Auto", reason=f"nftables alone: {error}")
    else:
        events.emit(EventKind.EBPF_NOT_USED, reason=str(error))


def remove_line(layout: EbpfLayout) -> None:
    """Take off the links what an earlier process left there: it would go on deciding by leases that nobody renews."""
    try:
        with ThreadPoolExecutor(1) as thread:  # pyroute2 refuses to work in a thread that has an event loop
            thread.submit(remove_all, layout.bpffs).result()
    except OSError as error:
        raise KernelError(f"eBPF programs of an earlier process cannot be removed: {error}") from error


def _as_missing(error: DnsguardError) -> MissingFeatureError:
    return MissingFeatureError(f"enforcement.ebpf is On, and cannot be: {error}")


class Beside:
    """The eBPF line beside nftables, in a running daemon."""

    def __init__(
        self, line: SecondLine, enforcer: NftEnforcer, events: Events, counters: Counters, *, on_denial: OnDenial
    ) -> None:
        self._line = line
        self._enforcer = enforcer
        self._events = events
        self._counters = counters
        self._reader = DropReader(line.maps["reports"], on_denial)
        self._links: dict[LinkIndex, str] = {}
        self._changes: asyncio.Queue[tuple[LinkIndex, str | None]] = asyncio.Queue()
        self._intercepting = False
        self._without: dict[LinkIndex, tuple[str, str]] = {}
        self._told: dict[str, str] = {}
        self._unmounted = False
        self._seed: Callable[[], Awaitable[None]] | None = None

    @property
    def failures(self) -> dict[str, str]:
        """Why the programs are not the first on a link, by its name."""
        return {**dict(self._without.values()), **self._line.failures}

    # ---- the interception

    def intercepting(self) -> None:
        """The table, the rule and the route stand, and the listeners listen: from here on it is vouched for."""
        self._intercepting = True
        self._vouch()

    def damaged(self) -> None:
        """Something of the interception may be gone."""
        self._line.distrust()

    def _vouch(self) -> None:
        if self._intercepting and self._enforcer.intact:
            self._line.vouch(time.monotonic())

    # ---- links

    def link_is(self, link: LinkIndex, name: str | None) -> None:
        """A pod link came, is called otherwise, or is gone (None)."""
        if self._links.get(link) == name:
            return
        if name is None:
            self._links.pop(link, None)
        else:
            self._links[link] = name
        self._changes.put_nowait((link, name))

    async def attach_all(self) -> None:
        """Return when the programs are on every link there is."""
        while not self._changes.empty():
            await self._follow(*self._changes.get_nowait())

    async def _follow(self, link: LinkIndex, name: str | None) -> None:
        self._without.pop(link, None)
        if name is None:
            await self._line.detach(link)
            return
        try:
            await self._line.attach(link, name)
        except MissingFeatureError as error:
            self._without[link] = name, str(error)
        except KernelError:
            pass  # the line goes on trying, and `_verify` tells why

    async def _verify(self) -> None:
        found = await self._line.verify()
        if found:
            self._counters.kernel_repairs[LINE] += len(found)
            self._events.emit(EventKind.KERNEL_STATE_REPAIRED, what=some(found, NAMED))
        if found and self._seed is not None:  # flows may have begun meanwhile
            await self._seed()
        self._tell_failures()

    def _tell_failures(self) -> None:
        """Each once; one event for all links with the same."""
        alike: defaultdict[str, list[str]] = defaultdict(list)
        failures = self.failures
        for name, why in failures.items():
            if self._told.get(name) != why:
                alike[why.replace(name, "a link")].append(name)
        for names in alike.values():
            self._events.emit(EventKind.LINK_WITHOUT_EBPF, links=some(names, NAMED), reason=failures[names[0]])
        self._told = failures

    async def _look_at_mount(self) -> None:
        if not self._unmounted and await asyncio.to_thread(lambda: self._line.unmounted):
            self._unmounted = True
            self._events.emit(EventKind.BPFFS_UNMOUNTED)

    # ---- flows

    async def seed(self, pods: PodTable, conntrack: Conntrack, revocation: Revocation) -> None:
        """Open flows are older than a line that begins, or than its map of them: take them over, those that pods began
        judged first."""
        addresses = {address for pod in pods for address in pod.addresses}
        if not addresses:
            return
        just = revocation.just(pods, await conntrack.begun_by(addresses))
        inbound = await conntrack.begun_towards(addresses)
        await self._enforcer.do(lambda: self._line.table.seed(just, inbound))

    async def begin(self, pods: PodTable, conntrack: Conntrack, revocation: Revocation) -> None:
        """Put the programs on the links, once the first policy is in the maps. Flows are taken over before, and again
        after, for those that began between."""
        self._seed = partial(self.seed, pods, conntrack, revocation)
        unknown = not self._line.knows_flows
        if unknown:
            await self._seed()
        await self.attach_all()
        await self._line.retain()
        if unknown:
            await self._seed()

    # ---- what runs until the stop

    def background(self, every: Every, drops: Drops) -> list[Coroutine[Any, Any, None]]:
        async def vouch() -> None:
            self._vouch()

        async def tell_left_over() -> None:
            for denial in await asyncio.to_thread(left_over, self._line.maps["drops"], time.monotonic_ns()):
                drops.tell(denial)

        return [
            every(VOUCH, "vouching", vouch),
            every(VERIFY, "eBPF links", self._verify),
            every(VERIFY, "the bpffs", self._look_at_mount),
            every(SWEEP, "eBPF maps", self._sweep),
            every(SWEEP, "eBPF reports", tell_left_over),
            every(0.0, "eBPF on a new link", self._follow_one),
        ]

    async def count(self, drops: Drops, answers: AnsweredInKernel) -> None:
        """Bring in what the programs have counted; one call at a time."""
        counts = await asyncio.to_thread(self._counts)
        drops.count(dropped(counts), LINE)
        answers.count(answered(counts))

    def adopt_counters(self, drops: Drops, answers: AnsweredInKernel) -> None:
        """What an earlier process has counted is not of this one."""
        counts = self._counts()
        drops.adopt(dropped(counts), LINE)
        answers.adopt(answered(counts))

    def _counts(self) -> _Copy:
        """All counters, those of links that are gone for the last time."""
        counts = self._line.maps["counts"]
        found = dict(counts.items())
        counts.delete_many([key for key in found if COUNT_KEY.unpack(key)[0] not in self._links])
        return _Copy(found)

    async def _follow_one(self) -> None:
        await self._follow(*await self._changes.get())

    async def _sweep(self) -> None:
        while await self._enforcer.do(self._line.table.sweep):
            await asyncio.sleep(BETWEEN_SLICES)

    def close(self) -> None:
        """What is in the kernel stays in force."""
        with contextlib.suppress(OSError):
            self._reader.close()


class _Copy:
    """`counts`, read once for both who want it."""

    def __init__(self, counts: Mapping[bytes, bytes]) -> None:
        self.items = lambda: iter(counts.items())
