"""`dnsguard status`: how the daemon is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import typer

from dnsguard.cli.options import ConfigOption, JsonOption, client, note_version
from dnsguard.cli.output import print_facts, print_json, rounded_duration
from dnsguard.control.gaps import gap_texts

if TYPE_CHECKING:
    from dnsguard.control.calls import Spread, Status


_OF_QUERIES: Final = {"cache_hits": "from a cache", "limited": "over a limit", "answers_withheld": "withheld"}
_SLOW: Final = 1.0
"""Seconds at one piece of the writer's work, which takes milliseconds."""
_OLD: Final = 60.0
"""Seconds; they are read every five."""
_ERRORS: Final = 3
"""Lines of a refused reload that are shown."""
_TROUBLES: Final = {
    "lease_writes_refused": ("refused", "answers whose leases the kernel refused"),
    "kernel_repairs": ("repaired", "changes of others to the kernel undone"),
    "internal_errors": ("errors", "unexpected errors contained; see the log"),
    "log_lines_suppressed": ("unsaid", "log lines over limits.logLines"),
    "log_lines_dropped": ("log lost", "log lines that nobody took"),
}
"""Counter -> what its line is called, and says."""


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: dnsguard status --json")(status)


def status(context: typer.Context, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Show how the daemon is.

    Ready or what is missing, where a line does not decide and why, the policy in force, questions and how long they
    take, the upstreams: what the metrics tell, since the start.
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
    for text in gap_texts(status):
        yield "gap", text
    yield "config", status["config"]
    yield "policy", f"generation {status['generation']} of {status['allowlist']}"
    if status["reloading"]:
        yield "reload", "under way"
    rejected = status["rejected"].splitlines()
    for line in rejected[:_ERRORS]:
        yield "refused", f"at the last reload: {line}"
    if len(rejected) > _ERRORS:
        yield "refused", f"{len(rejected) - _ERRORS} more; `dnsguard check` prints them all"
    for line in status["late"]:
        yield "restart", line
    yield "pods", f"{status['pods']} of {status['pods_limit']}"
    yield "leases", f"{status['leases']}, {status['lease_elements']} of {status['leases_limit']} elements"
    yield from _questions(status)
    yield from _kernel(status)
    yield from _troubles(status["totals"])
    for upstream in status["upstreams"]:
        state = "up" if upstream["up"] else "DOWN"
        failed = f"{upstream['asked']} attempts, {upstream['failed']} without an answer"
        yield "upstream", f"{upstream['address']} {state}, {failed}, {_spread(upstream['latency'])}"


def _questions(status: Status) -> Iterator[tuple[str, Any]]:
    totals = status["totals"]
    said = [f"{status['queries']}", f"{status['denied']} denied"]
    if status["audited"] or status["mode"] == "Audit":
        said.append(f"{status['audited']} would have been")
    said += [f"{totals.get(key, 0)} {words}" for key, words in _OF_QUERIES.items()]
    yield "queries", ", ".join(said)
    replies = status["replies"]
    yield "replies", ", ".join([f"{sum(replies.values())}", *(f"{n} {rcode}" for rcode, n in replies.items())])
    yield "latency", _spread(status["latency"])
    now = f"{status['in_flight']} being answered, {status['held_answers']} of them held for the kernel"
    yield "now", f"{now}, {status['tcp_connections']} TCP connections, {status['cache_entries']} answers cached"


def _kernel(status: Status) -> Iterator[tuple[str, Any]]:
    for enforcer, spread in status["commits"].items():
        yield "commits", f"{enforcer} {spread['count']}, {_spread(spread)}"
    if status["writer_busy"] > _SLOW:
        yield "kernel", f"its writer has been at one piece of work for {status['writer_busy']:.0f} s"
    if status["counted"] > _OLD:
        yield "kernel", f"its counters could not be read for {status['counted']:.0f} s"


def _spread(spread: Spread) -> str:
    if not spread["count"]:
        return "none yet"
    return f"half within {_time(spread['p50'])}, 99 of 100 within {_time(spread['p99'])}"


def _time(seconds: float | None) -> str:
    """`None` is above the last bound of a histogram."""
    if seconds is None:
        return "more than is told apart"
    return f"{seconds * 1000:g} ms" if seconds < 1 else f"{seconds:g} s"


def _troubles(totals: Mapping[str, int]) -> Iterator[tuple[str, Any]]:
    """Since the start; what has not happened is left out, but for dropped packets."""
    yield "dropped", f"{totals.get('egress_denied', 0)} packets"
    for key, (fact, words) in _TROUBLES.items():
        if count := totals.get(key, 0):
            yield fact, f"{count} {words}"
