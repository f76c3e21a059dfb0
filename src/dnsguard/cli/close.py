"""`dnsguard close`: every pod link closed, until a daemon takes over. For dnsguard-early.service."""

from __future__ import annotations

import typer

from dnsguard.cli.options import ConfigOption, config_path


def register(app: typer.Typer) -> None:
    app.command(hidden=True, epilog="Example: dnsguard close")(close)


def close(context: typer.Context, config: ConfigOption = None) -> None:
    """Close every pod link until a daemon takes over.

    Does nothing where dnsguard's table is in force already. Needs root.
    """
    from dnsguard.daemon.early import close as close_links

    raise typer.Exit(close_links(config_path(context, config)))
