"""`dnsguard demo`: see it work in network namespaces of its own."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: dnsguard demo --keep")(demo)


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave it running and say how to enter a pod.")] = False,
) -> None:
    """Show dnsguard at work.

    Two pods and an outside world in network namespaces of their own, with real clients. Needs root.
    """
    from dnsguard.demo import show

    raise typer.Exit(show.main(keep))
