"""What an operator is told of exchanges that got an answer."""

from __future__ import annotations

from collections.abc import Sequence

from dnsguard.core.answers import Vetted
from dnsguard.core.chain import WITHHELD
from dnsguard.core.model import Address
from dnsguard.core.wire import type_text
from dnsguard.engine.contracts import EventKind, Events
from dnsguard.engine.counters import Counters
from dnsguard.engine.state import Exchange


class Telling:
    """Events about answers; in Audit what would have been withheld is told of as that, and not counted."""

    def __init__(self, events: Events, counters: Counters) -> None:
        self._events = events
        self._counters = counters
        self.audit = False

    def removed(self, exchange: Exchange, vetted: Vetted) -> None:
        for reason, text in vetted.removed:
            if self.audit:
                self.audited(exchange, f"{WITHHELD[reason]} {text}")
                continue
            if not vetted.answer.addresses:
                self._counters.answers_withheld[reason] += 1
            self._events.emit(
                EventKind.ANSWER_WITHHELD,
                pod=exchange.pod.name,
                name=exchange.question.name,
                type=type_text(exchange.question.qtype),
                reason=f"{WITHHELD[reason]} {text}",
            )

    def audited(self, exchange: Exchange, reason: str) -> None:
        """What would have been withheld, or not all shown."""
        self._events.emit(
            EventKind.ANSWER_AUDITED,
            pod=exchange.pod.name,
            name=exchange.question.name,
            type=type_text(exchange.question.qtype),
            verdict="audited",
            reason=reason,
        )

    def allowed(self, exchange: Exchange) -> None:
        self._events.emit(
            EventKind.QUERY_ALLOWED,
            pod=exchange.pod.name,
            name=exchange.question.name,
            type=type_text(exchange.question.qtype),
            verdict="allowed",
            policy=exchange.verdict.labels,
            ttl=exchange.ttl,
        )

    def opened(self, exchange: Exchange, addresses: Sequence[Address]) -> None:
        """Leases that began, or were put off, for this answer."""
        if not self._events.all_leases:
            return
        pod, name = exchange.pod.name, exchange.question.name
        self._events.emit(EventKind.LEASE_OPENED, pod=pod, name=name, address=addresses, ttl=exchange.ttl)
