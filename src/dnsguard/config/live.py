"""A configuration read again while the daemon runs: what of it takes effect at once, and what at a restart only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pydantic import BaseModel

from dnsguard.config.diagnostics import ConfigError, Diagnostic, Severity, errors, in_order
from dnsguard.config.files import read_text
from dnsguard.config.groups import Group, Settings
from dnsguard.config.positions import Fields, Node, parse
from dnsguard.config.settings import settings_from_text
from dnsguard.core.model import Origin

LIVE: Final = frozenset(
    {("mode",), ("allowlist",), ("log", "level"), ("log", "queries"), ("enforcement", "revocation")}
)
"""Keys that a reload puts in force."""

Location = tuple[str, ...]


def read_again(path: Path, running: Settings) -> tuple[Settings, list[Diagnostic]]:
    """The settings to go over to: `running` with those of the file that can change, and a warning for each other key
    that is not as it runs. Raises ConfigError when the file cannot be used."""
    text = read_text(path)
    settings, found = settings_from_text(text, str(path))
    if settings is None or errors(found):
        raise ConfigError(found)
    root, _ = parse(text, str(path))
    changed = list(_changed(running, settings))
    late = [_restart(location, root, str(path)) for location in changed if location not in LIVE]
    return _with(running, settings), in_order(late)


def _changed(before: Group, after: Group, above: Location = ()) -> Iterator[Location]:
    """Where the two differ, as keys of the file."""
    for name, info in type(before).model_fields.items():
        old, new = getattr(before, name), getattr(after, name)
        location = (*above, info.alias or name)
        if isinstance(old, Group) and isinstance(new, Group):
            yield from _changed(old, new, location)
        elif old != new:
            yield location


def _restart(location: Location, root: Node | None, file: str) -> Diagnostic:
    """At the value, or where the nearest group around it begins when the file says nothing any more."""
    node = root
    for key in location:
        below = node.fields.get(key) if isinstance(node, Fields) else None
        if below is None:
            break
        node = below
    line, column = (node.line, node.column) if node is not None else (1, 1)
    return Diagnostic(Origin(file, line, column), f"{'.'.join(location)}: takes effect at a restart", Severity.WARNING)


def _with(running: Settings, settings: Settings) -> Settings:
    update = {
        "mode": settings.mode,
        "allowlist": settings.allowlist,
        "log": _updated(running.log, level=settings.log.level, queries=settings.log.queries),
        "enforcement": _updated(running.enforcement, revocation=settings.enforcement.revocation),
    }
    return running.model_copy(update=update)


def _updated(group: BaseModel, **values: object) -> BaseModel:
    return group.model_copy(update=values)
