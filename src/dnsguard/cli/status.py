"""`dnsguard status`: how the daemon is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import typer

from dnsguard.cli.options import ConfigOption, JsonOption, client, note_version
from dnsguard.cli.output import print_facts, print_json, rounded_duration

if TYPE_CHECKING:
    from dnsguard.control.calls import Status


_OF_QUERIES: Final = {"cache_hits": "from a cache", "limited": "over a limit", "answers_withheld": "withheld"}
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
    yield from _troubles(status["totals"])
    for upstream in status["upstreams"]:
        yield "upstream", f"{upstream['address']} {'up' if upstream['up'] else 'DOWN'}"


def _questions(status: Status) -> Iterator[tuple[str, Any]]:
    totals = status["totals"]
    said = [f"{status['queries']}", f"{status['denied']} denied"]
    if status["audited"] or status["mode"] == "Audit":
        said.append(f"{status['audited']} would have been")
    said += [f"{totals.get(key, 0)} {words}" for key, words in _OF_QUERIES.items()]
    yield "queries", ", ".join(said)
    yield "now", f"{status['in_flight']} being answered, {status['held_answers']} of them held for the kernel"


def _troubles(totals: Mapping[str, int]) -> Iterator[tuple[str, Any]]:
    """Since the start; what has not happened is left out, but for dropped packets."""
    yield "dropped", f"{totals.get('egress_denied', 0)} packets"
    for key, (fact, words) in _TROUBLES.items():
        if count := totals.get(key, 0):
            yield fact, f"{count} {words}"
