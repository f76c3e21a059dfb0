"""The enforcers that every test of the contract suite runs over."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import pytest
import pytest_asyncio

from tests.contract.subject import Subject, memory

SUBJECTS: dict[str, Callable[[], AbstractAsyncContextManager[Subject]]] = {"memory": memory}

# A subject that needs root and the real kernel: pytest.param("nftables", marks=pytest.mark.node)
PARAMS = [pytest.param("memory")]


@pytest_asyncio.fixture(params=PARAMS)
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    async with SUBJECTS[request.param]() as made:
        yield made
