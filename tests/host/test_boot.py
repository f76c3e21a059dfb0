"""The early unit: it closes pod links until there is a daemon, and only that opens them. Its order: test_reboot.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.host import Host, hosting
from tests.node.scene import DB

pytestmark = pytest.mark.node


@pytest.fixture
def closed(image: Path) -> Iterator[Host]:
    """A node with pods, where only the early unit has run."""
    with hosting([image], start=False) as host:
        host.machine.systemctl("start", "dnsguard-early.service")
        yield host


def test_before_there_is_a_daemon_a_pod_reaches_nothing(closed: Host) -> None:
    scene, lab = closed.scene, closed.lab

    assert scene.silent(scene.a, "db.example.com")
    assert scene.silent(scene.a, "db.example.com", to="10.99.0.2")  # who would answer is reached no more than others
    assert not scene.opens(scene.a, DB)
    assert lab.run(lab.node, "nft", "list", "table", "inet", "dnsguard").returncode == 0


def test_without_the_early_unit_a_pod_would_reach_the_world(image: Path) -> None:
    """The test above can fail."""
    with hosting([image], start=False) as host:
        assert host.scene.opens(host.scene.a, DB)


def test_the_daemon_takes_over_what_the_early_unit_closed(closed: Host) -> None:
    closed.daemon.start()

    assert closed.scene.resolve(closed.scene.a, "db.example.com") == [DB]
    assert closed.scene.opens(closed.scene.a, DB)
    assert not closed.scene.opens(closed.scene.b, DB)


def test_the_early_unit_leaves_a_table_in_force_alone(host: Host) -> None:
    host.scene.resolve(host.scene.a, "db.example.com")

    host.machine.systemctl("restart", "dnsguard-early.service")

    assert host.scene.opens(host.scene.a, DB)


def test_with_a_configuration_that_cannot_be_read_the_usual_links_are_closed(image: Path) -> None:
    with hosting([image], start=False) as host:
        host.machine.write("/etc/dnsguard/config.yaml", "nonsense: [")

        started = host.machine.systemctl("start", "dnsguard-early.service", check=False)

        assert started.returncode != 0
        assert not host.scene.opens(host.scene.a, DB)
