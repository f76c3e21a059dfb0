"""What a pod that is wholly in an attacker's hands does in Audit, to keep something open when enforcing begins."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.node.scene import OTHER, Scene, playing

pytestmark = pytest.mark.node

ROOM = 1024
"""Cut flows for which the kernel's sets have room beyond `tables.flows`."""


@pytest.fixture
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    tables = {"flows": 1000}
    with playing(tmp_path, mode="Audit", enforcement={"ebpf": request.param}, tables=tables) as made:
        yield made


@pytest.mark.parametrize("scene", ["Auto", "Off"], ids=["both lines", "nftables alone"], indirect=True)
def test_more_flows_than_can_be_cut_do_not_save_one_of_them(scene: Scene) -> None:
    unjust, fair = scene.connect(scene.a, OTHER), scene.connect(scene.b, OTHER)
    assert unjust is not None and fair is not None and unjust.alive() and fair.alive()
    with scene.lab.socket(scene.a.namespace, socket.AF_INET) as many:
        for number in range(1000 + 2 * ROOM):
            with contextlib.suppress(ConnectionError):
                many.sendto(b"", (f"198.18.{number >> 8}.{number & 255}", 4000))
    content = yaml.safe_load(scene.daemon.config.read_text())
    scene.daemon.config.write_text(yaml.safe_dump({**content, "mode": "Enforce"}))

    scene.daemon.call("reload").check_returncode()

    assert unjust.dead() and fair.dead()
    for flow in (unjust, fair):
        flow.socket.close()
