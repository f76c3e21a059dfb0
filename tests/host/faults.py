"""What tests of faults have in common: the pods stay closed while something is broken, and the journal says it once."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tests.host.host import UNIT, Host, hosting
from tests.host.troubles import WHOLE
from tests.node.daemon import wait_for
from tests.node.scene import ALLOWLIST, DB, OTHER

T = TypeVar("T")

FOLDER = Path(__file__).resolve().parent
DROP_IN = f"/run/systemd/system/{UNIT}.d"
C, F = "10.244.0.8", "10.244.0.77"
"""Addresses of pods shop/c and shop/f, which come later and have a's policy."""
MORE_PODS = {**ALLOWLIST, "pods": {**ALLOWLIST["pods"], C: {"name": "shop/c", "policies": ["web"]},
                                   F: {"name": "shop/f", "policies": ["web"]}}}  # fmt: skip


class Journal:
    """What dnsguard tells an operator from now on: its warnings and errors, without what pods provoke."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._before = len(self._all())

    @property
    def told(self) -> list[dict[str, Any]]:
        return self._all()[self._before :]

    def kinds(self) -> list[str]:
        return [one["DNSGUARD_EVENT"] for one in self.told]

    def once(self, kind: str) -> str:
        """The sentence of the one event there is since, once it is there. Raises TimeoutError, AssertionError."""
        self._host.until(lambda: bool(self.told), WHOLE)
        (one,) = self.told
        assert one["DNSGUARD_EVENT"] == kind, one["MESSAGE"]
        return str(one["MESSAGE"])

    def _all(self) -> list[dict[str, Any]]:
        found = self._host.machine.journal(f"--unit={UNIT}", "--priority=warning")
        return [one for one in found if "DNSGUARD_EVENT" in one and "DNSGUARD_POD" not in one]


@contextlib.contextmanager
def standing_still(host: Host) -> Iterator[None]:
    """Inside, the daemon sees nothing of what is done: afterwards, all of it at once."""
    host.daemon.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        host.daemon.signal(signal.SIGCONT)


def in_time(look: Callable[[], T], wanted: T, seconds: float = WHOLE) -> T:
    """What `look` finds: as soon as that is `wanted`, else at the end of the time."""
    with contextlib.suppress(TimeoutError):
        wait_for(lambda: look() == wanted, seconds)
    return look()


def whole(host: Host) -> None:
    """Pod `a` resolves and reaches what it may, by UDP and TCP, and nothing else."""
    scene = host.scene
    assert scene.resolve(scene.a, "db.example.com") == [DB]
    assert scene.resolve(scene.a, "db.example.com", stream=True) == [DB]
    assert scene.opens(scene.a, DB)
    assert not scene.opens(scene.a, OTHER)


@contextlib.contextmanager
def drop_in(host: Host, name: str, text: str) -> Iterator[None]:
    """Inside, the unit has these lines besides. Whoever wants them in force restarts it."""
    file = host.machine.root / DROP_IN.lstrip("/") / f"{name}.conf"
    host.machine.write(f"{DROP_IN}/{name}.conf", f"[Service]\n{text}\n")
    host.machine.systemctl("daemon-reload")
    try:
        yield
    finally:
        file.unlink()
        host.machine.systemctl("daemon-reload")


@contextlib.contextmanager
def older(image: Path) -> Iterator[Host]:
    """A node like one with an older kernel: anybody may change the table, and programs are on links by tc filters."""
    with hosting([image], start=False, allowlist=MORE_PODS) as host:
        host.machine.write("/opt/older.py", (FOLDER / "older.py").read_text())
        run = "ExecStart=\nExecStart=/opt/dnsguard/bin/python /opt/older.py run"
        with drop_in(host, "older", run):
            host.daemon.start()
            yield host
