"""Story 1: a query, from its arrival at the node to the reply.

    question -> limits -> verdict -> cache or fetch -> vetted answer -> leases -> gate -> reply

Nothing here waits: every step is a call that ends, and the next begins with an event (an answer, an acknowledgement,
a tick). A name that the policy denies goes no further than `Refusals`; an address that the kernel does not hold goes no
further than the gate. Every exchange ends in exactly one `_close`. In Audit both go on, and are told of.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable
from itertools import takewhile

from dnsguard.core.answers import Answer, Vetted, reply
from dnsguard.core.model import LinkIndex, PodId, Seconds
from dnsguard.core.pods import Pod
from dnsguard.core.policy import Denied
from dnsguard.core.wire import (
    Ede,
    Qtype,
    Question,
    Rcode,
    Rejection,
    error,
    read_question,
    type_text,
)
from dnsguard.engine.audit import AUDITED, AuditedNames, Told
from dnsguard.engine.contracts import Client, Enforcer, EventKind, NoWitness, Witness
from dnsguard.engine.counters import OTHER, TYPE_LABELS
from dnsguard.engine.fetches import Fetches
from dnsguard.engine.gate import Exits, Gate
from dnsguard.engine.opening import Opening, Unopened
from dnsguard.engine.prefetch import LEAD, KernelFeed, Refreshing
from dnsguard.engine.refusals import ExchangeSettings, Refusals
from dnsguard.engine.state import Exchange, Fetch
from dnsguard.engine.stores import Stores
from dnsguard.engine.strangers import Stranger, Strangers
from dnsguard.engine.telling import Telling

_META = int(Qtype.IXFR)
"""Types from here on are questions about data, not data. A plain number: looking up an enum's member costs 0.05 us."""
_NAMING = frozenset((int(Qtype.SVCB), int(Qtype.HTTPS)))
"""Types whose records name targets, which are judged by the policy of the pod that asks."""

_NETWORK_ERRORS = frozenset(("refused", "unreachable", "closed"))

STALE_TTL = 30
"""RFC 8767 section 4: the TTL of a stale answer."""


class Exchanges:
    """Every query under way. Fed by listeners, the transport, the enforcer, and a tick a few times a second."""

    def __init__(
        self,
        settings: ExchangeSettings,
        stores: Stores,
        fetches: Fetches,
        enforcer: Enforcer,
        now: Callable[[], Seconds],
        *,
        feed: KernelFeed,
        witness: Witness | None = None,
    ) -> None:
        self._settings = settings
        self._witness = witness or NoWitness()
        self._feed = feed
        self._pods = stores.pods
        self._leases = stores.leases
        self._cache = stores.cache
        self._events = stores.events
        self._counters = stores.counters
        self._fetches = fetches
        self._now = now
        self._refusals = Refusals(settings, stores.events, stores.counters, now, witness=self._witness)
        self._telling = Telling(stores.events, stores.counters)
        self._respond = self._refusals.respond
        self.gate: Gate[Exchange] = Gate(enforcer, Exits(self._release, self._late, self._doubt))
        self._open: dict[Exchange, None] = {}
        self._strangers = Strangers(stores.events, stores.counters)
        self.opening = Opening(settings, stores, fetches, self.gate, self._telling)
        self.audit = False
        """Nothing is withheld from anyone: what would be is counted and told."""
        self.audited = AuditedNames()

    def __len__(self) -> int:
        return len(self._open)

    # ---- question

    def question(self, packet: bytes, source: str, link: LinkIndex, client: Client) -> None:
        """A DNS message arrived from `source` through `link`."""
        now = self._now()
        pod = self._pods.by_source.get((source, link))
        if pod is None:
            self._strangers.keep(link, Stranger(packet, source, client, now))
            return
        question = read_question(packet)
        if isinstance(question, Rejection):
            self._refusals.reject(question, client, pod)
            return
        counters = self._counters
        family = 6 if ":" in source else 4
        transport = "tcp" if client.stream else "udp"
        counters.requests[family, transport, TYPE_LABELS.get(question.qtype, OTHER)] += 1
        over = pod.share.query(now)
        if over is not None and self._refusals.limit(over, question, pod, client):
            return
        if source in self._settings.loop_sources and self._refusals.refuse_loop(question, pod, client):
            return
        self._judge(question, client, pod, source, now)

    def _judge(self, question: Question, client: Client, pod: Pod, source: str, now: Seconds) -> None:
        """A question that may be asked: is its name allowed, and is the answer known?"""
        counters = self._counters
        verdict = pod.policy.verdict(question.name)
        if isinstance(verdict, Denied):
            if not self.audit:
                rcode, ede = self._refusals.deny(verdict, question, pod, client, now)
                self._feed.denied(pod, source, question, rcode=rcode, ede=ede, now=now)
                return
            verdict = self._refusals.let_through(verdict, question, pod)
        else:
            counters.verdicts["allowed"] += 1
        qtype = question.qtype
        if qtype >= _META and self._refusals.special(question, client, now):
            self._witness.unanswered(pod.name, question.name, verdict.labels, now)
            return
        key: Hashable = question.key if qtype not in _NAMING else (question.key, pod.policy)
        entry = self._cache.get(key)
        if entry is not None and entry.ends > now:
            exchange = self._begin(Exchange(question, client, pod, verdict, now, source))
            exchange.again, exchange.ends = True, entry.ends
            counters.cache_hits["user"] += 1
            self._finish(exchange, entry.answer, int(entry.ends - now), now)
            return
        counters.cache_misses += 1
        if self._fetches.retried(client, question, key, now):
            return
        over = pod.share.name(question.name, now)
        if over is not None and self._refusals.limit(over, question, pod, client):
            return
        self._fetches.join(self._begin(Exchange(question, client, pod, verdict, now, source)), key, now)

    def refresh(self, pod: Pod, source: str, question: Question) -> None:
        """Do as if this pod had asked again for what it uses; nobody waits for the answer. What the cache holds for a
        while yet only has its leases renewed, else the upstreams are asked anew."""
        now = self._now()
        verdict = pod.policy.verdict(question.name)
        if isinstance(verdict, Denied) or pod.share.query(now) is not None:
            return
        key: Hashable = question.key if question.qtype not in _NAMING else (question.key, pod.policy)
        exchange = self._begin(Exchange(question, Refreshing(), pod, verdict, now, source))
        exchange.again = True
        entry = self._cache.get(key)
        if entry is not None and entry.ends > now + 2 * LEAD:
            exchange.ends = entry.ends
            self._finish(exchange, entry.answer, int(entry.ends - now), now)
        else:
            self._fetches.join(exchange, key, now)

    def admit(self, source: str, link: LinkIndex) -> Callable[[], None] | None:
        """A TCP connection: None refuses it, else what gives it back. A stranger may wait for its first answer."""
        pod = self._pods.by_source.get((source, link))
        if pod is None:
            return self._strangers.admit(link)
        share = pod.share
        if (over := share.connection()) is not None:
            self._counters.limited[over] += 1
            self._events.emit(EventKind.QUERY_LIMITED, pod=pod.name, limit=over)
            if not (self.audit and share.within_reason()):
                return None
            share.connections += 1
        return share.disconnection

    def _begin(self, exchange: Exchange) -> Exchange:
        exchange.pod.share.in_flight += 1
        self._open[exchange] = None
        return exchange

    # ---- answer

    def answered(self, fetch: Fetch, vetted: Vetted) -> None:
        """A fetch ended with an answer worth telling."""
        now = self._now()
        answer = vetted.answer
        self._cache.put(fetch.key, answer, now)
        for reason, count in vetted.counts:
            self._counters.records_removed[reason] += count
        for exchange in list(fetch.waiters.values()):
            exchange.fetch = None
            exchange.ends = now + answer.ttl
            if vetted.removed:
                self._telling.removed(exchange, vetted)
            self._finish(exchange, answer, answer.ttl, now)

    def unanswered(self, fetch: Fetch, rcode: int, reason: str) -> None:
        """A fetch ended without one. Stale data, if it may still be served, beats a failure."""
        ede = Ede.NETWORK_ERROR if fetch.error in _NETWORK_ERRORS else Ede.NO_REACHABLE_AUTHORITY
        for exchange in list(fetch.waiters.values()):
            if not self._serve_stale(exchange, fetch.key):
                exchange.fetch = None
                self._fail(exchange, reason, rcode=rcode, ede=ede)

    def late(self, fetch: Fetch) -> None:
        """The upstreams take long: those who wait get the stale answer now, while the fetch goes on."""
        for exchange in list(fetch.waiters.values()):
            self._serve_stale(exchange, fetch.key)

    def _serve_stale(self, exchange: Exchange, key: Hashable) -> bool:
        now = self._now()
        entry = self._cache.get(key)
        if entry is None or now - entry.ends > self._settings.serve_stale or not self._settings.serve_stale:
            return False
        if isinstance(exchange.client, Refreshing):
            return False
        self._counters.stale += 1
        self._events.emit(
            EventKind.ANSWER_STALE,
            pod=exchange.pod.name,
            name=exchange.question.name,
            type=type_text(exchange.question.qtype),
            reason="no upstream has answered",
        )
        self._fetches.leave(exchange)
        exchange.stale = True
        self._finish(exchange, entry.answer, min(STALE_TTL, entry.answer.ttl), now)
        return True

    # ---- leases and gate

    def _finish(self, exchange: Exchange, answer: Answer, ttl: int, now: Seconds) -> None:
        """Open what the answer names, for this pod, then let the reply through the gate."""
        pod = exchange.pod
        if exchange.policy is not pod.policy and not self._judge_again(exchange, now):
            return
        question = exchange.question
        exchange.answer, exchange.ttl = answer, ttl
        wait = 0
        ede = None
        if answer.addresses and exchange.verdict.scopes:
            opened = self.opening.open(exchange, answer, now)
            if isinstance(opened, Unopened):
                self._withhold(exchange, opened.reason, opened.kind)
                if not self.audit:
                    return
                opened = answer, 0
            answer, wait = opened
            if not answer.addresses:
                ttl = min(ttl, answer.ttl)
                ede = (Ede.BLOCKED, "an earlier rule denies every address of this name")
        # A reply that says more than the answer, or an old one, is for this once.
        exchange.shown = None if ede is not None or exchange.stale else answer
        if exchange.stale:
            ede = (Ede.STALE_NXDOMAIN_ANSWER if answer.rcode == Rcode.NXDOMAIN else Ede.STALE_ANSWER, "")
        exchange.packet = reply(answer, question, ttl, stream=exchange.client.stream, ede=ede)
        if wait <= self.gate.settled or not self.gate.hold(exchange, wait, now):
            self._release(exchange)

    def _judge_again(self, exchange: Exchange, now: Seconds) -> bool:
        """The pod's policy changed while the answer was on its way: ask the new one."""
        pod, question = exchange.pod, exchange.question
        verdict = pod.policy.verdict(question.name)
        before, exchange.policy = exchange.policy, pod.policy
        if isinstance(verdict, Denied):
            if not self.audit:
                self._close(exchange)
                if not isinstance(exchange.client, Refreshing):
                    self._refusals.deny(verdict, question, pod, exchange.client, exchange.started)
                return False
            verdict = AUDITED
        exchange.verdict = verdict
        if before is not None and question.qtype in _NAMING:
            # What it names was judged by the policy before.
            self._fetches.join(exchange, (question.key, pod.policy), now)
            return False
        return True

    def _release(self, exchange: Exchange) -> None:
        """Everything the reply names is open: send it, unless the policy changed while the gate held it."""
        if exchange not in self._open:
            return
        if exchange.policy is not exchange.pod.policy:
            assert exchange.answer is not None
            self._finish(exchange, exchange.answer, exchange.ttl, self._now())
            return
        self._send(exchange)

    def _send(self, exchange: Exchange) -> None:
        self._close(exchange)
        answer, verdict = exchange.shown, exchange.verdict
        if exchange.again and exchange.ends and answer is not None and verdict is not AUDITED:
            self._feed.asked_again(exchange, answer)
            if isinstance(exchange.client, Refreshing):
                return
        answer = answer or exchange.answer
        if answer is not None:
            self._witness.answered(exchange.pod.name, answer.name, answer, verdict.labels, exchange.started)
            if verdict is AUDITED and answer.addresses:
                until = self._now() + max(exchange.ttl, self._settings.floor)
                self.audited.told(exchange.pod.id, Told(exchange.question.name, answer.addresses, until))
        if self._events.all_queries and verdict is not AUDITED:
            self._telling.allowed(exchange)
        self._respond(exchange.client, exchange.packet, exchange.started)

    def _late(self, exchange: Exchange, reason: str) -> None:
        """The gate did not let it out: the kernel refused, or took too long."""
        if self.audit and exchange in self._open:
            self._telling.audited(exchange, reason)
            self._send(exchange)
        else:
            self._withhold(exchange, reason)

    def _doubt(self, exchange: Exchange, pods: Collection[PodId]) -> None:
        """A write for one of these pods was refused, and this held answer may count on it."""
        if exchange.pod.id in pods:
            exchange.policy = None

    def _withhold(self, exchange: Exchange, reason: str, kind: str = "kernel") -> None:
        if self.audit:
            self._telling.audited(exchange, reason)
            return
        self._counters.answers_withheld[kind] += 1
        self._fail(exchange, reason)

    def _fail(self, exchange: Exchange, reason: str, *, rcode: int = Rcode.SERVFAIL, ede: Ede = Ede.OTHER) -> None:
        """The end of an exchange that has no answer to give."""
        if exchange not in self._open:
            return
        self._close(exchange)
        if isinstance(exchange.client, Refreshing):
            return
        name, labels = exchange.question.name, exchange.verdict.labels
        self._witness.unanswered(exchange.pod.name, name, labels, exchange.started)
        self._events.emit(
            EventKind.QUERY_FAILED,
            pod=exchange.pod.name,
            name=exchange.question.name,
            type=type_text(exchange.question.qtype),
            reason=reason,
        )
        self._respond(exchange.client, error(exchange.question, rcode, (ede, reason)), exchange.started)

    def _close(self, exchange: Exchange) -> None:
        """Give back what the exchange held."""
        if exchange in self._open:
            del self._open[exchange]
            exchange.pod.share.in_flight -= 1
            self._fetches.leave(exchange)

    # ---- time and changes

    def tick(self, now: Seconds) -> None:
        """Let time pass: the gate's patience, deadlines, strangers nobody vouched for."""
        self._fetches.tick(now)
        self.gate.tick(now)
        for exchange in list(takewhile(lambda e: now - e.started >= self._settings.deadline, self._open)):
            self._fail(exchange, "no answer by the deadline", ede=Ede.NO_REACHABLE_AUTHORITY)
        self._strangers.tick(now)

    def pods_changed(self) -> None:
        """A pod came: ask again on behalf of those who asked before it was known."""
        for link, stranger in [*self._strangers.known(self._pods.by_source)]:
            self.question(stranger.packet, stranger.source, link, stranger.client)

    def set_audit(self, on: bool) -> None:
        """Before the first question, and by `audit_is`."""
        self.audit = on
        for part in (self._fetches, self._refusals, self._telling, self.opening):
            part.audit = on

    def audit_is(self, on: bool) -> None:
        """From here on nothing is withheld, or all is again. What is under way is judged anew."""
        now = self._now()
        self.set_audit(on)
        # They hold answers that only one of the two would tell.
        self._cache.clear()
        self._feed.forget_all()
        for exchange in list(self._open):
            exchange.policy = None
            if exchange.fetch is None:
                self._close(exchange)
                if not isinstance(exchange.client, Refreshing):
                    self._judge(exchange.question, exchange.client, exchange.pod, exchange.source, now)

    def open_audited(self, pod: Pod) -> None:
        """Enforcing begins, and the enforcer is told next: what the pod was told in Audit stays open to it, if its
        rules allow it."""
        self.opening.audited(pod, self.audited, self._now())

    def pod_came(self, pod: Pod, *, named: bool) -> None:
        """Whoever had its address before is another, unless both go by a name."""
        if not named:
            self._witness.came(pod.name, pod.link, self._now())

    def pod_went(self, pod: Pod) -> None:
        """A pod is gone: its queries get no answer, for the address may be another's by now."""
        self.opening.unenforced.discard(pod.id)
        self.audited.forget(pod.id)
        self._feed.forget(pod)
        for exchange in [e for e in self._open if e.pod is pod]:
            self._close(exchange)
