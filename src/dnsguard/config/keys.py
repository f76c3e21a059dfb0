"""Every key of config.yaml as its references show it: name, default, possible values, meaning."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import annotated_types
from pydantic.fields import FieldInfo

from dnsguard.config.durations import duration_text
from dnsguard.config.groups import Group, Settings


@dataclass(frozen=True, slots=True)
class Key:
    """`default` is None for a key that must be written. Of `choices` and `limits` at most one is there."""

    name: str
    default: str | None
    choices: tuple[str, ...]
    limits: tuple[str, str] | None
    meaning: str


@dataclass(frozen=True, slots=True)
class Section:
    """The keys of one group; those of the file's top level have the empty name."""

    name: str
    meaning: str
    keys: tuple[Key, ...]


def sections() -> list[Section]:
    """The top level, and then every group in the order of the file."""
    written = Settings.model_validate({"upstreams": ["10.96.0.10"]}).model_dump(mode="json", by_alias=True)
    top = tuple(_key(field, written) for field, group in _fields() if group is None)
    return [Section("", "", top)] + [_section(field, group, written) for field, group in _fields() if group is not None]


def one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _fields() -> Iterator[tuple[FieldInfo, type[Group] | None]]:
    for field in Settings.model_fields.values():
        kind = field.annotation
        yield field, kind if isinstance(kind, type) and issubclass(kind, Group) else None


def _section(field: FieldInfo, group: type[Group], written: dict[str, Any]) -> Section:
    name = str(field.alias)
    keys = tuple(_key(inner, written[name]) for inner in group.model_fields.values())
    return Section(name, one_line(group.__doc__), keys)


def _key(field: FieldInfo, written: dict[str, Any]) -> Key:
    name = str(field.alias)
    default = None if field.is_required() else _yaml(name, written[name])
    return Key(name, default, _choices(field), _limits(field), one_line(field.description))


def _yaml(name: str, value: Any) -> str:
    if name in ("mark", "replyMark"):
        return f"0x{value:x}"
    return json.dumps(value) if isinstance(value, list | bool) or value is None else str(value)


def _choices(field: FieldInfo) -> tuple[str, ...]:
    kind = field.annotation
    return tuple(map(str, kind)) if isinstance(kind, type) and issubclass(kind, StrEnum) else ()


def _limits(field: FieldInfo) -> tuple[str, str] | None:
    limits: dict[type, Any] = {type(one): one for one in field.metadata}
    least, most = limits.get(annotated_types.Ge), limits.get(annotated_types.Le)
    if least is None or most is None:
        return None
    shown = duration_text if isinstance(least.ge, float) else str
    return shown(least.ge), shown(most.le)
