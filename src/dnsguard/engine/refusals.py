"""Questions that end where they begin: no question at all, over a limit, a loop, denied, or never forwarded.

Each is counted, told, and gets its reply, or none. In Audit most of them are told of and go on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dnsguard.core.limits import QUERIES
from dnsguard.core.model import Seconds
from dnsguard.core.pods import Pod
from dnsguard.core.policy import Allowed, Denied
from dnsguard.core.wire import (
    Ede,
    ExtendedError,
    Qtype,
    Question,
    Rcode,
    Rejection,
    denial,
    error,
    minimal_any,
    type_text,
)
from dnsguard.engine.audit import AUDITED
from dnsguard.engine.contracts import Client, EventKind, Events, Witness
from dnsguard.engine.counters import Counters

_LOOP = "this address serves an upstream"


@dataclass(frozen=True, slots=True)
class ExchangeSettings:
    """What the configuration says of queries. Times in seconds, TTLs in whole seconds."""

    deny_rcode: Rcode = Rcode.NXDOMAIN
    """NOERROR: NODATA."""
    drop_over_limit: bool = False
    deadline: Seconds = 4.0
    serve_stale: int = 300
    floor: int = 30
    grace: int = 10
    loop_sources: frozenset[str] = frozenset()
    """Addresses (as text) that serve an upstream: a query from one of them would go round in circles."""


class Refusals:
    """What a pod is told without an answer of anyone."""

    def __init__(
        self,
        settings: ExchangeSettings,
        events: Events,
        counters: Counters,
        now: Callable[[], Seconds],
        *,
        witness: Witness,
    ) -> None:
        self._settings = settings
        self._events = events
        self._counters = counters
        self._now = now
        self._witness = witness
        self.audit = False

    def respond(self, client: Client, packet: bytes, since: Seconds) -> None:
        counters = self._counters
        counters.responses[packet[3] & 15] += 1
        counters.request_seconds.observe(self._now() - since)
        client.reply(packet)

    def reject(self, rejection: Rejection, client: Client, pod: Pod) -> None:
        """A packet that is no question that dnsguard understands; it is never forwarded."""
        self._counters.dropped[rejection.reason] += rejection.reply is None
        self._events.emit(EventKind.QUERY_REFUSED, pod=pod.name, reason=rejection.reason)
        if pod.share.query(self._now()) is None and rejection.reply is not None:
            self._counters.responses[rejection.reply[3] & 15] += 1
            client.reply(rejection.reply)

    def limit(self, limit: str, question: Question, pod: Pod, client: Client) -> bool:
        """A pod is over a limit. False: it is told of, and the question goes on."""
        self._counters.limited[limit] += 1
        self._events.emit(EventKind.QUERY_LIMITED, pod=pod.name, name=question.name, limit=limit)
        now = self._now()
        unreasonable = limit == QUERIES and not pod.share.refusal(now)
        if self.audit and not unreasonable and pod.share.within_reason():
            return False
        if self._settings.drop_over_limit or unreasonable:
            self._counters.dropped[limit] += 1
            return True
        self.respond(client, error(question, Rcode.REFUSED, (Ede.PROHIBITED, f"over the limit {limit}")), now)
        return True

    def refuse_loop(self, question: Question, pod: Pod, client: Client) -> bool:
        """A query comes from an upstream. False: it is told of, and goes on."""
        if self.audit:
            self._tell_audited(question, pod, reason=f"refused: {_LOOP}")
            return False
        self._events.emit(EventKind.FORWARDING_LOOP, pod=pod.name, name=question.name)
        self.respond(client, error(question, Rcode.REFUSED, (Ede.PROHIBITED, _LOOP)), self._now())
        return True

    def let_through(self, denied: Denied, question: Question, pod: Pod) -> Allowed:
        """A name that no rule allows, in Audit."""
        self._counters.verdicts["audited"] += 1
        self._tell_audited(question, pod, reason=denied.reason)
        return AUDITED

    def _tell_audited(self, question: Question, pod: Pod, reason: str) -> None:
        self._events.emit(
            EventKind.QUERY_AUDITED,
            pod=pod.name,
            name=question.name,
            type=type_text(question.qtype),
            verdict="audited",
            policy=pod.policy.label,
            reason=reason,
        )

    def deny(
        self, denied: Denied, question: Question, pod: Pod, client: Client, now: Seconds
    ) -> tuple[Rcode, ExtendedError]:
        """Say no; returns what was said."""
        self._counters.verdicts["denied"] += 1
        self._witness.unanswered(pod.name, question.name, "", now)
        self._events.emit(
            EventKind.QUERY_DENIED,
            pod=pod.name,
            name=question.name,
            type=type_text(question.qtype),
            verdict="denied",
            policy=denied.policies,
            reason=denied.reason,
        )
        rcode = Rcode.NOERROR if denied.ancestor else self._settings.deny_rcode
        ede = (Ede.BLOCKED, f"policy {denied.policies}: {denied.reason}")
        if rcode is Rcode.REFUSED:
            self.respond(client, error(question, rcode, ede), now)
        else:
            self.respond(client, denial(question, rcode=rcode, ede=ede, soa=True), now)
        return rcode, ede

    def special(self, question: Question, client: Client, now: Seconds) -> bool:
        """ANY and zone transfers are answered here and never forwarded (RFC 8482)."""
        if question.qtype == Qtype.ANY:
            self.respond(client, minimal_any(question), now)
        elif question.qtype in (Qtype.AXFR, Qtype.IXFR):
            self.respond(client, error(question, Rcode.NOTIMP), now)
        else:
            return False
        return True
