"""A busy pod on a node of a thousand, and what became of its traffic while something was done to the daemon.

The node's allowlist has 1,000 pods; one of them is here, with `traffic.Traffic` inside. Used by the host tests and by
`python -m benchmarks restarts`.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.host import dying as dying_program
from tests.host.host import UNIT, Host, accounts, hosting
from tests.host.machine import Machine
from tests.host.traffic import FRESH, fresh_address
from tests.host.watch import Watch, Way
from tests.node.daemon import ANY_RESOLVER, wait_for
from tests.node.scene import ALLOWLIST, A, B

PODS = 1000
FRESH_NAMES = 8_000
"""Enough for three minutes of it."""
TTL = {"floor": "30s", "cap": "1h", "grace": "10s"}
"""As shipped; the other host tests want leases that end soon."""


def crowd() -> dict[str, object]:
    """The allowlist of the scene, and so many pods beside it that are on other nodes."""
    others = {
        f"10.245.{number // 250}.{1 + number % 250}": {"name": f"crowd/pod-{number}", "policies": ["web"]}
        for number in range(PODS - 2)
    }
    pods = ALLOWLIST["pods"]
    return {**ALLOWLIST, "pods": {A: pods[A], B: pods[B], **others}}


@contextlib.contextmanager
def busy_host(layers: Sequence[Path] = (), install: Callable[[Machine], object] = accounts) -> Iterator[Host]:
    with hosting(layers, install=install, allowlist=crowd(), ttl=TTL) as host:
        for number in range(FRESH_NAMES):
            host.scene.zone.put(FRESH.format(number=number), "A", fresh_address(number))
        yield host


class Busy:
    """The traffic of pod `a` while the `with` block runs, and a Watch beside it; `result` afterwards, of both. Each
    takes fresh names of its own."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._watch = Watch(host.scene)
        self.result: dict[str, Any] = {}

    def __enter__(self) -> Busy:
        lab, pod, zone = self._host.lab, self._host.scene.a, self._host.scene.zone
        first = sum(name.endswith(".fresh.example.com") for name in zone.names_asked())
        program = [sys.executable, "-m", "tests.host.traffic", ANY_RESOLVER, str(first)]
        with contextlib.ExitStack() as ending:
            ending.enter_context(self._watch)
            self._process = lab.popen(pod.namespace, *program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            wait_for(lambda: zone.asked(FRESH.format(number=first + 20)) > 0, 10)
            self._ending = ending.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        with self._ending:
            said, _ = self._process.communicate(timeout=60)
        self.result = json.loads(said)
        self.result["forbidden"] |= self._forbidden(self._watch.heard())

    def _forbidden(self, came_out: Counter[Way]) -> dict[str, Any]:
        found: dict[str, Any] = {"tried": self._watch.tried, "longest_pause": self._watch.longest_pause}
        if came_out:
            found |= {"opened": came_out.total(), "ways": sorted(map(str, came_out))}
        return found | ({"told": len(self._watch.told)} if self._watch.told else {})


@contextlib.contextmanager
def dying(host: Host) -> Iterator[Callable[..., None]]:
    """Inside, the daemon is one that dies in the middle of its next commit when the function is called, which returns
    when another is ready; `where` it dies is BEFORE or BEHIND of the program."""
    program, drop_in = "/usr/lib/dying.py", f"/run/systemd/system/{UNIT}.d/dying.conf"
    host.machine.write(program, Path(dying_program.__file__).read_text())
    host.machine.write(drop_in, f"[Service]\nExecStart=\nExecStart=/opt/dnsguard/bin/python -I {program} run\n")
    _restart(host)
    try:
        yield _die
    finally:
        (host.machine.root / drop_in[1:]).unlink()
        _restart(host)


def _restart(host: Host) -> None:
    host.machine.systemctl("daemon-reload")
    host.machine.systemctl("restart", UNIT)


def _die(host: Host, where: str = dying_program.BEFORE) -> None:
    before, asked = host.daemon.pid, host.machine.root / str(dying_program.ASKED)[1:]
    # whole at once: the daemon looks at it at any moment
    write = f"echo {where} >{dying_program.ASKED}.new; mv {dying_program.ASKED}.new {dying_program.ASKED}"
    host.machine.run("runuser", "--user=dnsguard", "--", "sh", "-c", write)
    host.until_replaced(before)
    assert not asked.exists(), "it died of something else"


def nothing_is_lost_for_good(result: dict[str, Any]) -> None:
    """Every query answered, at the first retry at the latest; no connection failed, no flow cut, nothing opened."""
    for transport in ("udp", "tcp"):
        assert result[transport].keys() <= {"first", "late", "retry", "slowest", "connections"}, result
    assert result["connections"].keys() == {"opened"}, result
    assert "cut" not in result["flows"], result
    assert result["forbidden"].keys() == {"asked", "tried", "longest_pause"}, result
