"""The completion scripts in the shells themselves: what a TAB at the end of a line makes of it."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "packaging/completions"
PATIENCE = 20.0
SHOW = "dnsguard() { printf '{%s}' \"$@\"; echo; }"
"""In place of the command: shows the words that it was given."""

SHELLS = {
    "bash": (["bash", "--norc", "-i"], f". {SCRIPTS}/dnsguard.bash"),
    "zsh": (["zsh", "-f", "-i"], "fpath=($PWD/functions $fpath); autoload -Uz compinit; compinit -u -D"),
}


class Terminal:
    """An interactive shell; used as a context. Told what a person types, it gives back what the screen shows."""

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        self._command, self._folder = command, folder

    def __enter__(self) -> Terminal:
        self._process, self._terminal = pty.fork()
        if self._process == 0:
            os.chdir(self._folder)
            environment = {"PATH": os.environ["PATH"], "TERM": "dumb", "HOME": str(self._folder), "PS1": "> "}
            os.execvpe(self._command[0], self._command, environment)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._terminal)
        os.waitpid(self._process, 0)

    def type(self, text: str, until: str) -> str:
        """What is shown until the pattern `until` has come."""
        os.write(self._terminal, text.encode())
        end, shown = time.monotonic() + PATIENCE, ""
        while not re.search(until, shown):
            if not select.select([self._terminal], [], [], max(0.0, end - time.monotonic()))[0]:
                raise AssertionError(f"no {until!r} after {text!r}: {shown!r}")
            shown += os.read(self._terminal, 65536).decode(errors="replace")
        return shown


@pytest.fixture(params=SHELLS)
def terminal(request: pytest.FixtureRequest, tmp_path: Path) -> Terminal:
    command, setup = SHELLS[request.param]
    (tmp_path / "functions").mkdir()
    (tmp_path / "functions/_dnsguard").symlink_to(SCRIPTS / "dnsguard.zsh")  # zsh wants the function's own name
    with Terminal(command, tmp_path) as terminal:
        terminal.type(f"{setup}; {SHOW}; echo READY | rev\n", "YDAER")
        yield terminal


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("mo\t", "{monitor}"),
        ("monitor --ty\tdr\t", "{monitor}{--type}{drop}"),
        ("monitor --type query --type po\t", "{monitor}{--type}{query}{--type}{policy}"),
        ("check --al\tmy\t", "{check}{--allowlist}{my list.yaml}"),
        ("--config my\tsta\t--js\t", "{--config}{my list.yaml}{status}{--json}"),
    ],
)
def test_a_tab_completes_commands_options_and_values(
    terminal: Terminal, tmp_path: Path, typed: str, words: str
) -> None:
    (tmp_path / "my list.yaml").touch()

    shown = terminal.type(f"dnsguard {typed}\n", r"\{.*\}\r?\n")

    assert words in shown.replace("{--type=", "{--type}{").replace("{--allowlist=", "{--allowlist}{")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("mo", ["monitor"]),
        ("monitor --ty", ["--type"]),
        ("monitor --type ", ["drop", "lease", "policy", "query"]),
        ("check --allowlist my", ["my list.yaml"]),
    ],
)
def test_fish_offers_commands_options_and_values(tmp_path: Path, typed: str, offered: list[str]) -> None:
    (tmp_path / "my list.yaml").touch()
    script = f"source {SCRIPTS}/dnsguard.fish; complete --do-complete 'dnsguard {typed}'"

    made = subprocess.run(
        ["fish", "--no-config", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )

    assert sorted(line.split("\t")[0].replace("\\", "") for line in made.stdout.splitlines()) == offered
