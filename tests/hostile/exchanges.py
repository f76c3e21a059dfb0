"""Whole exchanges: packets of pods and of upstreams, time, faults and changes, as an input says, through the engine.

The node is that of tests/replay/stage.py, with limits small enough to be met. Each part of an input is one event; its
first octet says which, its second chooses among pods, attempts, seconds or faults:

    q t   a pod sends this packet, over UDP or over one TCP connection
    a     an upstream sends this packet, which the transport judges; its ID is that of an attempt under way
    g     an upstream answers with these flags, counts and records, behind the right ID and question
    f     the transport gives an attempt up            w   time passes
    k     the kernel: late, refusing, well again       p   a pod comes, goes or has other addresses
    r     another allowlist                            c   a pod opens a connection to what it was told last
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine
from functools import cache
from typing import Any

from dnsguard.core.errors import KernelError
from dnsguard.core.model import Action, Address, Flow, Name, PodEntry
from dnsguard.core.pods import Pod, assign
from dnsguard.core.policy import Allowed
from dnsguard.core.records import read_records
from dnsguard.core.wire import Question, read_question
from dnsguard.engine.contracts import Attempt
from dnsguard.sources.store import Store
from dnsguard.upstream.matching import MAX_DISCARDS, objection
from tests.hostile.streams import SEPARATOR
from tests.replay.stage import Promise, Socket, Stage, address, allowlist

MOST_PARTS = 120
MOST_COUNTERS = 300
"""Labels of all counters together. Whoever is outside must not be able to make more."""
LIMITS = """
limits: {queriesPerSecond: 20, burst: 30, inFlight: 12, uniqueNamesPerMinute: 12, addressesPerName: 6, leasesPerPod: 20}
tables: {leases: 30}
cache: {entries: 8}
upstreams: [192.0.2.53, 192.0.2.54]
"""
CONFIGS = (LIMITS, LIMITS + "dns: {denyResponse: REFUSED, serveStale: 0s}\nttl: {floor: 1s, grace: 1s}\n")
IN_FLIGHT, LEASES_PER_POD, LEASES, CACHED = 12, 20, 30, 8
FETCHES = 3 * (30 + 4 * 20)
"""Each of three pods its burst, and then its rate for as long as a fetch may last."""
PODS = {"web": ["10.244.0.5", "fd00::5"], "db": ["10.244.0.6"], "new": ["10.244.0.7"]}
ALLOWLISTS = (
    """
policies:
  web:
    egress:
      - to: [{domainNames: [www.example.com, "*.example.org"], except: [no.example.org]}]
        ports: [{protocol: TCP, port: 443}]
      - {to: [{domainNames: ["*.example.com"]}]}
      - {to: [{ipBlock: {cidr: 198.51.100.0/24}}]}
  db: {dns: PassThrough, egress: [{to: [{domainNames: [example.com]}], ports: [{protocol: UDP, port: 53}]}]}
pods:
  10.244.0.5: {name: web, policies: [web]}
  fd00::5: {name: web, policies: [web]}
  10.244.0.6: {policies: [web, db]}
  10.244.0.0/24: ["*.example"]
""",
    """
policies:
  web:
    egress:
      - to: [{domainNames: ["*.example.com"]}]
        ports: [{protocol: TCP, port: 80}, {protocol: TCP, port: 443}]
pods:
  10.244.0.5: {name: web, policies: [web]}
  fd00::5: {name: web, policies: [web]}
  10.244.0.6: []
""",
    "policies: {}\npods: {}\n",
)
FAILURES = ("refused", "closed", "garbage", "unreachable")


class Lookup:
    """Reads a stored allowlist anew for each node: what a node has decoded is no other's."""

    def __init__(self, number: int) -> None:
        self._store: Store = stored(number)

    def entry(self, found: Address) -> PodEntry | None:
        return self._store.entry(found)


@cache
def stored(number: int) -> Store:
    return allowlist(ALLOWLISTS[number])


class Transport:
    """The way to the upstreams (contracts.Upstream). Nothing takes it that no policy allows, and nothing of the pod's
    packet but its question."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def ask(self, attempt: Attempt) -> None:
        node, name = self._node, Name(attempt.section[:-4].lower())
        permitted = name in node.permitted or any(node.allows(pod, name) for pod in node.askers.get(name, ()))
        assert permitted, f"{name!r} was forwarded, and no policy allows it"
        node.permitted.add(name)
        assert len(attempt.query) in (10 + len(attempt.section), 21 + len(attempt.section))
        assert attempt.query[10 : 10 + len(attempt.section)] == attempt.section
        node.attempts = [*node.under_way(), attempt]
        node.upstream.ask(attempt)

    def abandon(self, attempt: Attempt, *, timed_out: bool) -> None:
        self._node.upstream.abandon(attempt, timed_out=timed_out)


class Node(Stage):
    """A node on which anything may happen, and what must hold meanwhile."""

    def __init__(self, config: str) -> None:
        super().__init__(Lookup(0), config, pods={pod: PODS[pod] for pod in ("web", "db")})
        self.engine.connect(Transport(self))
        self.attempts: list[Attempt] = []
        self.strikes: Counter[int] = Counter()
        self.sent: dict[tuple[int, bytes], list[Question | None]] = {}
        """By socket and ID: what was asked, None for what is no question."""
        self.replied: Counter[tuple[int, bytes]] = Counter()
        self.due: dict[tuple[int, bytes], Pod] = {}
        """Questions that must have a reply in the end, unless the pod goes before."""
        self.askers: dict[Name, set[str]] = {}
        self.permitted: set[Name] = set()
        self.sockets: list[Socket] = []
        self.streams = {pod: Socket(pod, stream=True, heard=self._heard) for pod in PODS}
        self.failures: list[KernelError] = []
        self.told_last: Promise | None = None
        self.since: list[Lookup] = []
        """The allowlists that have, or may have, been in force since `look` last found no change under way."""
        for pod in PODS:
            self._link(pod)
        self.addresses.update({pod: [address(text) for text in texts] for pod, texts in PODS.items()})

    def under_way(self) -> list[Attempt]:
        return [attempt for attempt in self.attempts if attempt.handle is not None]

    def allows(self, pod: str, name: Name) -> bool:
        known = self.engine.pods.by_link.get(self.links[pod])
        return known is not None and isinstance(known.policy.verdict(name), Allowed)

    # ---- events

    def query(self, choice: int, packet: bytes, *, stream: bool) -> None:
        pod = list(PODS)[choice % len(PODS)]
        if stream:
            socket = self.streams[pod]
        elif choice & 0x80 and self.sockets:
            socket = self.sockets[choice % len(self.sockets)]
            pod = socket.pod
        else:
            socket = Socket(pod, stream=False, heard=self._heard)
            self.sockets.append(socket)
        read = read_question(packet)
        question = read if isinstance(read, Question) else None
        self.sent.setdefault((id(socket), packet[:2]), []).append(question)
        if question is not None:
            self.askers.setdefault(question.name, set()).add(pod)
            if self.allows(pod, question.name):
                self.permitted.add(question.name)
        sources = [source for source in PODS[pod] if address(source) in self.addresses[pod]] or PODS[pod]
        source = sources[choice // 8 % len(sources)]
        asks = self.engine.pods.by_source.get((source, self.links[pod]))
        if question is not None and asks is not None:
            self.due[id(socket), packet[:2]] = asks
        self.send(pod, packet, socket=socket, source=source)

    def answer(self, choice: int, rest: bytes, *, grafted: bool) -> None:
        outstanding = self.under_way()
        if not outstanding:
            return
        attempt = outstanding[choice % len(outstanding)]
        if grafted:
            flags = bytes((rest[0] | 0x80, rest[1])) if len(rest) > 1 else b"\x81\x80"
            rest = flags + b"\0\1" + rest[2:8].ljust(6, b"\0") + attempt.section + rest[8:]
        packet = (b"\x42\x42" + rest)[:65_535]
        if objection(packet, attempt.section) is None:
            self.upstream.abandon(attempt, timed_out=False)
            self.engine.fetches.answered(attempt, packet)
        else:
            self.strikes[id(attempt)] += 1
            if self.strikes[id(attempt)] == MAX_DISCARDS:
                self.fail(choice, "garbage")

    def fail(self, choice: int, reason: str) -> None:
        if outstanding := self.under_way():
            attempt = outstanding[choice % len(outstanding)]
            self.upstream.abandon(attempt, timed_out=False)
            self.engine.fetches.failed(attempt, reason)

    def kernel(self, choice: int) -> None:
        kernel = self.enforcer
        steps: list[Callable[[], None]] = [
            kernel.hold,
            kernel.release,
            lambda: kernel.refuse("set is full"),
            lambda: kernel.refuse_changes("no memory"),
            kernel.relent,
            lambda: self.be_late(0.3),
            lambda: self.be_late(0.0),
            lambda: self.change(self.engine.changes.apply_again()),
        ]
        steps[choice % len(steps)]()

    def be_late(self, latency: float) -> None:
        self.enforcer.latency = latency
        self.slack = max(self.slack, latency + 0.1)

    def pods(self, choice: int) -> None:
        pod = list(PODS)[choice % len(PODS)]
        texts = [[], PODS[pod], PODS[pod][:1], PODS[pod][1:]][choice // 8 % 4]
        self.forget_promises(pod)
        if texts:
            self.change(self.engine.changes.links(self.seen(pod, *texts)))
        elif self.links[pod] in self.engine.pods.by_link:
            self.change(self.engine.changes.links({self.links[pod]: None}))

    def reload_to(self, choice: int) -> None:
        lookup = Lookup(choice % len(ALLOWLISTS))
        self.since.append(lookup)
        self.change(self.engine.changes.policy(lookup))

    def connect_to(self, choice: int) -> None:
        """A pod opens a connection, where it may."""
        told = self.told_last
        if told is not None and told.pod.link in self.engine.pods.by_link:
            for source in told.pod.addresses:
                if len(source) == len(told.address):
                    self.flows.flows.add(Flow(6, source, 40_000 + choice, told.address, 443, told.address, 443))

    def change(self, work: Coroutine[Any, Any, Any]) -> None:
        self.start(self._forgiving(work))
        self.clock.run_due()

    async def _forgiving(self, work: Coroutine[Any, Any, Any]) -> None:
        try:
            await work
        except KernelError as error:
            self.failures.append(error)

    # ---- what must hold

    def _heard(self, socket: Socket, packet: bytes) -> None:
        """A reply leaves for a pod."""
        key = id(socket), packet[:2]
        self.replied[key] += 1
        asked = self.sent[key]
        assert self.replied[key] <= len(asked), "more replies than queries"
        assert packet[2] & 0x80
        pod = self.engine.pods.by_link.get(self.links[socket.pod])
        assert pod is not None, "a reply to a pod that is gone"
        if packet[4:6] == b"\0\0":
            assert len(packet) == 12
            return
        records, section = read_reply(packet)
        questions = [one for one in asked if one is not None and one.section == section]
        name = Name(section[:-4].lower())
        shown = [Address(packet[r.start : r.end]) for r in records if r.rtype in (1, 28)]
        assert questions or (None in asked and not shown)
        assert socket.stream or not questions or len(packet) <= max(one.size for one in questions)
        for one, ttl in [(Address(packet[r.start : r.end]), r.ttl) for r in records if r.rtype in (1, 28)]:
            assert one not in self.engine.fetches.guard, "a protected address was told"
            assert isinstance(pod.policy.verdict(name), Allowed), f"{name!r} was told to whom it is denied"
            self.told_last = Promise(pod, name, one, self.clock.now + ttl)
            self.promises.append(self.told_last)
            self._check(self.told_last)

    def look(self) -> None:
        """While a change is under way or was refused, the books are ahead of the kernel: then only replies are held
        to I1, as they leave."""
        if all(task.done() for task in self.tasks):
            self._void()
            if not self.engine.changes.unapplied:
                super().look()
        self.check_bounds()

    def _void(self) -> None:
        """Forget promises that a policy since then denied: what it closed is closed, even if the next allows it."""
        for lookup in self.since:
            for pod in self.engine.pods:
                policy = assign(pod.addresses, lookup, Action.DENY).policy
                self.promises = [
                    promise
                    for promise in self.promises
                    if promise.pod is not pod or isinstance(policy.verdict(promise.name), Allowed)
                ]
        self.since.clear()

    def check_bounds(self) -> None:
        """Nothing grows beyond what the configuration says."""
        engine = self.engine
        assert len(engine.exchanges) <= IN_FLIGHT * len(engine.pods)
        assert len(engine.fetches) <= FETCHES
        assert all(0 <= pod.share.in_flight <= IN_FLIGHT for pod in engine.pods)
        assert len(engine.cache) <= CACHED
        assert engine.leases.elements <= LEASES
        assert all(len(table) <= LEASES_PER_POD for table in engine.leases.pods.values())
        assert len(engine.exchanges._strangers) <= len(PODS)
        fields = [getattr(engine.counters, field) for field in engine.counters.__slots__]
        assert sum(len(field) for field in fields if isinstance(field, dict)) <= MOST_COUNTERS
        self.check()

    def end(self) -> None:
        """Everything gets its time: nothing is left of any query, and later of any lease."""
        self.enforcer.relent()
        self.enforcer.release()
        self.enforcer.latency = 0.0
        self.spin()
        self.change(self.engine.changes.apply_again())
        self.advance(12.0, 24)
        engine = self.engine
        assert all(task.done() for task in self.tasks)
        for task in self.tasks:
            task.result()
        assert engine.quiet
        here = {pod.id for pod in engine.pods}
        lost = [key for key, pod in self.due.items() if pod.id in here and not self.replied[key]]
        assert not lost, "a question has no reply"
        assert not engine.fetches._attempts and self.upstream.outstanding == 0
        assert engine.exchanges.gate.holding == 0 and not engine.exchanges.gate._batches
        assert not engine.exchanges._strangers
        assert all(pod.share.in_flight == 0 for pod in engine.pods)
        self.advance(4000.0, 4)
        assert len(engine.leases) == 0 and engine.leases.elements == 0
        assert self.enforcer.held() == []
        assert not engine.leases._turns
        self.check()

    def advance(self, seconds: float, steps: int) -> None:
        """Time passes in so many ticks; what the kernel is late with happens at its moment."""
        end, step = self.clock.now + seconds, seconds / steps
        tick = self.clock.now + step
        while self.clock.now < end:
            deadline = self.enforcer.next_deadline()
            self.clock.now = max(self.clock.now, min(end, tick, end if deadline is None else deadline))
            self.clock.run_due()
            self.enforcer.settle()
            if self.clock.now >= tick:
                self.engine.tick(self.clock.now)
                tick = self.clock.now + step
            self.spin_if_busy()
        self.engine.tick(self.clock.now)
        self.look()

    def wait(self, choice: int) -> None:
        seconds = choice * 0.05 if choice < 128 else (choice - 127) * 10.0
        if self.enforcer._held:  # what the kernel is late with lives that much longer than its book says
            self.slack += seconds
        self.advance(seconds, min(40, 1 + int(seconds / 0.25)))


def read_reply(packet: bytes) -> tuple[list[Any], bytes]:
    """The records of a reply but for OPT, and its question section."""
    end = 12
    while packet[end]:
        end += 1 + packet[end]
    counts = [int.from_bytes(packet[at : at + 2], "big") for at in (4, 6, 8, 10)]
    assert counts[0] == 1
    records, last = read_records(packet, end + 5, sum(counts[1:]), {})
    assert last == len(packet), "something stands behind the records"
    return [record for record in records if record.rtype != 41], packet[12 : end + 5]


def exchange(data: bytes) -> None:
    """Everything that an input says, and then time for all of it to end."""
    first, *parts = data.split(SEPARATOR)[: MOST_PARTS + 1]
    node = Node(CONFIGS[len(first) % 2])
    try:
        for part in parts:
            happens(node, part[:1], part[1] if len(part) > 1 else 0, part[2:])
            node.look()
        node.end()
    finally:
        node.close()


def happens(node: Node, what: bytes, choice: int, rest: bytes) -> None:
    events: dict[bytes, Callable[[], None]] = {
        b"q": lambda: node.query(choice, rest, stream=False),
        b"t": lambda: node.query(choice, rest, stream=True),
        b"a": lambda: node.answer(choice, rest, grafted=False),
        b"g": lambda: node.answer(choice, rest, grafted=True),
        b"f": lambda: node.fail(choice, FAILURES[choice % len(FAILURES)]),
        b"w": lambda: node.wait(choice),
        b"k": lambda: node.kernel(choice),
        b"p": lambda: node.pods(choice),
        b"r": lambda: node.reload_to(choice),
        b"c": lambda: node.connect_to(choice),
    }
    if what in events:
        events[what]()
