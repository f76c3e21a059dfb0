"""What systemd knows of dnsguard's units. Asked of `systemctl`, for those who look at the node."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from typing import Final

from dnsguard.doctor.node import Node

SERVICE: Final = "dnsguard.service"
SOCKET: Final = "dnsguard.socket"
Refused = (OSError, subprocess.SubprocessError)
"""What `show` raises where there is no systemd to ask."""
_PROPERTIES: Final = (
    *("LoadState", "ActiveState", "SubState", "UnitFileState", "StatusText", "NRestarts"),
    *("Before", "After", "User", "AmbientCapabilities", "Listen"),
)
_PORT: Final = re.compile(r":(\d+) \((?:Datagram|Stream)\)$", re.MULTILINE)


def runs_the_node(node: Node) -> bool:
    return (node.run / "systemd/system").is_dir()


def show(unit: str) -> dict[str, str]:
    """The unit's properties; one that is told several times has a line for each. Raises `Refused`."""
    done = subprocess.run(
        ["systemctl", "show", "--no-pager", f"--property={','.join(_PROPERTIES)}", unit],
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    return properties(done.stdout)


def properties(told: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in told.splitlines():
        name, _, value = line.partition("=")
        found[name] = f"{found[name]}\n{value}" if name in found else value
    return found


def ports(shown: Mapping[str, str]) -> set[int]:
    """Those that a socket unit listens on."""
    return set(map(int, _PORT.findall(shown.get("Listen", ""))))
