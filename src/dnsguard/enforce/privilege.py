"""Which capabilities a process has."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from dnsguard.core.errors import MissingFeatureError

NUMBERS: Final = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}
EBPF_ONLY: Final = frozenset({"CAP_PERFMON", "CAP_BPF"})
"""CAP_SYS_ADMIN stands for these, and before 5.8 there is no other."""


def holds(capability: str, process: str = "self", proc: Path = Path("/proc")) -> bool:
    """Whether a process can use it. Raises OSError for one that cannot be looked at."""
    lines = (proc / process / "status").read_text().splitlines()
    line = next(line for line in lines if line.startswith("CapEff:"))
    held = int(line.partition(":")[2], 16)
    has = bool(held >> NUMBERS[capability] & 1)
    return has or (capability in EBPF_ONLY and bool(held >> NUMBERS["CAP_SYS_ADMIN"] & 1))


def require_privilege() -> None:
    """Raises MissingFeatureError without the one capability that nothing goes without: what an earlier process left in
    the kernel is not to be touched then."""
    if not holds("CAP_NET_ADMIN"):
        raise MissingFeatureError(
            "CAP_NET_ADMIN is missing: nftables, routes and intercepting need it; run as root, or give it back to the "
            "unit's AmbientCapabilities= and CapabilityBoundingSet=. What was enforced stays enforced"
        )
