"""A node without a kernel: the engine on its shipped doubles and a clock that a test moves.

`Stage` is what scenarios (script.py) and the Python tests beside them play on. It speaks to the engine as the rooms
around it do, reads replies with dnslib, and holds every reply to I1 and everything open to I2 while it plays.
"""

from __future__ import annotations

import asyncio
import heapq
import io
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from itertools import count
from typing import Any

from dnslib import EDNS0, QTYPE, RR, DNSHeader, DNSQuestion, DNSRecord

from dnsguard.config.settings import settings_from_text
from dnsguard.core.attempts import Servers
from dnsguard.core.compile import closed, decide
from dnsguard.core.lease import UNKNOWN
from dnsguard.core.model import Action, Address, Flow, LinkIndex, Name, Packet, Pair, PodEntry, Protocol
from dnsguard.core.names import parse_name
from dnsguard.core.pods import Lookup, Pod
from dnsguard.core.policy import Allowed
from dnsguard.daemon.assembly import engine_settings, protected
from dnsguard.enforce.memory import MemoryEnforcer
from dnsguard.enforce.told import MemoryAnswers
from dnsguard.engine.change import Restore, no_leases
from dnsguard.engine.contracts import NOTHING, Attempt, EventKind, Owed, Reminder
from dnsguard.engine.counters import Counters
from dnsguard.engine.engine import Engine, EngineSettings, Surroundings
from dnsguard.node.scripted import ScriptedFlows
from dnsguard.sources.allowlist import AllowlistReader
from dnsguard.sources.store import Store, StoreWriter
from dnsguard.upstream.matching import Reports
from dnsguard.upstream.scripted import ScriptedUpstream

TICK = 0.05
HEAD = "apiVersion: dnsguard/v1\nkind: {}\n"


def address(text: str) -> Address:
    return Address(ip_address(text).packed)


def allowlist(text: str) -> Store:
    """A file's content as the loader hands it over; errors in it fail the test."""
    reader = AllowlistReader(HEAD.format("Allowlist") + text, "allowlist.yaml")
    content = io.BytesIO()
    writer = StoreWriter(content)
    for entry in reader.entries():
        writer.add(entry)
    errors = [str(one) for one in reader.diagnostics() if ": error: " in str(one)]
    assert not errors, errors
    writer.finish("allowlist.yaml")
    return Store(content.getvalue())


class Entries:
    """A Lookup of model objects, for what files cannot say yet (Deny and Pass rules, tiers)."""

    def __init__(self, *entries: PodEntry) -> None:
        self._entries = entries

    def entry(self, found: Address) -> PodEntry | None:
        inside = [e for e in self._entries if ip_address(found) in e.network]
        return max(inside, key=lambda e: e.network.prefixlen, default=None)


def settings(text: str = "") -> tuple[EngineSettings, Any]:
    """What the daemon would build from this configuration (the upstreams are added)."""
    head = HEAD.format("Configuration") + ("" if "upstreams:" in text else "upstreams: [192.0.2.53]\n")
    read, found = settings_from_text(head + text, "config.yaml")
    assert read is not None, [str(one) for one in found]
    return engine_settings(read), read


class Clock:
    """Virtual time: what is due happens when a test moves it on."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def __call__(self) -> float:
        return self.now

    def later(self, delay: float, do: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._due, (self.now + delay, self._count, do))

    def next(self) -> float:
        return self._due[0][0] if self._due else float("inf")

    def run_due(self) -> None:
        while self._due and self._due[0][0] <= self.now:
            heapq.heappop(self._due)[2]()


@dataclass
class Told:
    """The events, as they were emitted."""

    all_queries: bool = True
    all_leases: bool = False
    events: list[tuple[EventKind, dict[str, object]]] = field(default_factory=list)

    def emit(self, kind: EventKind, /, **fields: object) -> None:
        self.events.append((kind, fields))

    def kinds(self) -> list[EventKind]:
        return [kind for kind, _ in self.events]

    def of(self, kind: EventKind) -> list[dict[str, object]]:
        return [fields for one, fields in self.events if one is kind]


class Wire:
    """The upstream, with a copy of every query that was sent to it, without the ID."""

    def __init__(self, upstream: ScriptedUpstream) -> None:
        self.sent: list[bytes] = []
        self._upstream = upstream

    def ask(self, attempt: Attempt) -> None:
        self.sent.append(attempt.query)
        self._upstream.ask(attempt)

    def abandon(self, attempt: Attempt, *, timed_out: bool) -> None:
        self._upstream.abandon(attempt, timed_out=timed_out)


class Socket:
    """A pod's socket: implements Client. `heard` is called with each reply as it leaves."""

    def __init__(self, pod: str, *, stream: bool, heard: Callable[[Socket, bytes], None]) -> None:
        self.pod = pod
        self.stream = stream
        self.replies: list[bytes] = []
        self._heard = heard

    @property
    def identity(self) -> object:
        return id(self)

    def reply(self, packet: bytes) -> None:
        self.replies.append(packet)
        self._heard(self, packet)


@dataclass
class Asked:
    """One query of a pod. Its socket may have carried others: replies are told apart by ID."""

    socket: Socket
    ident: bytes
    at: float
    name: str

    @property
    def packets(self) -> list[bytes]:
        return [packet for packet in self.socket.replies if packet[:2] == self.ident]

    @property
    def reply(self) -> Reply:
        assert len(self.packets) == 1, f"{self.name}: {len(self.packets)} replies"
        return Reply(self.packets[0])

    @property
    def open(self) -> bool:
        return not self.packets


class Reply:
    """A reply as dnslib reads it."""

    def __init__(self, packet: bytes) -> None:
        self.packet = packet
        self.record = DNSRecord.parse(packet)

    @property
    def rcode(self) -> str:
        extended = next((r.edns_rcode for r in self._opt()), 0)  # type: ignore[attr-defined]
        return RCODES.get(extended << 4 | self.record.header.rcode, str(self.record.header.rcode))

    @property
    def answer(self) -> list[str]:
        return [_text(r) for r in self.record.rr]

    @property
    def authority(self) -> list[str]:
        return [_text(r) for r in self.record.auth]

    @property
    def addresses(self) -> list[str]:
        return [str(r.rdata) for r in self.record.rr if r.rtype in (QTYPE.A, QTYPE.AAAA)]

    @property
    def ttls(self) -> set[int]:
        return {r.ttl for r in (*self.record.rr, *self.record.auth)}

    @property
    def flags(self) -> set[str]:
        header = self.record.header
        return {flag for flag in ("tc", "aa", "rd", "ra", "ad", "cd", "qr") if getattr(header, flag)}

    @property
    def edns(self) -> bool:
        return bool(self._opt())

    @property
    def ede(self) -> tuple[int, str] | None:
        for opt in self._opt():
            for option in opt.rdata:
                if option.code == 15:
                    return int.from_bytes(option.data[:2], "big"), option.data[2:].decode()
        return None

    def _opt(self) -> list[RR]:
        return [r for r in self.record.ar if r.rtype == QTYPE.OPT]


RCODES = {0: "NOERROR", 1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED", 16: "BADVERS"}


def _text(record: RR) -> str:
    rdata = " ".join(str(record.rdata).split()).replace(". ", " ").rstrip(".")
    return f"{str(record.rname).rstrip('.')} {QTYPE[record.rtype]} {rdata}"


def query(
    name: str,
    qtype: str = "A",
    *,
    ident: int = 1,
    edns: int | None = 1232,
    do: bool = False,
    cd: bool = False,
    rd: bool = True,
) -> bytes:
    """A pod's packet."""
    message = DNSRecord(DNSHeader(id=ident, rd=int(rd), cd=int(cd)), q=DNSQuestion(name, QTYPE.reverse[qtype]))
    if edns is not None:
        message.add_ar(EDNS0(udp_len=edns, flags="do" if do else ""))
    return bytes(message.pack())


def respond(
    zone: str = "", *, authority: str = "", rcode: int = 0, flags: Iterable[str] = (), opt: bool = True
) -> Callable[[bytes], bytes]:
    """An upstream's whole reply to a whole query: the sections are lines of a zone file."""

    def answer(asked: bytes) -> bytes:
        question = DNSRecord.parse(asked)
        bits = dict.fromkeys(flags, 1)
        reply = DNSRecord(
            DNSHeader(id=question.header.id, qr=1, rd=1, ra=1, rcode=rcode & 15, **bits), q=question.questions[0]
        )
        reply.add_answer(*_records(zone))
        reply.add_auth(*_records(authority))
        if opt and any(r.rtype == QTYPE.OPT for r in question.ar):
            reply.add_ar(EDNS0(udp_len=1232, ext_rcode=rcode >> 4))
        return bytes(reply.pack())

    return answer


def _records(zone: str) -> list[RR]:
    return list(RR.fromZone(zone)) if zone.strip() else []


@dataclass(frozen=True)
class Promise:
    """A pod was told of an address: these points must accept until `until`."""

    pod: Pod
    name: Name
    address: Address
    until: float


class Stage:
    """The engine and its surroundings. `links` maps what a test calls a pod to its link's index."""

    def __init__(self, lookup: str | Lookup, config: str = "", *, pods: dict[str, list[str]] | None = None,
                 begin: bool = True, kernel: bool = False, reminder: Reminder | None = None) -> None:  # fmt: skip
        """`kernel`: what is asked for again is answered by a kernel's answers, before the engine hears of it."""
        self.clock = Clock()
        self.told = Told()
        self.counters = Counters()
        self.flows = ScriptedFlows()
        self.loop = asyncio.new_event_loop()
        self.tasks: list[asyncio.Task[Any]] = []
        self.enforcer = MemoryEnforcer(self._acknowledge, self.clock)
        parts, self.config = settings(config)
        self.servers = Servers(len(self.config.upstreams))
        if parts.audit:
            self.enforcer.audit(True)
        self.answers = MemoryAnswers() if kernel else None
        self._numbers: dict[Pair, int] = {}
        self._given = count(1)
        around = Surroundings(self.enforcer, self.flows, self.told, self.counters, self.clock, self.servers)
        if self.answers is not None:
            around = replace(around, answers=self.answers, numbers=self.number)
        if reminder is not None:
            around = replace(around, reminder=reminder)
        self.engine = Engine(parts, around)
        self.engine.fetches.guard = protected(self.config, ())
        self.upstream = ScriptedUpstream(
            Reports(self.engine.fetches.answered, self.engine.fetches.failed), self.clock.later
        )
        self.wire = Wire(self.upstream)
        self.engine.connect(self.wire)
        self.links: dict[str, LinkIndex] = {}
        self.addresses: dict[str, list[Address]] = {}
        self.promises: list[Promise] = []
        self.broken: list[str] = []
        self.queries: list[Asked] = []
        self.slack = 0.1
        """How much longer than its book says an element may live: as long as the slowest write took."""
        self._looked_at = 1
        self._ident = 0
        if begin:
            self.begin(lookup, pods if pods is not None else {"web": ["10.244.0.5"]})

    def begin(self, lookup: str | Lookup, pods: dict[str, list[str]], restore: Restore = no_leases,
              running: Mapping[Pair, str] | None = None, owed: Owed = NOTHING) -> None:  # fmt: skip
        """The first change of a process."""
        seen = {self._link(pod): (f"veth-{pod}", frozenset(map(address, texts))) for pod, texts in pods.items()}
        self.addresses.update({pod: [address(text) for text in texts] for pod, texts in pods.items()})
        self.finish(self.engine.changes.begin(seen, _lookup(lookup), restore, running, owed=owed))

    def close(self) -> None:
        """Abandon what still runs."""
        for task in self.tasks:
            task.cancel()
        self.spin()
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()

    # ---- tasks

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Begin a change, as far as it gets without anything else happening."""
        task = self.loop.create_task(work)
        self.tasks.append(task)
        self.spin()
        return task

    def finish(self, work: Coroutine[Any, Any, Any]) -> Any:
        """A change that must end now. Raises what it raises."""
        task = self.start(work)
        assert task.done(), "the change waits for something"
        self.tasks.remove(task)
        self.clock.run_due()
        return task.result()

    def spin(self) -> None:
        """Let every task go as far as it can."""

        async def turns() -> None:
            for _ in range(50):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())

    # ---- time

    def pass_time(self, seconds: float) -> None:
        """TIME_PASSES: timers, ticks and the kernel's own clock, each at its moment."""
        end = self.clock.now + seconds
        step = max(TICK, seconds / 400)
        tick = self.clock.now + step
        while self.clock.now < end:
            deadline = self.enforcer.next_deadline()
            nearest = min(end, tick, self.clock.next(), deadline if deadline is not None else end)
            self.clock.now = max(nearest, self.clock.now)
            self.clock.run_due()
            self.enforcer.settle()
            if self.clock.now >= tick:
                self.engine.tick(self.clock.now)
                tick = self.clock.now + step
                self.look()
            self.spin_if_busy()
        self.engine.tick(self.clock.now)
        self.look()

    def spin_if_busy(self) -> None:
        if any(not task.done() for task in self.tasks):
            self.spin()

    # ---- pods and policies

    def _link(self, pod: str) -> LinkIndex:
        return self.links.setdefault(pod, LinkIndex(10 + len(self.links)))

    def came(self, pod: str, *texts: str) -> None:
        """A pod link appeared, or has other addresses now."""
        self.finish(self.engine.changes.links(self.seen(pod, *texts)))

    def seen(self, pod: str, *texts: str) -> dict[LinkIndex, tuple[str, frozenset[Address]] | None]:
        self.addresses[pod] = [address(text) for text in texts]
        return {self._link(pod): (f"veth-{pod}", frozenset(self.addresses[pod]))}

    def went(self, pod: str) -> None:
        self.forget_promises(pod)
        self.finish(self.engine.changes.links({self.links[pod]: None}))

    def forget_promises(self, pod: str) -> None:
        self.promises = [p for p in self.promises if p.pod.link != self.links[pod]]

    def reload(self, lookup: str | Lookup) -> Any:
        """`dnsguard reload` with this file: returns when it is in force, or raises."""
        outcome = self.finish(self.engine.changes.policy(_lookup(lookup)))
        self.look()
        return outcome

    def pod(self, name: str) -> Pod:
        return self.engine.pods.by_link[self.links[name]]

    # ---- queries

    def ask(self, pod: str, name: str, qtype: str = "A", *, socket: Socket | None = None, stream: bool = False,
            ident: int | None = None, source: str | None = None, **options: Any) -> Asked:  # fmt: skip
        """A pod sends a query from a socket of its own, or again from one it has."""
        if ident is None:
            self._ident = self._ident % 0xFFFF + 1
            ident = self._ident
        packet = query(name, qtype, ident=ident, **options)
        return self.send(pod, packet, socket=socket, stream=stream, source=source, name=name)

    def send(self, pod: str, packet: bytes, *, socket: Socket | None = None, stream: bool = False,
             source: str | None = None, name: str = "") -> Asked:  # fmt: skip
        """Any octets, as a pod may send them."""
        socket = socket or Socket(pod, stream=stream, heard=self._heard)
        source = source or str(ip_address(self.addresses[pod][0]))
        asked = Asked(socket, packet[:2], self.clock.now, name)
        self.queries.append(asked)
        told = None if stream else self._told_by_the_kernel(packet, (self._link(pod), address(source)))
        if told is not None:
            socket.reply(told)
        else:
            self.engine.exchanges.question(packet, source, self._link(pod), socket)
        self.clock.run_due()
        return asked

    def _told_by_the_kernel(self, packet: bytes, pair: Pair) -> bytes | None:
        number = self.number(pair)
        return self.answers.tell(number, packet, self.clock.now) if self.answers and number is not None else None

    def number(self, pair: Pair) -> int | None:
        """The kernel's number for a pair that it knows: never one that another had, nor itself before it went."""
        known = self.enforcer.desired.pairs
        self._numbers = {each: number for each, number in self._numbers.items() if each in known}
        if pair in known and pair not in self._numbers:
            self._numbers[pair] = next(self._given)
        return self._numbers.get(pair)

    def script(self, name: str, qtype: str, *steps: Any, server: int | None = None) -> None:
        self.upstream.script(parse_name(name), QTYPE.reverse[qtype], steps, server=server)

    # ---- packets and flows

    def passes(self, pod: str, to: str, port: int, protocol: Protocol = Protocol.TCP) -> bool:
        """Whether a new connection is let through."""
        source = next(a for a in self.addresses[pod] if len(a) == len(address(to)))
        packet = Packet(source, address(to), protocol, port)
        return self.enforcer.decide(packet, self.links[pod]).action is Action.ACCEPT

    def connect(self, pod: str, to: str, port: int, protocol: Protocol = Protocol.TCP) -> Flow:
        """Open a connection, which must be let through; connection tracking knows it from then on."""
        assert self.passes(pod, to, port, protocol), f"{pod} -> {to}:{port} is closed"
        source = next(a for a in self.addresses[pod] if len(a) == len(address(to)))
        flow = Flow(protocol, source, 40_000 + len(self.flows.flows), address(to), port, address(to), port)
        self.flows.flows.add(flow)
        return flow

    def flowing(self, flow: Flow) -> bool:
        """Whether the packets of an open flow still pass."""
        return self.enforcer.carries(flow)

    # ---- what must hold

    def _acknowledge(self, upto: int, refused: Any) -> None:
        self.engine.exchanges.gate.acknowledge(upto, refused)

    def _heard(self, socket: Socket, packet: bytes) -> None:
        """I1, at the moment a reply leaves."""
        pod = self.engine.pods.by_link.get(self.links[socket.pod])
        if pod is None:
            self.broken.append(f"a reply to {socket.pod}, which is gone")
            return
        record = DNSRecord.parse(packet)
        name = parse_name(str(record.q.qname))
        for rr in record.rr:
            if rr.rtype in (QTYPE.A, QTYPE.AAAA):
                promise = Promise(pod, name, address(str(rr.rdata)), self.clock.now + rr.ttl)
                self.promises.append(promise)
                self._check(promise)
                if not self.engine.exchanges.audit and self._closed(promise):
                    self.broken.append(f"{pod.name} was told of {rr.rdata}, which earlier rules close")

    def look(self) -> None:
        """I1 and I2, for everything told and everything open."""
        now = self.clock.now
        if any(not task.done() for task in self.tasks):
            return
        self.promises = [p for p in self.promises if p.until > now and p.pod.id in self.engine.pods.by_id]
        generation = self.engine.changes.generation
        if generation > self._looked_at + 1:
            self.promises.clear()  # One of the policies between may have taken any of them back.
        self._looked_at = generation
        for promise in list(self.promises):
            if not isinstance(promise.pod.policy.verdict(promise.name), Allowed) or self._closed(promise):
                self.promises.remove(promise)
            else:
                self._check(promise)
        if not self.engine.changes.unapplied:
            self._check_justified()

    @staticmethod
    def _closed(promise: Promise) -> bool:
        """Whether Deny rules close the address on all ports of all rules that allow the name."""
        verdict = promise.pod.policy.verdict(promise.name)
        assert isinstance(verdict, Allowed)
        scopes = verdict.scopes
        return bool(scopes) and all(closed(promise.pod.program, scope, promise.address) for scope in scopes)

    def _check(self, promise: Promise) -> None:
        """The pod's program, given leases in all scopes of the verdict, says what must be open: no less is."""
        if len(self.broken) > 2:
            return
        pod, verdict = promise.pod, promise.pod.policy.verdict(promise.name)
        if not isinstance(verdict, Allowed) or not verdict.scopes:
            return
        names = {scope.name for scope in verdict.scopes}
        for source in pod.addresses:
            if len(source) != len(promise.address):
                continue
            if (pod.link, source) not in self.enforcer.desired.pairs:
                continue  # gained a moment ago: the kernel drops whatever comes from it
            for protocol, port in {(p, n) for s in verdict.scopes for p, n in _points(s.ports)}:
                packet = Packet(source, promise.address, protocol, port)
                if decide(pod.program, packet, names.__contains__).action is not Action.ACCEPT:
                    continue
                if self.enforcer.decide(packet, pod.link).action is not Action.ACCEPT:
                    left = promise.until - self.clock.now
                    self.broken.append(
                        f"{pod.name}: {ip_address(promise.address)}:{port} of {promise.name!r} is closed "
                        f"at {self.clock.now:.2f}, with {left:.2f} s of its TTL left"
                    )

    def _check_justified(self) -> None:
        if len(self.broken) > 2:
            return
        owners = {a: pod for pod in self.engine.pods for a in pod.addresses}
        now = self.clock.now
        for scope, key, remaining in self.enforcer.held():
            half = len(key) // 2
            if remaining / 1000 <= self.slack:
                continue
            pod = owners.get(Address(key[:half]))
            lease = self.engine.leases.pods[pod.id].get(scope, Address(key[half:])) if pod else None
            if pod is None or lease is None:
                self.broken.append(f"{scope} {key!r} is open for {remaining} ms and in no book")
                continue
            alive = [name for name, until in lease.names.items() if until > now + remaining / 1000 - self.slack]
            if not any(name == UNKNOWN or self._justifies(pod, name, scope) for name in alive):
                self.broken.append(f"{pod.name}: {scope} {key!r} is open for {remaining} ms because of {lease.names}")

    @staticmethod
    def _justifies(pod: Pod, name: Name, scope: str) -> bool:
        verdict = pod.policy.verdict(name)
        return isinstance(verdict, Allowed) and any(s.name == scope for s in verdict.scopes)

    def check(self) -> None:
        """Fail with everything that was broken so far."""
        assert not self.broken, "\n".join(self.broken)

    def check_nothing_left(self) -> None:
        """After everything has had its time: no exchange, slot, attempt, held answer or lease is left."""
        self.enforcer.release()
        self.spin()
        self.pass_time(10)
        engine = self.engine
        assert engine.quiet, (list(engine.exchanges._open), engine.fetches._by_key)
        assert not engine.fetches._attempts
        assert self.upstream.outstanding == 0
        assert engine.exchanges.gate.holding == 0
        assert not engine.exchanges.gate._batches
        assert engine.exchanges.gate.settled == engine.exchanges.gate.next_ticket - 1
        assert all(pod.share.in_flight == 0 for pod in engine.pods)
        assert all(len(asked.packets) <= 1 for asked in self.queries)
        self.pass_time(4000)
        assert len(engine.leases) == 0
        assert engine.leases.elements == 0
        assert self.enforcer.held() == []
        assert all(not table.per_name for table in engine.leases.pods.values())
        assert not engine.leases._turns
        self.check()


def _lookup(lookup: str | Lookup) -> Lookup:
    return allowlist(lookup) if isinstance(lookup, str) else lookup


def _points(ports: Collection[Any]) -> list[tuple[int, int]]:
    return [(p.protocol, n) for p in ports for n in (p.first, p.last)] or [(6, 1), (6, 65535), (17, 53), (1, 0)]


__all__ = [
    "Asked",
    "Entries",
    "Reply",
    "Stage",
    "Told",
    "address",
    "allowlist",
    "query",
    "replace",
    "respond",
    "settings",
]
