"""`dnsguard reload`: both files as they are now, in force when the command returns."""

from __future__ import annotations

import sys

import typer

from dnsguard.cli.options import ConfigOption, JsonOption, client, note_version
from dnsguard.cli.output import print_json


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: dnsguard reload")(reload)


def reload(context: typer.Context, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Load the configuration and the allowlist again. When this returns, the new policy and mode are in force.

    A file with errors changes nothing: they are printed, the exit code is 1, and all stays as it was. Keys of the
    configuration that need a restart are named.
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
    if "mode" in result:
        print(f"mode {result['mode']} is in force")
