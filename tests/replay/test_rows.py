"""Every row of the DNS behaviour has a scenario or a test."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.replay.rows import ROWS
from tests.replay.script import scenarios

ROOT = Path(__file__).parent.parent.parent


def claimed() -> set[str]:
    rows = [scenario.content.get("row", []) for scenario in scenarios()]
    return {one for row in rows for one in (row if isinstance(row, list) else [row])}


def test_scenarios_claim_rows_that_there_are() -> None:
    assert claimed() <= set(ROWS)


@pytest.mark.parametrize("row", ROWS)
def test_the_row_is_tried(row: str) -> None:
    assert row in claimed() or ROWS[row]


@pytest.mark.parametrize("test", [test for tests in ROWS.values() for test in tests], ids=lambda test: ".".join(test))
def test_a_test_that_a_row_names_is_there(test: tuple[str, str]) -> None:
    module, function = test
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
    found = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}

    assert function in found or (function == "*" and any(name.startswith("test_") for name in found))
