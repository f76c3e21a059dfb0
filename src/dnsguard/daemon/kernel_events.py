"""What the rooms that write to the kernel tell, turned into counters and events."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Mapping
from typing import Final

from dnsguard.core.model import Seconds
from dnsguard.engine.contracts import EventKind, Events, Ticket
from dnsguard.engine.counters import OTHER, Counters

_ERRNOS: Final = frozenset(errno.errorcode.values())


class KernelEvents:
    """One for the daemon; `committed_beside` and `committed` are called in the writer's thread, the only one that
    writes what they count."""

    def __init__(self, events: Events, counters: Counters) -> None:
        self._events = events
        self._counters = counters
        self._beside_took: Seconds = 0.0

    def refused(self, refused: Mapping[Ticket, str]) -> None:
        """The kernel would not take the leases of these tickets."""
        for reason, count in Counter(refused.values()).items():
            self._counters.lease_writes_refused[reason if reason in _ERRNOS else OTHER] += count
            self._events.emit(EventKind.LEASE_REFUSED, reason=reason, count=count)

    def table_repaired(self, what: str) -> None:
        self._counters.kernel_repairs["table"] += 1
        self._events.emit(EventKind.KERNEL_STATE_REPAIRED, what=what)

    def table_damaged(self, why: str) -> None:
        self._events.emit(EventKind.KERNEL_STATE_DAMAGED, what="the table", reason=why)

    def route_repaired(self, what: str) -> None:
        self._counters.kernel_repairs["route"] += 1
        self._events.emit(EventKind.KERNEL_STATE_REPAIRED, what=what)

    def changes_missed(self) -> None:
        self._events.emit(EventKind.CHANGES_MISSED, what="links and routes")

    def problem(self, text: str) -> None:
        self._events.emit(EventKind.NODE_PROBLEM, reason=text)

    def committed_beside(self, seconds: Seconds, elements: int) -> None:
        """eBPF's part of the commit that `committed` is told of next."""
        self._beside_took = seconds
        self._counters.commit_seconds["ebpf"].observe(seconds)
        self._counters.lease_writes["ebpf"] += elements

    def committed(self, seconds: Seconds, elements: int) -> None:
        self._counters.commit_seconds["nftables"].observe(seconds - self._beside_took)
        self._counters.lease_writes["nftables"] += elements
