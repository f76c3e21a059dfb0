"""A process that may not call bpf(2), or set the clock, as in a container without the privilege for it."""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
from collections.abc import Sequence
from typing import Any, Final

BPF_CALL: Final = {"x86_64": (321,), "aarch64": (280,)}
CLOCK_CALLS: Final = {"x86_64": (159, 305), "aarch64": (171, 266)}
"""adjtimex, clock_adjtime."""
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, FILTER = 38, 22, 2
LOAD_NUMBER, JUMP_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, REFUSE = 0x7FFF0000, 0x00050000

_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def refuse_bpf() -> None:
    """From here on bpf(2) is EPERM, for this process and whatever it starts."""
    _refuse(BPF_CALL[platform.machine()])


def refuse_clock() -> None:
    """The same for looking at the clock as one who might set it."""
    _refuse(CLOCK_CALLS[platform.machine()])


def _refuse(calls: Sequence[int]) -> None:
    refused = [line for call in calls for line in ((JUMP_EQUAL, 0, 1, call), (RETURN, 0, 0, REFUSE | errno.EPERM))]
    lines = ((LOAD_NUMBER, 0, 0, 0), *refused, (RETURN, 0, 0, ALLOW))
    program = _Program(len(lines), b"".join(struct.pack("=HBBI", *line) for line in lines))
    _control(PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1))
    _control(PR_SET_SECCOMP, ctypes.c_ulong(FILTER), ctypes.byref(program))


def _control(request: int, *arguments: Any) -> None:
    unused = (ctypes.c_ulong(0),) * (4 - len(arguments))
    if _libc.prctl(request, *arguments, *unused) < 0:
        raise OSError(ctypes.get_errno(), f"prctl {request}")
