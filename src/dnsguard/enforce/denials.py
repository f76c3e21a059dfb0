"""What an enforcer tells of packets by itself: those it dropped, and the questions that it answered.

Reasons have the same words whoever dropped the packet: `source`, `unknown`, `listener`, `queries`, `default`, `rule`,
`cut`, `inbound`, `malformed`, `vlan`, `fragment`, `multicast`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from dnsguard.core.model import Address, LinkIndex

WHY: Final[Mapping[str, str]] = {
    "source": "its source address is not routed to that link",
    "unknown": "its source address is no pod's on that link",
    "listener": "a query, and nobody listened",
    "queries": "a query beyond the pod's rate",
    "rule": "a Deny rule closes it",
    "cut": "the flow was cut, the policy no longer allows it",
    "inbound": "a packet towards the pod that belongs to no flow and does not begin one",
    "malformed": "the packet cannot be read, or was made to be misread",
    "vlan": "the frame is tagged",
    "fragment": "a fragment whose first one did not come, or was not let",
}
"""In words, what reasons of the kernel that say it all mean; behind `default` the leases are asked."""
POLICY_REASONS: Final = frozenset({"default", "rule", "cut"})
"""Reasons for which another policy would have let the packet through."""
PASSED_IN_AUDIT: Final = frozenset({*POLICY_REASONS, "listener", "unknown"})
"""Reasons for which nothing is dropped in Audit."""
PROTOCOLS: Final[Mapping[int, str]] = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp"}


@dataclass(frozen=True, slots=True)
class Denial:
    """Dropped packets of one kind, as seen from the pod; None for an address that could not be read. `rule` is the
    number of the Deny rule in the pod's program. `port` is the peer's, 0 where the protocol has none. `begins` is
    false of what can begin no flow and only answers what came to the pod: whoever sent that chose where this goes."""

    link: LinkIndex
    pod: Address | None
    peer: Address | None
    protocol: int
    port: int
    reason: str
    rule: int | None = None
    packets: int = 1
    begins: bool = True


class Dropped(NamedTuple):
    """How many packets were dropped for a reason: of a pod's address, or of a link."""

    reason: str
    rule: int | None
    pod: Address | None
    link: LinkIndex | None
    packets: int


class Audited(NamedTuple):
    """Packets that passed in Audit and would have been dropped, as seen from the pod. `rule` is the number of the Deny
    rule in the pod's program; None when no rule accepts them, or the pod has no program yet."""

    pod: Address
    peer: Address
    protocol: int
    port: int
    rule: int | None
    packets: int


class Answered(NamedTuple):
    """What became of a link's questions: the kernel answered, or denied, or let them go up to the daemon."""

    link: LinkIndex
    answered: int
    denied: int
    asked: int


OnDenial = Callable[[Denial], None]
