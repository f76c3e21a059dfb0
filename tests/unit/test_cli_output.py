"""How results are printed: to people, to pipes, to programs."""

from __future__ import annotations

import json
import os
import pty
import sys
from collections.abc import Callable

import pytest

from dnsguard.cli import output

LONG = "a." * 100 + "example.com"
ROWS = [{"pod": "shop/a", "names": [LONG, "b.test"]}, {"pod": "b", "names": []}]
COLUMNS = {"pod": "pod", "names": "names"}


def on_a_terminal(action: Callable[[], None]) -> str:
    """What `action` prints when standard output is a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    terminal = os.fdopen(theirs, "w")
    before, sys.stdout = sys.stdout, terminal
    try:
        action()
    finally:
        sys.stdout = before
        terminal.close()
    taken = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # Linux says EIO when the other side is closed
            break
        taken += chunk
    os.close(ours)
    return taken.decode().replace("\r\n", "\n")


def test_a_pipe_gets_aligned_columns_and_whole_names(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(COLUMNS, ROWS, empty="")
    assert capsys.readouterr().out == f"POD     NAMES\nshop/a  {LONG}, b.test\nb\n"


def test_a_terminal_gets_folded_cells_and_loses_no_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    text = on_a_terminal(lambda: output.print_table(COLUMNS, ROWS, empty=""))
    assert max(map(len, text.splitlines())) <= 80
    assert LONG in "".join(line[8:] for line in text.splitlines()[1:]).replace(" ", "")


def test_on_a_terminal_addresses_and_numbers_are_never_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    rows = [{"address": "198.51.100.200", "port": "65535", "text": "some words " * 20}]
    text = on_a_terminal(lambda: output.print_table({key: key for key in rows[0]}, rows, empty=""))
    assert len(text.splitlines()) > 3
    assert text.splitlines()[1].startswith("198.51.100.200  65535  some words")


def test_a_terminal_too_narrow_for_that_gets_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("TERM", "xterm")
    rows = [{"address": "198.51.100.200", "port": "65535"}]
    text = on_a_terminal(lambda: output.print_table({"address": "address", "port": "port"}, rows, empty=""))
    assert text == "ADDRESS         PORT\n198.51.100.200  65535\n"


def test_markup_in_a_name_is_only_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    text = on_a_terminal(lambda: output.print_table({"pod": "pod"}, [{"pod": "[red]x[/red]"}], empty=""))
    assert "[red]x[/red]" in text


@pytest.mark.parametrize("hostile", ["\x1b[2J", "a\nb", "\u202e"])
def test_nothing_in_a_cell_acts_on_the_terminal(hostile: str, capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table({"pod": "pod"}, [{"pod": hostile}], empty="")
    output.print_facts([("pod", hostile)])
    assert hostile not in capsys.readouterr().out


def test_without_rows_standard_output_stays_empty(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(COLUMNS, [], empty="no pods")
    assert capsys.readouterr() == ("", "no pods\n")


def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_json(ROWS)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == ROWS


def test_facts_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_facts([("a", 1), ("longer", "x")])
    assert capsys.readouterr().out == "a:      1\nlonger: x\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.9, "0s"), (59, "59s"), (60, "1m00s"), (3599, "59m59s"), (7620, "2h07m"), (442800, "5d03h")]
)
def test_durations_have_two_units_at_most(seconds: float, text: str) -> None:
    assert output.rounded_duration(seconds) == text
