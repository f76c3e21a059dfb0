"""Fixtures of the tests that need root and the real kernel."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.node.nftables_lab import Lab, Subject, start


@pytest.fixture
def lab() -> Iterator[Lab]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    lab = Lab()
    yield lab
    lab.close()


@pytest.fixture
async def subject(lab: Lab) -> AsyncIterator[Subject]:
    subject = await start(lab)
    yield subject
    await subject.close()
