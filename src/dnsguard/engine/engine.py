"""The engine's parts put together: both stories over the contracts, ready for a daemon or for a test.

Given an enforcer, flows, an upstream, events and a clock (real ones, or the shipped doubles), it needs no socket, no
privilege and no time but what `now` says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dnsguard.core.attempts import Servers
from dnsguard.core.book import Capacity
from dnsguard.core.leases import Leases
from dnsguard.core.model import Address, Name, Pair, Seconds
from dnsguard.core.names import to_text
from dnsguard.core.pods import Pod, PodTable
from dnsguard.core.policy import Denied
from dnsguard.engine.cache import AnswerCache
from dnsguard.engine.change import Changes, ChangeSettings
from dnsguard.engine.contracts import (
    Enforcer,
    Events,
    Flows,
    KernelAnswers,
    NoAnswers,
    NoReminder,
    NoWitness,
    Reminder,
    Upstream,
    Witness,
)
from dnsguard.engine.counters import Counters
from dnsguard.engine.exchange import Exchanges
from dnsguard.engine.fetches import Fetches, FetchLimits, Outlets
from dnsguard.engine.prefetch import KernelFeed
from dnsguard.engine.refusals import ExchangeSettings
from dnsguard.engine.revoke import Kernel, Revocation, justify
from dnsguard.engine.stores import Stores


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What the configuration says of the engine, group by group."""

    exchange: ExchangeSettings = field(default_factory=ExchangeSettings)
    fetch: FetchLimits = field(default_factory=FetchLimits)
    change: ChangeSettings = field(default_factory=ChangeSettings)
    capacity: Capacity = field(default_factory=Capacity)
    cache_entries: int = 50_000
    drain: bool = False
    prefetch: bool = True
    audit: bool = False


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the engine talks to. `servers` is the number of upstreams."""

    enforcer: Enforcer
    flows: Flows
    events: Events
    counters: Counters
    now: Callable[[], Seconds]
    servers: Servers
    upstreams: Sequence[str] = ()
    """What the servers are called in events; without it by their number."""
    answers: KernelAnswers = field(default_factory=NoAnswers)
    numbers: Callable[[Pair], int | None] = lambda pair: None
    """The number by which the kernel's answers know a link and an address."""
    witness: Witness = field(default_factory=NoWitness)
    reminder: Reminder = field(default_factory=NoReminder)


class Engine:
    """Everything under way, and everything known of pods."""

    def __init__(self, settings: EngineSettings, around: Surroundings) -> None:
        self.pods = PodTable()
        self.leases = Leases(settings.capacity)
        self.cache = AnswerCache(settings.cache_entries)
        self.counters = around.counters
        self.servers = around.servers
        stores = Stores(self.pods, self.leases, self.cache, around.events, around.counters)
        self.fetches = Fetches(
            settings.fetch, around.servers, events=around.events, counters=around.counters, now=around.now
        )
        self.fetches.names = around.upstreams
        self.feed = KernelFeed(
            around.answers,
            around.numbers,
            pods=self.pods,
            leases=self.leases,
            floor=settings.exchange.floor,
            prefetch=settings.prefetch,
        )
        self.exchanges = Exchanges(
            settings.exchange,
            stores,
            self.fetches,
            around.enforcer,
            around.now,
            feed=self.feed,
            witness=around.witness,
        )
        self.exchanges.set_audit(settings.audit)
        self.feed.refresh = self.exchanges.refresh
        self._witness, self._now = around.witness, around.now
        self.revocation = Revocation(
            Kernel(around.enforcer, around.flows),
            self.leases,
            around.events,
            around.counters,
            drain=settings.drain,
            told=self.told,
        )
        self.revocation.audit = settings.audit
        self.exchanges.opening.before_arming = self.revocation.before_arming
        self.changes = Changes(
            settings.change,
            stores,
            self.exchanges,
            enforcer=around.enforcer,
            flows=around.flows,
            revocation=self.revocation,
            feed=self.feed,
            reminder=around.reminder,
            now=around.now,
        )

    def connect(self, upstream: Upstream) -> None:
        """Give the transport, built with `fetches.answered` and `fetches.failed`. Before the first question."""
        exchanges = self.exchanges
        self.fetches.connect(upstream, Outlets(exchanges.answered, exchanges.unanswered, exchanges.late))

    def tick(self, now: Seconds) -> None:
        """Let time pass; some twenty times a second."""
        self.exchanges.tick(now)
        self.changes.tick(now)
        self.feed.tick(now)

    async def forget(self, now: Seconds) -> None:
        """Let go of what is worth nothing any longer; every few seconds."""
        for pod in self.pods:
            pod.share.forget(now)
        await self.revocation.tick(self.pods, now)

    def told(self, pod: Pod, address: Address) -> set[Name]:
        """The names of which a pod was told this address, in Audit or as far back as is known."""
        names = self.exchanges.audited.names(pod.id, address, self._now())
        return {*names, *self._witness.names(pod.name, address)}

    def why_closed(self, pod: Pod, address: Address, now: Seconds) -> str:
        """In words for a log, why a packet of `pod` to `address` found it closed."""
        lease = self.leases.last_ended(pod.id, address, now)
        if lease is not None:
            stood_on = [name for name in {*lease.names, *lease.past} if name]
            names = ", ".join(sorted(map(to_text, stood_on))) or "an earlier process"
            opens = justify(pod.policy, pod.program)
            if stood_on and not any(lease.scope in opens(name, address) for name in stood_on):
                return f"lease of {names} was taken back, the policy no longer allows it"
            return f"lease of {names} ended {now - lease.until:.0f} s ago"
        if self.leases.open_in(pod.id, address, now):
            return "its leases open other ports only"
        return self._why_audited(pod, address, now) or "never resolved"

    def _why_audited(self, pod: Pod, address: Address, now: Seconds) -> str:
        """For an address that only names resolved to which no rule allowed; empty when there were none."""
        names = sorted(set(self.exchanges.audited.names(pod.id, address, now)))
        denials = [verdict.reason for name in names if isinstance(verdict := pod.policy.verdict(name), Denied)]
        told = ", ".join(map(to_text, names[:3]))
        if names and not denials:
            return f"{told} resolved to it before a rule allowed the name"
        return f"{told} resolved to it: {denials[0]}" if names else ""

    @property
    def quiet(self) -> bool:
        """Nothing is under way."""
        return not len(self.exchanges) and not len(self.fetches)
