"""Lengths of time as files write them: `0`, `500ms`, `30s`, `5m`, `1h30m`, `7d`."""

from __future__ import annotations

import re

from dnsguard.core.model import Seconds

FORM = r"^(0|([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?)$"
"""A regular expression for editors; the empty text matches it but is no duration."""

_PARTS = re.compile(r"(?:(\d{1,9})d)?(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?(?:(\d{1,9})ms)?\Z", re.ASCII)
_UNITS_MS = (86_400_000, 3_600_000, 60_000, 1000, 1)
_SHOWN = ((86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s"), (1, "ms"))


def parse_duration(text: str) -> Seconds:
    """Seconds. Raises ValueError that says what to write instead."""
    if text == "0":
        return 0.0
    found = _PARTS.match(text) if text else None
    if found is None:
        raise ValueError(f"'{text}' is not a duration; write {_better(text)}")
    return sum(int(part) * unit for part, unit in zip(found.groups(), _UNITS_MS, strict=True) if part) / 1000


def _better(text: str) -> str:
    if re.fullmatch(r"[0-9]{1,9}", text):
        return f"{text}s for seconds, or {text}m for minutes"
    clock = re.fullmatch(r"([0-9]{1,4}):([0-5]?[0-9])", text)
    if clock:
        return f"{int(clock[1])}m{int(clock[2])}s"
    return "it like 30s, 5m, 1h30m or 0"


def duration_text(seconds: Seconds) -> str:
    """The shortest way to write it, in milliseconds at the finest."""
    left = round(seconds * 1000)
    if not left:
        return "0"
    parts = []
    for unit, name in _SHOWN:
        count, left = divmod(left, unit)
        if count:
            parts.append(f"{count}{name}")
    return "".join(parts)
