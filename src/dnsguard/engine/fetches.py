"""One question to the upstreams on behalf of everyone who asks it: attempts, time-outs, the next upstream.

A fetch lives from the first query that misses the cache to its answer. Those who ask the same meanwhile join it; a
retry of one who already waits starts one more attempt; at most two are outstanding. What comes back is vetted here,
once, before anyone sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from dnsguard.core.answers import Outcome, Protected, Vetted, classify, vet
from dnsguard.core.attempts import Servers
from dnsguard.core.errors import UpstreamError
from dnsguard.core.limits import FREE_OCTETS, OCTETS, QUERIES
from dnsguard.core.model import Seconds
from dnsguard.core.wire import Question, Rcode
from dnsguard.engine import contracts
from dnsguard.engine.contracts import Client, EventKind, Events, Upstream
from dnsguard.engine.counters import Counters
from dnsguard.engine.state import Attempt, Exchange, Fetch

MOST_OUTSTANDING = 2
BURST: Seconds = 0.2
"""Asked again sooner than this after an attempt: several asking at once, not a retry."""
_TOLD = frozenset((Rcode.SERVFAIL, Rcode.NOTIMP, Rcode.REFUSED))
"""What an upstream may say to the pod, too. FORMERR is about our query, and what is left over about nothing."""
_RCODES = {int(one): one.name for one in Rcode}

_NOTHING = Protected(())


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """`attempt` bounds one query to one upstream, `total` all of a fetch; `late` is when stale answers go out,
    before the end in any case."""

    attempt: Seconds = 1.0
    total: Seconds = 4.0
    late: Seconds = 1.8
    cap: int = 3600


@dataclass(frozen=True, slots=True)
class Outlets:
    """Where a fetch's end goes: `answered` with the vetted answer, `failed` with an rcode and reason, `late` once."""

    answered: Callable[[Fetch, Vetted], None]
    failed: Callable[[Fetch, int, str], None]
    late: Callable[[Fetch], None]


class Fetches:
    """All questions on their way to the upstreams."""

    def __init__(
        self, limits: FetchLimits, servers: Servers, *, events: Events, counters: Counters, now: Callable[[], Seconds]
    ) -> None:
        self._limits = limits
        self._servers = servers
        self._now = now
        self._events = events
        self._counters = counters
        self._by_key: dict[Hashable, Fetch] = {}
        self._attempts: dict[Attempt, None] = {}
        self._upstream: Upstream
        self._outlets: Outlets
        self.names: Sequence[str] = ()
        self.guard = Protected(())
        """Addresses that no answer may contain; replaced when the node's own addresses change."""
        self.audit = False
        """What would be taken out of an answer is told of and left in."""

    def __len__(self) -> int:
        return len(self._by_key)

    def connect(self, upstream: Upstream, outlets: Outlets) -> None:
        """Give the transport, which calls `answered` and `failed`, and where answers go. Before the first question."""
        self._upstream = upstream
        self._outlets = outlets

    def join(self, exchange: Exchange, key: Hashable, now: Seconds) -> None:
        """Wait for the answer to this question, asking it unless someone already does."""
        fetch = self._by_key.get(key)
        if fetch is None:
            fetch = self._by_key[key] = Fetch(key, exchange, now)
            self._wait(fetch, exchange)
            self._attempt(fetch, now)
            return
        self._counters.coalesced += 1
        self._wait(fetch, exchange)
        if fetch.late and len(fetch.waiters) == 1:
            # The others have left with stale answers; where some have not, there are none.
            self._outlets.late(fetch)
        self._press(fetch, now)

    @staticmethod
    def _wait(fetch: Fetch, exchange: Exchange) -> None:
        fetch.waiters[exchange.client.identity, exchange.question.id] = exchange
        exchange.fetch = fetch

    def retried(self, client: Client, question: Question, key: Hashable, now: Seconds) -> bool:
        """Whether this client already waits for this very question; if so its asking again presses the fetch."""
        fetch = self._by_key.get(key)
        if fetch is None or (client.identity, question.id) not in fetch.waiters:
            return False
        self._press(fetch, now)
        return True

    def _press(self, fetch: Fetch, now: Seconds) -> None:
        if len(fetch.outstanding) < MOST_OUTSTANDING and now - fetch.outstanding[-1].sent > BURST:
            self._attempt(fetch, now)

    @staticmethod
    def leave(exchange: Exchange) -> None:
        """The exchange is over (deadline, pod gone); the fetch goes on, its answer is cached for the next."""
        if exchange.fetch is not None:
            exchange.fetch.waiters.pop((exchange.client.identity, exchange.question.id), None)
            exchange.fetch = None

    # ---- attempts

    def _attempt(self, fetch: Fetch, now: Seconds) -> None:
        """Ask the next upstream; when all were asked, begin another round."""
        server = self._servers.choose(fetch.tried, now)
        if server is None:
            fetch.tried.clear()
            server = self._servers.choose((), now) or 0
        fetch.tried.append(server)
        self._ask(fetch, server, now, stream=False)

    def _ask(self, fetch: Fetch, server: int, now: Seconds, *, stream: bool) -> None:
        attempt = Attempt(fetch, server, edns=self._servers.speaks_edns(server, now), stream=stream, sent=now)
        fetch.outstanding.append(attempt)
        self._attempts[attempt] = None
        self._counters.forward_requests[server] += 1
        self._upstream.ask(attempt)

    def _over(self, attempt: Attempt) -> bool:
        """Take an attempt out; False when its fetch has ended without it."""
        self._attempts.pop(attempt, None)
        outstanding = attempt.fetch.outstanding
        if attempt not in outstanding:
            return False
        outstanding.remove(attempt)
        return True

    # ---- what the transport tells

    def answered(self, attempt: contracts.Attempt, packet: bytes) -> None:
        """A packet with the right ID and question came back."""
        assert isinstance(attempt, Attempt)
        now = self._now()
        if not self._over(attempt):
            return
        server, fetch = attempt.server, attempt.fetch
        counters = self._counters
        counters.forward_responses[server, packet[3] & 15] += 1
        counters.forward_seconds[server].observe(now - attempt.sent)
        if self._servers.answered(server, now):
            self._events.emit(EventKind.UPSTREAM_UP, upstream=self._name(server))
        # NOERROR with answers and whole, as nearly all are, needs no closer look: 0.25 us.
        plain = not packet[3] & 15 and not packet[2] & 2 and packet[7] != 0
        outcome = Outcome.ANSWER if plain else classify(packet)
        if outcome is Outcome.ANSWER:
            self._vet(attempt, packet, now)
        elif outcome is Outcome.TRUNCATED and not attempt.stream:
            self._ask(fetch, server, now, stream=True)
        elif outcome is Outcome.EDNS_REFUSED and attempt.edns:
            self._servers.edns_refused(server, now)
            self._ask(fetch, server, now, stream=attempt.stream)
        else:
            rcode = packet[3] & 15
            self._useless(server, _RCODES.get(rcode, f"rcode {rcode}"), now)
            fetch.rcode = rcode if rcode in _TOLD else Rcode.SERVFAIL
            self._next(attempt, now)

    def _vet(self, attempt: Attempt, packet: bytes, now: Seconds) -> None:
        fetch = attempt.fetch
        if len(packet) > FREE_OCTETS and not _paid(fetch, (len(packet) - FREE_OCTETS) // OCTETS, now):
            self._counters.limited[QUERIES] += 1
            fetch.rcode = Rcode.REFUSED
            self._fail(fetch, f"over the limit {QUERIES}: the answer is long")
            return
        try:
            vetted = self._vetted(packet, fetch)
        except UpstreamError as error:
            self._counters.upstream_discarded[error.reason] += 1
            self._useless(attempt.server, f"malformed ({error.reason})", now)
            self._next(attempt, now)
            return
        if self._servers.useful(attempt.server):
            self._events.emit(EventKind.UPSTREAM_UP, upstream=self._name(attempt.server))
        self._end(fetch)
        self._outlets.answered(fetch, vetted)

    def _vetted(self, packet: bytes, fetch: Fetch) -> Vetted:
        question, cap = fetch.question, self._limits.cap
        vetted = vet(packet, question, self.guard, cap=cap, allowed=fetch.allows)
        if self.audit and vetted.counts:
            vetted.answer = vet(packet, question, _NOTHING, cap=cap, allowed=lambda name: True).answer
        return vetted

    def failed(self, attempt: contracts.Attempt, reason: str) -> None:
        """The transport could not get an answer to this attempt."""
        assert isinstance(attempt, Attempt)
        now = self._now()
        if not self._over(attempt):
            return
        self._counters.forward_failures[attempt.server, reason] += 1
        attempt.fetch.error = reason
        if reason == "garbage" and not attempt.stream:
            self._ask(attempt.fetch, attempt.server, now, stream=True)
            return
        if reason != "sockets":  # none left in this process: no upstream's fault
            self._blame(attempt.server, reason, now)
        self._next(attempt, now)

    def _name(self, server: int) -> str:
        return self.names[server] if server < len(self.names) else str(server)

    def _blame(self, server: int, reason: str, now: Seconds) -> None:
        if self._servers.failed(server, now):
            self._events.emit(EventKind.UPSTREAM_DOWN, upstream=self._name(server), reason=reason)

    def _useless(self, server: int, reason: str, now: Seconds) -> None:
        if self._servers.useless(server, now):
            self._events.emit(EventKind.UPSTREAM_FAILING, upstream=self._name(server), reason=reason)

    def _next(self, attempt: Attempt, now: Seconds) -> None:
        """This upstream was no use: ask another that was not asked yet, else let the attempt's time pass first."""
        fetch = attempt.fetch
        if fetch.outstanding:
            return
        if self._servers.choose(fetch.tried, now) is not None:
            self._attempt(fetch, now)
        elif fetch.rcode is not None:
            self._fail(fetch, "the upstreams answered with a failure")
        else:
            attempt.asleep, attempt.sent = True, now
            fetch.outstanding.append(attempt)
            self._attempts[attempt] = None

    # ---- ends

    def _end(self, fetch: Fetch) -> None:
        if self._by_key.get(fetch.key) is fetch:
            del self._by_key[fetch.key]
        for attempt in fetch.outstanding:
            self._attempts.pop(attempt, None)
            if not attempt.asleep:
                self._upstream.abandon(attempt, timed_out=False)
        fetch.outstanding = []

    def _fail(self, fetch: Fetch, reason: str) -> None:
        self._end(fetch)
        self._outlets.failed(fetch, Rcode.SERVFAIL if fetch.rcode is None else fetch.rcode, reason)

    def tick(self, now: Seconds) -> None:
        """Let time pass: attempts time out, stale answers become due, fetches give up."""
        due = takewhile(lambda attempt: now - attempt.sent >= self._limits.attempt, self._attempts)
        for attempt in list(due):
            self._time_out(attempt, now)
        late = min(self._limits.late, self._limits.total)
        for fetch in [f for f in self._by_key.values() if now - f.started >= late]:
            if not fetch.late:
                fetch.late = True
                self._outlets.late(fetch)
            if now - fetch.started >= self._limits.total:
                self._fail(fetch, "no upstream answered in time")

    def _time_out(self, attempt: Attempt, now: Seconds) -> None:
        if not self._over(attempt):
            return
        if not attempt.asleep:
            self._counters.forward_failures[attempt.server, "timeout"] += 1
            self._blame(attempt.server, "timeout", now)
            self._upstream.abandon(attempt, timed_out=True)
        if len(attempt.fetch.outstanding) < MOST_OUTSTANDING:
            self._attempt(attempt.fetch, now)

    def abandon_all(self) -> None:
        """Give up everything on the way (the daemon stops)."""
        for fetch in list(self._by_key.values()):
            self._fail(fetch, "dnsguard is stopping")


def _paid(fetch: Fetch, queries: int, now: Seconds) -> bool:
    """Whether one of those who want the answer has the share to read it, the first who asked before others."""
    pods = dict.fromkeys((fetch.pod, *(exchange.pod for exchange in fetch.waiters.values())))
    return any(pod.share.work(queries, now) is None for pod in pods)
