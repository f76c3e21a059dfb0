"""What the daemon asks of its own process: how the interpreter runs, and how many descriptors it may have."""

from __future__ import annotations

import gc
import resource
import sys


def tune_interpreter() -> None:
    """The engine makes no reference cycles, and long-lived objects by the hundred thousand: look for cycles seldom, so
    that no collection walks the leases again and again. Threads wait for the loop 0.5 ms at most, not 5."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    sys.setswitchinterval(0.0005)


def raise_descriptors() -> None:
    """As many as this process may have: 50 pods with 20 DNS connections each would use up the usual 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
