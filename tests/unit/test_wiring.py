"""What one room announces and another must do: every event is emitted with the fields of its sentence, every counter
is counted, every configuration key is read. Looks at the source, for what is missing there no conversation shows."""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Iterator
from pathlib import Path

import pytest

from dnsguard.config.groups import Group, Settings
from dnsguard.engine.contracts import EventKind
from dnsguard.engine.counters import Counters
from dnsguard.observe.catalog import CATALOG

SOURCE = Path(__file__).parents[2] / "src/dnsguard"
MODULES = {path.relative_to(SOURCE).as_posix(): path.read_text() for path in SOURCE.glob("**/*.py")}


def elsewhere(*but: str) -> str:
    """All source but that of these modules or rooms."""
    return "\n".join(text for path, text in MODULES.items() if not path.startswith(but))


def emitted() -> Iterator[tuple[EventKind, str, set[str]]]:
    """Kind, place and fields of each call that emits a kind by its name."""
    for path, text in MODULES.items():
        for node in ast.walk(ast.parse(text)):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "emit"):
                continue
            if node.args and ast.unparse(node.args[0]).startswith("EventKind."):
                fields = {keyword.arg for keyword in node.keywords if keyword.arg is not None}
                yield EventKind[ast.unparse(node.args[0]).removeprefix("EventKind.")], f"{path}:{node.lineno}", fields


@pytest.mark.parametrize("kind", EventKind)
def test_every_event_is_emitted_somewhere(kind: EventKind) -> None:
    assert f"EventKind.{kind.name}" in elsewhere("observe/catalog.py", "engine/contracts.py")


@pytest.mark.parametrize(("kind", "place", "fields"), list(emitted()))
def test_an_event_has_the_fields_that_its_sentence_names(kind: EventKind, place: str, fields: set[str]) -> None:
    named = {field for _, field, _, _ in string.Formatter().parse(CATALOG[kind].template) if field}

    assert named - {"who"} <= fields, place
    assert "who" not in named or fields & {"pod", "pod_ip"}, place


@pytest.mark.parametrize("field", Counters.__slots__)
def test_every_counter_is_counted(field: str) -> None:
    counted = rf"counters\.{field}\b(\[.*\])?(\.observe| \+=)|counters\.upstream_discarded\)"

    assert re.search(counted, elsewhere("observe/", "engine/counters.py")), field


def keys(group: type[Group], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    for name, field in group.model_fields.items():
        path = (*above, field.alias or name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Group):
            yield from keys(field.annotation, path)
        else:
            yield path, name


@pytest.mark.parametrize(("path", "name"), list(keys(Settings)))
def test_every_configuration_key_is_read(path: tuple[str, ...], name: str) -> None:
    if path in (("apiVersion",), ("kind",)):
        return
    # `protected` is read through a property of its group.
    read = {"protected": "protect_default"}.get(name, f".{name}")

    assert read in elsewhere("config/"), f"{'.'.join(path)} has no effect"
