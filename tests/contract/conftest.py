"""The enforcers that every test of the contract suite runs over."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.contract import ebpf, nftables
from tests.contract.subject import Maker, Subject, memory

SUBJECTS: dict[str, Maker] = {
    "memory": memory,
    "nftables": nftables.owned,
    "nftables-shared": nftables.shared,
    "ebpf": ebpf.ebpf,
    "both": ebpf.both,
}

# `node`: needs root and the real kernel, and ends the run with exit code 77 without them.
PARAMS = [
    pytest.param("memory"),
    pytest.param("nftables", marks=pytest.mark.node),
    pytest.param("nftables-shared", marks=pytest.mark.node),
    pytest.param("ebpf", marks=pytest.mark.node),
    pytest.param("both", marks=pytest.mark.node),
]


@pytest_asyncio.fixture(params=PARAMS)
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    async with SUBJECTS[request.param]() as made:
        yield made


@pytest_asyncio.fixture(params=PARAMS)
async def small(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    """One whose capacity a test can fill."""
    async with SUBJECTS[request.param](small=True) as made:
        yield made
