"""The command line, one file a command.

Commands import what they need when they run: `dnsguard --help` loads typer and nothing else. Every error that dnsguard
raises on purpose ends here, as one text on standard error and an exit code: 0 done, 1 the input or the state is wrong,
2 usage, 3 denied (`explain`), 77 a missing privilege or kernel feature.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

import typer

from dnsguard.cli import (
    check,
    cleanup,
    close,
    demo,
    explain,
    learn,
    leases,
    monitor,
    pods,
    reload,
    run,
    status,
    version,
)
from dnsguard.cli.options import ConfigOption, VersionOption, remember_config
from dnsguard.control.calls import WRONG, exit_code_of
from dnsguard.core.errors import DnsguardError

app = typer.Typer(
    name="dnsguard",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A pod resolves and reaches only what its allowlist names.",
    epilog="Start with: dnsguard check --config FILE, then dnsguard run. Exit codes: 0 done, 1 the input or the state "
    "is wrong, 2 usage, 3 denied (explain), 77 a missing privilege or kernel feature.",
)


@app.callback()
def before_command(context: typer.Context, config: ConfigOption = None, version: VersionOption = False) -> None:
    remember_config(context, config)


for _module in (run, check, explain, status, pods, leases, monitor, reload, learn, demo, cleanup, close, version):
    _module.register(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        app(args=None if arguments is None else list(arguments), prog_name="dnsguard")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except DnsguardError as error:
        print(error, file=sys.stderr)
        code = exit_code_of(error)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        code = _full(error)
    else:
        code = 0
    return _flush() or code


def _flush() -> int:
    """Give the last lines to a reader that may have gone; the interpreter would complain of it on its way out."""
    if sys.stdout is None:  # closed by whoever started us
        return 0
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0 if isinstance(error, BrokenPipeError) else _full(error)
    return 0


def _full(error: OSError) -> int:
    """The result does not fit where it was to go."""
    print(f"standard output: {error.strerror}", file=sys.stderr)
    return WRONG
