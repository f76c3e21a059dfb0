"""`dnsguard monitor`: queries, drops, leases and policy changes as they happen."""

from __future__ import annotations

import typer

from dnsguard.core.errors import MissingFeatureError


def register(app: typer.Typer) -> None:
    app.command(
        epilog="Example: dnsguard monitor --type drop --pod shop/backend-0",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(monitor)


def monitor() -> None:
    """Watch events as they happen. Not built yet: exits with 77."""
    raise MissingFeatureError("monitor is not built yet: read the log, or `dnsguard leases`")
