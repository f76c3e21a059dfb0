"""What is wrong with a file, where, and what to write instead: the one form in which every reader of files says it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from dnsguard.core.errors import DnsguardError
from dnsguard.core.model import Origin

_LONGEST = 2000
"""Letters of a text that are shown."""


_LONGEST_WORD = 64
"""Letters of a word for which a nearest is looked for; the search is quadratic."""


class Severity(StrEnum):
    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One finding. `str()` is `file:line:column: error: text`, as compilers write it and editors understand it.

    `unread`: the file could not be read, so this says nothing of what is written in it.
    """

    origin: Origin
    text: str
    severity: Severity = Severity.ERROR
    unread: bool = False

    def __str__(self) -> str:
        return f"{self.origin}: {self.severity}: {_one_line(self.text)}"


def _one_line(text: str) -> str:
    """What was read from a file must neither break the line nor drive the terminal that shows it."""
    shown = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    return shown if shown.isprintable() else "".join(one if one.isprintable() else ascii(one)[1:-1] for one in shown)


class ConfigError(DnsguardError):
    """A file that cannot be used; `diagnostics` has every error and warning, in the file's order."""

    def __init__(self, diagnostics: Sequence[Diagnostic]) -> None:
        super().__init__("\n".join(map(str, diagnostics)))
        self.diagnostics = tuple(diagnostics)


def errors(diagnostics: Iterable[Diagnostic]) -> list[Diagnostic]:
    return [found for found in diagnostics if found.severity is Severity.ERROR]


def exit_code(diagnostics: Iterable[Diagnostic]) -> int:
    """0 when nothing but warnings were found, else 1."""
    return 1 if errors(diagnostics) else 0


def in_order(diagnostics: Iterable[Diagnostic]) -> list[Diagnostic]:
    """By line and column within each file; the files in the order in which they first appear."""
    found = list(diagnostics)
    files = {file: place for place, file in enumerate(dict.fromkeys(one.origin.file for one in found))}
    return sorted(found, key=lambda one: (files[one.origin.file], one.origin.line, one.origin.column))


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest known word, or nothing when none is close."""
    if len(word) > _LONGEST_WORD:
        return ""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""
