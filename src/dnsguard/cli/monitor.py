"""`dnsguard monitor`: queries, drops, leases and policy changes as they happen."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from dnsguard.cli.options import ConfigOption, JsonOption, PodOption, client, note_version
from dnsguard.cli.output import cell_text, print_json
from dnsguard.control.calls import CallError, EventType

if TYPE_CHECKING:
    from dnsguard.control.client import ControlClient


def _event_type(text: str) -> EventType:
    try:
        return EventType(text)
    except ValueError as error:
        others = ", ".join(EventType)
        several = "; give --type once for each" if "," in text else ""
        raise typer.BadParameter(f"{text} is none of {others}{several}") from error


TypeOption = Annotated[
    list[EventType] | None,
    typer.Option(
        "--type",
        metavar="|".join(EventType),
        help="Only these events; may be given several times.",
        show_default=False,
        parser=_event_type,
    ),
]
KIND_WIDTH: Final = 21
"""Of the longest name of an event."""


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: dnsguard monitor --type drop --pod shop/backend-0")(monitor)


def monitor(
    context: typer.Context,
    type: TypeOption = None,
    pod: PodOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Watch events as they happen, until Ctrl-C.

    Queries and what came of them, dropped packets, leases, changes of policies and pods.
    """
    daemon = client(context, config)
    if pod:
        _note_absent(daemon, pod)
    chosen = {"type": ",".join(type or ()), "pod": pod or ""}
    try:
        for number, row in enumerate(daemon.rows("monitor", **{key: text for key, text in chosen.items() if text})):
            if number == 0:
                note_version(daemon)
            if json:
                print_json([row], flush=True)
            else:
                print(line(row), flush=True)
    except KeyboardInterrupt:
        return
    raise CallError("the daemon has stopped")


def _note_absent(daemon: ControlClient, pod: str) -> None:
    """A pod may yet come, but a slip in its name would wait for ever."""
    try:
        list(daemon.rows("pods", pod=pod))
    except CallError as error:
        print(f"{error}; waiting for it", file=sys.stderr)


def line(row: Mapping[str, Any]) -> str:
    """One event for people: local time, name, sentence."""
    if "lost" in row:
        return f"{'':12}  {'lost':{KIND_WIDTH}}  {row['lost']} events came faster than they could be shown"
    told = datetime.fromisoformat(row["time"]).astimezone().strftime("%H:%M:%S.%f")[:-3]
    packets = f" ({row['count']} packets)" if row["event"] == "flow_denied" and row.get("count", 1) > 1 else ""
    return f"{told}  {row['event']:{KIND_WIDTH}}  {cell_text(row['message'])}{packets}"
