"""Whether the node still has the mount that this process sees.

A service has a mount namespace of its own, and its bpffs stays there when the node's is unmounted. What is pinned in it
is then gone with the service, and not there for the next.
"""

from __future__ import annotations

from pathlib import Path

TABLE = Path("/proc/self/mountinfo")


def follows(path: Path, table: Path = TABLE) -> bool:
    """Whether the mount that `path` is on is a copy of another namespace's, which is there (proc(5), `master`)."""
    longest, found = 0, False
    for line in table.read_text().splitlines():
        fields = line.split()
        point, optional = fields[4], fields[6 : fields.index("-")]
        if len(point) >= longest and path.is_relative_to(point):
            longest, found = len(point), any(one.startswith("master:") for one in optional)
    return found
