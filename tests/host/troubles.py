"""What tests of faults share: eyes on what is closed while something is broken, and what was told of it."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator
from typing import Any

from tests.host.host import UNIT, Host
from tests.node.scene import DB, OTHER, Flow, addresses, rcode

WHOLE = 5.0
"""Seconds after the cause is gone in which all must be as before."""
PATIENCE = 30.0
"""Seconds for what a busy machine may take its time for: that a fault shows."""

_numbers = itertools.count(1)


def fresh_name() -> str:
    """A name that shop/a may resolve and nobody has asked for."""
    return f"n{next(_numbers)}.fresh.example.com"


class Closed:
    """`with Closed(host):` Pods try again and again what is never allowed: to connect, and to resolve. Raises
    AssertionError at the end when anything was let through, or nothing was tried."""

    def __init__(self, host: Host) -> None:
        self._scene = host.scene
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="closed")
        self.tried = 0
        self.opened: list[str] = []

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                self._try()
            except Exception as error:
                self.opened.append(f"the attempt itself failed: {error!r}")
                return
            self.tried += 1

    def _try(self) -> None:
        for pod in (self._scene.a, self._scene.b):
            if self._scene.opens(pod, OTHER):
                self.opened.append(f"{pod.name} connected to {OTHER}")
            with contextlib.suppress(TimeoutError, ConnectionError):
                reply = self._scene.ask(pod, "other.example.com")
                if addresses(reply) or rcode(reply) not in ("NXDOMAIN", "SERVFAIL", "REFUSED"):
                    self.opened.append(f"{pod.name} was told {reply}")

    def __enter__(self) -> Closed:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        while not self.tried and self._thread.is_alive():
            time.sleep(0.05)  # each fault is seen at least once in full
        self._over.set()
        self._thread.join()
        if error is None:
            assert self.opened == [], self.opened
            assert self.tried


def events(host: Host, kind: str, **fields: str) -> list[dict[str, Any]]:
    """What the journal has of this kind, with these fields."""
    matches = (f"DNSGUARD_{name.upper()}={value}" for name, value in fields.items())
    return host.machine.journal(f"DNSGUARD_EVENT={kind}", *matches)


def restarts(host: Host) -> int:
    return int(host.machine.show(UNIT, "NRestarts")["NRestarts"])


def entries(host: Host, text: str) -> int:
    """Journal entries about the unit that hold this text."""
    return sum(text in str(one.get("MESSAGE", "")) for one in host.machine.journal(f"--unit={UNIT}"))


def answered(host: Host, name: str, **how: Any) -> list[str]:
    """The addresses that shop/a gets; none when there is no reply."""
    try:
        return host.scene.resolve(host.scene.a, name, **how)
    except (TimeoutError, ConnectionError, EOFError):
        return []


def flow_of(host: Host) -> Flow:
    """A connection of shop/a to what it may."""
    host.until(lambda: answered(host, "db.example.com") == [DB])
    flow = host.scene.connect(host.scene.a, DB)
    assert flow is not None
    return flow


def is_whole(host: Host) -> bool:
    """Whether shop/a resolves a name that needs every part of the daemon, and reaches what it was told."""
    found = answered(host, fresh_name())
    return bool(found) and host.scene.opens(host.scene.a, found[0])


@contextlib.contextmanager
def whole_soon(host: Host) -> Iterator[None]:
    """The cause is gone at the end of this: all must be whole WHOLE seconds later. Raises TimeoutError."""
    yield
    host.until(lambda: is_whole(host), WHOLE)
