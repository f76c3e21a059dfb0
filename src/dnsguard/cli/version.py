"""`dnsguard version`: what this is and what it runs on."""

from __future__ import annotations

import platform

import typer

from dnsguard import __version__
from dnsguard.cli.options import ConfigOption, JsonOption
from dnsguard.cli.output import print_json


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: dnsguard version --json")(version)


def version(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Print the version of dnsguard, of Python and of the kernel.

    Takes --config like every command, and has no use for it.
    """
    facts = {"version": __version__, "python": platform.python_version(), "kernel": platform.release()}
    if json:
        print_json([facts])
    else:
        print(f"dnsguard {__version__} (Python {facts['python']}, kernel {facts['kernel']})")
