"""Every broken file gives exactly the diagnostics that are written beside it."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest

from dnsguard.config import settings
from dnsguard.sources import allowlist

FOLDER = Path(__file__).parent.parent / "broken"
FILES = sorted(FOLDER.glob("*.yaml"))
NODE = allowlist.Surroundings(
    protected=(ip_network("169.254.0.0/16"), ip_network("127.0.0.0/8")), own=frozenset([ip_network("127.0.0.1")])
)


def diagnostics(path: Path) -> str:
    if path.name.startswith("config-"):
        found = settings.diagnose(path.read_bytes(), path.name)
    else:
        found = allowlist.diagnose(path.read_bytes(), path.name, NODE)
    return "".join(f"{one}\n" for one in found)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_broken_file_gives_the_diagnostics_beside_it(path: Path) -> None:
    expected = path.with_suffix(".expected").read_text()

    found = diagnostics(path)

    assert found == expected


def test_every_broken_file_has_at_least_one_diagnostic() -> None:
    silent = [path.name for path in FILES if not diagnostics(path)]

    assert silent == []


if __name__ == "__main__":
    for path in FILES:
        path.with_suffix(".expected").write_text(diagnostics(path))
