"""What keeping the names behind 100,000 leases costs: `python benchmarks/kept_names.py`.

Prints CPU time of one new lease, by part (the book itself; the event loop's part of keeping its name; the thread's),
the file's size, and what reading it back and taking the leases up again takes at a start.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random

from dnsguard.core.book import Capacity
from dnsguard.core.compile import compile_program
from dnsguard.core.lease import Held
from dnsguard.core.leases import Leases
from dnsguard.core.limits import Limits, Share
from dnsguard.core.model import Action, Address, DomainPeer, LinkIndex, Name, Pair, Policy, Rule
from dnsguard.core.names import EVERYTHING, parse_name
from dnsguard.core.pods import Assignment, PodTable
from dnsguard.core.policy import Allowed, effective
from dnsguard.daemon.restore import Left, restore
from dnsguard.names_file.content import FILE, read_names
from dnsguard.names_file.record import Record
from dnsguard.names_file.store import Batch, NamesStore

PODS, LEASES = 100, 100_000
AT_ONCE = 10_000
"""Leases of one transaction: half a second at 20,000 answers a second."""
FOLDER = "/dev/shm"
UNTIL = 310.0


def main() -> None:
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)  # as the daemon does
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        path = Path(folder) / FILE
        pods, leases = node()
        costs = keep(path, pods, leases)
        print(", ".join(f"{part} {seconds / LEASES * 1e6:.2f} us" for part, seconds in costs.items()), "a new lease")
        print(f"file {path.stat().st_size / 1e6:.1f} MB")
        held = [Held(one.scope, source + one.address, 300_000) for one in leases for source in sources(pods, one.pod)]
        start_again(path, held, pods.pairs())


def node() -> tuple[PodTable, Leases]:
    """Pods that may resolve every name."""
    pods, leases = PodTable(), Leases(Capacity(leases=LEASES // PODS, elements=LEASES))
    policy = effective((Policy("all", (Rule((DomainPeer((EVERYTHING,)),)),)),), Action.DENY)
    for number in range(PODS):
        address = Address(bytes((10, 1, 0, number)))
        share, assignment = Share(Limits(), 0.0), Assignment(None, policy)
        program = compile_program(policy)
        pod = pods.came(
            LinkIndex(10 + number), f"v{number}", [address], assignment=assignment, program=program, share=share
        )
        leases.add_pod(pod.id, [address])
    return pods, leases


def sources(pods: PodTable, number: int) -> tuple[Address, ...]:
    return next(pod.addresses for pod in pods if pod.id == number)


def answers() -> Iterator[tuple[Name, Address]]:
    random = Random(1)
    for number in range(LEASES):
        yield parse_name(f"host-{number}.service{number % 977}.example.com"), Address(random.randbytes(4))


def keep(path: Path, pods: PodTable, leases: Leases) -> dict[str, float]:
    """CPU seconds of all leases, by part."""
    costs = dict.fromkeys(("book", "loop", "thread"), 0.0)
    record, store = Record(pods, leases), NamesStore(path, "this")
    store.apply([record.everything(0.0)])
    told, everyone = list(answers()), list(pods)
    for start in range(0, LEASES, AT_ONCE):
        part = list(enumerate(told[start : start + AT_ONCE]))

        def arm(part: list[tuple[int, tuple[Name, Address]]] = part) -> None:
            for number, (name, address) in part:
                pod = everyone[number % PODS]
                verdict = pod.policy.verdict(name)
                assert isinstance(verdict, Allowed)
                leases.arm(pod.id, name, verdict.scopes, [address], now=0.0, need=40.0, until=UNTIL, ticket=1)

        batches: list[Batch] = []

        def drain(batches: list[Batch] = batches) -> None:
            while record.pending:
                batches.append(record.changes(0.0))

        costs["book"] += cpu(arm)
        costs["loop"] += cpu(drain)
        costs["thread"] += cpu(lambda batches=batches: store.apply(batches))  # type: ignore[misc]
    store.close()
    return costs


def start_again(path: Path, held: list[Held], running: Mapping[Pair, str]) -> None:
    started = time.thread_time()
    names = read_names(path, "this")
    print(f"reading {time.thread_time() - started:.2f} s")
    pods, leases = node()
    started = time.thread_time()
    changed = restore(pods, leases, Left(held, running, names), 1.0)
    print(f"taking up {len(leases)} leases {time.thread_time() - started:.2f} s")
    assert not changed.remove
    assert not changed.write


def cpu(do: Callable[[], None]) -> float:
    started = time.thread_time()
    do()
    return time.thread_time() - started


if __name__ == "__main__":
    main()
