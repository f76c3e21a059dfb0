"""Lists in sentences."""

from __future__ import annotations

import pytest

from dnsguard.core.words import some


@pytest.mark.parametrize(
    ("texts", "said"),
    [([], ""), (["a"], "a"), (["a", "b"], "a, b"), (["a", "b", "c", "d"], "a, b and 2 more")],
)
def test_of_a_list_the_first_are_named_and_the_rest_counted(texts: list[str], said: str) -> None:
    assert some(texts, 2) == said
