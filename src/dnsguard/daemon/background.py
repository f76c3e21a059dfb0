"""What runs until the stop: work done again and again, each piece contained, so that a defect costs one turn."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from dnsguard.core.model import Seconds
from dnsguard.engine.contracts import EventKind, Events
from dnsguard.engine.counters import Counters

Work = Callable[[], Awaitable[None]]


class Background:
    """The last boundary of everything that is not one packet's."""

    def __init__(self, events: Events, counters: Counters) -> None:
        self._events = events
        self._counters = counters

    async def every(self, seconds: Seconds, where: str, do: Work) -> None:
        """Do it so many seconds after it was done."""
        while True:
            await asyncio.sleep(seconds)
            await self._contained(where, do)

    async def whenever(self, asked: asyncio.Event, where: str, do: Work) -> None:
        """Do it each time that somebody asks; those who ask meanwhile share the next time."""
        while True:
            await asked.wait()
            asked.clear()
            await self._contained(where, do)

    async def _contained(self, where: str, do: Work) -> None:
        try:
            await do()
        except Exception as error:
            self.defect(where, error)
        if (task := asyncio.current_task()) is not None and task.cancelling():
            raise asyncio.CancelledError  # an error of some clean-up has taken its place

    def defect(self, where: str, error: Exception) -> None:
        """Count and tell an error that nobody expected; the daemon goes on."""
        self._counters.internal_errors[where] += 1
        told = f"{type(error).__name__}: {error}"
        self._events.emit(EventKind.INTERNAL_ERROR, where=where, reason=told, exc_info=error)
