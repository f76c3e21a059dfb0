"""Options that several commands share, and what they lead to: the settings and the daemon's socket."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from dnsguard import __version__

if TYPE_CHECKING:
    from dnsguard.config.settings import Settings
    from dnsguard.control.client import ControlClient

DEFAULT_CONFIG: Final = Path("/etc/dnsguard/config.yaml")
DEFAULT_RUNTIME: Final = Path("/run/dnsguard")

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="PATH", help=f"Configuration file [default: {DEFAULT_CONFIG}].", show_default=False
    ),
]


def _print_version(asked: bool) -> None:
    if asked:
        print(f"dnsguard {__version__}")
        raise typer.Exit


VersionOption = Annotated[
    bool, typer.Option("--version", help="Print the version and end.", callback=_print_version, is_eager=True)
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a line, for programs.")]
PodOption = Annotated[
    str | None, typer.Option("--pod", metavar="POD", help="Only this pod: its name or one of its addresses.")
]


def remember_config(context: typer.Context, config: Path | None) -> None:
    """Keep a `--config` that stood before the command."""
    context.obj = config


def config_path(context: typer.Context, config: Path | None) -> Path:
    """The file that `--config` names, after the command or before it, else the default."""
    return config or context.obj or DEFAULT_CONFIG


def settings(context: typer.Context, config: Path | None) -> Settings:
    """Raises ConfigError, or MissingFeatureError."""
    from dnsguard.config.settings import load_settings

    return load_settings(config_path(context, config))


def client(context: typer.Context, config: Path | None) -> ControlClient:
    """A client of the daemon that this configuration names.

    Whoever may talk to the daemon need not be able to read its files: without `--config`, a default file that is not
    there or not readable leaves the default socket. Errors in the file are for the daemon to refuse: it runs by what
    the file said before. Raises ConfigError for a named file that cannot be read, or has errors and no socket.
    """
    from dnsguard.config.diagnostics import ConfigError
    from dnsguard.config.settings import read_settings, runtime_directory
    from dnsguard.control.client import ControlClient

    path = config_path(context, config)
    if path == DEFAULT_CONFIG and not _readable(path):
        return ControlClient(DEFAULT_RUNTIME)
    runtime, wrong = runtime_directory(path)
    if runtime is None and path != DEFAULT_CONFIG:
        raise ConfigError(read_settings(path)[1])  # another daemon than the usual one is meant
    if wrong:
        print(f"{path} has errors, which `dnsguard check` tells", file=sys.stderr)
    return ControlClient(runtime or DEFAULT_RUNTIME)


def note_version(client: ControlClient) -> None:
    """Say on standard error that the daemon is of another version."""
    if note := client.version_note():
        print(note, file=sys.stderr)


def _readable(path: Path) -> bool:
    try:
        path.open("rb").close()
    except OSError:
        return False
    return True
