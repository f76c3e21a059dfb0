"""Clocks: leases run on the monotonic one, lines in the log carry the other."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator
from typing import Final

from dnsguard.core.model import Seconds
from dnsguard.doctor.findings import Finding, ok, unseen, warning
from dnsguard.doctor.node import Node

_SLEPT: Final[Seconds] = 1.0
_STATUS_OFFSET, _UNSYNCHRONISED = 40, 0x40
"""Of `status` in struct timex (linux/timex.h), after mode, offset, freq, maxerror and esterror."""


def check_sleep(node: Node) -> Iterator[Finding]:
    slept = time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
    if slept > _SLEPT:
        found = f"the node was suspended for {slept:.0f} s: leases do not run while it sleeps"
        yield warning("monotonic clock", found, "do not suspend a node with pods")
    else:
        yield ok("monotonic clock", "runs as the one that counts sleep")


def check_synchronised(node: Node) -> Iterator[Finding]:
    try:
        good = synchronised()
    except OSError as error:
        remedy = "look with timedatectl or chronyc tracking: a container may be refused adjtimex(2)"
        yield unseen("wall clock", f"the kernel does not say whether it is synchronised: {error.strerror}", remedy)
        return
    if good:
        yield ok("wall clock", "synchronised")
    else:
        remedy = "run chrony or systemd-timesyncd; leases do not depend on it, only times in the log do"
        yield warning("wall clock", "not synchronised", remedy)


def synchronised() -> bool:
    """What adjtimex(2) says without changing anything. Raises OSError where it says nothing."""
    timex = ctypes.create_string_buffer(256)
    if ctypes.CDLL(None, use_errno=True).adjtimex(timex) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return not int.from_bytes(timex.raw[_STATUS_OFFSET : _STATUS_OFFSET + 4], "little") & _UNSYNCHRONISED
