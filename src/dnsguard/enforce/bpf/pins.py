"""What outlives the process on a bpffs: `maps/<name>`, and `layout`, a map that holds the number of their layout.

An earlier process's maps are used as they are when they are of the same shape, copied from when only their size is
another, and removed when their layout is.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from dnsguard.core.errors import KernelError, MissingFeatureError
from dnsguard.enforce.bpf import syscall
from dnsguard.enforce.bpf.layout import LAYOUT, U32
from dnsguard.enforce.bpf.libbpf import Shape
from dnsguard.enforce.bpf.syscall import Map

MOUNT_POINT = Path("/sys/fs/bpf")
_BPFFS_MAGIC = 0xCAFE4A11
KEPT = (syscall.HASH, syscall.LPM_TRIE, syscall.ARRAY)
"""Types of maps that outlive their process; what an LRU, a ring buffer or a scratch map holds is of no use to the
next."""
_NEW = "new-"
_CHUNK = 4096


def prepare(bpffs: Path) -> None:
    """Have the folder there, on a bpffs; mounts one at its usual place. Raises MissingFeatureError."""
    try:
        if not on_bpffs(bpffs):
            _mount(bpffs)
        (bpffs / "maps").mkdir(mode=0o700, parents=True, exist_ok=True)
    except PermissionError as error:
        raise MissingFeatureError(f"root is missing: {error.filename or bpffs} cannot be written") from error


def on_bpffs(path: Path) -> bool:
    """Whether what is at `path`, or would be, is a bpffs."""
    while not path.exists():
        path = path.parent
    found = ctypes.create_string_buffer(256)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.statfs(bytes(path), found) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    return int.from_bytes(found.raw[:8], "little") == _BPFFS_MAGIC


def _mount(bpffs: Path) -> None:
    remedy = f"mount -t bpf bpf {MOUNT_POINT}, and have paths.bpffs below it"
    if not bpffs.is_relative_to(MOUNT_POINT):
        raise MissingFeatureError(f"{bpffs} is not on a bpffs: {remedy}")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"bpf", bytes(MOUNT_POINT), b"bpf", ctypes.c_ulong(0), b"mode=0700") < 0:
        why = os.strerror(ctypes.get_errno())
        raise MissingFeatureError(f"no bpffs is mounted at {MOUNT_POINT} ({why}): {remedy}")


class PinnedMaps:
    """The maps pinned under `bpffs`, beside the shapes that the maps of this process have to have.

    `same` may be used as they are; `kept`: they were left by a process of the same layout. Close it in the end.
    """

    def __init__(self, bpffs: Path, shapes: Mapping[str, Shape]) -> None:
        self._bpffs = bpffs
        self._folder = bpffs / "maps"
        shapes = {name: shape for name, shape in shapes.items() if shape.type in KEPT}
        self._resized: dict[str, Map] = {}
        self.same: dict[str, Map] = {}
        found = {name: found for name in shapes if (found := pinned_map(self._folder / name, name))}
        self.kept = bool(found) and self._layout() == LAYOUT and all(_fits(found[name], shapes[name]) for name in found)
        for name, each in found.items():
            if not self.kept:
                each.close()
            elif each.max_entries == shapes[name].max_entries:
                self.same[name] = each
            else:
                self._resized[name] = each

    def _layout(self) -> int | None:
        if (found := pinned_map(self._bpffs / "layout", "layout")) is None:
            return None
        number: int = U32.unpack(found.lookup(U32.pack(0)) or bytes(4))[0]
        found.close()
        return number

    def keep(self, maps: Mapping[str, Map]) -> None:
        """Pin those that are not pinned yet, filled from those whose place they take. Raises KernelError."""
        if not self.kept:
            remove(self._bpffs)
        for name, each in maps.items():
            if name in self.same or each.type not in KEPT:
                continue
            if name in self._resized:
                copy(self._resized[name], each)
            # in this order there is always a map of that name; a bpffs allows no dot in one
            new = self._folder / f"{_NEW}{name}"
            new.unlink(missing_ok=True)
            syscall.pin(each.fd, new)
            new.rename(self._folder / name)
        if self._layout() is None:
            _mark(self._bpffs)

    def close(self) -> None:
        for each in (*self.same.values(), *self._resized.values()):
            each.close()


def _fits(found: Map, shape: Shape) -> bool:
    """Whether its elements mean what those of `shape` do."""
    return (found.type, found.key_size, found.value_size) == (shape.type, shape.key_size, shape.value_size)


def _mark(bpffs: Path) -> None:
    """Last of all: maps without the number count for nothing."""
    marker = Map(syscall.create_map(syscall.ARRAY, "layout", 4, 4))
    marker.update(U32.pack(0), U32.pack(LAYOUT))
    syscall.pin(marker.fd, bpffs / "layout")
    marker.close()


def pin_again(bpffs: Path, maps: Mapping[str, Map]) -> list[str]:
    """Pin those of a process that runs whose pin somebody has removed; returns what was gone. Raises OSError."""
    if not on_bpffs(bpffs):
        return []
    folder = bpffs / "maps"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    there = {each.name for each in folder.iterdir()}
    gone = [name for name, each in maps.items() if each.type in KEPT and name not in there]
    for name in gone:
        syscall.pin(maps[name].fd, folder / name)
    if not (bpffs / "layout").exists():
        _mark(bpffs)
        gone.append("layout")
    return gone


def pinned_map(path: Path, name: str) -> Map | None:
    """None: nothing is pinned there. Raises MissingFeatureError where there is no privilege for bpf(2)."""
    try:
        return Map(syscall.get_pinned(path), name)
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise MissingFeatureError(
            "bpf(2) is not permitted: run as root, or grant CAP_BPF; a container's seccomp profile has to let it, too"
        ) from error


def copy(old: Map, new: Map) -> None:
    """Every element of `old` into `new`, while there is room. Raises KernelError for another reason to stop."""
    keys: list[bytes] = []
    values: list[bytes] = []
    try:
        for key, value in old.items():
            keys.append(key)
            values.append(value)
            if len(keys) == _CHUNK:
                new.update_many(keys, values)
                keys, values = [], []
        new.update_many(keys, values)
    except OSError as error:
        # an LPM trie says ENOSPC; what does not fit was told nobody who is still to be let
        if error.errno not in (errno.E2BIG, errno.ENOSPC):
            raise KernelError(f"the map {old.name} cannot be copied: {error.strerror}") from error


def remove(bpffs: Path) -> int:
    """Every map's pin, and how many there were; the maps stay while a program uses them."""
    (bpffs / "layout").unlink(missing_ok=True)  # first: maps without it count for nothing
    removed = 0
    with suppress(FileNotFoundError):
        for path in (bpffs / "maps").iterdir():
            path.unlink()
            removed += 1
    return removed
