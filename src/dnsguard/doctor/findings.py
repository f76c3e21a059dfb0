"""What a check says of one thing on the node."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

from dnsguard.control.calls import DONE, MISSING, WRONG


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"
    """It works, but less well or less safely than it could."""
    PROBLEM = "problem"
    """dnsguard, or something that it stands for, does not work here."""
    UNSEEN = "unseen"
    """Could not be looked at."""


class Finding(NamedTuple):
    """`subject` was looked at, and `found` is how it is; `remedy` says what to do, unless it is ok."""

    level: Level
    subject: str
    found: str
    remedy: str = ""


def ok(subject: str, found: str) -> Finding:
    return Finding(Level.OK, subject, found)


def warning(subject: str, found: str, remedy: str) -> Finding:
    return Finding(Level.WARNING, subject, found, remedy)


def problem(subject: str, found: str, remedy: str) -> Finding:
    return Finding(Level.PROBLEM, subject, found, remedy)


def unseen(subject: str, found: str, remedy: str = "run it as root") -> Finding:
    return Finding(Level.UNSEEN, subject, found, remedy)


def exit_code(levels: Iterable[Level]) -> int:
    """1 when there is a problem; else 77 when something could not be looked at; else 0."""
    found = set(levels)
    if Level.PROBLEM in found:
        return WRONG
    return MISSING if Level.UNSEEN in found else DONE
