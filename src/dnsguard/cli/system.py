"""`dnsguard check --system`: a line for each thing that was looked at on the node."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from dnsguard.cli.options import DEFAULT_CONFIG
from dnsguard.cli.output import cell_text, print_json
from dnsguard.config.diagnostics import errors
from dnsguard.config.settings import Settings, usable_settings
from dnsguard.doctor.checks import examine
from dnsguard.doctor.findings import Finding, Level, exit_code, problem, unseen
from dnsguard.doctor.node import look
from dnsguard.doctor.readable import check_readable

_COLOURS: Final = {Level.OK: "32", Level.WARNING: "33", Level.PROBLEM: "31", Level.UNSEEN: "35"}


def check_system(config: Path, *, json_lines: bool) -> int:
    """Print every finding and return the exit code: 1 with a problem, 77 when something could not be seen, else 0."""
    seen: Counter[Level] = Counter()
    for finding in _findings(config):
        seen[finding.level] += 1
        if json_lines:
            print_json([finding._asdict()], flush=True)
        else:
            print(_line(finding), flush=True)
    if not json_lines:
        print(", ".join(f"{count} {level}" for level in Level if (count := seen[level])), file=sys.stderr)
    return exit_code(seen)


def _findings(config: Path) -> Iterator[Finding]:
    settings, about = _settings(config)
    yield from about
    if config == DEFAULT_CONFIG:
        yield from check_readable((config, settings.allowlist))
    yield from examine(look(settings))


def _settings(config: Path) -> tuple[Settings, list[Finding]]:
    """What is right in the file, the defaults for the rest, and why. Upstreams that it does not name are not asked."""
    settings, found = usable_settings(config)
    wrong = "; ".join(map(str, errors(found)))
    return settings, [_about(config, wrong)] if wrong else []


def _about(config: Path, wrong: str) -> Finding:
    try:
        config.stat()
        readable = os.access(config, os.R_OK)
    except PermissionError:
        readable = False
    except OSError:
        return problem("configuration", f"{config} is not there: what follows is of the defaults", "write it")
    if not readable:
        return unseen("configuration", f"{config} cannot be read: what follows is of the defaults")
    rest = "what follows is of what is right in it, and of the defaults for the rest"
    return problem("configuration", f"{wrong}: {rest}", "dnsguard check says more")


def _line(finding: Finding) -> str:
    level = f"{finding.level:<8}"
    if sys.stdout.isatty():
        level = f"\x1b[{_COLOURS[finding.level]}m{level}\x1b[0m"
    remedy = f" -> {finding.remedy}" if finding.remedy else ""
    return level + cell_text(f"{finding.subject}: {finding.found}{remedy}")
