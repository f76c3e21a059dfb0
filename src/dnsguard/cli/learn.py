"""`dnsguard learn`: the allowlist that would have allowed what was seen."""

from __future__ import annotations

import sys
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dnsguard.cli.options import ConfigOption, JsonOption, PodOption, client, note_version, settings
from dnsguard.cli.output import print_json

if TYPE_CHECKING:
    from dnsguard.learning.rows import SeenRow


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: dnsguard learn > learned.yaml")(learn)


def learn(context: typer.Context, pod: PodOption = None, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Print the allowlist that would have allowed what was seen.

    Names that pods resolved, with the ports they used; addresses that no name explains. Read it before you enforce it.
    Asks the daemon; without one, reads what it left in paths.state. With --json, prints what was seen itself.
    """
    from dnsguard.learning.needs import is_probe

    wanted = None if pod is None else _in_one_form(pod)
    chosen = (row for row in _rows(context, config) if wanted is None or wanted in (row["pod"], *row["addresses"]))
    rows = [row for row in chosen if not is_probe(row)]
    if not rows:
        from dnsguard.control.calls import CallError

        of = f" of {pod}" if pod else ""
        raise CallError(f"nothing was seen{of} yet: let pods do their work for a while, in mode Audit or Enforce")
    if json:
        print_json(rows)
        return
    from dnsguard.learning.writing import allowlist

    print(allowlist(rows), end="")


def _in_one_form(pod: str) -> str:
    """An address as rows have it; any other text is the name of a pod."""
    try:
        return str(ip_address(pod))
    except ValueError:
        return pod


def _rows(context: typer.Context, config: Path | None) -> list[SeenRow]:
    from dnsguard.control.client import NotRunningError

    daemon = client(context, config)
    try:
        rows = list(daemon.rows("learn"))
    except NotRunningError:
        return _left(settings(context, config).paths.state)
    note_version(daemon)
    return rows


def _left(folder: Path) -> list[SeenRow]:
    """What a daemon has left."""
    from dnsguard.learning.state import FILE, read_rows

    print("the daemon is not running: this is what it left", file=sys.stderr)
    path = folder / FILE
    return read_rows(path) if path.exists() else []
