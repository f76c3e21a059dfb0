"""What of dnsguard is on a machine's disk and in its /run."""

from __future__ import annotations

import os

from tests.host.machine import Machine


def leftovers(machine: Machine) -> set[str]:
    """Files of that name, on the disk and in /run, that the machine below does not have at the same place."""
    found = machine.shell("find / -xdev -name '*dnsguard*' -print -prune; find /run -name '*dnsguard*' -print -prune")
    return {path for path in found.split() if not os.path.lexists(path)}
