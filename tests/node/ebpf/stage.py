"""What the eBPF tests stand on: a bpffs of their own, and programs that do one thing."""

from __future__ import annotations

import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dnsguard.demo.bpffs import bpffs as mounted
from dnsguard.enforce.bpf import syscall
from tests.node.daemon import BPFFS

ALLOW, OK, DROP = -1, 0, 2
"""TC_ACT_UNSPEC, which lets other programs look; TC_ACT_OK, which does not; TC_ACT_SHOT."""


@contextmanager
def bpffs() -> Iterator[Path]:
    """Where pins go: a folder, not made yet, on a bpffs that is unmounted in the end."""
    with tempfile.TemporaryDirectory() as folder, mounted(Path(folder) / "bpf", BPFFS):
        yield Path(folder) / "bpf" / "dnsguard"


def program(verdict: int, name: str = "test") -> int:
    """A tc program that gives every packet this verdict."""
    return syscall.load_program(name, struct.pack("=BBhiBBhi", 0xB7, 0, 0, verdict, 0x95, 0, 0, 0))


def programs(verdict: int = ALLOW) -> dict[str, int]:
    """In place of those that dnsguard loads."""
    return {name: program(verdict, name) for name in ("from_pod", "to_pod")}


def wait_until(holds: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.002)
