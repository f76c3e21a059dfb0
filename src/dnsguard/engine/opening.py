"""What an answer opens to a pod: leases for its addresses, in every scope of the verdict, handed to the kernel.

Comes in: an exchange with its verdict, and an answer that was vetted. Goes out: what of the answer may be shown, and
the ticket after which the kernel holds all of that; or why nothing was opened. Judges no name, and sends nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from dnsguard.core.answers import Answer, without
from dnsguard.core.compile import closed
from dnsguard.core.limits import FREE_LEASES, LEASES
from dnsguard.core.model import Address, PodId, Scope, Seconds
from dnsguard.core.pods import Pod
from dnsguard.core.policy import Denied
from dnsguard.engine.audit import AuditedNames
from dnsguard.engine.contracts import Ticket
from dnsguard.engine.fetches import Fetches
from dnsguard.engine.gate import PATIENCE, Gate
from dnsguard.engine.prefetch import Refreshing
from dnsguard.engine.refusals import ExchangeSettings
from dnsguard.engine.state import Exchange
from dnsguard.engine.stores import Stores
from dnsguard.engine.telling import Telling


@dataclass(frozen=True, slots=True)
class Unopened:
    """Why there are no leases. `kind` is what the counter of answers withheld calls it: "kernel" or "capacity"."""

    reason: str
    kind: str = "kernel"


class Opening:
    """Makes leases for answers. In Audit it opens what it can, and shows all of the answer."""

    def __init__(
        self, settings: ExchangeSettings, stores: Stores, fetches: Fetches, gate: Gate[Exchange], telling: Telling
    ) -> None:
        self._settings = settings
        self._leases = stores.leases
        self._counters = stores.counters
        self._fetches = fetches
        self._gate = gate
        self._telling = telling
        self.audit = False
        self.before_arming: Callable[[Pod, Sequence[Address], Sequence[Scope]], None] = lambda pod, addresses, scopes: (
            None
        )
        """Told of leases about to be written, so that flows that were cut there are opened with them."""
        self.unenforced: set[PodId] = set()
        """Pods whose program or addresses the kernel would not take: a lease opens nothing to them."""

    def open(self, exchange: Exchange, answer: Answer, now: Seconds) -> tuple[Answer, Ticket] | Unopened:
        """Leases for every address in every scope, begun or put off; the answer has at least one. Returns what may be
        shown, and the ticket to wait for."""
        # The answer's name, not the question's: one object for the leases of all pods.
        pod, name, scopes = exchange.pod, answer.name, exchange.verdict.scopes
        addresses: Sequence[Address] = answer.addresses
        if exchange.verdict.barred or self.audit:
            answer, addresses = self._openable(exchange, answer)
            if not addresses:
                return answer, 0
        leases = len(addresses) * len(scopes)
        if leases > FREE_LEASES and (over := pod.share.work(leases // LEASES, now)) is not None:
            return self._over(over)
        fits = self._leases.fitting(pod.id, name, scopes, addresses)
        if fits is not addresses:
            if not fits:
                return self._over("addressesPerName")
            self._counters.limited["addressesPerName"] += 1
            answer, addresses = self._shortened(exchange, answer, _but(addresses, fits)), fits
        if pod.id in self.unenforced:
            return Unopened("the kernel refused what the pod may do")
        lasting = now + max(exchange.ttl, self._settings.floor)
        # For so long the gate may hold what is shown from then on; what is refreshed gets all the time there is.
        margin = self._settings.grace if isinstance(exchange.client, Refreshing) else PATIENCE
        armed = self._leases.arm(
            pod.id,
            name,
            scopes,
            addresses,
            now=now,
            need=lasting + margin,
            until=lasting + self._settings.grace,
            ticket=self._gate.next_ticket,
        )
        if isinstance(armed, str):
            return self._over(armed)
        if armed.leases:
            self.before_arming(pod, addresses, scopes)
            refused = self._gate.submit(armed, now)
            if refused is not None:
                return Unopened(refused)
            self._telling.opened(exchange, addresses)
        return answer, armed.wait

    def audited(self, pod: Pod, names: AuditedNames, now: Seconds) -> None:
        """Leases for what a pod was told in Audit and may still use, as far as its rules allow the names now: the
        enforcer makes them before it does what it is told next."""
        for told in list(names.alive(pod.id, now)):
            verdict = pod.policy.verdict(told.name)
            if isinstance(verdict, Denied) or not verdict.scopes:
                continue
            scopes, guard = verdict.scopes, self._fetches.guard
            addresses = [a for a in _permitted(pod, told.addresses, scopes) if a not in guard]
            fits = self._leases.fitting(pod.id, told.name, scopes, addresses)
            until, ticket = told.until + self._settings.grace, self._gate.next_ticket
            armed = self._leases.arm(
                pod.id, told.name, scopes, fits, now=now, need=told.until, until=until, ticket=ticket
            )
            if isinstance(armed, str):
                self._counters.limited[armed] += 1
                return
            if armed.leases:
                self.before_arming(pod, fits, scopes)
                self._gate.submit(armed, now)

    def _openable(self, exchange: Exchange, answer: Answer) -> tuple[Answer, Sequence[Address]]:
        """What may be shown, and the addresses among it that leases would open."""
        guard = self._fetches.guard
        found = _permitted(exchange.pod, answer.addresses, exchange.verdict.scopes)
        if not found and not self.audit:
            self._counters.answers_withheld["denied"] += 1
        answer = self._shortened(exchange, answer, _but(answer.addresses, found))
        # What is protected was told of when the answer came.
        return answer, [a for a in found if a not in guard] if self.audit else found

    def _shortened(self, exchange: Exchange, answer: Answer, gone: Collection[Address]) -> Answer:
        if not self.audit:
            return without(answer, gone)
        if gone:
            self._telling.audited(exchange, f"{len(gone)} addresses are closed by a rule, or over addressesPerName")
        return answer

    def _over(self, limit: str) -> Unopened:
        self._counters.limited[limit] += 1
        return Unopened(f"over the limit {limit}", "capacity")


def _permitted(pod: Pod, addresses: Collection[Address], scopes: Sequence[Scope]) -> list[Address]:
    """Those that no earlier rule of the pod closes in every scope."""
    return [a for a in addresses if not all(closed(pod.program, scope, a) for scope in scopes)]


def _but(all_of: Collection[Address], these: Collection[Address]) -> list[Address]:
    return [address for address in all_of if address not in these]
