"""The wall clock, watched for steps: nothing is decided by it, but times in logs jump, and an operator asks why."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from dnsguard.core.model import Seconds
from dnsguard.engine.contracts import EventKind, Events

STEP: Final[Seconds] = 2.0
"""Between two looks. Time synchronisation that only bends the clock moves it by some milliseconds."""


class ClockSteps:
    """Compares the wall clock with one that nobody sets."""

    def __init__(
        self,
        events: Events,
        wall: Callable[[], Seconds] = time.time,
        steady: Callable[[], Seconds] = time.monotonic,
    ) -> None:
        self._events = events
        self._wall, self._steady = wall, steady
        self._ahead = wall() - steady()

    async def look(self) -> None:
        """Every few seconds."""
        before, self._ahead = self._ahead, self._wall() - self._steady()
        step = self._ahead - before
        if abs(step) >= STEP:
            self._events.emit(EventKind.CLOCK_STEPPED, seconds=round(abs(step)), way="ahead" if step > 0 else "back")
