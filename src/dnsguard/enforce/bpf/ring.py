"""A ring buffer of the kernel, read by libbpf, which knows the order in which the memory may be looked at.

Needs libbpf.so.1, which has loaded the programs before.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

_SAMPLE: Final = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_STOP: Final = -1
"""libbpf takes the sample, and ends."""


class Ring:
    """The one reader of a ring buffer, given by the file descriptor of its map, which stays its owner's. Raises OSError
    when it cannot be mapped."""

    def __init__(self, fd: int) -> None:
        self._library = _library()
        self._found: list[bytes] = []
        self._most = 0
        self._sample = _SAMPLE(self._take)  # libbpf keeps its address only
        self._ring = self._library.ring_buffer__new(fd, self._sample, None, None)
        if not self._ring:
            number = ctypes.get_errno()
            raise OSError(number, f"the ring buffer cannot be mapped: {os.strerror(number)}")

    def read(self, most: int) -> list[bytes]:
        """What is there, at most so many samples, without waiting."""
        self._most = most
        self._library.ring_buffer__consume(self._ring)
        found, self._found = self._found, []
        return found

    def close(self) -> None:
        self._library.ring_buffer__free(self._ring)

    def _take(self, context: int | None, sample: int, size: int) -> int:
        self._found.append(ctypes.string_at(sample, size))
        return 0 if len(self._found) < self._most else _STOP


def _library() -> ctypes.CDLL:
    library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    new, consume, free = library.ring_buffer__new, library.ring_buffer__consume, library.ring_buffer__free
    new.restype, new.argtypes = ctypes.c_void_p, [ctypes.c_int, _SAMPLE, ctypes.c_void_p, ctypes.c_void_p]
    consume.restype, consume.argtypes = ctypes.c_int, [ctypes.c_void_p]
    free.restype, free.argtypes = None, [ctypes.c_void_p]
    return library
