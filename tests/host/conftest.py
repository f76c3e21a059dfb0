"""Fixtures of the host tests: dnsguard under a real systemd, fresh for every test, installed once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dnsguard.core.errors import MissingFeatureError
from dnsguard.demo.lab import TOOLS, require
from tests.host.host import Host, hosting, installed
from tests.host.machine import Machine


@pytest.fixture(scope="session")
def image() -> Path:
    """The tree that `make install` makes. Without root the test run ends with exit code 77."""
    try:
        require({**TOOLS, "systemd-nspawn": "systemd-container"})
    except MissingFeatureError as error:
        pytest.exit(str(error), returncode=77)
    return installed()


@pytest.fixture
def machine(image: Path) -> Iterator[Machine]:
    """A machine with dnsguard's files, nothing of it running, and no network."""
    with Machine(layers=[image]) as booted:
        yield booted


@pytest.fixture(scope="module")
def standing(image: Path) -> Iterator[Host]:
    """A node whose dnsguard is ready, with two pods: for tests of one file that leave it so."""
    with hosting([image]) as running:
        yield running


@pytest.fixture
def host(image: Path) -> Iterator[Host]:
    """A node whose dnsguard is ready, with two pods."""
    with hosting([image]) as running:
        yield running
