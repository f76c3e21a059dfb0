"""What a scrape finds: the kernel's counters as they stand at that moment, and the present values of every room.

Needs the rooms of a running daemon. The kernel is read in the background every few seconds, too, so that its counters
are not lost with a link or a table that goes; a scrape reads it again, and waits for that only so long.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from dnsguard.config.groups import Ebpf, Settings
from dnsguard.core.model import Seconds
from dnsguard.daemon.beside import LINE
from dnsguard.daemon.policies import Policies
from dnsguard.daemon.reports import Reports
from dnsguard.enforce.enforcer import LineEnforcer
from dnsguard.enforce.nftables import NftEnforcer
from dnsguard.engine.engine import Engine
from dnsguard.listen.tcp import TcpListener
from dnsguard.listen.udp import UdpListener
from dnsguard.observe.events import EventLog
from dnsguard.observe.metrics import Gauges
from dnsguard.observe.outlet import Outlet

FRESH: Final[Seconds] = 1.0
"""What was read so short a time ago is not read again: scraping often must not keep the kernel busy."""
PATIENCE: Final[Seconds] = 2.0
"""How long a scrape waits for the kernel. Prometheus itself gives up after 10 s, unless told otherwise."""
STUCK: Final[Seconds] = 10.0
"""One piece of the writer's work takes milliseconds, a policy of 100,000 prefixes some seconds."""

Reading = Callable[[], Awaitable[None]]


class KernelCounters:
    """Brings what the kernel has counted into the metrics, one reading at a time.

    A reading that fails is told to `defect` and ends that turn, so that `age` grows. `close` in the end.
    """

    def __init__(
        self,
        readings: Sequence[Reading],
        now: Callable[[], Seconds],
        defect: Callable[[str, Exception], None],
    ) -> None:
        self._readings = tuple(readings)
        self._now = now
        self._defect = defect
        self._begun = now()
        self._read_at: Seconds | None = None
        self._reading: asyncio.Task[None] | None = None

    @property
    def age(self) -> Seconds:
        """How old the counters are."""
        return self._now() - (self._begun if self._read_at is None else self._read_at)

    async def read(self) -> None:
        """Read now, or join the reading under way."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())
        await asyncio.shield(self._reading)

    async def fresh(self) -> None:
        """At most FRESH old when it returns, or as old as they are after PATIENCE."""
        if self._read_at is not None and self.age < FRESH:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await self.read()

    async def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reading

    async def _read(self) -> None:
        for reading in self._readings:
            try:
                await reading()
            except Exception as error:
                self._defect("kernel counters", error)
                return
        self._read_at = self._now()


@dataclass(frozen=True, slots=True)
class Rooms:
    """Where the present values are."""

    settings: Settings
    engine: Engine
    enforcer: NftEnforcer
    udp: UdpListener
    tcp: TcpListener
    events: EventLog
    outlet: Outlet
    counters: KernelCounters
    policies: Policies
    reports: Reports
    now: Callable[[], Seconds]


def gauges(rooms: Rooms) -> Gauges:
    """A function for each of them."""
    engine, tables = rooms.engine, rooms.settings.tables
    return Gauges(
        ready=lambda: not rooms.reports.missing(),
        pods=lambda: len(engine.pods),
        pods_limit=lambda: tables.pods,
        leases=lambda: engine.leases.elements,
        leases_limit=lambda: tables.leases,
        held_answers=lambda: engine.exchanges.gate.holding,
        in_flight=lambda: len(engine.exchanges),
        cache_entries=lambda: len(engine.cache),
        tcp_connections=lambda: len(rooms.tcp.connections),
        policy_generation=lambda: engine.changes.generation,
        audit=lambda: float(engine.exchanges.audit),
        policy_load_failed=lambda: rooms.policies.rejected,
        writer_busy=lambda: busy(rooms.enforcer, rooms.now()),
        kernel_counters_age=lambda: rooms.counters.age,
        log_lines_dropped=lambda: rooms.outlet.dropped,
        log_lines_suppressed=lambda: rooms.events.suppressed,
        log_events_failed=lambda: rooms.events.failed,
        udp_discarded=lambda: sum(each.discarded for each in rooms.udp.counts),
        udp_unsent=lambda: sum(each.unsent for each in rooms.udp.counts),
        tcp_cut=lambda: rooms.tcp.cut,
        drop_reports_lost=lambda: rooms.enforcer.reports_lost,
        upstreams_up=rooms.reports.upstreams,
        links_without=lambda: links_without(rooms),
    )


def busy(enforcer: LineEnforcer, now: Seconds) -> Seconds:
    """How long the writer's thread has been at its present piece of work; 0 when it has none."""
    since = enforcer.busy_since
    return 0.0 if since is None else max(0.0, now - since)


def stuck(enforcer: LineEnforcer, now: Seconds) -> str:
    """Why the daemon is not alive; empty when it is. That the loop runs is shown by its being asked."""
    worked = busy(enforcer, now)
    return f"the kernel's writer has been at one piece of work for {worked:.0f} s" if worked > STUCK else ""


def links_without(rooms: Rooms) -> dict[str, int]:
    """On how many pod links each enforcer that the configuration asks for does not decide."""
    wanted = ("nftables",) if rooms.settings.enforcement.ebpf is Ebpf.OFF else ("nftables", LINE)
    gaps = [gap["enforcer"] for gap in rooms.reports.gaps()]
    absent = set(wanted) - set(rooms.reports.enforcers)
    return {one: len(rooms.engine.pods) if one in absent else gaps.count(one) for one in wanted}
