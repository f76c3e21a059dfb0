"""Text from outside, made fit for a terminal and for one line."""

from __future__ import annotations

from typing import Final

MAX_TEXT: Final = 2048
"""Characters of one field. A name in presentation form has at most 1,008 (RFC 1035: 252 octets, each as \\DDD)."""


def printable(text: str) -> str:
    """`text` with everything that a terminal would act on or hide (controls, bidi marks, surrogates) as escapes."""
    if len(text) > MAX_TEXT:
        text = text[:MAX_TEXT] + "..."
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
