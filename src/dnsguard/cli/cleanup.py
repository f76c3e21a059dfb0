"""`dnsguard cleanup`: every trace out of the kernel, whatever the configuration says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dnsguard.cli.options import ConfigOption, config_path

if TYPE_CHECKING:
    from dnsguard.config.settings import Settings


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: dnsguard cleanup")(cleanup)


def cleanup(context: typer.Context, config: ConfigOption = None) -> None:
    """Remove every trace from the kernel.

    The table, eBPF programs and maps, rules, routes: pods are then unfiltered. Says what it removed. Of a
    configuration with errors it uses what is right. Refuses while a daemon runs. Needs root.
    """
    from dnsguard.daemon.cleanup import cleanup as remove_every_trace

    print(remove_every_trace(_settings(config_path(context, config))))


def _settings(path: Path) -> Settings:
    from dnsguard.config.diagnostics import errors
    from dnsguard.config.settings import usable_settings

    settings, found = usable_settings(path)
    if wrong := errors(found):
        sys.stderr.writelines(f"{one}\n" for one in wrong)
        used = f"paths.runtime {settings.paths.runtime} and paths.bpffs {settings.paths.bpffs}"
        print(f"warning: going on with what is right in {path}, and defaults for the rest: {used}", file=sys.stderr)
    return settings
