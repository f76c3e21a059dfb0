"""Lists in sentences."""

from __future__ import annotations

from collections.abc import Sequence


def some(texts: Sequence[str], most: int) -> str:
    """The first ones, and how many there are more: `a, b and 7 more`."""
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more
