"""What the kernel did by itself, told to the log, the metrics and the table of pods: packets dropped, questions
answered.

Dropped packets are reported one by one, or one for several of a kind, within the kernel's limits, and counted all; both
come here from every enforcer, with what the leases know of the address. A packet is dropped by one enforcer only, so
their counts add up.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Final

from dnsguard.core.model import LinkIndex, Seconds
from dnsguard.core.pods import Pod
from dnsguard.enforce.denials import PASSED_IN_AUDIT, PROTOCOLS, WHY, Answered, Denial, Dropped
from dnsguard.engine.contracts import EventKind, Events
from dnsguard.engine.counters import ANY_FAMILY, OTHER, UNSEEN_RCODE
from dnsguard.engine.engine import Engine

_NO_FAULT: Final = "multicast"
"""Dropped from every pod, whatever it does: no pod's row counts it."""


class Growth:
    """How much the kernel's counters have grown since they were read before. They go away when they are not used, or
    with a map or a table, and begin again at 0."""

    def __init__(self) -> None:
        self._seen: Mapping[Hashable, int] = {}

    def of(self, found: Mapping[Hashable, int]) -> dict[Hashable, int]:
        seen, self._seen = self._seen, found
        # Less than before: it began again, and all of it is new.
        return {key: n - seen.get(key, 0) if n >= seen.get(key, 0) else n for key, n in found.items()}


class Drops:
    """Dropped packets; `by_pod` is how many of each pod, by its name. In Audit most of them have passed: these are
    told and counted as audited. `on_denial` hears of each report, too."""

    def __init__(
        self,
        engine: Engine,
        events: Events,
        now: Callable[[], Seconds],
        on_denial: Callable[[Denial], None] = lambda denial: None,
    ) -> None:
        self._on_denial = on_denial
        self._engine = engine
        self._events = events
        self._now = now
        self._growth: defaultdict[str, Growth] = defaultdict(Growth)
        self.by_pod: dict[str, int] = {}
        self.audited: dict[str, int] = {}

    def _passed(self, reason: str) -> bool:
        return self._engine.exchanges.audit and reason in PASSED_IN_AUDIT

    def tell(self, denial: Denial) -> None:
        """The event of one packet, or of several of a kind."""
        passed = self._passed(denial.reason)
        self._on_denial(denial)
        pod = self._engine.pods.by_link.get(denial.link)
        kind = EventKind.FLOW_AUDITED if passed else EventKind.FLOW_DENIED
        self._events.emit(
            kind,
            pod=pod.name if pod else None,
            pod_ip=denial.pod,
            address=denial.peer,
            port=denial.port,
            protocol=PROTOCOLS.get(denial.protocol, denial.protocol),
            verdict="audited" if passed else "denied",
            reason=self._reason(pod, denial),
            rule=denial.rule,
            policy=_policy(pod, denial.rule) if pod else None,
            count=denial.packets,
        )

    def _reason(self, pod: Pod | None, denial: Denial) -> str:
        if pod is not None and denial.peer is not None and denial.reason == "default":
            return self._engine.why_closed(pod, denial.peer, self._now())
        return WHY.get(denial.reason, denial.reason)

    def adopt(self, found: Sequence[Dropped], enforcer: str = "nftables") -> None:
        """Counters that an earlier process left: what they have counted so far is not of this one."""
        self._growth[enforcer].of(_by_key(found))

    def count(self, found: Sequence[Dropped], enforcer: str = "nftables") -> None:
        """All counters of one enforcer, as they stand now."""
        owners = {address: pod for pod in self._engine.pods for address in pod.addresses}
        grown = self._growth[enforcer].of(_by_key(found))
        for one in {one[:-1]: one for one in found}.values():
            more = grown[one[:-1]]
            counts, by_pod = self._tallies(one.reason)
            counts[one.reason] += more
            pod = _on(self._engine, one.link) if one.pod is None else owners.get(one.pod)
            if pod is not None and more and one.reason != _NO_FAULT:
                by_pod[pod.name] = by_pod.get(pod.name, 0) + more
        _forget_gone(self.by_pod, self._engine)
        _forget_gone(self.audited, self._engine)

    def _tallies(self, reason: str) -> tuple[dict[str, int], dict[str, int]]:
        """By reason and by pod, for packets of this reason."""
        counters = self._engine.counters
        if self._passed(reason):
            return counters.egress_audited, self.audited
        return counters.egress_denied, self.by_pod


class AnsweredInKernel:
    """Questions that the kernel answered; `by_pod` is how many of each pod, by its name.

    Each is a question, a verdict, a hit of the kernel's cache and a reply in the metrics. The kernel counts neither
    family, type nor rcode, so those labels are `other`; nor how long it took (under 1 us), so the histogram has none of
    them. What it let go up is counted where it is answered.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._growth = Growth()
        self.by_pod: dict[str, int] = {}

    def adopt(self, found: Sequence[Answered]) -> None:
        """As `Drops.adopt`."""
        self._grown(found)

    def count(self, found: Sequence[Answered]) -> None:
        """The kernel's counters of every link, as they stand now."""
        for link, (answered, denied) in self._grown(found).items():
            if not answered + denied:
                continue
            self._add(answered, denied)
            if (pod := _on(self._engine, link)) is not None:
                self.by_pod[pod.name] = self.by_pod.get(pod.name, 0) + answered + denied
        _forget_gone(self.by_pod, self._engine)

    def _grown(self, found: Sequence[Answered]) -> dict[LinkIndex, tuple[int, int]]:
        numbers: dict[Hashable, int] = {(one.link, "answered"): one.answered for one in found}
        grown = self._growth.of(numbers | {(one.link, "denied"): one.denied for one in found})
        return {one.link: (grown[one.link, "answered"], grown[one.link, "denied"]) for one in found}

    def _add(self, answered: int, denied: int) -> None:
        counters = self._engine.counters
        counters.requests[ANY_FAMILY, "udp", OTHER] += answered + denied
        counters.responses[UNSEEN_RCODE] += answered + denied
        counters.cache_hits["kernel"] += answered + denied
        counters.verdicts["allowed"] += answered
        counters.verdicts["denied"] += denied


def _by_key(found: Sequence[Dropped]) -> dict[Hashable, int]:
    return {one[:-1]: one.packets for one in found}


def _on(engine: Engine, link: LinkIndex | None) -> Pod | None:
    return None if link is None else engine.pods.by_link.get(link)


def _forget_gone(by_pod: dict[str, int], engine: Engine) -> None:
    """Nobody asks for the counts of pods that went, and ever others come."""
    for name in by_pod.keys() - {pod.name for pod in engine.pods}:
        del by_pod[name]


def _policy(pod: Pod, rule: int | None) -> str:
    """The policies behind the rule that decided; all of the pod's when none did."""
    rules = pod.program.rules
    return rules[rule].label if rule is not None and rule < len(rules) else pod.policy.label
