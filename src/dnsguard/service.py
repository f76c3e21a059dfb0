"""The daemon: reads the configuration, builds the rooms, starts them in order, and stops them.

Order of a start: lock, listening sockets, nftables table (what an earlier process left stays in force), links and
routes, allowlist (in a child process), pods with the leases that the kernel still holds, interception routes, then
queries and the control socket. It is ready when all of that stands. Order of a stop: no new queries, those in flight
are answered, then every room closes; enforcement stays in the kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import uvloop

from dnsguard import __version__
from dnsguard.config.groups import Ebpf, Revocation
from dnsguard.config.settings import Settings, load_settings
from dnsguard.control.calls import WRONG, Reloaded, exit_code_of
from dnsguard.core.attempts import Servers
from dnsguard.core.errors import DnsguardError
from dnsguard.core.model import Address, LinkIndex, Seconds
from dnsguard.daemon import assembly
from dnsguard.daemon.background import Background
from dnsguard.daemon.backoff import Starts
from dnsguard.daemon.beside import LINE, Beside, open_line, remove_line
from dnsguard.daemon.clock import ClockSteps
from dnsguard.daemon.drops import AnsweredInKernel, Drops
from dnsguard.daemon.endpoints import open_endpoints
from dnsguard.daemon.kernel_counters import KernelCounters
from dnsguard.daemon.kernel_events import KernelEvents
from dnsguard.daemon.lock import Lock, leave_to_owner, only_one
from dnsguard.daemon.owed import OwedFile
from dnsguard.daemon.policies import Policies
from dnsguard.daemon.process import (
    Descriptors,
    raise_descriptors,
    return_memory,
    tell_stacks_on_abort,
    tune_interpreter,
)
from dnsguard.daemon.readiness import Readiness
from dnsguard.daemon.reloads import Reloads
from dnsguard.daemon.restore import Left, restore
from dnsguard.daemon.rooms import Configured, Rooms
from dnsguard.daemon.runtime import Runtime
from dnsguard.daemon.seen import FLUSH, LOOK, REPAIR, Seen, Sources
from dnsguard.daemon.supervision import Supervision
from dnsguard.enforce.bpf.second import SecondLine
from dnsguard.enforce.nftables import NftEnforcer
from dnsguard.enforce.privilege import require_privilege
from dnsguard.engine.contracts import EventKind, Ticket
from dnsguard.engine.counters import Counters
from dnsguard.engine.engine import Engine, Surroundings
from dnsguard.learning.book import Book
from dnsguard.listen.tcp import TcpLimits, TcpListener
from dnsguard.listen.transparent import ListenSockets
from dnsguard.listen.udp import UdpListener
from dnsguard.names_file.content import Names
from dnsguard.names_file.keeping import KeptNames
from dnsguard.node.conntrack import Conntrack
from dnsguard.node.conntrack_room import ConntrackRoom
from dnsguard.node.links import Links
from dnsguard.node.routing import Interception, unusable_sysctls
from dnsguard.node.systemd import Systemd
from dnsguard.node.watch import Watch
from dnsguard.observe.events import EventLog
from dnsguard.observe.log import LEVELS, open_log, tell_end
from dnsguard.observe.ratelimit import LineLimiter
from dnsguard.sources.store import Store
from dnsguard.upstream.health import Probes
from dnsguard.upstream.matching import Reports as UpstreamReports
from dnsguard.upstream.transport import Transport

T = TypeVar("T")

TICK: Final[Seconds] = 0.05
"""Between two looks at deadlines."""
AFTERWARDS: Final[Seconds] = 0.5
"""What queries in flight get at a stop beyond their deadline."""
FORGET: Final[Seconds] = 2.0
"""Between two looks at what may be forgotten."""
COUNTED: Final[Seconds] = 5.0
"""Between two readings of the kernel's counters when nobody scrapes."""
ROOM: Final[Seconds] = 2.0
"""Between two looks at how full connection tracking is."""
AGAIN: Final[Seconds] = 1.0
"""What never ends by itself is begun again after a defect."""


def run(config: Path) -> int:
    """Run in the foreground until SIGTERM or SIGINT; returns the exit code."""
    # Until the loop hears of it: what it asks for is read anyway.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    systemd, starts = Systemd.from_environment(os.environ), Starts.from_environment(os.environ)
    if not starts.begin(systemd.status):
        return 0
    defect: Exception | None = None
    try:
        settings = load_settings(config)
        leave_to_owner(settings.paths.runtime)
        with only_one(settings.paths.runtime) as lock:
            tell_stacks_on_abort()
            tune_interpreter()
            raise_descriptors()
            code = uvloop.run(Service(config, settings, lock, Supervision(systemd, starts)).run())
            starts.over()
            return code
    except DnsguardError as error:
        why, code = str(error), exit_code_of(error)
    except Exception as error:
        why, code, defect = f"internal error: {error!r}", WRONG, error
    systemd.status(why)
    if starts.failed(why):
        tell_end(why, defect)
    return code


class Service:
    """One daemon. `run` starts it, waits for a signal, and stops it."""

    def __init__(self, config: Path, settings: Settings, lock: Lock, supervision: Supervision) -> None:
        self._config = config
        self._lock = lock
        self._settings = settings
        self._log = open_log(settings.log.format.value, settings.log.level.value)
        self._events = EventLog(
            [self._log.write],
            LineLimiter(settings.limits.log_lines),
            time.monotonic,
            queries=settings.log.queries.value,
            level=LEVELS[settings.log.level.value],
            pod_ips=lambda pod: self._engine.pods.addresses(pod),
        )
        self._supervision = supervision
        self._counters = Counters()
        self._descriptors = Descriptors(self._events)
        self._stop = asyncio.Event()
        self._code = 0
        self._reloads = Reloads(self._reload)
        self._own: frozenset[Address] = frozenset()
        self._seen: dict[LinkIndex, tuple[str, frozenset[Address]] | None] = {}
        self._links_changed = asyncio.Event()
        self._configured = Configured(settings, config, time.monotonic())
        self._readiness = Readiness(insist=settings.enforcement.ebpf is Ebpf.ON)
        self._kernel = KernelEvents(self._events, self._counters)
        self._background = Background(self._events, self._counters)
        self._policies = Policies(
            config, settings, self._events, self._counters, own=lambda: self._own, on_settings=self._settings_are
        )
        self._book = Book()
        self._names = KeptNames(settings.paths.runtime, self._events, time.monotonic)
        self._owed = OwedFile(settings.paths.runtime, self._events)
        self._line: SecondLine | None = None
        self._beside: Beside | None = None

    # ---- the order of a life

    async def run(self) -> int:
        """Returns the exit code; errors of the start are raised as DnsguardError."""
        loop = asyncio.get_running_loop()
        # One thread for all that might block: else there come to be as many as there ever were such calls at a time.
        loop.set_default_executor(ThreadPoolExecutor(1, "dnsguard"))
        self._log.outlet.attach(loop)
        # First of all: a SIGHUP while a large allowlist is read asks for a reload, and must not end the process.
        for number, event in (
            (signal.SIGTERM, self._stop),
            (signal.SIGINT, self._stop),
            (signal.SIGHUP, self._reloads.asked),
        ):
            loop.add_signal_handler(number, event.set)
        self._events.emit(EventKind.STARTED, version=__version__)
        if how := self._supervision.ended():
            self._events.emit(EventKind.ENDED_BADLY, reason=how)
        for unusable in unusable_sysctls():
            self._events.emit(EventKind.SYSCTL_UNUSABLE, reason=unusable)
        try:
            async with contextlib.AsyncExitStack() as rooms:
                # Not inside the task group, which would wrap the error of a start into a group.
                async with self._supervision.starting():
                    background = await self._unless_stopped(self._start(rooms))
                if background is None:
                    return self._code
                async with asyncio.TaskGroup() as tasks:
                    owned = [tasks.create_task(work) for work in background]
                    await self._stop.wait()
                    await self._drain()
                    for task in owned:
                        task.cancel()
        finally:
            self._policies.close()
            if self._readiness.phase != "starting":
                self._events.emit(EventKind.STOPPED)
            self._events.close()
            self._log.outlet.close()
        return self._code

    async def _unless_stopped(self, start: Coroutine[Any, Any, T]) -> T | None:
        """None when the stop came first: a large allowlist takes longer to read than whoever stops it would wait."""
        starting, stopped = asyncio.create_task(start), asyncio.create_task(self._stop.wait())
        await asyncio.wait((starting, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return None
        return starting.result()

    async def _start(self, rooms: contextlib.AsyncExitStack) -> list[Coroutine[Any, Any, None]]:
        """Open every room; what runs until the stop is returned, to be started."""
        settings = self._settings
        require_privilege()
        links = Links(settings.pods.interfaces, self._on_link, self._kernel.problem, self._on_own)
        interception = Interception(
            assembly.interception_route(settings), self._kernel.route_repaired, self._kernel.problem
        )
        watch = Watch([links, interception], self._kernel.problem, on_missed=self._kernel.changes_missed)
        rooms.callback(watch.stop)
        sockets = self._supervision.listen(settings.dns.listen_port, settings.interception.reply_mark, self._events)
        rooms.callback(sockets.close)
        await self._open_kernel(rooms)
        engine, servers = self._build_engine()
        rooms.callback(self._transport.close)
        rooms.push_async_callback(self._kernel_counters.close)
        await watch.start()
        if self._beside is not None and await self._enforcer.stands():
            # What an earlier process intercepted is intercepted again: queries wait in the listeners' sockets.
            await interception.install()
            self._beside.intercepting()
        policy, names = await self._policies.first(), await self._names.read()
        rooms.push_async_callback(self._sightings.close)
        await self._restore(policy, names)
        if self._enforcer.owned:
            self._supervision.hold_table(self._enforcer.owner)
        rooms.push_async_callback(self._names.close)
        await interception.install()
        self._listen(sockets)
        if self._beside is not None:
            self._beside.intercepting()
            await self._beside.begin(engine.pods, self._conntrack, engine.revocation)
        rooms.callback(self._udp.close)
        rooms.callback(self._tcp.close)
        return_memory()
        await self._tcp.start()
        self._udp.start()
        await self._open_endpoints(rooms)
        self._readiness.phase = ""
        self._supervision.ready(self._status())
        self._events.emit(EventKind.READY, pods=len(engine.pods), leases=len(engine.leases))
        return self._until_the_stop(servers)

    def _until_the_stop(self, servers: Servers) -> list[Coroutine[Any, Any, None]]:
        probes = Probes(self._settings.upstreams, servers, back=self._upstream_back)
        beside = self._beside.background(self._background.every, self._drops) if self._beside else []
        return [
            *beside,
            self._background.every(TICK, "time", self._tick),
            self._background.every(self._supervision.interval, "watchdog", self._look),
            self._background.every(TICK, "names behind leases", self._names.tick),
            self._background.every(FORGET, "memory", self._forget),
            self._background.every(COUNTED, "kernel counters", self._kernel_counters.read),
            self._background.every(ROOM, "room for flows", ConntrackRoom(self._events).look),
            self._background.every(LOOK, "flows seen", self._sightings.look),
            self._background.every(FLUSH, "what was seen", self._sightings.flush),
            self._background.every(REPAIR, "what was seen", self._sightings.flush_again),
            self._background.every(AGAIN, "descriptors", self._descriptors.look),
            self._background.every(AGAIN, "the wall clock", ClockSteps(self._events).look),
            self._background.every(AGAIN, "runtime directory", self._runtime.look),
            self._background.every(AGAIN, "what the kernel refused", self._apply_again),
            self._background.every(AGAIN, "probes", probes.run),
            self._background.whenever(self._links_changed, "links", self._follow_links),
            self._background.whenever(self._reloads.asked, "reload", self._reloads.next),
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
            on_failure=self._kernel.table_damaged,
            on_commit=self._kernel.committed,
            beside=line.table if line is not None else None,
            on_beside=self._kernel.committed_beside,
            before_claim=self._supervision.release_table,
            on_writer=self._supervision.watch,
        )
        rooms.push_async_callback(self._enforcer.close)
        if line is not None:
            beside = self._beside = Beside(
                line, self._enforcer, self._events, self._counters, on_denial=lambda one: self._drops.tell(one)
            )
            self._readiness.failures = lambda: beside.failures
            rooms.callback(self._beside.close)
        self._conntrack = Conntrack()
        rooms.push_async_callback(self._conntrack.close)

    def _open_line(self) -> SecondLine | None:
        ebpf, layout = self._settings.enforcement.ebpf, assembly.ebpf_layout(self._settings)
        if ebpf is Ebpf.OFF:
            remove_line(layout)
            return None
        line, why = open_line(layout, self._events, required=ebpf is Ebpf.ON)
        self._readiness.absent = {LINE: why} if line is None else {}
        return line

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
            witness=self._book,
            reminder=self._owed,
        )
        if (line := self._line) is not None:
            around = replace(around, answers=line.answers, numbers=line.number)
        self._engine = engine = Engine(assembly.engine_settings(settings), around)
        self._readiness.links = lambda: [pod.link_name for pod in engine.pods]
        layout = assembly.table_layout(settings)
        sources = Sources(engine.pods, engine.leases, self._conntrack, self._enforcer.audited, layout.intercept)
        self._sightings = Seen(self._book, sources, settings.paths.state, self._events)
        self._drops = Drops(engine, self._events, time.monotonic, self._sightings.denied)
        self._answers = AnsweredInKernel(engine)
        self._kernel_counters = KernelCounters(
            (self._count_dropped, self._count_beside), time.monotonic, self._background.defect
        )
        reports = UpstreamReports(engine.fetches.answered, engine.fetches.failed, self._counters.upstream_discarded)
        self._transport = Transport(settings.upstreams, reports)
        engine.connect(self._transport)
        return engine, servers

    async def _restore(self, policy: Store, names: Names) -> None:
        """The first change: every pod of this node, with the leases that the kernel still holds for it."""
        engine = self._engine
        held, running = await self._enforcer.read(), await self._enforcer.running()
        cut, audited = await self._enforcer.cut_before(), await self._enforcer.audits()
        seen, self._seen = self._seen, {}
        owed = self._owed.read(seen, everything=audited)
        if owed.judge:
            await self._sightings.begin()  # it knows which names led to the addresses of open flows
        self._drops.adopt(await self._enforcer.dropped())
        if self._beside is not None:
            self._beside.adopt_counters(self._drops, self._answers)
        if self._line is not None and not self._line.answers_made_by(
            assembly.answers_fingerprint(self._settings, self._own)
        ):
            self._line.answers.adopt(())
        left = Left(held, running, names)
        await engine.changes.begin(
            seen, policy, lambda now: restore(engine.pods, engine.leases, left, now), running, owed=owed
        )
        self._names.begin(engine.pods, engine.leases)
        engine.revocation.adopt(engine.pods, cut)
        if engine.exchanges.audit:
            engine.revocation.release()

    def _listen(self, sockets: ListenSockets) -> None:
        exchanges, tcp = self._engine.exchanges, self._settings.tcp
        self._udp = UdpListener(sockets.udp, exchanges.question, partial(self._background.defect, "UDP queries"))
        self._tcp = TcpListener(
            sockets.tcp,
            exchanges.question,
            partial(self._background.defect, "TCP queries"),
            admit=exchanges.admit,
            limits=TcpLimits(tcp.idle, tcp.total, self._descriptors.for_connections),
            on_crowded=self._descriptors.crowded,
        )

    async def _open_endpoints(self, rooms: contextlib.AsyncExitStack) -> None:
        everything = Rooms(
            configured=self._configured,
            readiness=self._readiness,
            engine=self._engine,
            enforcer=self._enforcer,
            enforcers=("nftables", LINE) if self._line is not None else ("nftables",),
            udp=self._udp,
            tcp=self._tcp,
            policies=self._policies,
            reloads=self._reloads,
            supervision=self._supervision,
            drops=self._drops,
            answered_in_kernel=self._answers,
            kernel_counters=self._kernel_counters,
            seen=self._sightings,
            events=self._events,
            outlet=self._log.outlet,
            now=time.monotonic,
        )
        control = await open_endpoints(everything, rooms, self._background.defect)
        end = self._end_for_another if self._supervision.restarted else None
        self._runtime = Runtime(self._lock, control, self._events, end)

    def _end_for_another(self) -> None:
        """Stop in order, as a failure: systemd starts another process."""
        self._code = WRONG
        self._stop.set()

    async def _drain(self) -> None:
        """Take no more queries; answer those in flight."""
        self._readiness.phase = "stopping"
        self._supervision.stopping()
        self._events.emit(EventKind.STOPPING)
        self._udp.stop()
        self._tcp.stop()
        end = time.monotonic() + self._settings.dns.deadline + AFTERWARDS
        while not self._engine.quiet and time.monotonic() < end:
            await asyncio.sleep(TICK)
        self._engine.fetches.abandon_all()

    async def _reload(self) -> Reloaded:
        with self._supervision.reloading(self._status):
            return await self._policies.reload(self._engine.changes)

    def _settings_are(self, settings: Settings) -> None:
        """A reload has put these in force."""
        self._settings = self._configured.settings = settings
        self._events.tune(settings.log.queries.value, LEVELS[settings.log.level.value])
        self._engine.revocation.drain = settings.enforcement.revocation is Revocation.DRAIN
        if self._line is not None:
            self._line.answers_made_by(assembly.answers_fingerprint(settings, self._own))

    # ---- what runs until the stop

    async def _tick(self) -> None:
        self._engine.tick(time.monotonic())
        self._events.tick()

    async def _look(self) -> None:
        self._supervision.look(self._status())

    def _status(self) -> str:
        """What `systemctl status` shows."""
        state = f"not ready: {missing}" if (missing := self._readiness.missing()) else "ready"
        down, late = sum(map(self._engine.servers.down, range(len(self._settings.upstreams)))), self._policies.late
        return (
            f"{state}: {len(self._engine.pods)} pods, generation {self._engine.changes.generation}"
            f"{f'; {down} of {len(self._settings.upstreams)} upstreams down' if down else ''}"
            f"{f'; {len(late)} changed keys take effect at a restart' if late else ''}"
        )

    async def _follow_links(self) -> None:
        seen, self._seen = self._seen, {}
        await self._engine.changes.links(seen)

    async def _forget(self) -> None:
        await self._engine.forget(time.monotonic())

    async def _apply_again(self) -> None:
        if self._engine.changes.unapplied:
            await self._engine.changes.apply_again()

    async def _count_dropped(self) -> None:
        self._drops.count(await self._enforcer.dropped())

    async def _count_beside(self) -> None:
        if self._beside is not None:
            await self._beside.count(self._drops, self._answers)

    # ---- what the rooms tell

    def _acknowledge(self, upto: Ticket, refused: Mapping[Ticket, str]) -> None:
        self._kernel.refused(refused)
        self._engine.exchanges.gate.acknowledge(upto, refused)

    def _on_link(self, link: LinkIndex, name: str, addresses: frozenset[Address] | None) -> None:
        if self._beside is not None:
            self._beside.link_is(link, None if addresses is None else name)
        self._seen[link] = None if addresses is None else (name, addresses)
        self._links_changed.set()

    def _on_own(self, own: frozenset[Address]) -> None:
        """The node has other addresses of its own now: no answer may contain them."""
        self._own = own
        self._engine.fetches.guard = guard = assembly.protected(self._settings, own)
        self._book.is_protected = guard.__contains__
        self._engine.cache.clear()
        self._engine.feed.forget_all()
        if self._line is not None:
            self._line.own(own)
            if not self._readiness.phase:
                self._line.answers_made_by(assembly.answers_fingerprint(self._settings, own))

    def _on_damage(self, what: str) -> None:
        if self._beside is not None:
            self._beside.damaged()
        self._kernel.table_repaired(what)

    def _upstream_back(self, server: int) -> None:
        if self._engine.servers.probed(server):
            self._events.emit(EventKind.UPSTREAM_UP, upstream=str(self._settings.upstreams[server]))
