"""A dashboard held against Grafana's own schema, in the models for Python that Grafana makes from it.

The models read anything: they drop what they do not know or keep it as it is, and check no value. So everything of ours
must still be there, unchanged, in what they write, and every value that they hold must be of the type that they say.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum, EnumType
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

with warnings.catch_warnings():
    # said of the form of dashboard that every Grafana imports: there is a newer form
    warnings.simplefilter("ignore", DeprecationWarning)
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models import units
    from grafana_foundation_sdk.models.dashboard import Dashboard, VariableModel

UNITS: Final = frozenset(getattr(units, name) for name in units.__annotations__)
"""What a field can be measured in; the schema itself takes any text."""
OPEN: Final[Mapping[tuple[type, str], Any]] = {(VariableModel, "query"): str | dict | None}
"""What the schema leaves to the data source: nothing in it is checked."""

register_default_plugins()


def objections(dashboard: Mapping[str, Any]) -> Iterator[str]:
    """What Grafana's schema has against `dashboard`, each with its place."""
    try:
        model = Dashboard.from_json(dict(dashboard))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        yield f"cannot be read: {error!r}"
        return
    yield from _lost(dashboard, json.loads(json.dumps(model, cls=JSONEncoder)), "")
    yield from _inside(model, "")


def _lost(ours: object, theirs: object, where: str) -> Iterator[str]:
    """Of `ours`, what is missing or another in `theirs`, which may have more."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        for key, value in ours.items():
            if key in theirs:
                yield from _lost(value, theirs[key], f"{where}.{key}")
            else:
                yield f"{where}.{key}: there is no such field here"
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from _lost(one, other, f"{where}[{index}]")
    elif ours != theirs:
        yield f"{where}: {ours!r} is read as {theirs!r}"


def _inside(value: object, where: str) -> Iterator[str]:
    """Of a model, or of a list of them, the fields whose values are not of their types."""
    if isinstance(value, list):
        for index, one in enumerate(value):
            yield from _inside(one, f"{where}[{index}]")
    elif _is_model(value):
        for name, hint in get_type_hints(type(value)).items():
            yield from _refused(getattr(value, name), OPEN.get((type(value), name), hint), f"{where}.{name}")


def _refused(value: object, hint: Any, where: str) -> Iterator[str]:
    if hint is str and not value:
        yield f"{where}: missing"  # a text that must be there and is not reads as an empty one
    elif _fits(value, hint):
        yield from _inside(value, where)
    else:
        yield f"{where}: {value!r} is not of {hint}"


def _fits(value: object, hint: Any) -> bool:
    """Whether `value` is of the type. Free form (`object`) must have become a plugin's model, to be known at all."""
    form, inside = get_origin(hint), get_args(hint)
    if form is Union:
        return any(_fits(value, one) for one in inside)
    if form is Literal:
        return value in inside
    if form is list:
        return isinstance(value, list) and all(_fits(one, inside[0]) for one in value)
    if form is dict or hint in (object, Any):
        return _is_model(value)
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    if isinstance(hint, EnumType):
        members: Iterable[Enum] = hint
        return value in [member.value for member in members]
    return isinstance(value, (int, float) if hint is float else hint)


def _is_model(value: object) -> bool:
    return hasattr(value, "to_json")
