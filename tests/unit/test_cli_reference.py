"""What is generated from the commands: the manual page and the completions are as they would be generated now."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dnsguard.cli import app
from dnsguard.cli.reference import generated
from dnsguard.cli.tree import commands

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", generated(ROOT))
def test_a_file_generated_from_the_commands_is_as_it_would_be_now(path: str) -> None:
    """Otherwise run `python -m dnsguard.cli.reference .`."""
    assert (ROOT / path).read_text() == generated(ROOT)[path]


def test_every_option_of_the_help_is_known() -> None:
    for command in commands(app):
        help_text = CliRunner().invoke(app, [command.name, "--help"], env={"COLUMNS": "200"}).output
        shown = set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", help_text, re.MULTILINE))
        assert shown == {"--help", *(option.flag for option in command.options)}, command.name


def test_the_command_line_offers_no_installation_of_completions() -> None:
    assert "completion" not in CliRunner().invoke(app, ["--help"]).output
