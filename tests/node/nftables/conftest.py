"""Fixtures of the nftables tests: their own lab, where packets are made by hand."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.node.nftables_lab import Lab, Subject, start


@pytest.fixture
def lab() -> Iterator[Lab]:
    if os.geteuid() != 0:
        pytest.exit("the tests of the kernel's tables need root", returncode=77)
    lab = Lab()
    try:
        yield lab
    finally:
        lab.close()


@pytest.fixture
async def subject(lab: Lab) -> AsyncIterator[Subject]:
    """An enforcer at work in the lab's node."""
    subject = await start(lab)
    yield subject
    await subject.close()
