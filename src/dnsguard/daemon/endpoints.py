"""What others may ask of a running daemon: the control socket, and metrics and health over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack

from dnsguard.control.api import ControlServer
from dnsguard.daemon.gauges import gauges, stuck
from dnsguard.daemon.reports import Reports
from dnsguard.daemon.rooms import Rooms
from dnsguard.observe.health import Health, HealthServer
from dnsguard.observe.metrics import Metrics, build_registry
from dnsguard.observe.watching import Watching


async def open_endpoints(
    rooms: Rooms, exits: AsyncExitStack, defect: Callable[[str, Exception], None]
) -> ControlServer:
    """Listen from here on, until `exits` closes. `defect(where, error)` hears of errors that no answer foresees.

    Raises DnsguardError when the socket or the address cannot be had.
    """
    settings = rooms.configured.settings
    reports = Reports(rooms, totals=lambda: metrics.totals())
    metrics = Metrics(rooms.engine.counters, list(reports.upstreams()), gauges(rooms, reports.upstreams))
    control = ControlServer(
        settings.paths.runtime,
        {
            "status": reports.status,
            "version": reports.version,
            "pods": reports.pod_rows,
            "leases": reports.lease_rows,
            "explain": reports.explain,
            "denials": reports.denial_rows,
            "monitor": Watching(rooms.events, reports.names).rows,
            "learn": rooms.seen.rows,
            "reload": rooms.reloads.ask,
        },
        lambda call, error: defect("control socket", error),
    )
    await control.start()
    exits.push_async_callback(control.stop)
    exits.callback(rooms.reloads.close)
    if (listen := settings.metrics.listen) is not None:
        missing, refresh = rooms.readiness.missing, rooms.kernel_counters.fresh
        health = Health(missing, lambda: stuck(rooms.enforcer, rooms.now()), refresh)
        server = HealthServer(str(listen), build_registry(metrics), health)
        await server.start()
        exits.push_async_callback(server.stop)
    return control
