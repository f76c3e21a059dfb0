"""The catalog beside the places that emit: what a sentence names is given wherever its event is told."""

from __future__ import annotations

import ast
import string
from collections.abc import Iterator
from pathlib import Path

import pytest

from dnsguard.engine.contracts import EventKind
from dnsguard.observe.catalog import CATALOG

SOURCES = Path(__file__).parents[2] / "src/dnsguard"
WHO = {"pod", "pod_ip"}


def emitted() -> Iterator[tuple[EventKind, str, set[str | None]]]:
    """Kind, file and line, and the fields of every call that names its kind; None among them stands for more."""
    for path in sorted(SOURCES.rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "emit":
                where = f"{path.relative_to(SOURCES)}:{call.lineno}"
                for part in ast.walk(call.args[0]):
                    if isinstance(part, ast.Attribute) and ast.unparse(part.value) == "EventKind":
                        yield EventKind[part.attr], where, {keyword.arg for keyword in call.keywords}


EMITTED = list(emitted())


@pytest.mark.parametrize(("kind", "where", "given"), EMITTED, ids=[f"{kind} {where}" for kind, where, _ in EMITTED])
def test_what_an_events_sentence_names_is_given(kind: EventKind, where: str, given: set[str | None]) -> None:
    named = {field for _, field, _, _ in string.Formatter().parse(CATALOG[kind].template) if field}
    if given & WHO:
        named.discard("who")
    assert None in given or named <= given


def test_nearly_every_kind_is_seen_where_it_is_emitted() -> None:
    assert len({kind for kind, _, _ in EMITTED}) > 0.8 * len(EventKind)
