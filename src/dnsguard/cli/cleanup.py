"""`dnsguard cleanup`: every trace out of the kernel."""

from __future__ import annotations

import typer

from dnsguard.cli.options import ConfigOption, settings


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: dnsguard cleanup")(cleanup)


def cleanup(context: typer.Context, config: ConfigOption = None) -> None:
    """Remove every trace from the kernel.

    Tables, rules, routes: pods are then unfiltered. Refuses while a daemon runs. Needs root.
    """
    from dnsguard.daemon.cleanup import cleanup as remove_every_trace

    raise typer.Exit(remove_every_trace(settings(context, config)))
