"""Loads a cluster's allowlist as the daemon does and prints what it cost: `python benchmarks/allowlist_loading.py`.

Prints the time, the longest time that the event loop was not its own, the child's memory, and a look-up's time.
"""

from __future__ import annotations

import asyncio
import random
import resource
import tempfile
import time
from ipaddress import IPv4Address
from pathlib import Path

import uvloop

from benchmarks.cluster_allowlist import FIRST, lines
from dnsguard.core.model import Address
from dnsguard.sources.loader import load
from dnsguard.sources.store import Store

LOOKUPS = 5000


async def _watch(gaps: list[float]) -> None:
    """How much later than asked for the loop came back, in seconds."""
    while True:
        asked = time.perf_counter() + 0.001
        await asyncio.sleep(0.001)
        gaps.append(time.perf_counter() - asked)


async def _load(folder: Path) -> None:
    gaps: list[float] = []
    watcher = asyncio.create_task(_watch(gaps))
    started = time.perf_counter()
    loaded = await load(folder / "config.yaml", folder / "allowlist.yaml", folder)
    seconds = time.perf_counter() - started
    watcher.cancel()
    child = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert loaded.store is not None, loaded.diagnostics
    print(f"loaded {len(loaded.store)} pods in {seconds:.1f} s ({child.ru_utime + child.ru_stime:.1f} s of CPU)")
    print(f"longest gap in the event loop {max(gaps) * 1000:.1f} ms")
    print(f"memory: child {child.ru_maxrss >> 10} MiB, this process {_own_memory()} MiB")
    print(f"a look-up {_look_up(loaded.store):.0f} us")
    loaded.store.close()


def _own_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def _look_up(store: Store) -> float:
    chosen = [Address(IPv4Address(FIRST + random.randrange(len(store))).packed) for _ in range(LOOKUPS)]
    started = time.perf_counter()
    for address in chosen:
        store.entry(address)
    return (time.perf_counter() - started) / LOOKUPS * 1e6


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        with (folder / "allowlist.yaml").open("w") as file:
            file.writelines(lines(50_000, 20))
        (folder / "config.yaml").write_text("upstreams: [10.96.0.10]\n")
        uvloop.run(_load(folder))
