"""`dnsguard pods`: who is governed, and by what."""

from __future__ import annotations

from typing import Final

import typer

from dnsguard.cli.options import ConfigOption, JsonOption, PodOption, client, note_version
from dnsguard.cli.output import print_json, print_table

COLUMNS: Final = {
    "pod": "pod",
    "addresses": "addresses",
    "link": "link",
    "policy": "policy",
    "default": "default",
    "leases": "leases",
    "denied": "denied",
    "audited": "audited",
    "answered_in_kernel": "in kernel",
    "origin": "origin",
}


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: dnsguard pods --pod 10.244.0.5")(pods)


def pods(context: typer.Context, pod: PodOption = None, config: ConfigOption = None, json: JsonOption = False) -> None:
    """List the governed pods.

    With their addresses, policies, live leases, how many of their packets were dropped (or in Audit would have been),
    and how many of their questions were answered in the kernel.
    """
    daemon = client(context, config)
    rows = daemon.rows("pods", **({"pod": pod} if pod else {}))
    if json:
        print_json(rows)
    else:
        print_table(COLUMNS, rows, empty="no governed pod" + (f" is called {pod}" if pod else "s on this node yet"))
    note_version(daemon)
