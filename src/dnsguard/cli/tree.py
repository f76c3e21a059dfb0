"""The commands, their options and their arguments as data, read from the functions that typer runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from inspect import Parameter, cleandoc, signature
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from typer.models import ArgumentInfo, OptionInfo


@dataclass(frozen=True, slots=True)
class Option:
    """`value` names what follows the option, None when nothing does."""

    flag: str
    value: str | None
    help: str
    choices: tuple[str, ...]
    is_file: bool


@dataclass(frozen=True, slots=True)
class Argument:
    value: str
    help: str
    choices: tuple[str, ...]
    is_file: bool


@dataclass(frozen=True, slots=True)
class Command:
    """`summary` is one sentence; `details` are paragraphs, the example last."""

    name: str
    summary: str
    details: tuple[str, ...]
    options: tuple[Option, ...]
    arguments: tuple[Argument, ...]


def commands(app: typer.Typer) -> list[Command]:
    """In the order of the help, which does not show those that are for units alone."""
    shown = (one for one in app.registered_commands if not one.hidden)
    return [_command(one.callback, one.name, one.epilog) for one in shown if one.callback is not None]


def _command(function: Callable[..., Any], name: str | None, epilog: Any) -> Command:
    summary, *details = cleandoc(function.__doc__ or "").split("\n\n")
    parts = list(_parts(function))
    return Command(
        name or function.__name__.replace("_", "-"),
        _joined(summary),
        tuple(map(_joined, [*details, *([epilog] if isinstance(epilog, str) else [])])),
        tuple(part for part in parts if isinstance(part, Option)),
        tuple(part for part in parts if isinstance(part, Argument)),
    )


def _parts(function: Callable[..., Any]) -> Iterator[Option | Argument]:
    hints = get_type_hints(function, include_extras=True)
    for parameter in signature(function).parameters.values():
        hint = hints[parameter.name]
        if get_origin(hint) is Annotated:
            kind, about = get_args(hint)[:2]
            if not about.hidden:
                yield _part(parameter, _plain(kind), about)


def _part(parameter: Parameter, kind: type, about: OptionInfo | ArgumentInfo) -> Option | Argument:
    shown = about.help or ""
    choices = tuple(str(choice.value) for choice in kind) if issubclass(kind, Enum) else ()
    value = about.metavar or (parameter.name.upper() if not choices else "|".join(choices))
    if isinstance(about, ArgumentInfo):
        value = value if parameter.default is Parameter.empty else f"[{value}]"
        return Argument(value, shown, choices, issubclass(kind, Path))
    flag = (about.param_decls or (f"--{parameter.name.replace('_', '-')}",))[0]
    return Option(flag, None if kind is bool else value, shown, choices, issubclass(kind, Path))


def _plain(kind: Any) -> type:
    """The type of one value: `list[Kind] | None` is Kind."""
    inner = [one for one in get_args(kind) if one is not NoneType]
    if inner:
        return _plain(inner[0])
    return kind if isinstance(kind, type) else str


def _joined(paragraph: str) -> str:
    return " ".join(paragraph.split())
