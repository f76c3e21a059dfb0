"""YAML into a tree of values that remember the line and column they stand at.

Built from libyaml's event stream, which costs a fifth of composing and a fortieth of its memory. Only the part of YAML
that reads the same to everyone is taken: one document, no anchors, aliases or tags, no key twice. A scalar is its text
until somebody asks what it is (`resolve`), so that `1.10`, `on` or `012` never turn into something else on the way.

What goes in: the text of a file. What comes out: a tree and diagnostics; never an exception.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.cyaml import CParser  # type: ignore[attr-defined]  # the stubs do not say that it is exported

from dnsguard.config.diagnostics import Diagnostic
from dnsguard.core.model import Origin

DEEPEST = 32
"""Levels of nesting. The files need seven."""


@dataclass(slots=True)
class Scalar:
    """One value as it was written; `plain` when it was written without quotes."""

    text: str
    plain: bool
    line: int
    column: int


@dataclass(slots=True)
class Items:
    line: int
    column: int
    items: list[Node] = field(default_factory=list)


@dataclass(slots=True)
class Fields:
    line: int
    column: int
    fields: dict[str, Node] = field(default_factory=dict)
    keys: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Line and column of each key."""


@dataclass(slots=True)
class Unreadable:
    """Stands for a value that already has its diagnostic; readers pass over it in silence."""

    line: int
    column: int


Node = Scalar | Items | Fields | Unreadable


@dataclass(frozen=True, slots=True)
class Ambiguous:
    """A plain scalar that readers of YAML disagree about: `012` is 12, or 10, or text."""

    text: str


Plain = str | int | float | bool | None | Ambiguous

_MAYBE_TYPED = frozenset("0123456789+-.~nNtTfF")
_NOTHING = frozenset(("", "~", "null", "Null", "NULL"))
_TRUTH = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)\Z")
_BASED = re.compile(r"0x[0-9a-fA-F]+\Z|0o[0-7]+\Z")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+\Z")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?\Z")
_INFINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)\Z|\.(?:nan|NaN|NAN)\Z")


def resolve(scalar: Scalar) -> Plain:
    """What the scalar is by YAML 1.2's core schema; the words of 1.1 (`on`, `yes`, `1:30`, `1_000`) are text."""
    text = scalar.text
    if not scalar.plain or (text and text[0] not in _MAYBE_TYPED):
        return text
    if text in _NOTHING:
        return None
    if text in _TRUTH:
        return _TRUTH[text]
    return _number(text)


def _number(text: str) -> Plain:
    if _INTEGER.match(text):
        # Python refuses to read more than 4,300 digits; nothing here needs more than ten.
        return int(text) if len(text) < 40 else Ambiguous(text)
    if _BASED.match(text):
        return int(text, 0)
    if _LEADING_ZERO.match(text):
        return Ambiguous(text)
    if _FLOAT.match(text):
        return float(text)
    return float(text.replace(".", "", 1)) if _INFINITE.match(text) else text


def plain_value(node: Node) -> object:
    """The tree as plain dicts, lists and scalars, without positions. Unreadable values are left out."""
    if isinstance(node, Scalar):
        return resolve(node)
    if isinstance(node, Items):
        return [plain_value(item) for item in node.items if not isinstance(item, Unreadable)]
    if isinstance(node, Fields):
        return {key: plain_value(value) for key, value in node.fields.items() if not isinstance(value, Unreadable)}
    return None


def parse(text: str, file: str) -> tuple[Node | None, list[Diagnostic]]:
    """The tree of `text`, or None when it is not YAML or is empty, and what is wrong with it as YAML."""
    unprintable = _UNPRINTABLE.search(text)
    if unprintable is not None:
        line, column = _place(text, unprintable.start())
        return None, [Diagnostic(Origin(file, line, column), f"character {unprintable[0]!r} is not allowed in YAML")]
    root, found, error = _attempt(text, text, file)
    if error is not None and _unquoted_star(text, error) is not None:
        # The commonest slip of all, and YAML ends at the first one: go on as if it were a letter, to find them all.
        root, found, error = _attempt(_STAR.sub("_", text), text, file)
    return root, found if error is None else [*found, _syntax_error(text, file, error)]


def _attempt(text: str, written: str, file: str) -> tuple[Node | None, list[Diagnostic], yaml.MarkedYAMLError | None]:
    builder = _Builder(file, written)
    try:
        return builder.build(text), builder.found, None
    except yaml.MarkedYAMLError as error:
        return None, builder.found, error


_STAR = re.compile(r"(?<![^\s\[{,])\*")
"""A `*` where a value may begin."""

_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")


def _place(text: str, index: int) -> tuple[int, int]:
    head = text[:index]
    return head.count("\n") + 1, index - head.rfind("\n")


def _unquoted_star(text: str, error: yaml.MarkedYAMLError) -> int | None:
    """The index of the `*` that libyaml took for the beginning of an alias."""
    mark = error.context_mark
    if error.context != "while scanning an alias" or mark is None or text[mark.index : mark.index + 1] != "*":
        return None
    return int(mark.index)


def _syntax_error(text: str, file: str, error: yaml.MarkedYAMLError) -> Diagnostic:
    star = _unquoted_star(text, error)
    if star is not None:
        line, column = _place(text, star)
        return Diagnostic(Origin(file, line, column), _quote_star(_word(text, star)))
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
    what = ", ".join(part for part in (error.context, error.problem) if part)
    return Diagnostic(Origin(file, line, column), f"this is not YAML: {what}{_remedy(text, error)}")


def _word(text: str, index: int) -> str:
    found = re.compile(r"[^\s,\[\]{}]{1,256}").match(text, index)
    return found[0] if found else "*"


def _quote_star(word: str) -> str:
    return f'a plain value must not begin with * (YAML reads it as an alias); put it in quotes: "{word}"'


def _remedy(text: str, error: yaml.MarkedYAMLError) -> str:
    mark, begun = error.problem_mark, error.context_mark
    at = text[mark.index : mark.index + 1] if mark is not None else ""
    if at == "\t":
        return "; indent with spaces, not with a tab"
    if error.problem == "mapping values are not allowed in this context":
        return "; begin the line in the same column as the keys beside it, or put a value that contains ': ' in quotes"
    if at and at in "@`%:" and "expected ','" not in str(error.problem):
        return f"; put a value that begins with {at} in quotes"
    if error.problem == "did not find expected key" and begun is not None:
        return f"; keys of one mapping begin in the same column, here column {begun.column + 1}"
    if begun is not None and mark is not None and begun.line != mark.line:
        return f" (begun at line {begun.line + 1}, column {begun.column + 1})"
    return ""


class _Builder:
    """Turns events into a tree with a stack of its own, so that no input can exhaust Python's."""

    def __init__(self, file: str, written: str) -> None:
        """`written`: the text as it is in the file; what is built may have letters for the `*` of unquoted patterns."""
        self.found: list[Diagnostic] = []
        self._file = file
        self._written = written
        self._root: Node | None = None
        self._open: list[Items | Fields] = []
        self._keys: list[tuple[str, int, int] | None] = []
        """For each open mapping, the key that waits for its value."""

    def build(self, text: str) -> Node | None:
        documents = 0
        for event, kind, line, column in _events(text):
            if kind is yaml.ScalarEvent:
                self._refuse_extras(event, line, column)
                self._add(self._scalar(event, line, column))
            elif kind is yaml.SequenceEndEvent or kind is yaml.MappingEndEvent:
                self._close()
            elif kind is yaml.SequenceStartEvent or kind is yaml.MappingStartEvent:
                self._refuse_extras(event, line, column)
                if not self._begin(Items(line, column) if kind is yaml.SequenceStartEvent else Fields(line, column)):
                    return None
            elif kind is yaml.AliasEvent:
                self._report(line, column, _quote_star("*" + event.anchor))
                self._add(Unreadable(line, column))
            elif kind is yaml.DocumentStartEvent:
                documents += 1
                if documents == 2:
                    self._report(line, column, "a second document begins here; keep one document in a file")
                    break
        return self._root

    def _scalar(self, event: Any, line: int, column: int) -> Node:
        plain = event.style == ""
        if plain and event.value[:1] == "_":
            at = event.start_mark.index
            if self._written[at] == "*":
                self._report(line, column, _quote_star(_word(self._written, at)))
                return Unreadable(line, column)
        return Scalar(event.value, plain, line, column)

    def _report(self, line: int, column: int, text: str) -> None:
        self.found.append(Diagnostic(Origin(self._file, line, column), text))

    def _refuse_extras(self, event: Any, line: int, column: int) -> None:
        if event.anchor is not None:
            self._report(line, column, f"anchors are not supported; remove &{event.anchor} and write the value out")
        if event.tag is not None:
            self._report(line, column, f"tags are not supported; remove {event.tag}")

    def _begin(self, node: Items | Fields) -> bool:
        if len(self._open) == DEEPEST:
            self._report(node.line, node.column, f"nested deeper than {DEEPEST} levels")
            return False
        self._add(node)
        self._open.append(node)
        self._keys.append(None)
        return True

    def _close(self) -> None:
        self._open.pop()
        self._keys.pop()

    def _add(self, node: Node) -> None:
        if not self._open:
            self._root = node
            return
        top = self._open[-1]
        if isinstance(top, Items):
            top.items.append(node)
            return
        key = self._keys[-1]
        if key is None:
            self._keys[-1] = self._key(node)
            return
        self._keys[-1] = None
        self._set(top, key, node)

    def _key(self, node: Node) -> tuple[str, int, int]:
        if isinstance(node, Scalar):
            return node.text, node.line, node.column
        if not isinstance(node, Unreadable):
            self._report(node.line, node.column, "a key must be one word, not a list or a mapping")
        return "", 0, 0

    def _set(self, mapping: Fields, key: tuple[str, int, int], value: Node) -> None:
        text, line, column = key
        if not line:
            return
        if text in mapping.keys:
            first = mapping.keys[text][0]
            self._report(line, column, f"'{text}' is written twice (first in line {first}); keep one")
            return
        mapping.keys[text] = (line, column)
        mapping.fields[text] = value


def _events(text: str) -> Iterator[tuple[Any, type[yaml.Event], int, int]]:
    """Each event with its class and its 1-based line and column."""
    parser = CParser(text)
    try:
        while (event := parser.get_event()) is not None:
            mark: Any = event.start_mark
            yield event, type(event), mark.line + 1, mark.column + 1
    finally:
        parser.dispose()
