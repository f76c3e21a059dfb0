"""SIGINT, SIGTERM and SIGHUP as an exception that is raised only while the demo waits.

What is being made or removed is never left half done: a signal that arrives meanwhile is raised by the next wait, and
clean-up, which does not wait in this sense, runs to its end however often Ctrl-C is pressed.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final, Self

from dnsguard.core.model import Seconds

HEARD: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL: Final[Seconds] = 0.05


class Interrupted(BaseException):
    """Someone wants the demo to end; `number` is the signal's. Not an Exception: nothing on the way may take it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Interrupts:
    """`with Interrupts() as interrupts:` hears the signals, in the main thread, until the block ends."""

    def __init__(self) -> None:
        self.number: int | None = None
        """The first signal that arrived."""
        self._waiting = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._arrived) for number in HEARD}
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, a signal raises Interrupted wherever it finds the program; so does one that came before."""
        self._waiting = True
        try:
            self.check()
            yield
        finally:
            self._waiting = False

    def check(self) -> None:
        """Raise Interrupted when a signal came: what looks wrong since may be its doing."""
        if self.number is not None:
            raise Interrupted(self.number)

    def until(self, condition: Callable[[], bool], seconds: Seconds) -> bool:
        """Wait until `condition()` is true; False when it was not in time."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                return False
            with self.waiting():
                time.sleep(POLL)
        return True

    def forever(self) -> None:
        """Wait for a signal, which is raised."""
        with self.waiting():
            while True:
                time.sleep(3600)

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number
        if self._waiting:
            raise Interrupted(self.number)
