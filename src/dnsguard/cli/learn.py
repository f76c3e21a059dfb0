"""`dnsguard learn`: the allowlist that would have allowed what was seen."""

from __future__ import annotations

import typer

from dnsguard.core.errors import MissingFeatureError


def register(app: typer.Typer) -> None:
    app.command(
        epilog="Example: dnsguard learn",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(learn)


def learn() -> None:
    """Print the allowlist that would have allowed what was seen. Not built yet: exits with 77."""
    raise MissingFeatureError("learn is not built yet: the log's query_denied lines name what is missing")
