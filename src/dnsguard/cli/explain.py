"""`dnsguard explain`: why a name resolves or not, why a connection is let through or not."""

from __future__ import annotations

import sys
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dnsguard.cli.options import ConfigOption, JsonOption, client, config_path, note_version
from dnsguard.cli.output import print_facts, print_json, print_table, rounded_duration
from dnsguard.control.calls import DENIED, DONE, USAGE, CallError

if TYPE_CHECKING:
    from dnsguard.control.calls import Explanation

RULE_COLUMNS = {"policy": "policy", "action": "action", "peers": "peers", "ports": "ports", "origin": "written at"}
LEASE_COLUMNS = {"address": "address", "ports": "ports", "names": "names", "remaining": "ends in"}
MOST_PEERS = 8
"""Peers of one rule that a table shows; `--json` has them all."""


def register(app: typer.Typer) -> None:
    app.command(
        epilog="Examples: dnsguard explain shop/backend-0 db.example.com AAAA; "
        "dnsguard explain 10.244.0.5 192.0.2.7 5432/tcp. Exit code: 0 allowed, 3 denied."
    )(explain)


def explain(
    context: typer.Context,
    pod: Annotated[str, typer.Argument(metavar="POD", help="The pod: its name or one of its addresses.")],
    subject: Annotated[str, typer.Argument(metavar="NAME|ADDRESS", help="The name it asks for, or where it connects.")],
    detail: Annotated[
        str | None,
        typer.Argument(metavar="[TYPE|PORT[/PROTO]]", help="With a name: a DNS type [A]. With an address: the port."),
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="From the files, even when a daemon runs.")] = False,
    allowlist: Annotated[
        Path | None, typer.Option("--allowlist", metavar="PATH", help="Another allowlist; implies --offline.")
    ] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Say why a name or a connection is allowed or denied.

    Prints the verdict and the lines of the files that decided it. Asks the daemon, which also knows the leases and how
    long they have left; without one, reads the files.
    """
    arguments = {"pod": pod, **_question(subject, detail)}
    explanation = None
    if not offline and allowlist is None:
        explanation = _ask_daemon(context, config, arguments)
    if explanation is None:
        from dnsguard.cli.offline import explain_files

        explanation = explain_files(config_path(context, config), allowlist, arguments)
    if json:
        print_json([explanation])
    else:
        _print(explanation)
    raise typer.Exit(DONE if explanation["verdict"] == "allowed" else DENIED)


def _question(subject: str, detail: str | None) -> dict[str, str]:
    """The call's parameters besides the pod. Raises CallError (usage)."""
    try:
        address = str(ip_address(subject))
    except ValueError:
        return {"name": subject, "type": detail or "A"}
    if detail is None:
        raise CallError(f"{subject} is an address: name a port too, like {subject} 443 or {subject} 53/udp", USAGE)
    port, _, protocol = detail.partition("/")
    return {"address": address, "port": port, "protocol": protocol or "tcp"}


def _ask_daemon(context: typer.Context, config: Path | None, arguments: dict[str, str]) -> Explanation | None:
    """None when no daemon runs."""
    from dnsguard.control.client import NotRunningError

    daemon = client(context, config)
    try:
        explanation: Explanation = daemon.call("explain", **arguments)
    except NotRunningError:
        print("the daemon is not running: this is what the files say", file=sys.stderr)
        return None
    note_version(daemon)
    return explanation


def _print(explanation: Explanation) -> None:
    print_facts(
        [
            ("verdict", f"{explanation['verdict']}: {explanation['reason']}"),
            ("pod", explanation["pod"]),
            ("policy", explanation["policy"]),
            ("subject", explanation["subject"]),
        ]
    )
    if explanation["rules"]:
        print()
        print_table(
            RULE_COLUMNS, [{**row, "peers": _shortened(row["peers"])} for row in explanation["rules"]], empty=""
        )
    if explanation["leases"]:
        print()
        leases = [{**row, "remaining": rounded_duration(row["remaining"])} for row in explanation["leases"]]
        print_table(LEASE_COLUMNS, leases, empty="")


def _shortened(peers: list[str]) -> list[str]:
    more = len(peers) - MOST_PEERS
    return peers if more <= 0 else [*peers[:MOST_PEERS], f"and {more} more"]
