"""Pods in the node's own network (`hostNetwork: true`): they have no link of their own, so nothing governs them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from dnsguard.core.words import some
from dnsguard.doctor.findings import Finding, ok, unseen, warning
from dnsguard.doctor.node import Node

_POD: Final = re.compile(r"kubepods.*[-/]pod([0-9a-f_-]{32,36})")
"""In the path of a container's control group, by systemd's or by cgroupfs' names; of a static pod it is a hash."""
_PAUSE: Final = "pause"
"""Keeps a pod's namespaces, and says nothing of what the pod is."""
MOST_NAMED: Final = 5


def check_host_network(node: Node) -> Iterator[Finding]:
    try:
        found = _found(node.proc)
    except PermissionError:
        yield unseen("hostNetwork", "the network of pods' processes cannot be looked at")
        return
    if not found:
        yield ok("hostNetwork", "no pod of this node runs in the host's network")
        return
    names = sorted({name for names in found.values() for name in names - {_PAUSE}})
    pods = "1 pod runs" if len(found) == 1 else f"{len(found)} pods run"
    remedy = "fine for what belongs to the node (kube-proxy, the CNI); else hostNetwork: false in the pod's spec"
    yield warning(
        "hostNetwork",
        f"{pods} in the host's network and cannot be governed: {some(names, MOST_NAMED) or 'idle'}",
        remedy,
    )


def _found(proc: Path) -> dict[str, set[str]]:
    """Pods with a process in this network namespace -> the names of those processes. Raises PermissionError."""
    ours = (proc / "self/ns/net").readlink()
    found: dict[str, set[str]] = {}
    for process in proc.glob("[0-9]*"):
        try:
            pod = _POD.search((process / "cgroup").read_text())
            if pod is not None and (process / "ns/net").readlink() == ours:
                found.setdefault(pod[1], set()).add((process / "comm").read_text().strip())
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            continue
    return found
