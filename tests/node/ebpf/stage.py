"""What the eBPF tests stand on: a bpffs of their own, and programs that do one thing."""

from __future__ import annotations

import os
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dnsguard.enforce.bpf import syscall

_PREFIX = "dnsguard-bpffs-"
ALLOW, OK, DROP = -1, 0, 2
"""TC_ACT_UNSPEC, which lets other programs look; TC_ACT_OK, which does not; TC_ACT_SHOT."""


@contextmanager
def bpffs() -> Iterator[Path]:
    """Where pins go: a folder, not made yet, on a bpffs that is unmounted in the end."""
    _sweep()
    with tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-") as folder:
        subprocess.run(["mount", "-t", "bpf", "bpf", folder], check=True)
        try:
            yield Path(folder) / "dnsguard"
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


def _sweep() -> None:
    """Unmount what runs that were killed have left."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        if not Path("/proc", path.name.removeprefix(_PREFIX).partition("-")[0]).exists():
            subprocess.run(["umount", "--lazy", path], check=False, capture_output=True)
            path.rmdir()


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
