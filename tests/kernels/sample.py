"""A pytest plugin (`-p tests.kernels.sample --cases 1`): of every test function only so many of its parameters' cases.

Those from the first on, spread evenly, so that the same ones are run each time and, of two, both families are there.
"""

from __future__ import annotations

from itertools import groupby

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cases", type=int, default=0, help="of each test function; 0: all")


@pytest.hookimpl(trylast=True)  # of those that -k has left
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    most = config.getoption("--cases")
    if not most:
        return
    kept: list[pytest.Item] = []
    for _, cases in groupby(items, lambda item: item.nodeid.partition("[")[0]):
        kept += spread([*cases], most)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def spread(cases: list[pytest.Item], most: int) -> list[pytest.Item]:
    return cases if len(cases) <= most else [cases[n * len(cases) // most] for n in range(most)]
