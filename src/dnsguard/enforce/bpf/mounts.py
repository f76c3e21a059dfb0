"""Whether the node still has the mount that this process sees.

A service has a mount namespace of its own, and its bpffs stays there when the node's is unmounted. What is pinned in it
is then gone with the service, and not there for the next.
"""

from __future__ import annotations

from pathlib import Path

TABLE = Path("/proc/self/mountinfo")


def follows(path: Path, table: Path = TABLE) -> bool:
    """Whether the mount that `path` is on is a copy of another namespace's, which is there (proc(5), `master`)."""
    place, longest, found = str(path), 0, False
    for line in table.read_text().splitlines():
        *_, point, _, rest = line.split(" ", 6)
        if len(point) >= longest and (place == point or place.startswith(f"{point.rstrip('/')}/")):
            optional = rest.partition("- ")[0].split()
            longest, found = len(point), any(one.startswith("master:") for one in optional)
    return found
