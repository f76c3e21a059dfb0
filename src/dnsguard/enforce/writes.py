"""What no enforcer takes: writes that are faults of the caller, and that a kernel would answer by far worse than a no.

A timeout of 0 makes a permanent element; a negative one, or a key of another length, makes a message that fails for
every pod whose writes share the transaction.
"""

from __future__ import annotations

from collections.abc import Iterable

from dnsguard.engine.contracts import Write


def refuse_faults(writes: Iterable[Write]) -> None:
    """Raise ValueError that names the first such write."""
    for write in writes:  # runs for every answer: unpacking and two comparisons, 0.1 us a write
        _, key, timeout_ms = write
        if timeout_ms <= 0:
            raise ValueError(f"{write}: without a timeout the element would be permanent")
        if len(key) != 8 and len(key) != 32:
            raise ValueError(f"{write}: a key is two IPv4 or two IPv6 addresses")
