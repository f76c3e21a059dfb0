"""What a daemon holds grows with what is open, and goes with it: nothing is left of names, pods and policies that went.

leases, answers, elements and map entries of a burst ....... after_a_burst_...
what is kept for pods ..................................... (in after_a_burst_...)
descriptors, threads and tasks ............................ (in after_a_burst_...)
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from dnslib import DNSRecord

from dnsguard.demo.lab import Pod
from dnsguard.enforce.bpf.syscall import HASH, LPM_TRIE, LRU_HASH, Map, get_pinned
from dnsguard.learning import book
from tests.node.counted import FILE
from tests.node.daemon import ANY_RESOLVER, wait_for
from tests.node.scene import ALLOWLIST, Scene, exchange, playing

pytestmark = pytest.mark.node

PROGRAM = (sys.executable, "-m", "tests.node.counted")
PODS = 4
NAMES = 20
CACHED = 10
RULE = {"to": [{"domainNames": ["*.fresh.example.com"]}], "ports": [{"protocol": "TCP", "port": 8080}]}
BOUNDED = {
    "cached answers": CACHED,
    "pods with past denials": 1024,
    "past denials": 1024 * 64,
    "threads": 8,
    "seen names": book.NAMES,
    "seen flows": book.FLOWS,
}
"""What need not be as before, and the most that there may be of it: a thread is made at its first use."""
PASSING = ("leases", "drops by pod", "map counts", "map flows")
"""What is gone last of a burst."""
COUNTED = ("drops by pod", "kernel answers by pod")
"""What is counted of pods every few seconds."""
PATIENCE = 20.0


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    limits = {"ttl": {"floor": "1s", "grace": "1s", "cap": "1s"}, "cache": {"entries": CACHED}}
    with playing(tmp_path, allowlist=allowlist(8080), program=PROGRAM, **limits) as scene:
        for number in range(NAMES):
            scene.zone.put(f"n{number}.fresh.example.com", "A", f"198.18.1.{number}", ttl=1)
        yield scene


def allowlist(port: int) -> dict[str, object]:
    """A policy of its own for each pod of a burst, and other ports with every reload."""
    block = {"to": [{"ipBlock": {"cidr": f"198.18.{port - 8000}.0/24"}}], "ports": [{"protocol": "TCP", "port": port}]}
    policies = {f"burst-{number}": {"egress": [RULE, block]} for number in range(PODS)}
    pods = {f"10.244.9.{number + 1}": {"name": f"burst/{port}-{number}", "policies": [f"burst-{number}"]}
            for number in range(PODS)}  # fmt: skip
    whole = {"policies": {**ALLOWLIST["policies"], **policies}, "pods": {**ALLOWLIST["pods"], **pods}}
    copied: dict[str, object] = json.loads(json.dumps(whole))  # what is shared would be written as an anchor
    return copied


def books(scene: Scene) -> dict[str, int]:
    """What the daemon's books hold, what it has open, and what the kernel holds for it."""
    path = scene.daemon.folder / FILE
    path.unlink(missing_ok=True)
    scene.daemon.signal(signal.SIGUSR2)
    wait_for(path.exists, 5)
    found: dict[str, int] = json.loads(path.read_text())
    process = Path(f"/proc/{scene.daemon.pid}")
    found["descriptors"] = sum(1 for _ in (process / "fd").iterdir())
    found["threads"] = sum(1 for _ in (process / "task").iterdir())
    listing = scene.lab.run(scene.lab.node, "nft", "list", "table", "inet", "dnsguard").stdout
    found["nft elements"] = sum(text.count(",") + 1 for text in re.findall(r"elements = \{([^}]*)\}", listing))
    return {**found, **map_entries(scene.daemon.folder / "bpf" / "maps")}


def map_entries(folder: Path) -> dict[str, int]:
    found = {}
    for path in folder.iterdir():
        with contextlib.closing(Map(get_pinned(path))) as each:
            if each.type in (HASH, LRU_HASH, LPM_TRIE):
                found[f"map {path.name}"] = sum(1 for _ in each.items())
    return found


def burst(scene: Scene, port: int) -> dict[str, int]:
    """Pods come, resolve, connect, are denied and go, under a policy of their own; the books at its height."""
    scene.daemon.reload(allowlist(port))
    made: list[Pod] = []
    try:
        for number in range(PODS):
            made.append(scene.lab.pod(f"q{number}", f"10.244.9.{number + 1}"))
        for pod in made:
            resolve_all(scene, pod)
        height = books(scene)
        for pod in made:
            scene.resolve(pod, "n1.fresh.example.com", stream=True)
            for _ in range(3):
                scene.ask(pod, "other.example.com")
            assert scene.opens(pod, "198.18.1.1")
        assert not scene.opens(made[0], "198.18.0.3")
        wait_for(lambda: all(map(books(scene).get, COUNTED)), PATIENCE)
        return height
    finally:
        for pod in made:
            scene.lab.remove_pod(pod)


def resolve_all(scene: Scene, pod: Pod) -> None:
    with scene.client(pod, ANY_RESOLVER) as client:
        for number in range(NAMES):
            exchange(client, DNSRecord.question(f"n{number}.fresh.example.com").pack(), stream=False)


def differing(before: dict[str, int], after: dict[str, int]) -> dict[str, tuple[int, int]]:
    return {what: (before.get(what, 0), after.get(what, 0)) for what in before.keys() | after.keys()
            if before.get(what) != after.get(what) and what not in BOUNDED}  # fmt: skip


def test_after_a_burst_of_names_pods_and_policies_everything_is_as_it_was(scene: Scene) -> None:
    burst(scene, 8081)
    wait_for(lambda: not any(map(books(scene).get, PASSING)), PATIENCE)
    before = books(scene)

    height = burst(scene, 8082)

    assert height["pods"] == PODS + 2
    assert height["leases"] > 0
    with contextlib.suppress(TimeoutError):
        wait_for(lambda: not differing(before, books(scene)), PATIENCE)
    after = books(scene)
    assert differing(before, after) == {}
    assert all(after[what] <= most for what, most in BOUNDED.items())
