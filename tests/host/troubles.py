"""What tests of faults share: whether all is whole, how soon it must be, and what was told of it."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

from tests.host.host import UNIT, Host
from tests.node.scene import DB, Flow

WHOLE = 5.0
"""Seconds after the cause is gone in which all must be as before."""
PATIENCE = 30.0
"""Seconds for what a busy machine may take its time for: that a fault shows."""

_numbers = itertools.count(1)


def fresh_name() -> str:
    """A name that shop/a may resolve and nobody has asked for."""
    return f"n{next(_numbers)}.fresh.example.com"


def events(host: Host, kind: str, **fields: str) -> list[dict[str, Any]]:
    """What the journal has of this kind, with these fields."""
    matches = (f"DNSGUARD_{name.upper()}={value}" for name, value in fields.items())
    return host.machine.journal(f"DNSGUARD_EVENT={kind}", *matches)


def restarts(host: Host) -> int:
    return int(host.machine.show(UNIT, "NRestarts")["NRestarts"])


def entries(host: Host, text: str) -> int:
    """Journal entries about the unit that hold this text."""
    return sum(text in str(one.get("MESSAGE", "")) for one in host.machine.journal(f"--unit={UNIT}"))


def dropped(host: Host) -> int:
    """Log lines that the daemon has dropped, by its metrics."""
    text = host.machine.run("curl", "-fsS", "http://127.0.0.1:9353/metrics").stdout
    (value,) = (line.split()[1] for line in text.splitlines() if line.startswith("dnsguard_log_lines_dropped_total "))
    return int(float(value))


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
