"""What the control socket tells of the running daemon: status, pods, leases, and why something is allowed or denied.

Reads the engine's state in the loop's thread; lists are copies, so that a slow reader sees one moment.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dnsguard import __version__
from dnsguard.control.calls import CallError, DenialRow, Explanation, LeaseRow, PodRow, Status, Version
from dnsguard.control.explain import Ended, Subject, ports_text, refuse_excluded
from dnsguard.core.lease import Lease
from dnsguard.core.model import Address, Seconds
from dnsguard.core.names import to_text
from dnsguard.core.pods import Pod, address_text
from dnsguard.daemon import figures
from dnsguard.daemon.rooms import Rooms
from dnsguard.daemon.why import Case, denial_rows, explain_all


@dataclass(frozen=True, slots=True)
class Reports:
    """The results of the calls that only look. `totals` are the metrics' counters."""

    rooms: Rooms
    totals: Callable[[], Mapping[str, int]]

    async def version(self) -> Version:
        return {"version": __version__}

    async def status(self) -> Status:
        await self.rooms.kernel_counters.fresh()
        engine, settings = self.rooms.engine, self.rooms.configured.settings
        return {
            "version": __version__,
            "pid": os.getpid(),
            "uptime": round(self.rooms.now() - self.rooms.configured.started, 1),
            "mode": settings.mode.value,
            "ready": not self.rooms.readiness.missing(),
            "missing": self.rooms.readiness.missing(),
            "config": str(self.rooms.configured.file),
            "allowlist": str(settings.allowlist),
            "generation": engine.changes.generation,
            "rejected": self.rooms.supervision.rejected,
            "late": list(self.rooms.policies.late),
            "reloading": self.rooms.reloads.under_way,
            "pods": len(engine.pods),
            "pods_limit": settings.tables.pods,
            "leases": len(engine.leases),
            "lease_elements": engine.leases.elements,
            "leases_limit": settings.tables.leases,
            "in_flight": len(engine.exchanges),
            "held_answers": engine.exchanges.gate.holding,
            "tcp_connections": len(self.rooms.tcp.connections),
            "cache_entries": len(engine.cache),
            "writer_busy": round(figures.busy(self.rooms.enforcer, self.rooms.now()), 1),
            "counted": round(self.rooms.kernel_counters.age, 1),
            "replies": figures.replies(engine.counters),
            "latency": figures.spread(engine.counters.request_seconds),
            "commits": figures.commits(engine.counters),
            "totals": dict(self.totals()),
            "queries": sum(engine.counters.requests.values()),
            "denied": engine.counters.verdicts["denied"],
            "audited": engine.counters.verdicts["audited"],
            "enforcers": list(self.rooms.enforcers),
            "absent": dict(self.rooms.readiness.absent),
            "gaps": self.rooms.readiness.gaps(),
            "upstreams": figures.upstreams(self.upstreams(), engine.counters),
        }

    def upstreams(self) -> dict[str, bool]:
        """The configured upstreams, and whether each answers."""
        down = self.rooms.engine.servers.down
        return {
            str(upstream): not down(number) for number, upstream in enumerate(self.rooms.configured.settings.upstreams)
        }

    def find(self, text: str) -> list[Pod]:
        """The pods that `text` names (name, address or link). Raises CallError when there is none."""
        found = self.rooms.engine.pods.find(text)
        if not found:
            refuse_excluded(text, self.rooms.configured.settings.pods.exclude)
            raise CallError(f"no pod on this node is called {text}, has that address or that link; see dnsguard pods")
        return found

    def names(self, text: str) -> list[str]:
        """The names of the pods that `text` names; none is no error."""
        return [pod.name for pod in self.rooms.engine.pods.find(text)]

    async def pod_rows(self, pod: str | None = None) -> list[PodRow]:
        chosen = self.find(pod) if pod else sorted(self.rooms.engine.pods, key=lambda p: p.name)
        return [self._pod_row(one) for one in chosen]

    def _pod_row(self, pod: Pod) -> PodRow:
        return {
            "pod": pod.name,
            "addresses": [address_text(address) for address in pod.addresses],
            "link": pod.link_name,
            "policy": pod.policy.label,
            "default": pod.program.default.value,
            "rules": len(pod.program.rules),
            "leases": len(self.rooms.engine.leases.pods[pod.id]),
            "denied": self.rooms.drops.by_pod.get(pod.name, 0),
            "audited": self.rooms.drops.audited.get(pod.name, 0),
            "answered_in_kernel": self.rooms.answered_in_kernel.by_pod.get(pod.name, 0),
            "origin": str(pod.entry_origin or ""),
        }

    async def lease_rows(self, pod: str | None = None) -> list[LeaseRow]:
        chosen = self.find(pod) if pod else sorted(self.rooms.engine.pods, key=lambda p: p.name)
        return [row for one in chosen for row in self._leases_of(one)]

    def _leases_of(self, pod: Pod) -> list[LeaseRow]:
        ports = {rule.scope.name: ports_text(rule.ports) for rule in pod.program.rules if rule.scope is not None}
        now = self.rooms.now()
        living = (lease for lease in self.rooms.engine.leases.pods[pod.id] if lease.until > now)
        rows = [self._lease_row(pod, lease, ports.get(lease.scope, lease.scope), now) for lease in living]
        return sorted(rows, key=lambda row: (row["names"], row["address"], row["scope"]))

    @staticmethod
    def _lease_row(pod: Pod, lease: Lease, ports: str, now: Seconds) -> LeaseRow:
        names = [to_text(name) if name else "(known before the restart)" for name in lease.names]
        return {
            "pod": pod.name,
            "address": address_text(lease.address),
            "scope": lease.scope,
            "ports": ports,
            "names": sorted(names),
            "remaining": round(lease.until - now, 1),
        }

    async def explain(self, pod: str, **question: str) -> Explanation:
        return await asyncio.to_thread(explain_all, self._case(self.find(pod)[0]), question)

    async def denial_rows(self, pod: str) -> list[DenialRow]:
        rows = [await asyncio.to_thread(denial_rows, self._case(one)) for one in self.find(pod)]
        return sorted(itertools.chain.from_iterable(rows), key=lambda row: row["last"])

    def _case(self, pod: Pod) -> Case:
        others = tuple({id(one.policy): one.policy for one in self.rooms.engine.pods}.values())
        subject = Subject(
            *(pod.name, pod.policy, pod.program, pod.addresses[0], self._leases_of(pod)),
            live=True,
            others=others,
            used=self.rooms.seen.used(pod.name),
        )
        now = self.rooms.now()
        return Case(
            subject,
            pod.addresses,
            self.rooms.configured.settings.allowlist,
            pod.entry_origin,
            self._ended_of(pod, now),
            self.rooms.events.recent.of(pod.name),
            now,
        )

    def _ended_of(self, pod: Pod, now: Seconds) -> dict[Address, Ended]:
        """What each address was leased for last; not those that are leased now."""
        table = self.rooms.engine.leases.pods[pod.id]
        over = [lease for lease in (*table.ended.values(), *table) if lease.until <= now]
        living = {lease.address for lease in table if lease.until > now}
        latest = sorted(over, key=lambda lease: lease.until)
        return {
            lease.address: Ended(tuple(dict.fromkeys((*lease.names, *lease.past))), now - lease.until)
            for lease in latest
            if lease.address not in living
        }
