"""What the kernel has dropped, told to the log, the metrics and the table of pods.

Packets are reported one by one within the kernel's limits, and counted all; both come here, with what the leases know
of the address.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from dnsguard.core.model import Seconds
from dnsguard.enforce.nftables import Denial, Dropped
from dnsguard.engine.contracts import EventKind, Events
from dnsguard.engine.engine import Engine

_WHY: Final = {
    "source": "its source address is not routed to that link",
    "unknown": "its source address is no pod's on that link",
    "listener": "a query, and nobody listened",
    "rule": "a Deny rule closes it",
    "cut": "the flow was cut, the policy no longer allows it",
}
"""Reasons of the kernel that say it all; behind `default` the leases are asked."""
_PROTOCOLS: Final = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp"}


class Drops:
    """Dropped packets; `by_pod` is how many of each pod, by its name."""

    def __init__(self, engine: Engine, events: Events, now: Callable[[], Seconds]) -> None:
        self._engine = engine
        self._events = events
        self._now = now
        self._seen: dict[object, int] = {}
        self.by_pod: dict[str, int] = {}

    def tell(self, denial: Denial) -> None:
        """The event of one packet."""
        pod = self._engine.pods.by_link.get(denial.link)
        reason = _WHY.get(denial.reason, denial.reason)
        if pod and denial.reason == "default":
            reason = self._engine.why_closed(pod, denial.peer, self._now())
        self._events.emit(
            EventKind.FLOW_DENIED,
            pod=pod.name if pod else None,
            pod_ip=denial.pod,
            address=denial.peer,
            port=denial.port,
            protocol=_PROTOCOLS.get(denial.protocol, denial.protocol),
            verdict="denied",
            reason=reason,
            rule=denial.rule,
        )

    def count(self, found: Sequence[Dropped]) -> None:
        """Kernel counters begin again at 0 when an hour was quiet: add what each has grown by."""
        owners = {address: pod.name for pod in self._engine.pods for address in pod.addresses}
        for one in found:
            before = self._seen.get(one[:-1], 0)
            grown = one.packets - before if one.packets >= before else one.packets
            self._engine.counters.egress_denied[one.reason] += grown
            if one.pod is not None and (name := owners.get(one.pod)) is not None:
                self.by_pod[name] = self.by_pod.get(name, 0) + grown
        self._seen = {one[:-1]: one.packets for one in found}
