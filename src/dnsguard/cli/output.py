"""Results on standard output: JSON lines for programs, tables for people, plain columns in a pipe.

Nothing is cut off: a terminal folds long cells; a pipe, and a terminal too narrow for that, gets lines as long as they
need to be.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from dnsguard.observe.text import printable

_WHOLE: Final = 16
"""Columns up to so many characters are never folded: an address, a number, most headings."""


def print_json(rows: Iterable[Any], *, flush: bool = False) -> None:
    """One object a line, each as soon as it is there; with `flush` a reader of a pipe gets it at once, too."""
    for row in rows:
        print(json.dumps(row, separators=(",", ":")), flush=flush)


def print_table(columns: Mapping[str, str], rows: Iterable[Mapping[str, Any]], empty: str) -> None:
    """`columns` maps a row's key to its heading. Without rows, `empty` goes to standard error."""
    cells = [[cell_text(row[key]) for key in columns] for row in rows]
    if not cells:
        print(empty, file=sys.stderr)
    elif sys.stdout.isatty() and _print_rich(list(columns.values()), cells):
        pass
    else:
        _print_plain(list(columns.values()), cells)


def print_facts(facts: Iterable[tuple[str, Any]]) -> None:
    """`key: value` lines, values aligned."""
    lines = [(key, cell_text(value)) for key, value in facts]
    width = max((len(key) for key, _ in lines), default=0) + 1
    for key, value in lines:
        print(f"{key + ':':<{width}} {value}".rstrip())


def cell_text(value: Any) -> str:
    """One cell; lists are joined, nothing in it reaches the terminal as an escape."""
    if isinstance(value, (list, tuple)):
        return printable(", ".join(map(str, value)))
    return printable(str(value))


def rounded_duration(seconds: float) -> str:
    """`42s`, `3m05s`, `2h07m`, `5d03h`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def _print_plain(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    table = [[heading.upper() for heading in headings], *cells]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())


def _print_rich(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> bool:
    """Only long columns are folded; False, and nothing is printed, when that is not enough for this terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console, table = Console(), Table(box=None, header_style="bold", pad_edge=False)
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    if sum(min(width, _WHOLE) + 2 for width in widths) - 2 > console.width:
        return False
    for heading, width in zip(headings, widths, strict=True):
        table.add_column(heading, overflow="fold", no_wrap=width <= _WHOLE, min_width=min(width, _WHOLE))
    for line in cells:
        table.add_row(*map(Text, line))
    console.print(table)
    return True
