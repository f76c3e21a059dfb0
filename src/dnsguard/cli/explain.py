"""`dnsguard explain`: why a name resolves or not, why a connection is let through or not."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from dnsguard.cli.options import ConfigOption, JsonOption, client, config_path, note_version
from dnsguard.cli.output import cell_text, print_facts, print_json, print_table, rounded_duration
from dnsguard.control.calls import DENIED, DONE, USAGE, CallError

if TYPE_CHECKING:
    from dnsguard.control.calls import Addition, DenialRow, Explanation, NearRow

RULE_COLUMNS = {"policy": "policy", "action": "action", "peers": "peers", "ports": "ports", "origin": "written at"}
PAST_COLUMNS = {
    "subject": "before",
    "outcome": "outcome",
    "count": "times",
    "last": "last",
    "first": "first",
    "reason": "reason",
}
NEAR_COLUMNS = {"text": "nearest", "policy": "policy", "ports": "ports", "origin": "written at"}
LEASE_COLUMNS = {"address": "address", "ports": "ports", "names": "names", "remaining": "ends in"}
MOST_PEERS = 8
"""Peers of one rule that a table shows; `--json` has them all."""


class _Command(TyperCommand):
    def collect_usage_pieces(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """As other programs print it: typer puts what is required in braces."""
        return [piece.removeprefix("{").removesuffix("}") for piece in super().collect_usage_pieces(ctx)]


def register(app: typer.Typer) -> None:
    app.command(
        cls=_Command,
        epilog="Examples: dnsguard explain shop/backend-0 db.example.com AAAA; "
        "dnsguard explain 10.244.0.5 192.0.2.7 5432/tcp; dnsguard explain shop/backend-0 (what was denied lately). "
        "Exit code: 0 allowed, 3 denied.",
    )(explain)


def explain(
    context: typer.Context,
    pod: Annotated[str, typer.Argument(metavar="POD", help="The pod: its name or one of its addresses.")],
    subject: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME|ADDRESS", help="The name it asks for, or where it connects; without it, what was denied."
        ),
    ] = None,
    detail: Annotated[
        str | None,
        typer.Argument(metavar="TYPE|PORT[/PROTO]", help="With a name: a DNS type [A]. With an address: the port."),
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="From the files, even when a daemon runs.")] = False,
    allowlist: Annotated[
        Path | None, typer.Option("--allowlist", metavar="PATH", help="Another allowlist; implies --offline.")
    ] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Say why a name or a connection is allowed or denied.

    Prints the verdict, the lines of the files that decided it, and for a denial the rule that came nearest and the line
    to add. Asks the daemon, which also knows the leases and what was denied before; without one, reads the files.
    """
    if subject is None:
        raise typer.Exit(_tell_denials(context, config, pod, json=json))
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
        _refuse_place(subject)
        return {"name": subject, "type": detail or "A"}
    if detail is None:
        raise CallError(f"{subject} is an address: name a port too, like {subject} 443 or {subject} 53/udp", USAGE)
    port, _, protocol = detail.partition("/")
    return {"address": address, "port": port, "protocol": protocol or "tcp"}


def _refuse_place(subject: str) -> None:
    """What a file or a URL would have in one word is two here. Raises CallError (usage)."""
    if _is_network(subject):
        raise CallError(f"{subject} is a network: name one address and a port, like {subject.split('/')[0]} 443", USAGE)
    host, _, port = subject.rpartition(":")
    if not (host and port.isascii() and port.isdigit()):
        return
    try:
        words = f"an address and its port are two words here: {ip_address(host.strip('[]'))} {port}"
    except ValueError:
        words = f"a name is asked about without a port: {host}; a connection by the address: ADDRESS {port}"
    raise CallError(f"{subject}: {words}", USAGE)


def _is_network(text: str) -> bool:
    try:
        return "/" in text and bool(ip_network(text, strict=False))
    except ValueError:
        return False


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
    _print_part(RULE_COLUMNS, [{**row, "peers": _shortened(row["peers"])} for row in explanation["rules"]])
    leases = [{**row, "remaining": rounded_duration(row["remaining"])} for row in explanation["leases"]]
    _print_part(LEASE_COLUMNS, leases)
    # A daemon of an older version tells none of these.
    _print_part(PAST_COLUMNS, map(_past, explanation.get("past", ())))
    _print_advice(explanation.get("nearest", ()), explanation.get("add"), explanation.get("remark"))


def _print_part(columns: Mapping[str, str], rows: Iterable[Mapping[str, Any]]) -> None:
    if rows := list(rows):
        print()
        print_table(columns, rows, empty="")


def _print_advice(nearest: Sequence[NearRow], add: Addition | None, remark: str | None) -> None:
    _print_part(NEAR_COLUMNS, nearest)
    begin = "to allow it, insert before"
    while add is not None:
        place = f"{add['file']}:{add['line']}" + (f":{add['column']}" if add["column"] > 1 else "")
        print(f"\n{begin} {place}" + (f" ({add['remark']})" if add["remark"] else ""))
        print(*map(cell_text, add["text"].rstrip("\n").split("\n")), sep="\n")
        begin, add = "and before", add.get("also")
    if remark:
        print(f"\nto allow it: {cell_text(remark)}")


def _past(row: DenialRow) -> dict[str, Any]:
    times = {key: f"{rounded_duration(row[key])} ago" for key in ("first", "last")}
    return {**row, **times, "outcome": _outcome(row)}


def _outcome(row: DenialRow) -> str:
    """`denied`, `audited`, `withheld`, `failed`, `limited` or `refused`."""
    return "refused" if row["event"] == "forwarding_loop" else row["event"].rpartition("_")[2]


# ---- what was denied before


def _tell_denials(context: typer.Context, config: Path | None, pod: str, *, json: bool) -> int:
    """Every remembered denial, the newest first. Only a running daemon knows them."""
    daemon = client(context, config)
    rows: list[DenialRow] = list(daemon.rows("denials", pod=pod))
    if json:
        print_json(rows)
    elif not rows:
        print(f"nothing was denied to {pod} since the daemon started", file=sys.stderr)
    for row in () if json else rows:
        print_facts(
            [
                (_outcome(row), row["subject"]),
                ("times", _times(row)),
                ("reason", row["reason"]),
            ]
        )
        _print_advice(row["nearest"], row["add"], row.get("remark"))
        print()
    note_version(daemon)
    return DENIED if rows else DONE


def _times(row: DenialRow) -> str:
    past = _past(row)
    return f"{row['count']}, last {past['last']}" + (f", first {past['first']}" if row["count"] > 1 else "")


def _shortened(peers: list[str]) -> list[str]:
    more = len(peers) - MOST_PEERS
    return peers if more <= 0 else [*peers[:MOST_PEERS], f"and {more} more"]
