"""One bpf(2) call by ctypes. An attribute is packed as <linux/bpf.h> lays out its union."""

from __future__ import annotations

import ctypes
import os
import platform
from struct import pack

_NUMBER = {"x86_64": 321, "aarch64": 280}.get(platform.machine(), 280)
_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint]
_syscall.restype = ctypes.c_long


def call(command: int, attribute: ctypes.Array[ctypes.c_char], size: int | None = None) -> int:
    """Run one command; the kernel's answers, where it has any, are then in `attribute`, of which it sees `size`."""
    result: int = _syscall(_NUMBER, command, ctypes.addressof(attribute), size or len(attribute))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def attribute(layout: str, *values: int | bytes) -> ctypes.Array[ctypes.c_char]:
    """What is behind the fields that are given is zero to the kernel."""
    packed = pack("=" + layout, *values)
    return ctypes.create_string_buffer(packed, len(packed))


def room(octets: bytes | int) -> ctypes.Array[ctypes.c_char]:
    """A buffer of these octets, or of so many: at least one, so that it has an address."""
    return ctypes.create_string_buffer(octets, max(1, octets if isinstance(octets, int) else len(octets)))


def bytes_of(buffer: ctypes.Array[ctypes.c_char], length: int) -> bytes:
    return ctypes.string_at(ctypes.addressof(buffer), length)
