"""Fixtures of the node tests: a lab of network namespaces on the real kernel, fresh for every test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dnsguard.core.errors import MissingFeatureError
from dnsguard.demo.lab import Lab


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A node and an outside world, no pods yet. Without the privilege for it the test run ends with exit code 77."""
    try:
        with Lab("dgtest") as made:
            yield made
    except MissingFeatureError as error:
        pytest.exit(str(error), returncode=77)
