"""Leases, and what changes do to them: a new policy, other addresses of a pod, an earlier process.

No I/O: the results are writes and removals for an enforcer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from dnsguard.core.book import REFUSED, Book
from dnsguard.core.lease import PAST_PER_LEASE, UNKNOWN, Element, Lease, Place, PodLeases, Write, past_of
from dnsguard.core.model import Address, Name, PodId, Seconds


@dataclass(slots=True)
class Changed:
    """What a change asks of the enforcer. `leases` are those that `write` is about; `refused` counts leases for which
    there was no room: they stay closed."""

    write: list[Write] = field(default_factory=list)
    leases: list[Lease] = field(default_factory=list)
    remove: list[Element] = field(default_factory=list)
    purged: list[Lease] = field(default_factory=list)
    refused: int = 0

    def merge(self, more: Changed) -> None:
        self.write += more.write
        self.leases += more.leases
        self.remove += more.remove
        self.purged += more.purged
        self.refused += more.refused


Checkpoint = list[tuple[Lease, dict[Name, Seconds], Seconds]]
"""A pod's leases with their names and ends, as they were."""

Justify = Callable[[Name, Address], Collection[str]]
"""The names of the scopes in which a policy opens `address` because of `name`."""


class Leases(Book):
    """All leases of the node, as answers and time make them, and changes."""

    def set_addresses(self, pod: PodId, addresses: Collection[Address], now: Seconds) -> Changed:
        """The pod's addresses are now these: elements for those gained, removal of those lost."""
        table = self.pods[pod]
        before = {e for lease in table for e in table.elements(lease)}
        table.readdressed(addresses)
        self.moved.append(pod)
        changed = Changed()
        for lease in table:
            timeout = int((lease.written - now) * 1000.0)
            after = table.elements(lease)
            gained = [Write(*e, timeout) for e in after if e not in before and timeout > 0]
            if gained:
                changed.write += gained
                changed.leases.append(lease)
            before.difference_update(after)
        changed.remove += before
        self.elements = sum(len(t.sources(lease.address)) for t in self.pods.values() for lease in t)
        return changed

    def rejustify(self, pod: PodId, justify: Justify, now: Seconds, *, same_program: bool) -> Changed:
        """Hold the pod's leases against a new policy.

        Names keep their own times: a scope that the new policy gives a living name is opened until that time, a lease
        that no living name justifies any longer is removed, one that only shorter names justify is shortened. A
        lease of unknown names stays only while the program is the same.
        """
        table = self.pods[pod]
        self.moved.append(pod)
        wanted = _wanted(table, justify, now, same_program)
        changed = Changed()
        for lease in [lease for lease in table if (lease.scope, lease.address) not in wanted]:
            changed.remove += table.elements(lease)
            changed.purged.append(lease)
            self._end(table, lease, now)
        for (scope, address), names in wanted.items():
            self._renew(table, (pod, scope, address), names, changed, now)
        if not same_program:
            self._forget_unknown(table)
        return changed

    def _rename(self, table: PodLeases, lease: Lease, names: dict[Name, Seconds], until: Seconds) -> None:
        before = lease.names
        if names != before:
            self.touched.extend([(lease, name) for name in before.keys() | names.keys()])
        elif until == lease.until:
            return  # as most are at a reload, and at a restart
        table.rename(lease, names, until)

    def _remember(self, lease: Lease, names: Collection[Name]) -> None:
        if names:
            self.touched.extend([(lease, name) for name in lease.remember(names)])

    def _forget_unknown(self, table: PodLeases) -> None:
        """Names that were never known justify nothing under another program, not even flows that are open already."""
        for leases in (table, table.ended.values()):
            for lease in leases:
                if UNKNOWN in lease.past:
                    lease.past = past_of(name for name in lease.past if name != UNKNOWN)
                    self.touched.append((lease, UNKNOWN))

    def _renew(
        self,
        table: PodLeases,
        key: tuple[PodId, str, Address],
        names: dict[Name, Seconds],
        changed: Changed,
        now: Seconds,
    ) -> None:
        pod, scope, address = key
        lease = table.get(scope, address)
        if lease is None:
            if self._over(table, [(scope, address)]):
                changed.refused += 1
                return
            lease = self._open(table, pod, scope, address)
        self._remember(lease, lease.names.keys() - names.keys())
        until = max(names.values())
        before = lease.until
        self._rename(table, lease, names, until)
        if abs(until - lease.written) > 1e-3 and (until > lease.written or until < before):
            lease.written = until
            self._look_at(lease, until)
            _write_out(changed, table, lease, now)

    def checkpoint(self, pod: PodId) -> Checkpoint:
        """What `roll_back` needs to undo `rejustify`."""
        return [(lease, dict(lease.names), lease.until) for lease in self.pods[pod]]

    def roll_back(self, pod: PodId, checkpoint: Checkpoint, now: Seconds) -> Changed:
        """Bring the leases of `checkpoint` back, in the kernel too, and take out those that came after it."""
        table = self.pods[pod]
        self.moved.append(pod)
        changed = Changed()
        before = {(lease.scope, lease.address): (names, until) for lease, names, until in checkpoint if until > now}
        for lease in [lease for lease in table if (lease.scope, lease.address) not in before]:
            changed.remove += table.elements(lease)
            self._end(table, lease, now)
        for (scope, address), (names, until) in before.items():
            lease = table.get(scope, address) or self._open(table, pod, scope, address)
            self._rename(table, lease, names, until)
            lease.written = until
            self._look_at(lease, until)
            _write_out(changed, table, lease, now)
        return changed

    def restore(
        self,
        pod: PodId,
        scope: str,
        address: Address,
        *,
        names: dict[Name, Seconds],
        until: Seconds,
        written: Seconds | None = None,
    ) -> None:
        """Take up a lease that the kernel holds until `until`, because of `names`. UNKNOWN among them is kept, and
        never extended. `written` is earlier when not all its elements last so long (0: one is missing), so that the
        next answer writes it anew."""
        table = self.pods[pod]
        lease = self._open(table, pod, scope, address)
        self._rename(table, lease, names, until)
        lease.written = max(REFUSED, until if written is None else written)
        self._look_at(lease, until)

    def restore_past(self, pod: PodId, scope: str, address: Address, names: Mapping[Name, Seconds]) -> None:
        """These names justified a lease, living or ended, until these times, which are over."""
        table = self.pods[pod]
        latest = sorted(names, key=names.__getitem__, reverse=True)[:PAST_PER_LEASE]
        lease = table.get(scope, address)
        if lease is None:
            lease = table.ended[scope, address] = Lease(pod, scope, address)
            lease.until = names[latest[0]]
        lease.past = past_of(latest)

    def writes(self, now: Seconds) -> list[Write]:
        """Every element that should be in the kernel, with the time it has left: what a repair puts back."""
        found: list[Write] = []
        for table in self.pods.values():
            for lease in table:
                timeout = int((lease.written - now) * 1000.0)
                if timeout > 0:
                    found += [Write(*element, timeout) for element in table.elements(lease)]
        return found


def _write_out(changed: Changed, table: PodLeases, lease: Lease, now: Seconds) -> None:
    """Have the enforcer open the lease until `written`, and no longer."""
    timeout = max(1, int((lease.written - now) * 1000.0))
    changed.write += [Write(*element, timeout) for element in table.elements(lease)]
    changed.leases.append(lease)


def _wanted(table: PodLeases, justify: Justify, now: Seconds, same_program: bool) -> dict[Place, dict[Name, Seconds]]:
    """Which names open which (scope, address) under the new policy, each until its own time."""
    wanted: dict[Place, dict[Name, Seconds]] = {}
    for lease in table:
        for name, until in lease.names.items():
            if until <= now:
                continue
            scopes = justify(name, lease.address) if name else (lease.scope,) if same_program else ()
            for scope in scopes:
                names = wanted.setdefault((scope, lease.address), {})
                names[name] = max(until, names.get(name, 0.0))
    return wanted
