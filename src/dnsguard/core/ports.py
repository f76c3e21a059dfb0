"""Ranges of ports in the one form that `model.Ports` has."""

from __future__ import annotations

from collections.abc import Iterable

from dnsguard.core.model import PortRange, Ports


def merge_ports(ranges: Iterable[PortRange]) -> Ports:
    """Sorted and disjoint; ranges that overlap or touch become one."""
    merged: list[PortRange] = []
    for one in sorted(ranges):
        before = merged[-1] if merged else None
        if before is not None and before.protocol == one.protocol and one.first <= before.last + 1:
            merged[-1] = PortRange(one.protocol, before.first, max(before.last, one.last))
        else:
            merged.append(one)
    return tuple(merged)
