"""The nftables enforcer: what the engine sees of dnsguard's table.

Made inside the network namespace it works in. Every call queues work for the writer's thread; results and reports
come back in the event loop. What the kernel holds outlives this object: `close` leaves it in force, `cleanup` does not.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Collection, Sequence

from dnsguard.core.errors import MissingFeatureError
from dnsguard.core.model import Seconds
from dnsguard.enforce.denials import Dropped, OnDenial
from dnsguard.enforce.enforcer import LineEnforcer
from dnsguard.enforce.lines import Both, Line, Second
from dnsguard.enforce.nftables.denied import DenialReader, dropped
from dnsguard.enforce.nftables.endings import AUDIT_SHARES
from dnsguard.enforce.nftables.inventory import inventory, sets
from dnsguard.enforce.nftables.layout import Layout
from dnsguard.enforce.nftables.probe import Abilities, probe
from dnsguard.enforce.nftables.session import Session, delete_table
from dnsguard.enforce.nftables.table import Table
from dnsguard.enforce.nftables.watch import OnDamage, Watch
from dnsguard.enforce.writer import BusySince, OnCommit
from dnsguard.engine.contracts import Acknowledge, Desired, Element, Write

RETRY: Seconds = 1.0
"""How long after a repair that failed the next is tried."""
OnFailure = Callable[[str], None]
"""`on_failure(why)`: a repair has failed; it will be tried again."""


class NftEnforcer(LineEnforcer):
    """A `LineEnforcer` over the table, alone or with a second line beside it; make one with `create`."""

    abilities: Abilities
    _session: Session
    _table: Table
    _watch: Watch
    _denials: DenialReader

    def __init__(
        self,
        layout: Layout,
        acknowledge: Acknowledge,
        on_damage: OnDamage,
        *,
        on_failure: OnFailure,
        on_commit: OnCommit,
    ) -> None:
        super().__init__(acknowledge, on_commit)
        self._layout = layout
        self._on_damage, self._on_failure = on_damage, on_failure
        self._retry: asyncio.TimerHandle | None = None
        self._repair: asyncio.Future[None] | None = None
        self._repair_begun = False
        self._close: list[Callable[[], None]] = []
        self._opened = self._closing = False

    @classmethod
    async def create(
        cls,
        layout: Layout,
        acknowledge: Acknowledge,
        on_damage: OnDamage,
        on_denial: OnDenial,
        *,
        on_failure: OnFailure = lambda why: None,
        on_commit: OnCommit = lambda seconds, elements: None,
        own: bool | None = None,
        beside: Second | None = None,
        on_beside: OnCommit = lambda seconds, elements: None,
        before_claim: Callable[[], None] = lambda: None,
        on_writer: Callable[[BusySince], None] = lambda busy_since: None,
    ) -> NftEnforcer:
        """Probe the kernel, and take over the table that an earlier process left, as it is; the first `apply`
        changes it, or makes it. `own` False leaves the table open to others, as older kernels must; None owns it
        where that is possible. `beside` is a second line, which from here on belongs to the writer's thread,
        and `on_beside` is told of its part of each commit before `on_commit` is of the whole. `before_claim` is
        called in the writer's thread right before the table is taken over, for who has held its owner's port till now.
        `on_writer` is called at once, before the writer's first work, for who watches whether its thread gets on.

        `on_damage(what)` is called in the loop when someone else has changed the table, with its repair already
        queued (await `repair` for its end). Raises KernelError, or MissingFeatureError without libnftables.
        """
        enforcer = cls(layout, acknowledge, on_damage, on_failure=on_failure, on_commit=on_commit)
        on_writer(lambda: enforcer.busy_since)
        try:
            await enforcer.open(lambda: enforcer._take_over(own, beside, on_beside, before_claim))
            enforcer._watch = Watch(enforcer._session.port, enforcer._damaged)
            enforcer._close.append(enforcer._watch.close)
            enforcer._stop_watching_what_is_owned()
            enforcer._denials = DenialReader(layout.nflog_group, on_denial)
            enforcer._close.append(enforcer._denials.close)
        except BaseException:
            await enforcer.close()
            raise
        return enforcer

    def _take_over(
        self, own: bool | None, beside: Second | None, on_beside: OnCommit, before_claim: Callable[[], None]
    ) -> Line:
        self._session = _session()
        self._opened = True
        self.abilities = probe(self._session)
        before_claim()
        wanted = self.abilities.own if own is None else own and self.abilities.own
        self._table = Table(self._session, self._layout, wanted, self.abilities.refreshes)
        if beside is None:
            return self._table
        both = Both(self._table, beside, on_beside)
        both.reconcile()
        return both

    def apply(
        self, desired: Desired, add: Sequence[Write] = (), remove: Collection[Element] = ()
    ) -> asyncio.Future[None]:
        applied = super().apply(desired, add, remove)
        applied.add_done_callback(self._stop_watching_what_is_owned)
        return applied

    def _stop_watching_what_is_owned(self, _: object = None) -> None:
        """Nobody else can change an owned table, and hearing of everybody's changes to other tables is not free."""
        if self._table.owned:
            self._watch.close()

    def verify(self) -> Awaitable[Sequence[str]]:
        """What is wrong with the table's chains and sets; empty when nothing is. Some milliseconds."""
        return self._writer.do(lambda: self._table.verify())

    def stands(self) -> Awaitable[bool]:
        """Whether there is a table that intercepts: an earlier process's, before the first `apply`."""
        return self._writer.do(lambda: "dns" in inventory(self._session).chains)

    def audits(self) -> Awaitable[bool]:
        """Whether the table lets through what no rule accepts: an earlier process's, before the first `apply`. Flows
        that it let open are then to be judged."""
        return self._writer.do(lambda: AUDIT_SHARES in sets(self._session))

    def dropped(self) -> Awaitable[Sequence[Dropped]]:
        """The counters of dropped packets. They begin again at 0 an hour after the last packet."""
        return self._writer.do(lambda: dropped(self._session, sets(self._session)))

    def repair(self) -> Awaitable[None]:
        """Make the table what it should be, leases and cuts included; joins the repair under way, if there is one."""
        if self._repair is None or self._repair.done():
            self._queue_repair()
        assert self._repair is not None
        return asyncio.shield(self._repair)

    def _damaged(self, what: str) -> None:
        if self._repair is None or self._repair.done() or self._repair_begun:
            self._queue_repair()  # one that has begun may have passed what was damaged just now
        self._on_damage(what)

    def _queue_repair(self) -> None:
        self._repair_begun = False
        self._repair = self._writer.do(self._repair_now)
        self._repair.add_done_callback(self._repair_ended)

    def _repair_ended(self, repair: asyncio.Future[None]) -> None:
        """Until one succeeds the table is not what it should be: say so, and go on trying."""
        if repair.cancelled() or (error := repair.exception()) is None:
            return
        self._on_failure(str(error) or type(error).__name__)
        if not self._closing:
            self._retry = asyncio.get_running_loop().call_later(RETRY, self._queue_repair)

    def _repair_now(self) -> None:
        self._repair_begun = True
        self._table.repair()

    @property
    def intact(self) -> bool:
        """False from the first sign of damage until the table is what it should be again."""
        repair = self._repair
        return repair is None or (repair.done() and not repair.cancelled() and repair.exception() is None)

    @property
    def owned(self) -> bool:
        """True when no other process can change the table while this one lives."""
        return self._table.owned

    @property
    def owner(self) -> socket.socket:
        """The netlink port that owns the table; who holds a duplicate of it keeps all others from changing it."""
        return self._session.socket

    @property
    def reports_lost(self) -> int:
        """Times that reports of dropped packets overflowed; their counters lost nothing."""
        return self._denials.lost

    async def close(self) -> None:
        """End the thread and the readers. The table stays in force; the second line is its maker's to close."""
        self._closing = True
        if self._retry is not None:
            self._retry.cancel()
        while self._close:
            self._close.pop()()
        await super().close()
        if self._opened:
            self._opened = False
            self._session.close()

    async def cleanup(self) -> None:
        """Take the table out of the kernel, then `close`."""
        await self._writer.do(lambda: self._table.remove())
        await self.close()


def close_links(layout: Layout) -> bool:
    """Install the table with no pod in it, unless there is one; True when it was installed. For no event loop: it
    blocks. Raises KernelError, or MissingFeatureError."""
    session = _session()
    try:
        if "intercept" in inventory(session).chains:
            return False
        abilities = probe(session)
        Table(session, layout, abilities.own, abilities.refreshes).apply(Desired(), (), ())
        return True
    finally:
        session.close()


def _session() -> Session:
    try:
        return Session()
    except PermissionError as error:
        raise MissingFeatureError("CAP_NET_ADMIN is missing: nftables needs it") from error


def remove_table() -> bool:
    """Take out the table of a process that has ended; True when there was one. For no event loop: it blocks.

    Raises KernelError when a living process owns it.
    """
    session = Session()
    try:
        if session.table() is None:
            return False
        session.commit([delete_table()], "to delete the table (is dnsguard running?)")
        return True
    finally:
        session.close()
