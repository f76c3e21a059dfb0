"""From what happened to leases to changes of the file: rows of what is true now, some thousand at a time."""

from __future__ import annotations

from collections import Counter, deque

from dnsguard.core.book import Touch
from dnsguard.core.lease import Lease
from dnsguard.core.leases import Leases
from dnsguard.core.model import LinkIndex, PodId, Seconds
from dnsguard.core.pods import Pod, PodTable
from dnsguard.names_file.content import pack_addresses
from dnsguard.names_file.store import Batch, PodRow

MOST = 2000
"""Changed names in one batch: 2 ms of the event loop."""
SLICE = 1000
"""Leases of one batch, while everything is handed over."""
MOST_TOUCHED = 200_000
"""Changes remembered; when there are more, everything is handed over instead."""
MOST_OF_A_POD = 40_000
"""Rows of one pod, of 300 octets at the most; they are counted when twice as many were handed over. None is kept of a
pod that has more: its leases are restored with names unknown, and the file has room for those of others."""


class Record:
    """Follows the leases of these pods from now on."""

    def __init__(self, pods: PodTable, leases: Leases) -> None:
        self._pods, self._leases = pods, leases
        self._links: dict[PodId, LinkIndex] = {}
        self._rest: list[Lease] = []
        self._handed_over: Counter[PodId] = Counter()
        self._crowded: set[PodId] = set()
        """Pods that have too many."""
        self._touched: deque[Touch] = deque(maxlen=MOST_TOUCHED)
        self._moved: deque[PodId] = deque()
        leases.touched, leases.moved = self._touched, self._moved

    def everything(self, now: Seconds) -> Batch:
        """The beginning of all that is true now, however the file was; `changes` gives the rest, until `complete`."""
        self._touched.clear()
        self._moved.clear()
        self._handed_over.clear()
        self._crowded.clear()
        batch = Batch(anew=True)
        self._links = {pod.id: pod.link for pod in self._pods}
        batch.pods = [_row(pod) for pod in self._pods]
        tables = self._leases.pods.values()
        self._rest = [lease for table in tables for lease in (*table, *table.ended.values())]
        self._add_rest(batch, now)
        return batch

    def changes(self, now: Seconds, most: int = MOST) -> Batch:
        """What changed since the last call, or as much of it."""
        if len(self._touched) == MOST_TOUCHED:
            return self.everything(now)
        batch = Batch()
        while self._moved:
            self._add_pod(batch, self._moved.popleft())
        for _ in range(min(most, len(self._touched))):
            self._add_touched(batch, now)
        self._add_rest(batch, now)
        return batch

    @property
    def complete(self) -> bool:
        """No more of everything is to come."""
        return not self._rest

    @property
    def pending(self) -> bool:
        """`changes` has something to tell."""
        return bool(self._touched or self._moved or self._rest)

    def _add_pod(self, batch: Batch, number: PodId) -> None:
        pod = self._pods.by_id.get(number)
        if pod is None:
            self._handed_over.pop(number, None)
            self._crowded.discard(number)
        if pod is not None:
            self._links[number] = pod.link
            batch.pods.append(_row(pod))
        elif (link := self._links.pop(number, None)) is not None and link not in self._pods.by_link:
            batch.gone.append((link,))

    def _add_touched(self, batch: Batch, now: Seconds) -> None:
        lease, name = self._touched.popleft()
        link = self._links.get(lease.pod)
        if link is None or lease.pod not in self._leases.pods or lease.pod in self._crowded:
            return
        here = self._known(lease)
        if name is None and here is not lease:
            batch.over.append((link, lease.scope, lease.address))
            if here is not None:
                self._add_whole(batch, here, now)
        elif name is not None and here is lease:
            until = lease.names.get(name)
            if until is None and name and name not in lease.past:
                batch.forgotten.append((link, lease.scope, lease.address, name))
            else:
                # Only what was taken back is told of when it is over: the rest ends by itself, in the file too.
                batch.names.append((link, lease.scope, lease.address, name, until if until is not None else -now))
                self._count(batch, lease.pod, 1)

    def _known(self, lease: Lease) -> Lease | None:
        """What is remembered now in this lease's place."""
        table = self._leases.pods[lease.pod]
        return table.get(lease.scope, lease.address) or table.ended.get((lease.scope, lease.address))

    def _add_rest(self, batch: Batch, now: Seconds) -> None:
        for _ in range(min(SLICE, len(self._rest))):
            lease = self._rest.pop()
            if lease.pod in self._leases.pods and lease.pod not in self._crowded and self._known(lease) is lease:
                self._add_whole(batch, lease, now)

    def _add_whole(self, batch: Batch, lease: Lease, now: Seconds) -> None:
        link, scope, address = self._links[lease.pod], lease.scope, lease.address
        over = min(now, lease.until)
        batch.names += [(link, scope, address, name, over) for name in lease.past if name not in lease.names]
        batch.names += [(link, scope, address, name, until) for name, until in lease.names.items()]
        self._count(batch, lease.pod, len(lease.past) + len(lease.names))

    def _count(self, batch: Batch, pod: PodId, rows: int) -> None:
        """So many rows of a pod were handed over; take all of them out again when it has too many."""
        self._handed_over[pod] += rows
        if self._handed_over[pod] <= 2 * MOST_OF_A_POD:
            return
        table, link = self._leases.pods[pod], self._links[pod]
        kept = sum(len(lease.names) + len(lease.past) for lease in (*table, *table.ended.values()))
        self._handed_over[pod] = kept
        if kept > MOST_OF_A_POD:
            self._crowded.add(pod)
            batch.gone.append((link,))
            batch.pods.append(_row(self._pods.by_id[pod]))
            batch.names = [row for row in batch.names if row[0] != link]


def _row(pod: Pod) -> PodRow:
    return pod.link, pack_addresses(pod.addresses), pod.program.name
