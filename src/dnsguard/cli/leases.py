"""`dnsguard leases`: what is open now, for whom, because of which name, and for how long."""

from __future__ import annotations

from typing import Final

import typer

from dnsguard.cli.options import ConfigOption, JsonOption, PodOption, client, note_version
from dnsguard.cli.output import print_json, print_table, rounded_duration

COLUMNS: Final = {"pod": "pod", "address": "address", "ports": "ports", "names": "names", "remaining": "ends in"}


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: dnsguard leases --pod shop/backend-0 --json")(leases)


def leases(
    context: typer.Context, pod: PodOption = None, config: ConfigOption = None, json: JsonOption = False
) -> None:
    """List what is open now, and for how long.

    Which addresses are open to which pod, on which ports, because of which names.
    """
    daemon = client(context, config)
    rows = daemon.rows("leases", **({"pod": pod} if pod else {}))
    if json:
        print_json(rows)
    else:
        shown = ({**row, "remaining": rounded_duration(row["remaining"])} for row in rows)
        print_table(COLUMNS, shown, empty="no live leases" + (f" of {pod}" if pod else ""))
    note_version(daemon)
