"""What the table is built for: the configuration, in the terms of the kernel's sets."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dnsguard.core.model import Address

Chains = dict[str, tuple[str, ...]]
Sets = dict[str, str]

ADDRESS_TYPE = {"4": "ipv4_addr", "6": "ipv6_addr"}
IP = {"4": "ip", "6": "ip6"}

_PATTERN = re.compile(r"[^\s\"'/*\\]{1,15}\*?\Z|\*\Z")


@dataclass(frozen=True, slots=True)
class Layout:
    """What the table is built for. Interface patterns may end in `*`; `intercept` None is every address.

    `leases`, `flows` and `pods` are the node's totals (`tables` in the configuration); `log_rate` is in packets a
    second for each pod link, 0 for none. `audit`: what no rule accepts is let through; the kernel records it apart by
    peer, protocol and port, so many at once for each pod link and ten a minute more.
    """

    interfaces: tuple[str, ...]
    listen_port: int = 15353
    mark: int = 0x1000
    reply_mark: int = 0x2000
    intercept: tuple[Address, ...] | None = None
    nflog_group: int = 5353
    leases: int = 100_000
    flows: int = 200_000
    pods: int = 1_000
    log_rate: int = 10
    audit: bool = False
    audited_per_link: int = 1_000

    def __post_init__(self) -> None:
        for pattern in self.interfaces:
            if not _PATTERN.match(pattern):
                raise ValueError(f"{pattern!r} is no interface pattern: up to 15 characters, at most a `*` at the end")

    @property
    def lease_set_size(self) -> int:
        """A quarter more than there may be leases: expired elements count for up to two seconds."""
        return self.leases + self.leases // 4 + 1024

    @property
    def cuts(self) -> int:
        """Cut flows that have ports; each of the two sets has room for 1024 more."""
        return self.flows

    @property
    def portless_cuts(self) -> int:
        return self.flows // 16

    @property
    def counter_set_size(self) -> int:
        return 4 * self.pods + 1024

    @property
    def audited_set_size(self) -> int:
        return 16 * self.pods + 16_384
