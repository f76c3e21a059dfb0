"""Fixtures of the node tests: a lab of network namespaces on the real kernel, fresh for every test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from dnsguard.core.errors import MissingFeatureError
from dnsguard.demo.lab import Lab
from tests.node import nftables_lab


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A node and an outside world, no pods yet. Without the privilege for it the test run ends with exit code 77."""
    try:
        with Lab("dgtest") as made:
            yield made
    except MissingFeatureError as error:
        pytest.exit(str(error), returncode=77)


@pytest.fixture
async def subject() -> AsyncIterator[nftables_lab.Subject]:
    """An nftables enforcer at work in a node of its own, with pods around it."""
    lab = nftables_lab.Lab()
    try:
        subject = await nftables_lab.start(lab)
        yield subject
        await subject.close()
    finally:
        lab.close()
