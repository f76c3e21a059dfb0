"""The present values of every room, for the metrics and for health."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dnsguard.config.groups import Ebpf
from dnsguard.core.model import Seconds
from dnsguard.daemon.beside import LINE
from dnsguard.daemon.figures import busy
from dnsguard.daemon.rooms import Rooms
from dnsguard.daemon.supervision import STUCK
from dnsguard.enforce.enforcer import LineEnforcer
from dnsguard.observe.metrics import Gauges


def gauges(rooms: Rooms, upstreams: Callable[[], Mapping[str, bool]]) -> Gauges:
    """A function for each of them."""
    engine, tables = rooms.engine, rooms.configured.settings.tables
    return Gauges(
        ready=lambda: not rooms.readiness.missing(),
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
        kernel_counters_age=lambda: rooms.kernel_counters.age,
        log_lines_dropped=lambda: rooms.outlet.dropped,
        log_lines_suppressed=lambda: rooms.events.suppressed,
        log_events_failed=lambda: rooms.events.failed,
        udp_discarded=lambda: sum(each.discarded for each in rooms.udp.counts),
        udp_unsent=lambda: sum(each.unsent for each in rooms.udp.counts),
        tcp_cut=lambda: rooms.tcp.cut,
        drop_reports_lost=lambda: rooms.enforcer.reports_lost,
        upstreams_up=upstreams,
        links_without=lambda: links_without(rooms),
    )


def stuck(enforcer: LineEnforcer, now: Seconds) -> str:
    """Why the daemon is not alive; empty when it is. That the loop runs is shown by its being asked."""
    worked = busy(enforcer, now)
    return f"the kernel's writer has been at one piece of work for {worked:.0f} s" if worked > STUCK else ""


def links_without(rooms: Rooms) -> dict[str, int]:
    """On how many pod links each enforcer that the configuration asks for does not decide."""
    wanted = ("nftables",) if rooms.configured.settings.enforcement.ebpf is Ebpf.OFF else ("nftables", LINE)
    gaps = [gap["enforcer"] for gap in rooms.readiness.gaps()]
    return {one: gaps.count(one) for one in wanted}
