"""The project's own files: what a newcomer types first, and what nobody may forget."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests import __main__ as all_tests
from tests import machine

ROOT = Path(__file__).parents[2]


def test_make_help_names_every_target_that_a_person_calls() -> None:
    makefile = (ROOT / "Makefile").read_text()
    found = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert found is not None
    targets = set(found[1].split()) - {"setup"}

    told = subprocess.run(["make", "-s", "-C", str(ROOT)], capture_output=True, text=True, check=True).stdout

    assert {line.split()[1] for line in told.splitlines() if line.strip().startswith("make ")} == targets


@pytest.mark.parametrize(
    "lock", ["requirements.lock", "requirements-bench.lock", "requirements-run.lock", "requirements-build.lock"]
)
def test_every_locked_package_has_its_hashes(lock: str) -> None:
    packages = re.split(r"\n(?=[A-Za-z0-9])", (ROOT / lock).read_text())[1:]

    assert packages
    assert [package.split()[0] for package in packages if "--hash=sha256:" not in package] == []


def test_what_is_declared_is_locked() -> None:
    locked = (ROOT / "requirements.lock").read_text().lower()
    declared = re.findall(r'^    "([A-Za-z0-9-]+)[>=]', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)

    assert [name for name in declared if f"\n{name.lower()}==" not in locked and name != "matplotlib"] == []


def test_what_a_node_runs_is_locked_as_it_is_tested() -> None:
    tested = _locked("requirements.lock")

    assert _locked("requirements-run.lock") < tested
    assert _locked("requirements-build.lock") < tested


def _locked(lock: str) -> set[str]:
    return set(re.findall(r"^[a-z0-9-]+==\S+", (ROOT / lock).read_text(), re.MULTILINE))


def test_every_file_for_systemd_is_in_the_list_of_its_folder() -> None:
    listed = (ROOT / "systemd/README.md").read_text()
    files = [path.name for path in (ROOT / "systemd").iterdir() if path.is_file()]

    assert [name for name in files if f"`{name}`" not in listed and name != "README.md"] == []


@pytest.mark.parametrize("purpose", sorted(machine.NEEDS_ROOT))
def test_a_target_that_needs_root_says_so_in_one_line(
    purpose: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    assert machine.main(purpose) == 77
    target = machine.TARGETS.get(purpose, purpose)
    assert re.fullmatch(rf"make {target} .* run it as root\n", capsys.readouterr().err)


def test_the_tests_without_root_say_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr("sys.argv", ["tests"])

    assert all_tests.main() == 77
    assert capsys.readouterr().err.count("\n") == 1


def test_the_drawing_of_the_architecture_names_every_room() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    source = ROOT / "src/dnsguard"
    rooms = [f"{path.name}/" if path.is_dir() else path.name for path in source.iterdir()]
    known = [room for room in rooms if not room.startswith(("__", "defaults", "py.typed"))]

    assert [room for room in known if f"`{room}`" not in page] == []


def test_the_docstring_of_the_daemons_folder_names_every_module() -> None:
    folder = ROOT / "src/dnsguard/daemon"
    modules = [path.stem for path in folder.glob("*.py") if path.stem != "__init__"]

    assert [name for name in modules if not re.search(rf"\b{name}\b", (folder / "__init__.py").read_text())] == []
