"""Plain text with `code` in it as the text of a manual page (mdoc(7))."""

from __future__ import annotations

import re

_SENTENCES = re.compile(r"(?<=[^.][.?!]) (?=[A-Za-z`])")
_CODE = re.compile(r"`([^`]*)`")
_BOLD = r"\\fB\1\\fR"


def mdoc(text: str) -> str:
    """Lines that end with a newline: each sentence on one of its own, code in bold, nothing taken for a macro."""
    return "".join(f"{_guarded(_CODE.sub(_BOLD, _escaped(line)))}\n" for line in _SENTENCES.split(text))


def argument(text: str) -> str:
    """One argument of a macro."""
    quoted = _guarded(_escaped(text)).replace('"', r"\(dq")
    return f'"{quoted}"'


def _escaped(text: str) -> str:
    return text.replace("\\", r"\e").replace("-", r"\-")


def _guarded(line: str) -> str:
    return rf"\&{line}" if line.startswith((".", "'")) else line
