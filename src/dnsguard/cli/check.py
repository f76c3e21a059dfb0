"""`dnsguard check`: every error and every silent mistake in the two files, at its file, line and column."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dnsguard.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, config_path
from dnsguard.cli.output import print_json
from dnsguard.core.model import Address

if TYPE_CHECKING:
    from dnsguard.config.diagnostics import Diagnostic


def register(app: typer.Typer) -> None:
    app.command(epilog="Examples: dnsguard check --config /etc/dnsguard/config.yaml; dnsguard check --system")(check)


def check(
    context: typer.Context,
    config: ConfigOption = None,
    allowlist: Annotated[
        Path | None, typer.Option("--allowlist", metavar="PATH", help="An allowlist other than the one it names.")
    ] = None,
    json: JsonOption = False,
    system: Annotated[bool, typer.Option("--system", help="Look at the node instead of the files.")] = False,
) -> None:
    """Say what is wrong with the configuration and the allowlist.

    With --system, look at the node instead: a line for each thing, with the remedy where something is wrong.

    Exit code 0: usable (there may be warnings). 1: it has errors, or the node has problems. 77: it asks for something
    that this build lacks, or a part of the node could not be looked at.
    """
    if system:
        from dnsguard.cli.system import check_system

        raise typer.Exit(check_system(config_path(context, config), json_lines=json))
    raise typer.Exit(check_files(config_path(context, config), allowlist, json_lines=json))


def check_files(config: Path, allowlist: Path | None, *, json_lines: bool) -> int:
    """Print what is found in both files and return the exit code: 0, 1 or 77."""
    # Here, not above: `dnsguard --help` reads this module and needs none of them.
    from dnsguard.config.diagnostics import exit_code
    from dnsguard.sources.loader import load_here

    loaded = load_here(config, allowlist, own=own_addresses())
    if loaded.store is not None:
        loaded.store.close()
    found = [*loaded.diagnostics, *_unreadable(config)]
    for one in found:
        if json_lines:
            print_json([_record(one)])
        else:
            print(one, file=sys.stderr)
    if not json_lines:
        print(_summary(found), file=sys.stderr if exit_code(found) else sys.stdout)
    return exit_code(found)


def _unreadable(config: Path) -> Iterator[Diagnostic]:
    """What root may read and the service may not, of the service's own two files."""
    from dnsguard.config.diagnostics import Diagnostic, Severity
    from dnsguard.config.settings import usable_settings
    from dnsguard.core.model import Origin
    from dnsguard.doctor.readable import obstacles

    if config == DEFAULT_CONFIG:
        for one in obstacles((config, usable_settings(config)[0].allowlist)):
            yield Diagnostic(Origin(str(one.file), 1, 1), f"{one.found}; {one.remedy}", Severity.WARNING)


def own_addresses() -> list[Address]:
    """The addresses of this machine, as far as it tells them."""
    from pyroute2 import IPRoute

    try:
        with IPRoute() as route:
            texts = [message.get("IFA_ADDRESS") for message in route.get_addr()]
    except OSError:
        # Without netlink (a container, a build machine) the files can be checked all the same.
        return []
    return [Address(ip_address(text).packed) for text in texts if text]


def _record(one: Diagnostic) -> dict[str, object]:
    origin = one.origin
    return {
        "file": origin.file,
        "line": origin.line,
        "column": origin.column,
        "severity": one.severity,
        "text": one.text,
    }


def _summary(found: list[Diagnostic]) -> str:
    from dnsguard.config.diagnostics import exit_code

    counts = Counter(str(one.severity) for one in found)
    listed = ", ".join(f"{count} {word}{'s' if count > 1 else ''}" for word, count in sorted(counts.items()))
    return f"{'usable' if exit_code(found) == 0 else 'not usable'}: {listed or 'no errors, no warnings'}"
