"""What the kernel still holds from an earlier process, taken up again before the daemon says it is ready.

In: the lease elements read back, and which program each (link, address) was running. Out: leases in the books, and
the elements to remove. A lease is kept when its address belongs to a pod that runs the very program it ran then; the
names behind it are not known any more, so it is never extended and goes at the first change of the pod's program.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from dnsguard.core.lease import Element, Held
from dnsguard.core.leases import Leases
from dnsguard.core.model import Address, Pair, PodId, Seconds
from dnsguard.core.pods import Pod, PodTable


def restore(
    pods: PodTable, leases: Leases, held: Iterable[Held], running: Mapping[Pair, str], now: Seconds
) -> list[Element]:
    """Take up what is still justified; returns the elements that are not."""
    owners = {address: pod for pod in pods for address in pod.addresses}
    unjustified: list[Element] = []
    found: defaultdict[tuple[PodId, str, Address], dict[Address, Seconds]] = defaultdict(dict)
    for scope, key, remaining in held:
        source, peer = Address(key[: len(key) // 2]), Address(key[len(key) // 2 :])
        pod = owners.get(source)
        if pod is not None and _still_runs(pod, source, scope, running):
            found[pod.id, scope, peer][source] = now + remaining / 1000.0
        else:
            unjustified.append(Element(scope, key))
    for (number, scope, peer), ends in found.items():
        # Of a pod with several addresses, one may lack its element or lose it earlier.
        ends_of_all = [ends.get(source, 0.0) for source in leases.pods[number].sources(peer)]
        leases.restore(number, scope, peer, until=max(ends_of_all), written=min(ends_of_all))
    return unjustified


def _still_runs(pod: Pod, source: Address, scope: str, running: Mapping[Pair, str]) -> bool:
    return running.get((pod.link, source)) == pod.program.name and any(
        rule.scope is not None and rule.scope.name == scope for rule in pod.program.rules
    )
