"""Which capabilities a process has."""

from __future__ import annotations

from pathlib import Path
from typing import Final

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
