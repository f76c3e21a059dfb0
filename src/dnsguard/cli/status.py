"""`dnsguard status`: how the daemon is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer

from dnsguard.cli.options import ConfigOption, JsonOption, client, note_version
from dnsguard.cli.output import print_facts, print_json, rounded_duration

if TYPE_CHECKING:
    from dnsguard.control.calls import Status


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: dnsguard status --json")(status)


def status(context: typer.Context, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Show how the daemon is.

    Ready or what is missing, the policy in force, the upstreams, totals.
    """
    daemon = client(context, config)
    result: Status = daemon.call("status")
    note_version(daemon)
    if json:
        print_json([result])
    else:
        print_facts(_facts(result))


def _facts(status: Status) -> Iterator[tuple[str, Any]]:
    yield "state", "ready" if status["ready"] else f"not ready: {status['missing']}"
    yield "version", status["version"]
    yield "running", f"{rounded_duration(status['uptime'])} as process {status['pid']}"
    lines = ", ".join(status["enforcers"]) or "nothing"
    yield (
        "mode",
        f"Audit: nothing is denied, {lines} tell of it" if status["mode"] == "Audit" else f"Enforce by {lines}",
    )
    for gap in status["gaps"]:
        yield "gap", f"{gap['enforcer']} does not decide on {gap['link']}: {gap['reason']}"
    yield "config", status["config"]
    yield "policy", f"generation {status['generation']} of {status['allowlist']}"
    yield "pods", status["pods"]
    yield "leases", status["leases"]
    audited = f", {status['audited']} would have been" if status["audited"] or status["mode"] == "Audit" else ""
    yield "queries", f"{status['queries']}, {status['denied']} denied{audited}"
    for upstream in status["upstreams"]:
        yield "upstream", f"{upstream['address']} {'up' if upstream['up'] else 'DOWN'}"
