"""dnsguard that hangs in one place when it is asked to, while everything else of it goes on.

A program of its own in the machine, in place of `dnsguard`; it needs nothing but what is installed there.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from dnsguard.cli import main
from dnsguard.daemon import supervision
from dnsguard.daemon.supervision import Supervision
from dnsguard.enforce.nftables.table import Table
from dnsguard.engine.engine import Engine

P = ParamSpec("P")
R = TypeVar("R")

ASKED = Path("/run/dnsguard")
LOOP, WRITER, TAKE_OVER = "hang-the-loop", "hang-the-writer", "hang-the-take-over"
"""Files that ask for it: in the event loop at once, in the writer's thread at its next commit, and there before a
process is ready. Who hangs takes the file away, so that the next process does not."""


def hanging(asked: str, call: Callable[P, R]) -> Callable[P, R]:
    @functools.wraps(call)
    def hang_or_call(*arguments: P.args, **named: P.kwargs) -> R:
        if (ASKED / asked).exists():
            (ASKED / asked).unlink()
            threading.Event().wait()
        return call(*arguments, **named)

    return hang_or_call


if __name__ == "__main__":
    Engine.tick = hanging(LOOP, Engine.tick)  # type: ignore[method-assign]
    Table.arm = hanging(WRITER, Table.arm)  # type: ignore[method-assign]
    Supervision.release_table = hanging(TAKE_OVER, Supervision.release_table)  # type: ignore[method-assign]
    # As the unit's own times, which a test shortens, so what a start adds to them.
    supervision.EXTENSION, supervision.LOOK = 1.0, 0.25  # type: ignore[misc]
    sys.exit(main())
