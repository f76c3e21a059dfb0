"""A bpffs of one's own for pins, mounted where one says, for the demo and tests.

Nothing stays: with the mount go its pins, and with them what they kept in the kernel. The name in the table of mounts
holds the number of the process, so that what SIGKILL leaves is unmounted by the next `sweep_bpffs`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from dnsguard.core.errors import MissingFeatureError

MOUNTS: Final = Path("/proc/self/mounts")
MNT_DETACH: Final = 2
"""The mount is gone at once, whoever still has something of it open."""

# System calls of one's own: a child `umount` would end with the terminal's Ctrl-C, and leave the mount.
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def bpffs(folder: Path, prefix: str) -> Iterator[None]:
    """Mounted at `folder`, which is made, until the block ends. Raises MissingFeatureError when that is not let."""
    sweep_bpffs(prefix)
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{prefix}-{os.getpid()}".encode()
    if _libc.mount(name, bytes(folder), b"bpf", ctypes.c_ulong(0), b"mode=0700") < 0:
        raise MissingFeatureError(f"a bpffs cannot be mounted here: {os.strerror(ctypes.get_errno())}")
    try:
        yield
    finally:
        _unmount(folder)


def sweep_bpffs(prefix: str) -> list[Path]:
    """Unmount those of this prefix whose process is dead. Returns where they were."""
    dead = [folder for folder, pid in mounted_bpffs(prefix) if not Path("/proc", pid).exists()]
    for folder in dead:
        _unmount(folder)
    return dead


def mounted_bpffs(prefix: str) -> list[tuple[Path, str]]:
    """Those of this prefix: where each is, and the number of its process."""
    found = []
    for line in MOUNTS.read_text().splitlines():
        source, folder, *_ = line.split(" ")
        name, _, pid = source.rpartition("-")
        if name == prefix and pid.isdecimal():
            found.append((Path(_unescaped(folder)), pid))
    return found


def _unmount(folder: Path) -> None:
    if _libc.umount2(bytes(folder), MNT_DETACH) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(folder))


def _unescaped(path: str) -> str:
    r"""The table of mounts writes a space as `\040`."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), path)
