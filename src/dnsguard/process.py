"""What the daemon asks of its own process: how the interpreter runs, and how many descriptors it may have."""

from __future__ import annotations

import ctypes
import faulthandler
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


def tell_stacks_on_abort() -> None:
    """On SIGABRT, which a watchdog sends, say on standard error what every thread was at."""
    faulthandler.enable(all_threads=True)


def return_memory() -> None:
    """Give back to the kernel what was freed in the middle of the heap (malloc_trim, of glibc alone): 8 MB after a
    start. Nothing else can allocate meanwhile, for up to 3 ms a megabyte: not for when queries are answered."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def raise_descriptors() -> None:
    """As many as this process may have: 50 pods with 20 DNS connections each would use up the usual 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
