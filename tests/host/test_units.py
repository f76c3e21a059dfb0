"""The units as files: systemd has nothing to say about them, and little is exposed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.machine import Machine

pytestmark = pytest.mark.node

UNITS = ("dnsguard.service", "dnsguard-early.service", "dnsguard.socket", "dnsguard.slice")
MOST_EXPOSED = 25
"""Tenths."""


@pytest.fixture(scope="module")
def bare(image: Path) -> Iterator[Machine]:
    with Machine(layers=[image]) as booted:
        yield booted


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_has_nothing_to_say_about_a_unit(bare: Machine, unit: str) -> None:
    said = bare.run("systemd-analyze", "verify", f"/usr/lib/systemd/system/{unit}")

    assert said.stdout + said.stderr == ""


def test_a_boot_with_the_units_enabled_has_an_order(bare: Machine) -> None:
    bare.systemctl("enable", "dnsguard.service")

    said = bare.run("systemd-analyze", "verify", "--man=no", "multi-user.target", check=False)

    assert "cycle" not in said.stderr
    assert bare.shell("systemctl is-enabled dnsguard.socket dnsguard-early.service") == "enabled\n" * 2


@pytest.mark.parametrize("unit", UNITS[:2])
def test_a_service_is_exposed_no_more_than_it_must(bare: Machine, unit: str) -> None:
    path = f"/usr/lib/systemd/system/{unit}"

    bare.run("systemd-analyze", "security", "--offline=true", f"--threshold={MOST_EXPOSED}", path)


def test_users_and_folders_are_made_as_the_files_say(bare: Machine) -> None:
    bare.shell("systemd-sysusers dnsguard.conf && systemd-tmpfiles --create dnsguard.conf")

    for folder in ("/run/dnsguard", "/var/lib/dnsguard"):
        assert bare.shell(f"stat -c '%U:%G %a' {folder}") == "dnsguard:dnsguard 750\n"
