"""What an enforcer tells of packets by itself: those it dropped, and the questions that it answered.

Reasons have the same words whoever dropped the packet: `source`, `unknown`, `listener`, `queries`, `default`, `rule`,
`cut`, `inbound`, `malformed`, `vlan`, `fragment`, `multicast`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from dnsguard.core.model import Address, LinkIndex


@dataclass(frozen=True, slots=True)
class Denial:
    """Dropped packets of one kind, as seen from the pod; None for an address that could not be read. `rule` is the
    number of the Deny rule in the pod's program. `port` is the peer's, 0 where the protocol has none."""

    link: LinkIndex
    pod: Address | None
    peer: Address | None
    protocol: int
    port: int
    reason: str
    rule: int | None = None
    packets: int = 1


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
