"""A node over several processes: the kernel goes on, the files of names and of what is owed go on, everything else
begins again."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from dnsguard.core.lease import Element
from dnsguard.core.model import Address, LinkIndex, Name, Seconds
from dnsguard.daemon.owed import OwedFile
from dnsguard.daemon.restore import Left, restore
from dnsguard.names_file.content import FILE, Names, read_names
from dnsguard.names_file.record import Record
from dnsguard.names_file.store import NamesStore
from dnsguard.upstream.scripted import Answer
from tests.replay.stage import Stage, Told, respond

BOOT = "one"
Zone = dict[str, Sequence[str]]
"""name -> its whole answer, as lines of a zone file."""


class Node:
    """`stage` is the process that runs now. `pods` and `zone` are those of every process."""

    def __init__(self, folder: Path, policy: str, pods: dict[str, list[str]], zone: Zone, config: str = "") -> None:
        self.folder, self.path = folder, folder / FILE
        self.pods, self.zone = pods, zone
        self.stage = Stage(policy, config, pods=pods, reminder=OwedFile(folder, Told()))
        self._begin()

    def _begin(self) -> None:
        for name, lines in self.zone.items():
            self.stage.script(name, "A", Answer(respond("\n".join(lines))))
        engine = self.stage.engine
        self._record = Record(engine.pods, engine.leases)
        self._store = NamesStore(self.path, BOOT)
        self._store.apply([self._record.everything(self.stage.clock.now)])
        assert self._record.complete

    def write(self) -> None:
        """What the thread would have written by now."""
        self._store.apply([self._record.changes(self.stage.clock.now)])

    def kept(self) -> Names:
        """What the next process would read."""
        self.write()
        self._store.close()
        found = read_names(self.path, BOOT)
        self._store = NamesStore(self.path, BOOT)
        return found

    @contextlib.contextmanager
    def editing(self) -> Iterator[sqlite3.Connection]:
        """The file, as somebody else may change it."""
        self._store.close()
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as file:
            yield file
        self._store = NamesStore(self.path, BOOT)

    def restart(self, policy: str, *, written: bool = True, links: int = 10, known: bool = True) -> Stage:
        """The process ends, having written the last of it or not, and the next begins with this policy; `known`: it
        finds the file of names."""
        if written:
            self.write()
        self._store.close()
        before = self.stage
        held, running = before.enforcer.held(), dict(before.enforcer.desired.pairs)
        left = Left(held, running, read_names(self.path, BOOT) if known else {})
        reminder = OwedFile(self.folder, Told())
        owed = reminder.read({}, everything=False)
        after = self.stage = Stage(policy, begin=False, reminder=reminder)
        after.clock.now = before.clock.now
        after.flows.flows = before.flows.flows
        after.links = {pod: LinkIndex(links + at) for at, pod in enumerate(self.pods)}
        after.enforcer.desired, after.enforcer._cut = before.enforcer.desired, before.enforcer._cut
        after.enforcer._ends.update({Element(h.scope, h.key): after.clock.now + h.remaining_ms / 1000 for h in held})
        engine = after.engine
        after.begin(policy, self.pods, lambda now: restore(engine.pods, engine.leases, left, now), running, owed)
        if written:
            # What pods were told before holds on, where the policy of now allows it.
            by_link = engine.pods.by_link
            told = [promise for promise in before.promises if promise.pod.link in by_link]
            after.promises = [replace(promise, pod=by_link[promise.pod.link]) for promise in told]
        before.close()
        after.look()
        self._begin()
        return after

    def close(self) -> None:
        self._store.close()
        self.stage.close()


def living(stage: Stage) -> dict[tuple[LinkIndex, str, Address, Name], Seconds]:
    """The end of each name of each lease in the books."""
    links = {pod.id: pod.link for pod in stage.engine.pods}
    return {
        (links[lease.pod], lease.scope, lease.address, name): until
        for lease in stage.engine.leases
        for name, until in lease.names.items()
        if until > stage.clock.now
    }


def kept(names: Names, after: Seconds) -> dict[tuple[LinkIndex, str, Address, Name], Seconds]:
    """The same, as it was read back."""
    return {
        (link, scope, peer, name): until
        for link, pod in names.items()
        for (scope, peer), ends in pod.leases.items()
        for name, until in ends.items()
        if until > after
    }
