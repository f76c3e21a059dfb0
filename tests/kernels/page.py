"""docs/kernels.md: its table is written by the run, the rest by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.kernels.suites import TOP

PAGE = TOP / "docs/kernels.md"
BEGIN, END = "<!-- written by make test-kernels -->", "<!-- until here -->"

Column = Mapping[str, str]
"""Of one kernel: what the rows' names are answered with."""


def write(columns: Mapping[str, Column], page: Path = PAGE) -> None:
    """Put these kernels (by series) into the table; those of earlier runs stay beside them."""
    before, rest = page.read_text().split(BEGIN)
    table, after = rest.split(END)
    known = {**_parse(table), **columns}
    page.write_text(f"{before}{BEGIN}\n{_table(known)}{END}{after}")


def _parse(table: str) -> dict[str, Column]:
    rows = [[cell.strip() for cell in line.strip().split("|")[1:-1]] for line in table.strip().splitlines()]
    if len(rows) < 3:
        return {}
    kernels = rows[0][1:]
    return {kernel: {row[0]: row[1 + n] for row in rows[2:]} for n, kernel in enumerate(kernels)}


def _table(columns: Mapping[str, Column]) -> str:
    kernels = sorted(columns, key=lambda series: [int(part) for part in series.split(".")])
    names = dict.fromkeys(name for kernel in reversed(kernels) for name in columns[kernel])
    rows = [["", *kernels], ["---"] * (len(kernels) + 1)]
    rows += [[name, *(columns[kernel].get(name, "?") for kernel in kernels)] for name in names]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
