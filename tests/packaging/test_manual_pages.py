"""The manual pages as an operator gets them: without a warning of mandoc, and complete."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ["dnsguard.8", "dnsguard-config.5", "dnsguard-allowlist.5"]


def rendered(page: str) -> str:
    """The page as text of a terminal, on one line."""
    made = subprocess.run(["mandoc", "-Tutf8", str(ROOT / "packaging/man" / page)], capture_output=True, check=True)
    overstruck = re.compile(".\b")  # how a terminal's bold is written
    return " ".join(overstruck.sub("", made.stdout.decode()).split())


@pytest.mark.parametrize("page", PAGES)
def test_mandoc_has_nothing_to_say_about_a_page(page: str) -> None:
    lint = subprocess.run(
        ["mandoc", "-Tlint", "-Wwarning", str(ROOT / "packaging/man" / page)], capture_output=True, text=True
    )

    assert (lint.stdout, lint.returncode) == ("", 0)


def test_every_key_of_the_allowlist_is_in_its_page() -> None:
    page = rendered("dnsguard-allowlist.5")

    assert [
        key for key in keys(json.loads((ROOT / "config/allowlist.schema.json").read_text())) if key not in page
    ] == []


def keys(schema: Any) -> set[str]:
    """Every key that a JSON Schema names, at any depth."""
    if isinstance(schema, list):
        return set().union(*map(keys, schema))
    if not isinstance(schema, dict):
        return set()
    return set(schema.get("properties", {})).union(*map(keys, schema.values()))


def test_text_that_looks_like_a_macro_or_an_escape_is_shown_as_it_stands() -> None:
    page = rendered("dnsguard-config.5")

    assert '["veth*", "eni*", "cali*"]' in page
    assert "10.96.0.11:5353" in page
    assert "\\f" not in page
