"""dnsguard that dies in the middle of a commit, when it is asked to.

Before the table: eBPF has the new leases, nftables not yet. Behind it: the kernel holds them all, and no answer that
waits for them has left.

A program of its own in the machine, in place of `dnsguard`; it needs nothing but what is installed there.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

from dnsguard.cli import main
from dnsguard.enforce.nftables.table import Table
from dnsguard.engine.contracts import Element, Write

ASKED = Path("/run/dnsguard/die")
BEFORE, BEHIND = "before the table", "behind the table"
arm = Table.arm


def arm_or_die(self: Table, writes: Iterable[Write]) -> dict[Element, str]:
    where = ASKED.read_text().strip() if ASKED.exists() else ""
    if where == BEFORE:
        die()
    refused = arm(self, writes)
    if where == BEHIND:
        die()
    return refused


def die() -> None:
    ASKED.unlink()
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    Table.arm = arm_or_die  # type: ignore[method-assign]
    sys.exit(main())
