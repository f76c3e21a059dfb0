"""The reference of events: whole, up to date, and taken by journalctl."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from dnsguard.engine.contracts import EventKind
from dnsguard.observe import reference
from dnsguard.observe.catalog import CATALOG

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", reference.generated())
def test_the_generated_files_are_up_to_date(path: str) -> None:
    """Otherwise run `python -m dnsguard.observe.reference .`."""
    assert (ROOT / path).read_text() == reference.generated()[path]


@pytest.mark.parametrize("kind", EventKind)
def test_every_event_says_what_it_means_and_what_to_do(kind: EventKind) -> None:
    description = CATALOG[kind]
    assert description.meaning.endswith(".")
    assert description.advice.endswith(".")
    assert description.meaning != description.advice


def test_journalctl_takes_the_catalog_and_shows_every_event_of_it(tmp_path: Path) -> None:
    source, made = tmp_path / "usr/lib/systemd/catalog", tmp_path / "var/lib/systemd/catalog"
    source.mkdir(parents=True)
    made.mkdir(parents=True)
    (source / "dnsguard.catalog").write_text(reference.catalog())

    updated = journalctl(tmp_path, "--update-catalog")
    listed = journalctl(tmp_path, "--list-catalog").stdout.splitlines()
    shown = journalctl(tmp_path, "--dump-catalog", CATALOG[EventKind.QUERY_DENIED].message_id.hex).stdout

    assert (updated.returncode, updated.stderr) == (0, "")
    assert {line.split()[0] for line in listed} == {one.message_id.hex for one in CATALOG.values()}
    assert "Subject: Query denied\n" in shown
    assert "What to do: If the pod needs this name" in shown


def journalctl(root: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["journalctl", f"--root={root}", *argv], capture_output=True, text=True, check=False)
