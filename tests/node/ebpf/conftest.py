"""Every test here needs root and the real kernel."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.node.ebpf.rig import Rig

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.node)


@pytest.fixture
def rig() -> Iterator[Rig]:
    if os.geteuid() != 0:
        pytest.exit("the tests of the eBPF programs need root", returncode=77)
    made = Rig()
    yield made
    made.close()
