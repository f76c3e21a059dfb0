"""An upstream without sockets or a clock: answers from a script, for tests that run on virtual time.

A shipped double of `contracts.Upstream`, with its promises: each attempt ends in one call of `answered` or `failed`,
unless it is abandoned before. It also remembers what it was asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from dnsguard.core.model import Name, Seconds
from dnsguard.engine.contracts import Attempt
from dnsguard.upstream.matching import Reports, identifiers

Later = Callable[[Seconds, Callable[[], None]], object]
"""`later(delay, do)`: call `do()` when that much virtual time has passed, as an event loop's `call_later` would."""

Respond = Callable[[bytes], bytes]
"""The whole reply to a whole query."""


class Answer(NamedTuple):
    """Reply so, after `delay`. The reply must carry the query's ID and question; only real sockets check that."""

    respond: Respond
    delay: Seconds = 0.0


class Failure(NamedTuple):
    """Call `failed` with this reason (`refused`, `closed`, `garbage` ...) after `delay`."""

    reason: str
    delay: Seconds = 0.0


class Silence(NamedTuple):
    """Never reply: the engine's own time-out ends the attempt."""


Step = Answer | Failure | Silence


class Asked(NamedTuple):
    """One attempt as it arrived."""

    name: Name
    qtype: int
    server: int
    stream: bool


@dataclass(slots=True)
class _Waiting:
    """Hangs on an attempt's handle while it is under way."""

    query: bytes


class ScriptedUpstream:
    """`script(name, type, steps)` says how the next attempts for a question end; the last step stays for later ones.

    A question without a script is met with silence.
    """

    def __init__(self, reports: Reports, later: Later) -> None:
        self._reports, self._later = reports, later
        self._identifier = identifiers().__next__
        self._scripts: dict[tuple[Name, int, int | None], list[Step]] = {}
        self.asked: list[Asked] = []
        self.outstanding = 0
        """Attempts neither ended nor abandoned: 0 at the end of a test, or something was left behind."""

    def script(self, name: Name, qtype: int, steps: Iterable[Step], *, server: int | None = None) -> None:
        """Replaces what was said of this question, for one server or (None) for all without a script of their own."""
        self._scripts[name, qtype, server] = list(steps)

    def ask(self, attempt: Attempt) -> None:
        name, qtype = Name(attempt.section[:-4].lower()), int.from_bytes(attempt.section[-4:-2])
        self.asked.append(Asked(name, qtype, attempt.server, attempt.stream))
        waiting = _Waiting(self._identifier() + attempt.query)
        attempt.handle = waiting
        self.outstanding += 1
        step = self._step(name, qtype, attempt.server)
        if not isinstance(step, Silence):
            self._later(step.delay, lambda: self._end(attempt, waiting, step))

    def abandon(self, attempt: Attempt, *, timed_out: bool) -> None:
        if attempt.handle is not None:
            attempt.handle = None
            self.outstanding -= 1

    def _step(self, name: Name, qtype: int, server: int) -> Step:
        steps = self._scripts.get((name, qtype, server)) or self._scripts.get((name, qtype, None))
        if not steps:
            return Silence()
        return steps.pop(0) if len(steps) > 1 else steps[0]

    def _end(self, attempt: Attempt, waiting: _Waiting, step: Answer | Failure) -> None:
        if attempt.handle is not waiting:
            return  # It was abandoned, and perhaps asked again since.
        self.abandon(attempt, timed_out=False)
        if isinstance(step, Failure):
            self._reports.failed(attempt, step.reason)
        else:
            self._reports.answered(attempt, step.respond(waiting.query))
