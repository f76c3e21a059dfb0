"""`dnsguard reload`: the allowlist as it is now, in force when the command returns."""

from __future__ import annotations

import sys

import typer

from dnsguard.cli.options import ConfigOption, JsonOption, client, note_version
from dnsguard.cli.output import print_json


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: dnsguard reload")(reload)


def reload(context: typer.Context, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Load the allowlist again. When this returns, the new policy is enforced.

    A file with errors changes nothing: they are printed, the exit code is 1, and the policy before stays in force.
    """
    daemon = client(context, config)
    result = daemon.call("reload")
    note_version(daemon)
    if json:
        print_json([result])
        return
    for diagnostic in result["diagnostics"]:
        print(diagnostic, file=sys.stderr)
    print(f"policy generation {result['generation']} is in force")
