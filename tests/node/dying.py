"""dnsguard that is killed in its first reload: the kernel has gone over, and no open flow was looked at yet."""

from __future__ import annotations

import os
import signal
import sys

from dnsguard.cli import main
from dnsguard.core.leases import Changed
from dnsguard.engine.change import Changes

tell_purged = Changes._tell_purged


def die(changes: Changes, changed: Changed) -> None:
    if changes.generation > 1:
        os.kill(os.getpid(), signal.SIGKILL)
    tell_purged(changes, changed)


if __name__ == "__main__":
    Changes._tell_purged = die  # type: ignore[method-assign]
    sys.exit(main())
