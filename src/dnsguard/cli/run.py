"""`dnsguard run`: the daemon, in the foreground."""

from __future__ import annotations

import typer

from dnsguard.cli.options import ConfigOption, config_path


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: dnsguard run --config /etc/dnsguard/config.yaml")(run)


def run(context: typer.Context, config: ConfigOption = None) -> None:
    """Run the daemon in the foreground.

    It intercepts pods' DNS and enforces the allowlist. SIGHUP reloads both files, SIGTERM
    stops and leaves enforcement in place. Needs root, or what dnsguard.service gives its user.
    """
    from dnsguard import service

    raise typer.Exit(service.run(config_path(context, config)))
