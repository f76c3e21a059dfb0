"""Small files of the runtime directory, whole at every moment."""

from __future__ import annotations

import contextlib
import stat
from pathlib import Path
from typing import Final

LARGEST: Final = 16 << 20
"""Octets that are read of one: it is ours, or somebody has put it there."""


def write_whole(path: Path, text: str) -> None:
    """The old content stays until the new one is there. Raises OSError; follows no link."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    try:
        with new.open("x", encoding="utf-8", errors="replace") as file:
            file.write(text)
        new.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        raise


def read_whole(path: Path) -> str:
    """Raises OSError, or ValueError for what was not written by `write_whole`."""
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is not a file")
    if found.st_size > LARGEST:
        raise ValueError("it is too large")
    return path.read_text("utf-8")
