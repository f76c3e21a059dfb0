"""What an earlier process left, taken up again before the daemon says it is ready.

In: the lease elements read back, which program each (link, address) was running, and the names that were kept of each
lease. Out: leases in the books, what their addresses stood on before, and what the enforcer must do. What is open is
what the kernel says, never the file: a name lasts no longer than its element. A lease is kept when a name of it still
justifies it under the policy of now; one whose names are unknown, or end before it does, when its pod runs the very
program it ran then and nothing was taken back: that is never extended and goes at the first change of the program.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from dnsguard.core.lease import UNKNOWN, Element, Held
from dnsguard.core.leases import Changed, Leases
from dnsguard.core.model import Address, Name, Pair, PodId, Seconds
from dnsguard.core.pods import Pod, PodTable
from dnsguard.engine.revoke import justify
from dnsguard.names_file.content import Names, PodNames

SLACK: Seconds = 1.0
"""An element ends this much after its book says, at the most: a write that waited, a name told of but not yet kept."""


@dataclass(frozen=True, slots=True)
class Left:
    """What an earlier process left in the kernel, and the names it kept."""

    held: Iterable[Held] = ()
    running: Mapping[Pair, str] = field(default_factory=dict)
    names: Names = field(default_factory=dict)


def restore(pods: PodTable, leases: Leases, left: Left, now: Seconds) -> Changed:
    """Take up what is still justified; the rest is to be removed, and what the policy has opened since, made."""
    return _Restoring(pods, leases, left, now).all()


class _Restoring:
    def __init__(self, pods: PodTable, leases: Leases, left: Left, now: Seconds) -> None:
        self._pods, self._leases, self._left, self._now = pods, leases, left, now
        self._known = {pod.id: _names_of(pod, left.names) for pod in pods}

    def all(self) -> Changed:
        changed = Changed()
        found = self._found(changed)
        for (number, scope, peer), ends in found.items():
            self._take_up(self._pods.by_id[number], scope, peer, ends)
        for pod in self._pods:
            self._remember(pod)
        for number in {number for number, _, _ in found}:
            pod = self._pods.by_id[number]
            opens = justify(pod.policy, pod.program)
            # Names unknown were taken up only where the program is the same.
            changed.merge(self._leases.rejustify(number, opens, self._now, same_program=True))
        return changed

    def _found(self, changed: Changed) -> Mapping[tuple[PodId, str, Address], dict[Address, Seconds]]:
        """When the elements of each lease that may be kept end, by the pod's address."""
        owners = {address: pod for pod in self._pods for address in pod.addresses}
        found: defaultdict[tuple[PodId, str, Address], dict[Address, Seconds]] = defaultdict(dict)
        for scope, key, remaining in self._left.held:
            source, peer = Address(key[: len(key) // 2]), Address(key[len(key) // 2 :])
            pod = owners.get(source)
            if pod and (self._is_named(pod, source, scope, peer) or self._may_stay(pod, source, scope, peer)):
                found[pod.id, scope, peer][source] = self._now + remaining / 1000.0
            else:
                changed.remove.append(Element(scope, key))
        return found

    def _take_up(self, pod: Pod, scope: str, peer: Address, ends: Mapping[Address, Seconds]) -> None:
        # Of a pod with several addresses, one may lack its element or lose it earlier.
        ends_of_all = [ends.get(source, 0.0) for source in self._leases.pods[pod.id].sources(peer)]
        written, until = min(ends_of_all), max(ends_of_all)
        if until - written < SLACK:
            until = written
        known = self._known[pod.id].leases.get((scope, peer), {})
        names = {name: min(end, until) for name, end in known.items() if end > self._now and name != UNKNOWN}
        last = max(names, key=names.__getitem__, default=UNKNOWN)
        if names and until - names[last] < SLACK:
            names[last] = until
        elif all(self._may_stay(pod, source, scope, peer) for source in ends):
            names[UNKNOWN] = until
        self._leases.restore(pod.id, scope, peer, names=names, until=until, written=written)

    def _remember(self, pod: Pod) -> None:
        """What living and ended leases stood on, for the flows that they let open."""
        known_then = self._known[pod.id]
        same = known_then.program == pod.program.name
        living = self._leases.pods[pod.id]
        for (scope, peer), known in known_then.leases.items():
            lease = living.get(scope, peer)
            now_named = lease.names if lease is not None else {}
            past = {
                name: min(abs(end), self._now)
                for name, end in known.items()
                if name not in now_named and (name or (same and end > 0))
            }
            if past:
                self._leases.restore_past(pod.id, scope, peer, past)

    def _is_named(self, pod: Pod, source: Address, scope: str, peer: Address) -> bool:
        known = self._known[pod.id]
        names: Mapping[Name, Seconds] = known.leases.get((scope, peer), {})
        return source in known.addresses and any(end > self._now and name for name, end in names.items())

    def _may_stay(self, pod: Pod, source: Address, scope: str, peer: Address) -> bool:
        """Whether names that nobody knows may hold it open: the program is the one that it was opened under."""
        known = self._known[pod.id]
        taken_back = any(end < 0 for end in known.leases.get((scope, peer), {}).values())
        ran = {self._left.running.get((pod.link, source)), known.program or pod.program.name}
        scopes = {rule.scope.name for rule in pod.program.rules if rule.scope is not None}
        return ran == {pod.program.name} and scope in scopes and not taken_back


def _names_of(pod: Pod, names: Names) -> PodNames:
    """What was kept for this very pod: on its link, under an address that it still has."""
    known = names.get(pod.link)
    return known if known is not None and not known.addresses.isdisjoint(pod.addresses) else PodNames()
