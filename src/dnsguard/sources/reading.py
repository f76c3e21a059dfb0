"""What the readers of a policy file share: typed access to a tree of positions, and the list of findings."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from dnsguard.config.diagnostics import Diagnostic, Severity, nearest
from dnsguard.config.positions import Ambiguous, Fields, Items, Node, Scalar, Unreadable, resolve
from dnsguard.core.model import Origin

_UNSPACED = re.compile(r"[\w./]+:[\[{]|[a-zA-Z]+:\S")
"""`key:[value]` and `key:value`, which YAML reads as one text."""
COMPARISONS = 100_000
"""Words that are compared in search of the nearest, in one file: about a second."""


class Findings:
    """The errors and warnings of one file, each at a node or at a key."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.found: list[Diagnostic] = []
        self.errors = 0
        """How many of `found` are errors."""
        self._comparisons = COMPARISONS

    def origin(self, node: Node) -> Origin:
        return Origin(self.file, node.line, node.column)

    def error(self, node: Node, text: str) -> None:
        self.error_at(self.origin(node), text)

    def warn(self, node: Node, text: str) -> None:
        self.found.append(Diagnostic(self.origin(node), text, Severity.WARNING))

    def error_at(self, origin: Origin, text: str) -> None:
        self.errors += 1
        self.found.append(Diagnostic(origin, text))

    def nearest(self, word: str, known: Collection[str]) -> str:
        """As `diagnostics.nearest`, until a file with very many wrong words has had its share of comparisons."""
        self._comparisons -= len(known)
        return nearest(word, known) if self._comparisons > 0 else ""

    def warn_at(self, origin: Origin, text: str) -> None:
        self.found.append(Diagnostic(origin, text, Severity.WARNING))

    def key(self, fields: Fields, key: str) -> Origin:
        line, column = fields.keys[key]
        return Origin(self.file, line, column)

    def text(self, node: Node, what: str) -> str | None:
        """The text of a scalar that YAML reads as text, or None with an error."""
        if isinstance(node, Scalar):
            value = resolve(node)
            if isinstance(value, str):
                return value
            if value is None:
                self.error(node, f"nothing is written here; write {what}")
            elif isinstance(value, Ambiguous):
                self.error(node, f'readers of YAML disagree about {node.text}; put it in quotes: "{node.text}"')
            else:
                self.error(node, f'YAML reads {node.text} as {_kind(value)}; put it in quotes: "{node.text}"')
        elif not isinstance(node, Unreadable):
            self.error(node, f"must be {what}, not {shape(node)}")
        return None

    def integer(self, node: Node, what: str) -> int | None:
        if isinstance(node, Scalar):
            value = resolve(node)
            if type(value) is int:
                return value
            shown = node.text if node.plain else f'"{node.text}"'
            self.error(node, f"must be {what}, without quotes, not {shown or 'nothing'}")
        elif not isinstance(node, Unreadable):
            self.error(node, f"must be {what}, not {shape(node)}")
        return None

    def items(self, node: Node, what: str) -> list[Node]:
        """The items of a list; empty with an error when it is something else."""
        if isinstance(node, Items):
            return node.items
        if not isinstance(node, Unreadable):
            self.error(node, f"must be {what}, not {shape(node)}")
        return []

    def fields(self, node: Node, what: str) -> Fields | None:
        if isinstance(node, Fields):
            return node
        if not isinstance(node, Unreadable):
            self.error(node, f"must be {what}, not {shape(node)}")
        return None

    def known(self, fields: Fields, keys: tuple[str, ...]) -> Iterator[tuple[str, Node]]:
        """The entries whose keys are known; the others become errors at the key."""
        for key, value in fields.fields.items():
            if key in keys:
                yield key, value
            else:
                hint = self.nearest(key, keys) or f"; known here: {', '.join(keys)}"
                self.error_at(self.key(fields, key), f"unknown key '{key}'{hint}")


def shape(node: Node) -> str:
    if isinstance(node, Items):
        return "a list"
    if isinstance(node, Fields):
        return "a mapping"
    if not isinstance(node, Scalar) or not node.text:
        return "nothing"
    return f"{node.text} (a space is missing after the colon)" if _UNSPACED.match(node.text) else node.text


def _kind(value: object) -> str:
    return "true or false" if isinstance(value, bool) else "a number"
