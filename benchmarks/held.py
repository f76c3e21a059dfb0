"""What a daemon holds: its process, its own books (`tests.node.counted`), nftables and the eBPF maps."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.node import counted

from benchmarks.bed import Bed
from benchmarks.scale import Node
from dnsguard.enforce.bpf import syscall
from dnsguard.enforce.bpf.syscall import Map, get_pinned

ASKED = 20.0
"""Seconds that the daemon may take until it has told its books."""
_HASHES = (syscall.HASH, syscall.LRU_HASH, syscall.LPM_TRIE)


@dataclass(frozen=True, slots=True)
class Books:
    """What the process and the kernel hold for it."""

    descriptors: int
    threads: int
    tasks: int
    """Of asyncio."""
    elements: int
    """In all of the table's sets and maps, those of programs included."""
    entries: dict[str, int]
    """Of each pinned eBPF map."""
    leases: int
    inside: dict[str, int] = field(default_factory=dict)
    """All else that the daemon's own books hold, by name."""


def rows(of: Books) -> Iterator[tuple[str, int]]:
    """Every number, by the name that it has on paper."""
    yield "file descriptors", of.descriptors
    yield "threads", of.threads
    yield "tasks", of.tasks
    yield "leases", of.leases
    yield "nft elements", of.elements
    for name, number in sorted(of.entries.items()):
        yield f"map `{name}`", number
    for name, number in of.inside.items():
        yield f"in memory: {name}", number


def left(before: Books, after: Books, most: Mapping[str, int]) -> list[str]:
    """What is not as before; of what is in `most`, by its name in `Books.inside`, what there is more of than that."""
    bounds = {f"in memory: {name}": number for name, number in most.items()}
    earlier, later = dict(rows(before)), dict(rows(after))
    return [
        name
        for name in {**earlier, **later}
        if (later.get(name, 0) > bounds[name] if name in bounds else earlier.get(name, 0) != later.get(name, 0))
    ]


def books(node: Node) -> Books:
    elements, entries = _elements(node.bed), entries_of(node.bed.pins)
    inside = _inside(node)
    tasks, leases = inside.pop("tasks"), inside.pop("leases")
    return Books(count(node.pid, "fd"), count(node.pid, "task"), tasks, elements, entries, leases, inside)


def count(pid: int, folder: str) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/{folder}").iterdir())


def memory(pid: int) -> dict[str, int]:
    """Octets by name (proc(5), smaps_rollup)."""
    _, *lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return {name: int(value.split()[0]) * 1024 for name, value in (line.split(":") for line in lines)}


def entries_of(pins: Path, *names: str) -> dict[str, int]:
    """Of these pinned maps; of all that have a number of entries, if none is named."""
    found = {}
    for path in sorted((pins / "maps").iterdir()):
        if names and path.name not in names:
            continue
        with contextlib.closing(Map(get_pinned(path))) as each:
            if each.type in _HASHES:
                found[path.name] = sum(1 for _ in each.items())
    return found


def _inside(node: Node) -> dict[str, int]:
    file = node.bed.folder / counted.FILE
    file.unlink(missing_ok=True)
    node.server.process.send_signal(signal.SIGUSR2)
    patience = time.monotonic() + ASKED
    while not file.exists():
        if time.monotonic() > patience:
            raise RuntimeError(f"dnsguard did not tell its books within {ASKED:.0f} s")
        time.sleep(0.05)
    told: dict[str, int] = json.loads(file.read_text())
    return told


def _elements(bed: Bed) -> int:
    listed = bed.lab.run(bed.lab.node, "nft", "-j", "list", "table", "inet", "dnsguard").stdout
    holders = [each.get("set") or each.get("map") or {} for each in json.loads(listed)["nftables"]]
    return sum(len(holder.get("elem", ())) for holder in holders)
