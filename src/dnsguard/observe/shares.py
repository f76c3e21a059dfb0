"""Whose share of log lines an event uses: its pod's, one of the node's own, or none at all.

What pods provoke is `limited` in the catalog and counts among the pod's lines. What a node that is not well tells again
and again, or what a pod can bring about by the way (an upstream that serves its zone, descriptors, connection
tracking), has shares that are nobody's to set: no pod's lines push it out, and it fills no log.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from dnsguard.engine.contracts import EventKind

OFTEN: Final[Mapping[EventKind, str]] = {
    EventKind.POD_CAME: "link",
    EventKind.POD_CHANGED: "link",
    EventKind.POD_WENT: "link",
    EventKind.POD_CONFLICT: "link",
    EventKind.FLOWS_CUT: "pod",
    EventKind.LEASES_PURGED: "purged leases",
    EventKind.KERNEL_STATE_REPAIRED: "repairs",
    EventKind.CHANGES_MISSED: "changes missed",
}
"""Kind -> the field whose value has the share; words where all events of these kinds have one."""
OFTEN_LINES: Final = (1.0, 10.0)
"""A second, and at once."""

SELDOM: Final[Mapping[EventKind, str]] = {
    EventKind.UPSTREAM_DOWN: "upstream",
    EventKind.UPSTREAM_FAILING: "upstream",
    EventKind.UPSTREAM_UP: "upstream",
    EventKind.DESCRIPTORS_SHORT: "file descriptors",
    EventKind.DESCRIPTORS_FREE: "file descriptors",
    EventKind.CONNTRACK_FULL: "connection tracking",
    EventKind.CONNTRACK_HAS_ROOM: "connection tracking",
    EventKind.NODE_PROBLEM: "problems of the node",
    EventKind.KERNEL_STATE_DAMAGED: "damage",
    EventKind.LINK_WITHOUT_EBPF: "links without eBPF",
    EventKind.STATE_FILE_UNWRITABLE: "path",
    EventKind.STATE_FILE_WRITTEN: "path",
    EventKind.SEEN_FILE_FAILED: "what learn has seen",
    EventKind.RUNTIME_RESTORED: "runtime directory",
    EventKind.CLOCK_STEPPED: "wall clock",
}
"""The same for what swings between two states, or lasts and is told anew: a line for each swing is worth nothing."""
SELDOM_LINES: Final = (1 / 30, 20.0)

NODES_OWN: Final = {**OFTEN, **SELDOM}


def about(kind: EventKind, fields: Mapping[str, object]) -> str:
    """What has the share of the node's lines that this event uses, in words: `link veth1`, `file descriptors`."""
    field = NODES_OWN[kind]
    value = fields.get(field)
    return f"{field} {value}" if isinstance(value, (str, int)) else field
