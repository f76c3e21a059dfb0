"""The daemon: reads the configuration, builds the rooms, starts them in order, and stops them.

Order of a start: lock, allowlist (in a child process), nftables table (what an earlier process left stays in force),
interception routes, listening sockets, links and pods with the leases that the kernel still holds, then queries. It
is ready when all of that stands. Order of a stop: no new queries, those in flight are answered, then every room
closes; enforcement stays in the kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import os
import resource
import signal
import sys
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import uvloop

from dnsguard import __version__, assembly
from dnsguard.config.diagnostics import ConfigError, Diagnostic, Severity, exit_code
from dnsguard.config.settings import Settings, load_settings, unbuilt_defaults
from dnsguard.control.api import ControlServer
from dnsguard.control.calls import CallError, Reloaded, Status, Version, exit_code_of
from dnsguard.core.attempts import Servers
from dnsguard.core.errors import DnsguardError
from dnsguard.core.model import Address, LinkIndex
from dnsguard.enforce.nftables.denied import Denial, Dropped
from dnsguard.enforce.nftables.enforcer import NftEnforcer, remove_table
from dnsguard.engine.contracts import EventKind, Ticket
from dnsguard.engine.counters import Counters
from dnsguard.engine.engine import Engine, Surroundings
from dnsguard.listen.tcp import TcpLimits, TcpListener
from dnsguard.listen.transparent import ListenSockets, open_sockets
from dnsguard.listen.udp import UdpListener
from dnsguard.node.conntrack import Conntrack
from dnsguard.node.links import Links
from dnsguard.node.routing import Interception
from dnsguard.node.watch import Watch
from dnsguard.observe.events import EventLog
from dnsguard.observe.health import HealthServer
from dnsguard.observe.log import LEVELS, open_log
from dnsguard.observe.metrics import Gauges, Metrics, build_registry
from dnsguard.observe.ratelimit import LineLimiter
from dnsguard.reports import Reports
from dnsguard.restore import restore
from dnsguard.sources.loader import Loaded, load
from dnsguard.sources.store import Store
from dnsguard.upstream.health import Probes
from dnsguard.upstream.matching import Reports as UpstreamReports
from dnsguard.upstream.transport import Transport

TICK: Final = 0.05
"""Seconds between two looks at deadlines."""
DRAIN: Final = 4.5
"""Seconds that queries in flight get at a stop: their own deadline, and a little."""
REMEMBER: Final = 60.0
"""Seconds between two looks at which open flows still need what ended leases stood on."""
DROPPED: Final = 5.0
"""Seconds between two readings of the kernel's counters of dropped packets."""
_WHY_DROPPED: Final = {
    "source": "its source address is not routed to that link",
    "unknown": "its source address is no pod's on that link",
    "listener": "a query, and nobody listened",
    "rule": "a Deny rule closes it",
    "cut": "the flow was cut, the policy no longer allows it",
}
"""Reasons of the kernel that say it all; behind `default` the leases are asked."""
_PROTOCOLS: Final = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp"}


def run(config: Path) -> int:
    """Run in the foreground until SIGTERM or SIGINT; returns the exit code."""
    try:
        settings = load_settings(config)
        with _lock(settings.paths.runtime):
            _tune_interpreter()
            _raise_descriptors()
            return uvloop.run(Service(config, settings).run())
    except ConfigError as error:
        return _print(error.diagnostics)
    except DnsguardError as error:
        print(f"dnsguard: {error}", file=sys.stderr)
        return exit_code_of(error)


def _tune_interpreter() -> None:
    """The engine makes no reference cycles, and long-lived objects by the hundred thousand: look for cycles seldom, so
    that no collection walks the leases again and again. Threads wait for the loop 0.5 ms at most, not 5."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    sys.setswitchinterval(0.0005)


def _raise_descriptors() -> None:
    """As many as this process may have: 50 pods with 20 DNS connections each would use up the usual 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def cleanup(settings: Settings) -> int:
    """Remove every trace from the kernel; returns the exit code. Raises CallError while a daemon runs."""
    with _lock(settings.paths.runtime):
        remove_table()
        asyncio.run(_remove_routes(settings))
    return 0


async def _remove_routes(settings: Settings) -> None:
    interception = Interception(assembly.interception_route(settings), lambda what: None, lambda text: None)
    watch = Watch([interception], lambda text: None)
    try:
        await watch.start()
        await interception.remove()
    finally:
        watch.stop()


@contextlib.contextmanager
def _lock(runtime: Path) -> Iterator[None]:
    """Be the only daemon on this runtime directory."""
    try:
        runtime.mkdir(mode=0o750, parents=True, exist_ok=True)
        descriptor = os.open(runtime / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CallError(f"paths.runtime: {runtime}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise CallError(f"a daemon is running on {runtime}; stop it first") from None
    else:
        yield
    finally:
        os.close(descriptor)


def _print(diagnostics: Sequence[Diagnostic]) -> int:
    for diagnostic in diagnostics:
        print(diagnostic, file=sys.stderr)
    return exit_code(diagnostics)


class Service:
    """One daemon. `run` starts it, waits for a signal, and stops it."""

    def __init__(self, config: Path, settings: Settings) -> None:
        self._config = config
        self._settings = settings
        self._log = open_log(settings.log.format.value, settings.log.level.value)
        self._events = EventLog(
            [self._log.write],
            LineLimiter(settings.limits.log_lines),
            time.monotonic,
            queries=settings.log.queries.value,
            level=LEVELS[settings.log.level.value],
        )
        self._counters = Counters()
        self._stop = asyncio.Event()
        self._own: frozenset[Address] = frozenset()
        self._seen: dict[LinkIndex, tuple[str, frozenset[Address]] | None] = {}
        self._links_changed = asyncio.Event()
        self._started = time.monotonic()
        self._missing = "starting"
        self._dropped: dict[object, int] = {}
        self._denied: dict[str, int] = {}
        self._store: Store | None = None
        self._reloading = asyncio.Lock()

    # ---- the order of a life

    async def run(self) -> int:
        """Returns the exit code; errors of the start are raised as DnsguardError."""
        loop = asyncio.get_running_loop()
        self._log.outlet.attach(loop)
        self._events.emit(EventKind.STARTED, version=__version__)
        for missing in unbuilt_defaults(self._settings):
            feature, _, reason = missing.partition(" (")
            self._events.emit(EventKind.FEATURE_LEFT_OUT, feature=feature, reason=reason.removesuffix(")"))
        try:
            async with contextlib.AsyncExitStack() as rooms:
                for number in (signal.SIGTERM, signal.SIGINT):
                    loop.add_signal_handler(number, self._stop.set)
                # Not inside the task group, which would wrap the error of a start into a group.
                background = await self._start(rooms)
                async with asyncio.TaskGroup() as tasks:
                    owned = [tasks.create_task(work) for work in background]
                    loop.add_signal_handler(
                        signal.SIGHUP, lambda: owned.append(tasks.create_task(self._reload_on_signal()))
                    )
                    await self._stop.wait()
                    await self._drain()
                    for task in owned:
                        task.cancel()
        finally:
            self._store_is(None)
            self._events.emit(EventKind.STOPPED)
            self._events.close()
            self._log.outlet.close()
        return 0

    async def _start(self, rooms: contextlib.AsyncExitStack) -> list[Coroutine[Any, Any, None]]:
        """Open every room; what runs until the stop is returned, to be started."""
        settings = self._settings
        links = Links(settings.pods.interfaces, self._on_link, self._on_problem, self._on_own)
        interception = Interception(assembly.interception_route(settings), self._on_route_repair, self._on_problem)
        watch = Watch([links, interception], self._on_problem)
        rooms.callback(watch.stop)
        sockets = open_sockets(settings.dns.listen_port, settings.interception.reply_mark)
        rooms.callback(sockets.close)
        self._enforcer = await NftEnforcer.create(
            assembly.table_layout(settings), self._acknowledge, self._on_damage, self._on_denial
        )
        rooms.push_async_callback(self._enforcer.close)
        self._conntrack = Conntrack()
        rooms.push_async_callback(self._conntrack.close)
        servers = Servers(len(settings.upstreams))
        self._engine = Engine(
            assembly.engine_settings(settings),
            Surroundings(self._enforcer, self._conntrack, self._events, self._counters, time.monotonic, servers),
        )
        engine = self._engine
        reports = UpstreamReports(engine.fetches.answered, engine.fetches.failed, self._counters.upstream_discarded)
        self._transport = Transport(settings.upstreams, reports)
        rooms.callback(self._transport.close)
        engine.connect(self._transport)
        await watch.start()
        await self._load_first()
        await self._restore()
        await interception.install()
        self._listen(sockets)
        rooms.callback(self._udp.close)
        rooms.callback(self._tcp.close)
        await self._tcp.start()
        self._udp.start()
        await self._open_control(rooms)
        self._missing = ""
        self._events.emit(EventKind.READY, pods=len(engine.pods), leases=len(engine.leases))
        return [
            self._keep_ticking(),
            self._follow_links(),
            self._remember(),
            self._count_dropped(),
            Probes(settings.upstreams, servers, back=self._upstream_back).run(),
        ]

    async def _restore(self) -> None:
        """The first change: every pod of this node, with the leases that the kernel still holds for it."""
        engine = self._engine
        held, running = await self._enforcer.read(), await self._enforcer.running()
        seen, self._seen = self._seen, {}
        assert self._store is not None
        await engine.changes.begin(
            seen, self._store, lambda now: restore(engine.pods, engine.leases, held, running, now), running
        )

    def _listen(self, sockets: ListenSockets) -> None:
        exchanges, tcp = self._engine.exchanges, self._settings.tcp
        self._udp = UdpListener(sockets.udp, exchanges.question, self._on_error)
        self._tcp = TcpListener(
            sockets.tcp,
            exchanges.question,
            self._on_error,
            admit=exchanges.admit,
            limits=TcpLimits(tcp.idle, tcp.total),
        )

    async def _open_control(self, rooms: contextlib.AsyncExitStack) -> None:
        reports = Reports(self._engine.pods, self._engine.leases, self._denied, time.monotonic)
        control = ControlServer(
            self._settings.paths.runtime,
            {
                "status": self.status,
                "version": self.version,
                "pods": reports.pod_rows,
                "leases": reports.lease_rows,
                "explain": reports.explain,
                "reload": self.reload,
            },
            lambda call, error: self._on_error(error),
        )
        await control.start()
        rooms.push_async_callback(control.stop)
        if (listen := self._settings.metrics.listen) is not None:
            health = HealthServer(str(listen), build_registry(self._metrics()), lambda: self._missing or None)
            await health.start()
            rooms.push_async_callback(health.stop)

    async def _drain(self) -> None:
        """Take no more queries; answer those in flight."""
        self._missing = "stopping"
        self._events.emit(EventKind.STOPPING)
        self._udp.stop()
        self._tcp.stop()
        end = time.monotonic() + DRAIN
        while not self._engine.quiet and time.monotonic() < end:
            await asyncio.sleep(TICK)
        self._engine.fetches.abandon_all()

    # ---- policy

    async def _load(self) -> Loaded:
        return await load(self._config, self._settings.allowlist, self._settings.paths.runtime, own=self._own)

    async def _load_first(self) -> None:
        loaded = await self._load()
        _print(loaded.diagnostics)
        if loaded.store is None:
            raise CallError(
                f"{self._settings.allowlist} cannot be used; the errors are above", exit_code(loaded.diagnostics)
            )
        self._store_is(loaded.store)
        self._told(loaded)

    def _store_is(self, store: Store | None) -> None:
        if self._store is not None:
            self._store.close()
        self._store = store

    async def reload(self) -> Reloaded:
        """Read the allowlist again and go over to it. Raises CallError, with the old one in force, when it cannot."""
        async with self._reloading:
            loaded = await self._load()
            self._told(loaded)
            if loaded.store is None:
                self._counters.reloads["rejected"] += 1
                raise CallError("\n".join(map(str, loaded.diagnostics)), exit_code(loaded.diagnostics))
            try:
                outcome = await self._engine.changes.policy(loaded.store)
            except BaseException:
                loaded.store.close()
                self._counters.reloads["rejected"] += 1
                raise
            self._store_is(loaded.store)
            self._counters.reloads["loaded"] += 1
            generation = self._engine.changes.generation
            self._events.emit(
                EventKind.POLICY_LOADED,
                generation=generation,
                pods=outcome.pods,
                opened=outcome.opened,
                purged=outcome.purged,
                cut=outcome.cut,
            )
            return {
                "generation": generation,
                "diagnostics": [str(one) for one in loaded.diagnostics],
                "changed": outcome.pods,
            }

    def _told(self, loaded: Loaded) -> None:
        kinds = {Severity.ERROR: EventKind.POLICY_REJECTED, Severity.WARNING: EventKind.POLICY_WARNING}
        for one in loaded.diagnostics:
            self._events.emit(kinds[one.severity], reason=str(one))

    async def _reload_on_signal(self) -> None:
        # Told as events by `reload` itself, whatever came of it.
        with contextlib.suppress(DnsguardError):
            await self.reload()

    # ---- what runs until the stop

    async def _keep_ticking(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            now = time.monotonic()
            try:
                self._engine.tick(now)
                self._events.tick()
            except Exception as error:
                self._on_error(error)

    async def _follow_links(self) -> None:
        while True:
            await self._links_changed.wait()
            self._links_changed.clear()
            seen, self._seen = self._seen, {}
            try:
                await self._engine.changes.links(seen)
            except Exception as error:
                self._on_error(error)

    async def _remember(self) -> None:
        while True:
            await asyncio.sleep(REMEMBER)
            try:
                await self._engine.revocation.remember(self._engine.pods, time.monotonic())
                if self._engine.changes.unapplied:
                    await self._engine.changes.apply_again()
            except Exception as error:
                self._on_error(error)

    async def _count_dropped(self) -> None:
        while True:
            await asyncio.sleep(DROPPED)
            try:
                self._add_dropped(await self._enforcer.dropped())
            except Exception as error:
                self._on_error(error)

    def _add_dropped(self, found: Sequence[Dropped]) -> None:
        """Kernel counters begin again at 0 when an hour was quiet: add what each has grown by."""
        owners = {address: pod.name for pod in self._engine.pods for address in pod.addresses}
        for one in found:
            key = one[:-1]
            before = self._dropped.get(key, 0)
            grown = one.packets - before if one.packets >= before else one.packets
            self._counters.egress_denied[one.reason] += grown
            if one.pod is not None and (name := owners.get(one.pod)) is not None:
                self._denied[name] = self._denied.get(name, 0) + grown
        self._dropped = {one[:-1]: one.packets for one in found}

    # ---- what the rooms tell

    def _acknowledge(self, upto: Ticket, refused: Mapping[Ticket, str]) -> None:
        for reason in refused.values():
            self._counters.lease_writes_refused[reason] += 1
            self._events.emit(EventKind.LEASE_REFUSED, reason=reason)
        self._engine.exchanges.gate.acknowledge(upto, refused)

    def _on_link(self, link: LinkIndex, name: str, addresses: frozenset[Address] | None) -> None:
        self._seen[link] = None if addresses is None else (name, addresses)
        self._links_changed.set()

    def _on_own(self, own: frozenset[Address]) -> None:
        """The node has other addresses of its own now: no answer may contain them."""
        self._own = own
        self._engine.fetches.guard = assembly.protected(self._settings, own)
        self._engine.cache.clear()

    def _on_damage(self, what: str) -> None:
        self._counters.kernel_repairs["table"] += 1
        self._events.emit(EventKind.KERNEL_STATE_REPAIRED, what=what)

    def _on_route_repair(self, what: str) -> None:
        self._counters.kernel_repairs["route"] += 1
        self._events.emit(EventKind.KERNEL_STATE_REPAIRED, what=what)

    def _on_problem(self, text: str) -> None:
        self._events.emit(EventKind.POD_CONFLICT, reason=text)

    def _on_denial(self, denial: Denial) -> None:
        """A packet that the kernel dropped, with what the leases know of its address."""
        pod = self._engine.pods.by_link.get(denial.link)
        reason = _WHY_DROPPED.get(denial.reason, denial.reason)
        if pod and denial.reason == "default":
            reason = self._engine.why_closed(pod, denial.peer, time.monotonic())
        self._events.emit(
            EventKind.FLOW_DENIED,
            pod=pod.name if pod else None,
            pod_ip=denial.pod,
            address=denial.peer,
            port=denial.port,
            protocol=_PROTOCOLS.get(denial.protocol, denial.protocol),
            verdict="denied",
            reason=reason,
            rule=denial.rule,
        )

    def _upstream_back(self, server: int) -> None:
        if self._engine.servers.answered(server, time.monotonic()):
            self._events.emit(EventKind.UPSTREAM_UP, upstream=str(self._settings.upstreams[server]))

    def _on_error(self, error: Exception) -> None:
        """The last boundary: a defect costs one packet, is counted and told, and the daemon goes on."""
        self._counters.internal_errors[type(error).__name__] += 1
        self._events.emit(EventKind.INTERNAL_ERROR, reason=f"{type(error).__name__}: {error}", exc_info=error)

    # ---- what is asked over the control socket

    async def version(self) -> Version:
        return {"version": __version__}

    async def status(self) -> Status:
        engine, settings, counters = self._engine, self._settings, self._counters
        return {
            "version": __version__,
            "pid": os.getpid(),
            "uptime": round(time.monotonic() - self._started, 1),
            "mode": settings.mode.value,
            "ready": not self._missing,
            "missing": self._missing,
            "config": str(self._config),
            "allowlist": str(settings.allowlist),
            "generation": engine.changes.generation,
            "pods": len(engine.pods),
            "leases": len(engine.leases),
            "queries": sum(counters.requests.values()),
            "denied": counters.verdicts["denied"],
            "enforcers": ["nftables"],
            "upstreams": [
                {"address": str(upstream), "up": not engine.servers.down(number)}
                for number, upstream in enumerate(settings.upstreams)
            ],
        }

    def _metrics(self) -> Metrics:
        engine, log = self._engine, self._log
        return Metrics(
            self._counters,
            [str(upstream) for upstream in self._settings.upstreams],
            Gauges(
                pods=lambda: len(engine.pods),
                leases=lambda: engine.leases.elements,
                held_answers=lambda: engine.exchanges.gate.holding,
                in_flight=lambda: len(engine.exchanges),
                cache_entries=lambda: len(engine.cache),
                tcp_connections=lambda: len(self._tcp.connections),
                policy_generation=lambda: engine.changes.generation,
                log_lines_dropped=lambda: log.outlet.dropped,
                log_lines_suppressed=lambda: self._events.suppressed,
                log_events_failed=lambda: self._events.failed,
                upstreams_up=lambda: {
                    str(upstream): not engine.servers.down(number)
                    for number, upstream in enumerate(self._settings.upstreams)
                },
            ),
        )
