"""Reads config.yaml into `Settings` and reports everything that is wrong with it, each at the value that is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from dnsguard.config.diagnostics import ConfigError, Diagnostic, Severity, errors, in_order, nearest
from dnsguard.config.durations import duration_text
from dnsguard.config.files import decode, read_text
from dnsguard.config.groups import Group, Settings
from dnsguard.config.positions import Ambiguous, Fields, Items, Node, Scalar, Unreadable, parse, plain_value, resolve
from dnsguard.core.model import Origin

__all__ = [
    "Settings",
    "diagnose",
    "load_settings",
    "read_settings",
    "runtime_directory",
    "settings_from_text",
    "usable_settings",
]

_FOREIGN_MARKS = ((0x4000, "kube-proxy"), (0x8000, "kube-proxy"), (0xFFFF0000, "Calico"), (0x80, "the AWS VPC CNI"))


def load_settings(path: Path) -> Settings:
    """The settings of a file. Raises ConfigError with every diagnostic."""
    settings, found = read_settings(path)
    if settings is None:
        raise ConfigError(found)
    return settings


def read_settings(path: Path) -> tuple[Settings | None, list[Diagnostic]]:
    """The settings, or None when a value is wrong, with all errors and warnings. Never raises for what it reads."""
    try:
        text = read_text(path)
    except ConfigError as error:
        return None, list(error.diagnostics)
    return settings_from_text(text, str(path))


def runtime_directory(path: Path) -> tuple[Path | None, bool]:
    """`paths.runtime` of a file that may be wrong elsewhere, and whether it is. None: it is, and does not say.

    Raises ConfigError for a file that cannot be read. For those who only look for the daemon, which may have started
    with an earlier state of the file.
    """
    settings, found = _what_is_right(read_text(path), str(path))
    wrong = bool(errors(found))
    if settings is None or (wrong and "runtime" not in settings.paths.model_fields_set):
        return None, True
    return settings.paths.runtime, wrong


def usable_settings(path: Path) -> tuple[Settings, list[Diagnostic]]:
    """What is right in a file, with the default for the rest, and all that is wrong with it. Never raises.

    `upstreams` is empty where the file names none that can be used. For those who must go on whatever it says.
    """
    try:
        settings, found = _what_is_right(read_text(path), str(path))
    except ConfigError as error:
        settings, found = None, list(error.diagnostics)
    return settings or _without_upstreams(Settings.model_validate({"upstreams": [_NOBODY]})), found


def settings_from_text(text: str, file: str) -> tuple[Settings | None, list[Diagnostic]]:
    """`read_settings` for a text that is already at hand; `file` is the name used in diagnostics."""
    settings, found = _what_is_right(text, file)
    return (None if errors(found) else settings), found


def _what_is_right(text: str, file: str) -> tuple[Settings | None, list[Diagnostic]]:
    """The settings with the default for each value that is wrong, if they can be made; all errors and warnings."""
    root, found = parse(text, file)
    if not isinstance(root, Fields):
        if not found:
            found = [Diagnostic(Origin(file, 1, 1), _no_mapping(root))]
        return None, in_order(found)
    reading = _Reading(root, file)
    settings = reading.settings({one.origin for one in found})
    return settings, in_order(found + reading.found)


def diagnose(content: bytes, file: str) -> list[Diagnostic]:
    """All that is wrong with these octets as config.yaml. Total: any octets give diagnostics, never an exception."""
    try:
        return settings_from_text(decode(content, file), file)[1]
    except ConfigError as error:
        return list(error.diagnostics)


def _no_mapping(root: Node | None) -> str:
    if root is None or (isinstance(root, Scalar) and resolve(root) is None):
        return "the file is empty; write at least: upstreams: [10.96.0.10]"
    return "the file must hold keys with values; write at least: upstreams: [10.96.0.10]"


_NOBODY = "192.0.2.1"
"""Takes the place of `upstreams` that are wrong, so that everything else is looked at."""


def _without_upstreams(settings: Settings) -> Settings:
    return settings.model_copy(update={"upstreams": ()})


_ROUNDS = 3
"""Wrong values, what those hid, and nothing."""

Location = tuple[str | int, ...]


def _location(problem: Mapping[str, Any]) -> Location:
    """Keys and item numbers from the file's top to the value that is wrong."""
    key = problem["ctx"].get("key") if problem["type"] == "dnsguard" else None
    return (*problem["loc"], key) if key is not None else tuple(problem["loc"])


class _Reading:
    """Where the values of one file stand, and pydantic's problems in the words of its operator."""

    def __init__(self, root: Fields, file: str) -> None:
        self.found: list[Diagnostic] = []
        self._root = root
        self._file = file
        self._left_out: set[Location] = set()

    def settings(self, told: set[Origin]) -> Settings | None:
        """Validate, and again without the values that were wrong, so that what they hid is found too.

        A group's own check runs only when all of its values are right. `told`: places that need no second word."""
        values: Any = plain_value(self._root)
        for _ in range(_ROUNDS):
            try:
                settings = Settings.model_validate(values)
            except ValidationError as error:
                problems = error.errors()
                new = [one for problem in problems if (one := self.diagnostic(problem)) and one.origin not in told]
                self.found += new
                told |= {one.origin for one in new}
                for problem in problems:
                    self._leave_out(values, problem)
            else:
                self.found += self.warnings(settings)
                return _without_upstreams(settings) if ("upstreams",) in self._left_out else settings
        return None

    def _leave_out(self, values: Any, problem: Mapping[str, Any]) -> None:
        location = _location(problem)
        # An item's number means nothing once another is gone: the whole list goes.
        keys = tuple(step for step in location if isinstance(step, str))
        self._left_out.add(keys)
        for key in keys[:-1]:
            values = values.get(key, {})
        values.pop(keys[-1], None)
        if keys == ("upstreams",):
            values["upstreams"] = [_NOBODY]

    def diagnostic(self, problem: Mapping[str, Any]) -> Diagnostic | None:
        """None when the problem only follows from one that has its diagnostic already."""
        location = _location(problem)
        if (*location[:-1], problem.get("ctx", {}).get("other")) in self._left_out:
            return None
        node = self._find(location)
        if problem["type"] == "extra_forbidden":
            return self._unknown_key(location)
        if problem["type"] == "missing":
            return None if node is not None else self._at(self._root, f"{_dotted(location)} is missing; {_EXAMPLE}")
        if node is None or isinstance(node, Unreadable):
            # A default took part in a check of the whole group: the value that is wrong stands elsewhere in it.
            node = self._find(location[:-1]) or self._root
        return self._at(node, f"{_dotted(location)}: {_words(problem, node)}")

    def warnings(self, settings: Settings) -> Iterable[Diagnostic]:
        """Values that are allowed and probably not meant."""
        floor, cap = settings.ttl.floor, settings.ttl.cap
        if floor > cap:
            text = f"{duration_text(floor)} is over the cap of {duration_text(cap)}: every lease lasts the floor"
            yield from self._warn(("ttl", "floor"), text, ("ttl", "cap"))
        if settings.dns.deadline >= 5:
            yield from self._warn(("dns", "deadline"), "glibc and musl give up after 5s; write less, like 4s")
        for key, mark in (("mark", settings.interception.mark), ("replyMark", settings.interception.reply_mark)):
            if owner := next((owner for bits, owner in _FOREIGN_MARKS if mark & bits), None):
                yield from self._warn(("interception", key), f"0x{mark:x} shares bits with the marks of {owner}")
        if settings.limits.leases_per_pod > settings.tables.leases:
            text = f"more than tables.leases ({settings.tables.leases}): one pod can use all of the node's leases"
            yield from self._warn(("limits", "leasesPerPod"), text, ("tables", "leases"))

    def _warn(self, location: Location, text: str, other: Location = ()) -> Iterable[Diagnostic]:
        if location in self._left_out or other in self._left_out:
            return
        node = self._find(location) or self._find(other) or self._root
        yield Diagnostic(self._origin(node), f"{_dotted(location)}: {text}", Severity.WARNING)

    def _unknown_key(self, location: Location) -> Diagnostic:
        parent, key = self._find(location[:-1]), str(location[-1])
        line, column = parent.keys[key] if isinstance(parent, Fields) else (1, 1)
        known = _group(location[:-1])
        hint = nearest(key, known) or "; known here: " + ", ".join(known)
        text = f"unknown key '{_dotted(location)}'{hint}"
        return Diagnostic(Origin(self._file, line, column), text)

    def _find(self, location: Sequence[str | int]) -> Node | None:
        node: Node | None = self._root
        for step in location:
            if isinstance(node, Fields):
                node = node.fields.get(str(step))
            elif isinstance(node, Items) and isinstance(step, int):
                readable = [item for item in node.items if not isinstance(item, Unreadable)]
                node = readable[step] if step < len(readable) else None
            else:
                return None
        return node

    def _origin(self, node: Node) -> Origin:
        return Origin(self._file, node.line, node.column)

    def _at(self, node: Node, text: str) -> Diagnostic:
        return Diagnostic(self._origin(node), text)


_EXAMPLE = "write the addresses of the resolvers, like upstreams: [10.96.0.10]"


def _dotted(location: Sequence[str | int]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location).removeprefix(".")


def _group(location: Sequence[str | int]) -> list[str]:
    """The keys of the group at `location`."""
    model: type[BaseModel] = Settings
    for step in location:
        field = next(info for info in model.model_fields.values() if info.alias == step)
        model = _model_of(field)
    return [info.alias or name for name, info in model.model_fields.items()]


def _model_of(field: FieldInfo) -> type[BaseModel]:
    kind = field.annotation
    assert isinstance(kind, type) and issubclass(kind, Group), get_args(kind)
    return kind


def _words(problem: Mapping[str, Any], node: Node) -> str:
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "dnsguard":
        return str(context["text"])
    if kind in ("greater_than_equal", "less_than_equal"):
        least = kind == "greater_than_equal"
        return f"must be at {'least' if least else 'most'} {_limit(context['ge' if least else 'le'])}"
    if kind in ("enum", "literal_error"):
        expected = str(context["expected"])
        return f"{_shown(node)} is not possible; write {expected.replace(chr(39), '')}{_case(node, expected)}"
    return _wrong_type(kind, node)


def _limit(limit: float) -> str:
    return duration_text(limit) if isinstance(limit, float) else str(limit)


def _case(node: Node, expected: str) -> str:
    """A hint when only the capitals are wrong. `expected` is pydantic's list: `'Auto', 'On' or 'Off'`."""
    if not isinstance(node, Scalar):
        return ""
    words = expected.replace("'", "").replace(" or ", ", ").split(", ")
    same = next((word for word in words if word != node.text and word.lower() == node.text.lower()), None)
    return f" (with these capitals: {same})" if same else ""


_TYPES = {
    "int_type": "a whole number, without quotes",
    "bool_type": "true or false",
    "tuple_type": "a list, like [a, b]",
    "model_type": "a group of keys",
    "model_attributes_type": "a group of keys",
    "dict_type": "a group of keys",
}


def _wrong_type(kind: str, node: Node) -> str:
    if isinstance(node, Scalar) and isinstance(resolve(node), Ambiguous):
        return f"{node.text} is 8-based to some readers of YAML and 10-based to others; {_without_zeros(kind, node)}"
    if kind == "string_type" and isinstance(node, Scalar) and node.plain and resolve(node) is not None:
        return f'must be text, and YAML reads {node.text} as something else; put it in quotes: "{node.text}"'
    return f"must be {_TYPES.get(kind, 'text')}, not {_shown(node)}"


def _without_zeros(kind: str, node: Scalar) -> str:
    if kind == "string_type":
        return f'put it in quotes: "{node.text}"'
    return f"write {node.text.replace('_', '').lstrip('+-0') or '0'}"


def _shown(node: Node) -> str:
    if isinstance(node, Scalar):
        return "nothing" if resolve(node) is None else (node.text if node.plain else f'"{node.text}"')
    return "a list" if isinstance(node, Items) else "a group of keys"
