"""The daemon: reads the configuration, builds the rooms, starts them in order, and stops them.

Order of a start: lock, listening sockets, nftables table (what an earlier process left stays in force), links and
routes, allowlist (in a child process), pods with the leases that the kernel still holds, interception routes, then
queries and the control socket. It is ready when all of that stands. Order of a stop: no new queries, those in flight
are answered, then every room closes; enforcement stays in the kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import uvloop

from dnsguard import __version__, assembly
from dnsguard.beside import LINE, Beside, open_line, remove_line
from dnsguard.config.diagnostics import ConfigError, Diagnostic, Severity, exit_code
from dnsguard.config.groups import Ebpf
from dnsguard.config.settings import Settings, load_settings, unbuilt_defaults
from dnsguard.control.api import ControlServer
from dnsguard.control.calls import CallError, Gap, Reloaded, exit_code_of
from dnsguard.core.attempts import Servers
from dnsguard.core.errors import DnsguardError
from dnsguard.core.model import Address, LinkIndex, Seconds
from dnsguard.drops import AnsweredInKernel, Drops
from dnsguard.enforce.bpf.second import SecondLine
from dnsguard.enforce.nftables import NftEnforcer
from dnsguard.engine.contracts import EventKind, Ticket
from dnsguard.engine.counters import OTHER, Counters
from dnsguard.engine.engine import Engine, Surroundings
from dnsguard.listen.tcp import TcpLimits, TcpListener
from dnsguard.listen.transparent import ListenSockets, open_sockets
from dnsguard.listen.udp import UdpListener
from dnsguard.lock import only_one
from dnsguard.node.conntrack import Conntrack
from dnsguard.node.links import Links
from dnsguard.node.routing import Interception, unusable_sysctls
from dnsguard.node.systemd import Systemd
from dnsguard.node.watch import Watch
from dnsguard.observe.events import EventLog
from dnsguard.observe.health import HealthServer
from dnsguard.observe.log import LEVELS, open_log
from dnsguard.observe.metrics import Gauges, Metrics, build_registry
from dnsguard.observe.ratelimit import LineLimiter
from dnsguard.observe.watching import Watching
from dnsguard.reports import Configured, Reports
from dnsguard.restore import restore
from dnsguard.sources.loader import Loaded, load
from dnsguard.sources.store import Store
from dnsguard.upstream.health import Probes
from dnsguard.upstream.matching import Reports as UpstreamReports
from dnsguard.upstream.transport import Transport

TICK: Final[Seconds] = 0.05
"""Between two looks at deadlines."""
AFTERWARDS: Final[Seconds] = 0.5
"""What queries in flight get at a stop beyond their deadline."""
REMEMBER: Final[Seconds] = 60.0
"""Between two looks at which open flows still need what ended leases stood on."""
DROPPED: Final[Seconds] = 5.0
"""Between two readings of the kernel's counters of dropped packets."""
AGAIN: Final[Seconds] = 1.0
"""What never ends by itself is begun again after a defect."""
_ERRNOS: Final = frozenset(errno.errorcode.values())


def run(config: Path) -> int:
    """Run in the foreground until SIGTERM or SIGINT; returns the exit code."""
    try:
        settings = load_settings(config)
        with only_one(settings.paths.runtime):
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
        self._systemd = Systemd.from_environment(os.environ)
        self._counters = Counters()
        self._stop = asyncio.Event()
        self._hangup = asyncio.Event()
        self._own: frozenset[Address] = frozenset()
        self._seen: dict[LinkIndex, tuple[str, frozenset[Address]] | None] = {}
        self._links_changed = asyncio.Event()
        self._started = time.monotonic()
        self._missing = "starting"
        self._store: Store | None = None
        self._reloading = asyncio.Lock()
        self._line: SecondLine | None = None
        self._beside: Beside | None = None
        self._beside_took: Seconds = 0.0

    # ---- the order of a life

    async def run(self) -> int:
        """Returns the exit code; errors of the start are raised as DnsguardError."""
        loop = asyncio.get_running_loop()
        self._log.outlet.attach(loop)
        # First of all: a SIGHUP while a large allowlist is read asks for a reload, and must not end the process.
        for number, event in (
            (signal.SIGTERM, self._stop),
            (signal.SIGINT, self._stop),
            (signal.SIGHUP, self._hangup),
        ):
            loop.add_signal_handler(number, event.set)
        self._events.emit(EventKind.STARTED, version=__version__)
        for missing in unbuilt_defaults(self._settings):
            feature, _, reason = missing.partition(" (")
            self._events.emit(EventKind.FEATURE_LEFT_OUT, feature=feature, reason=reason.removesuffix(")"))
        for unusable in unusable_sysctls():
            self._events.emit(EventKind.NODE_PROBLEM, reason=unusable)
        try:
            async with contextlib.AsyncExitStack() as rooms:
                # Not inside the task group, which would wrap the error of a start into a group.
                background = await self._start(rooms)
                async with asyncio.TaskGroup() as tasks:
                    owned = [tasks.create_task(work) for work in background]
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
        await self._open_kernel(rooms)
        engine, servers = self._build_engine()
        rooms.callback(self._transport.close)
        await watch.start()
        if self._beside is not None and await self._enforcer.stands():
            # What an earlier process intercepted is intercepted again: queries wait in the listeners' sockets.
            await interception.install()
            self._beside.intercepting()
        await self._load_first()
        await self._restore()
        await interception.install()
        self._listen(sockets)
        if self._beside is not None:
            self._beside.intercepting()
            await self._beside.begin(engine.pods, self._conntrack, engine.revocation)
        rooms.callback(self._udp.close)
        rooms.callback(self._tcp.close)
        await self._tcp.start()
        self._udp.start()
        await self._open_control(rooms)
        self._missing = ""
        self._systemd.ready()
        self._events.emit(EventKind.READY, pods=len(engine.pods), leases=len(engine.leases))
        probes = Probes(settings.upstreams, servers, back=self._upstream_back)
        beside = self._beside.background(self._every, self._drops, self._answers) if self._beside else []
        return [
            *beside,
            self._every(TICK, "time", self._tick),
            self._every(REMEMBER, "memory of flows", self._remember),
            self._every(DROPPED, "counters of drops", self._count_dropped),
            self._every(AGAIN, "what the kernel refused", self._apply_again),
            self._every(AGAIN, "probes", probes.run),
            self._whenever(self._links_changed, "links", self._follow_links),
            self._whenever(self._hangup, "reload", self._reload_on_signal),
        ]

    async def _open_kernel(self, rooms: contextlib.AsyncExitStack) -> None:
        """The table and the maps, as an earlier process left them, and connection tracking."""
        line = self._line = self._open_line()
        if line is not None:
            rooms.callback(line.close)
        self._enforcer = await NftEnforcer.create(
            assembly.table_layout(self._settings),
            self._acknowledge,
            self._on_damage,
            lambda denial: self._drops.tell(denial),
            on_failure=self._on_failed_repair,
            on_commit=self._on_commit,
            beside=line.table if line is not None else None,
            on_beside=self._on_beside,
        )
        rooms.push_async_callback(self._enforcer.close)
        if line is not None:
            self._beside = Beside(
                line, self._enforcer, self._events, self._counters, on_denial=lambda one: self._drops.tell(one)
            )
            rooms.callback(self._beside.close)
        self._conntrack = Conntrack()
        rooms.push_async_callback(self._conntrack.close)

    def _open_line(self) -> SecondLine | None:
        ebpf, layout = self._settings.enforcement.ebpf, assembly.ebpf_layout(self._settings)
        if ebpf is Ebpf.OFF:
            remove_line(layout)
            return None
        return open_line(layout, self._events, required=ebpf is Ebpf.ON)

    def _build_engine(self) -> tuple[Engine, Servers]:
        settings = self._settings
        servers = Servers(len(settings.upstreams))
        around = Surroundings(
            self._enforcer,
            self._conntrack,
            self._events,
            self._counters,
            time.monotonic,
            servers,
            [str(upstream) for upstream in settings.upstreams],
        )
        if (line := self._line) is not None:
            around = replace(around, answers=line.answers, numbers=line.number)
        self._engine = engine = Engine(assembly.engine_settings(settings), around)
        self._drops = Drops(engine, self._events, time.monotonic)
        self._answers = AnsweredInKernel(engine)
        reports = UpstreamReports(engine.fetches.answered, engine.fetches.failed, self._counters.upstream_discarded)
        self._transport = Transport(settings.upstreams, reports)
        engine.connect(self._transport)
        return engine, servers

    async def _restore(self) -> None:
        """The first change: every pod of this node, with the leases that the kernel still holds for it."""
        engine = self._engine
        held, running = await self._enforcer.read(), await self._enforcer.running()
        cut = await self._enforcer.cut_before()
        self._drops.adopt(await self._enforcer.dropped())
        if self._beside is not None:
            self._beside.adopt_counters(self._drops, self._answers)
        if self._line is not None and not self._line.answers_made_by(
            assembly.answers_fingerprint(self._settings, self._own)
        ):
            self._line.answers.adopt(())
        seen, self._seen = self._seen, {}
        assert self._store is not None
        await engine.changes.begin(
            seen, self._store, lambda now: restore(engine.pods, engine.leases, held, running, now), running
        )
        engine.revocation.adopt(engine.pods, cut)

    def _listen(self, sockets: ListenSockets) -> None:
        exchanges, tcp = self._engine.exchanges, self._settings.tcp
        self._udp = UdpListener(sockets.udp, exchanges.question, partial(self._on_error, "UDP queries"))
        self._tcp = TcpListener(
            sockets.tcp,
            exchanges.question,
            partial(self._on_error, "TCP queries"),
            admit=exchanges.admit,
            limits=TcpLimits(tcp.idle, tcp.total),
        )

    async def _open_control(self, rooms: contextlib.AsyncExitStack) -> None:
        configured = Configured(self._settings, self._config, self._started)
        reports = Reports(
            self._engine,
            configured,
            self._drops.by_pod,
            self._answers.by_pod,
            self._missing_now,
            time.monotonic,
            ("nftables", LINE) if self._line is not None else ("nftables",),
            self._gaps,
        )
        control = ControlServer(
            self._settings.paths.runtime,
            {
                "status": reports.status,
                "version": reports.version,
                "pods": reports.pod_rows,
                "leases": reports.lease_rows,
                "explain": reports.explain,
                "monitor": Watching(self._events, reports.names).rows,
                "reload": self.reload,
            },
            lambda call, error: self._on_error("control socket", error),
        )
        await control.start()
        rooms.push_async_callback(control.stop)
        if (listen := self._settings.metrics.listen) is not None:
            registry = build_registry(self._metrics(reports))
            health = HealthServer(str(listen), registry, lambda: self._missing_now() or None)
            await health.start()
            rooms.push_async_callback(health.stop)

    def _gaps(self) -> list[Gap]:
        failures = self._beside.failures if self._beside else {}
        return [{"enforcer": LINE, "link": name, "reason": why} for name, why in sorted(failures.items())]

    def _missing_now(self) -> str:
        """What readiness waits for; empty when it is there."""
        gaps = self._gaps() if self._settings.enforcement.ebpf is Ebpf.ON else []
        return self._missing or (f"eBPF is not the first on {' '.join(gap['link'] for gap in gaps)}" if gaps else "")

    async def _drain(self) -> None:
        """Take no more queries; answer those in flight."""
        self._missing = "stopping"
        self._events.emit(EventKind.STOPPING)
        self._udp.stop()
        self._tcp.stop()
        end = time.monotonic() + self._settings.dns.deadline + AFTERWARDS
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
            except BaseException as error:
                loaded.store.close()
                self._counters.reloads["rejected"] += 1
                self._events.emit(EventKind.POLICY_REJECTED, reason=f"it could not be put in force: {error}")
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

    # ---- what runs until the stop

    async def _every(self, seconds: Seconds, where: str, do: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(seconds)
            await self._contained(where, do)

    async def _whenever(self, asked: asyncio.Event, where: str, do: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asked.wait()
            asked.clear()
            await self._contained(where, do)

    async def _contained(self, where: str, do: Callable[[], Awaitable[None]]) -> None:
        try:
            await do()
        except Exception as error:
            self._on_error(where, error)

    async def _tick(self) -> None:
        self._engine.tick(time.monotonic())
        self._events.tick()

    async def _follow_links(self) -> None:
        seen, self._seen = self._seen, {}
        await self._engine.changes.links(seen)

    async def _reload_on_signal(self) -> None:
        # Told as events by `reload` itself, whatever came of it.
        with contextlib.suppress(DnsguardError):
            await self.reload()

    async def _remember(self) -> None:
        await self._engine.revocation.remember(self._engine.pods, time.monotonic())

    async def _apply_again(self) -> None:
        if self._engine.changes.unapplied:
            await self._engine.changes.apply_again()

    async def _count_dropped(self) -> None:
        self._drops.count(await self._enforcer.dropped())

    # ---- what the rooms tell

    def _acknowledge(self, upto: Ticket, refused: Mapping[Ticket, str]) -> None:
        for reason, count in Counter(refused.values()).items():
            self._counters.lease_writes_refused[reason if reason in _ERRNOS else OTHER] += count
            self._events.emit(EventKind.LEASE_REFUSED, reason=reason, count=count)
        self._engine.exchanges.gate.acknowledge(upto, refused)

    def _on_link(self, link: LinkIndex, name: str, addresses: frozenset[Address] | None) -> None:
        if self._beside is not None:
            self._beside.link_is(link, None if addresses is None else name)
        self._seen[link] = None if addresses is None else (name, addresses)
        self._links_changed.set()

    def _on_own(self, own: frozenset[Address]) -> None:
        """The node has other addresses of its own now: no answer may contain them."""
        self._own = own
        self._engine.fetches.guard = assembly.protected(self._settings, own)
        self._engine.cache.clear()
        self._engine.feed.forget_all()
        if self._line is not None:
            self._line.own(own)
            if not self._missing:
                self._line.answers_made_by(assembly.answers_fingerprint(self._settings, own))

    def _on_damage(self, what: str) -> None:
        if self._beside is not None:
            self._beside.damaged()
        self._counters.kernel_repairs["table"] += 1
        self._events.emit(EventKind.KERNEL_STATE_REPAIRED, what=what)

    def _on_failed_repair(self, why: str) -> None:
        self._events.emit(EventKind.KERNEL_STATE_DAMAGED, what="the table", reason=why)

    def _on_beside(self, seconds: Seconds, elements: int) -> None:
        """In the writer's thread, for the commit that `_on_commit` is told of next."""
        self._beside_took = seconds
        self._counters.commit_seconds["ebpf"].observe(seconds)
        self._counters.lease_writes["ebpf"] += elements

    def _on_commit(self, seconds: Seconds, elements: int) -> None:
        """In the writer's thread, the only one that writes these two."""
        self._counters.commit_seconds["nftables"].observe(seconds - self._beside_took)
        self._counters.lease_writes["nftables"] += elements

    def _on_route_repair(self, what: str) -> None:
        self._counters.kernel_repairs["route"] += 1
        self._events.emit(EventKind.KERNEL_STATE_REPAIRED, what=what)

    def _on_problem(self, text: str) -> None:
        self._events.emit(EventKind.NODE_PROBLEM, reason=text)

    def _upstream_back(self, server: int) -> None:
        if self._engine.servers.answered(server, time.monotonic()):
            self._events.emit(EventKind.UPSTREAM_UP, upstream=str(self._settings.upstreams[server]))

    def _on_error(self, where: str, error: Exception) -> None:
        """The last boundary: a defect costs one packet, is counted and told, and the daemon goes on."""
        self._counters.internal_errors[where] += 1
        told = f"{type(error).__name__}: {error}"
        self._events.emit(EventKind.INTERNAL_ERROR, where=where, reason=told, exc_info=error)

    def _metrics(self, reports: Reports) -> Metrics:
        engine, log = self._engine, self._log
        gauges = Gauges(
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
            udp_discarded=lambda: sum(each.discarded for each in self._udp.counts),
            udp_unsent=lambda: sum(each.unsent for each in self._udp.counts),
            tcp_cut=lambda: self._tcp.cut,
            drop_reports_lost=lambda: self._enforcer.reports_lost,
            upstreams_up=reports.upstreams,
        )
        return Metrics(self._counters, list(reports.upstreams()), gauges)
