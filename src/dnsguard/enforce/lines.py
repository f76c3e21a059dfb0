"""One enforcer made of two lines: a packet passes only when both let it.

A line does its work at once, in the writer's thread. The first is the base, whose changes are transactions; the
second can do a change in steps, so that what may fail in it has not failed when the first goes over.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol

from dnsguard.core.model import Flow, Pair
from dnsguard.enforce.denials import Audited
from dnsguard.enforce.writer import OnCommit
from dnsguard.engine.contracts import Desired, Element, Held, Write

_NOT_THERE = ("ENFILE", "ENOENT")
"""Reasons of a refusal that no element stays after: there is no room for it, or no set. After another, like ENOMEM,
one that was there is there still."""


class Line(Protocol):
    """What an enforcer does, without waiting. Every method raises KernelError when the kernel refuses."""

    def arm(self, writes: Sequence[Write]) -> Mapping[Element, str]:
        """Make or refresh these elements; returns those refused, with the reason. The others are real."""

    def drop(self, elements: Collection[Element]) -> None:
        """Take these elements out, present or not."""

    def apply(self, desired: Desired, add: Sequence[Write], remove: Collection[Element]) -> None:
        """Go over to `desired`. When it raises, what was in force is in force."""

    def cut(self, flows: Collection[Flow]) -> None: ...

    def uncut(self, flows: Collection[Flow]) -> None: ...

    def audit(self, on: bool) -> None:
        """Let through what no rule accepts, or drop it again. When it raises, nothing has changed."""

    def audited(self) -> Sequence[Audited]:
        """What was let through for no other reason, where the line records it."""

    def read(self) -> Sequence[Held]:
        """Every element that is alive."""

    def running(self) -> Mapping[Pair, str]:
        """The program that each pair runs in the kernel."""

    def cut_before(self) -> Sequence[Flow]:
        """The flows that are cut: at the start those that an earlier process has cut."""


class Second(Line, Protocol):
    """A line whose `apply` can be done in steps: `prepare`, and then `turn` and `finish`, or `undo`."""

    @property
    def empty(self) -> bool:
        """Nothing was ever asked of it."""

    def prepare(self, desired: Desired, add: Sequence[Write]) -> None: ...

    def turn(self) -> None: ...

    def finish(self, remove: Collection[Element]) -> None: ...

    def undo(self) -> None: ...

    def learn(self, scopes: Iterable[str]) -> None:
        """Names of scopes, by which it can read what an earlier process left."""

    def keep(self, elements: Collection[Element]) -> None:
        """Take out all other elements."""


class Both:
    """A `Line`. A second line that begins empty is given by the first `apply` what the first line holds.

    `on_second` is told of what the second line's part of a commit took, before whoever times the whole of it.
    """

    def __init__(self, first: Line, second: Second, on_second: OnCommit = lambda seconds, elements: None) -> None:
        self._first, self._second = first, second
        self._on_second = on_second
        self._begins = second.empty

    def reconcile(self) -> None:
        """At the start: what only one of them holds is taken out of it."""
        if self._begins:
            return
        in_first = self._first.read()
        self._second.learn({held.scope for held in in_first})
        first, second = _elements(in_first), _elements(self._second.read())
        self._second.keep(first & second)
        if first - second:
            self._first.drop(first - second)

    def arm(self, writes: Sequence[Write]) -> Mapping[Element, str]:
        begun = time.monotonic()
        refused = self._second.arm(writes)
        self._on_second(time.monotonic() - begun, len(writes) - len(refused))
        left = [each for each in writes if Element(each.scope, each.key) not in refused] if refused else writes
        if not left:
            return refused
        by_first = self._first.arm(left)
        if not by_first:
            return refused
        self._withdraw(by_first)
        return {**refused, **by_first}

    def _withdraw(self, refused: Mapping[Element, str]) -> None:
        """What the first line has not, the second need not have. What it was refused to refresh it still has."""
        self._second.drop([element for element, why in refused.items() if why in _NOT_THERE])

    def drop(self, elements: Collection[Element]) -> None:
        self._first.drop(elements)
        self._second.drop(elements)

    def apply(self, desired: Desired, add: Sequence[Write], remove: Collection[Element]) -> None:
        self._second.prepare(desired, [*self._given(desired, remove), *add] if self._begins else add)
        try:
            self._first.apply(desired, add, remove)
        except BaseException:
            self._second.undo()
            raise
        self._begins = False
        self._second.turn()
        self._second.finish(remove)

    def _given(self, desired: Desired, remove: Collection[Element]) -> list[Write]:
        scopes = {rule.scope.name for program in desired.programs for rule in program.rules if rule.scope}
        return [
            Write(*held) for held in self._first.read() if held.scope in scopes and Element(*held[:2]) not in remove
        ]

    def cut(self, flows: Collection[Flow]) -> None:
        """In both, whatever one of them refuses."""
        try:
            self._second.cut(flows)
        finally:
            self._first.cut(flows)

    def uncut(self, flows: Collection[Flow]) -> None:
        try:
            self._second.uncut(flows)
        finally:
            self._first.uncut(flows)

    def audit(self, on: bool) -> None:
        """The first alone can refuse. In Audit the second is silent: what the first records is all there is."""
        self._first.audit(on)
        self._second.audit(on)

    def audited(self) -> Sequence[Audited]:
        return self._first.audited()

    def read(self) -> list[Held]:
        """What both hold, with the shorter time."""
        first = self._first.read()
        if self._begins:
            return list(first)
        self._second.learn({held.scope for held in first})
        left = {Element(held.scope, held.key): held.remaining_ms for held in self._second.read()}
        shared = [(held, left[element]) for held in first if (element := Element(*held[:2])) in left]
        return [Held(held.scope, held.key, min(held.remaining_ms, ms)) for held, ms in shared]

    def running(self) -> Mapping[Pair, str]:
        """Where both agree."""
        first = self._first.running()
        second = first if self._begins else self._second.running()
        return {pair: program for pair, program in first.items() if second.get(pair) == program}

    def cut_before(self) -> list[Flow]:
        return list(dict.fromkeys((*self._first.cut_before(), *self._second.cut_before())))


def _elements(held: Iterable[Held]) -> set[Element]:
    return {Element(each.scope, each.key) for each in held}
