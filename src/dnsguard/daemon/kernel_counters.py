"""What the kernel has counted, brought into the metrics: in the background, and once more when somebody scrapes.

The background reading is for what would be lost with a link or a table that goes. A scrape waits for its reading, but
only so long.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from dnsguard.core.model import Seconds

FRESH: Final[Seconds] = 1.0
"""What was read so short a time ago is not read again: scraping often must not keep the kernel busy."""
PATIENCE: Final[Seconds] = 2.0
"""How long a scrape waits for the kernel. Prometheus itself gives up after 10 s, unless told otherwise."""

Reading = Callable[[], Awaitable[None]]


class KernelCounters:
    """Brings what the kernel has counted into the metrics, one reading at a time.

    A reading that fails is told to `defect` and ends that turn, so that `age` grows. `close` in the end.
    """

    def __init__(
        self,
        readings: Sequence[Reading],
        now: Callable[[], Seconds],
        defect: Callable[[str, Exception], None],
    ) -> None:
        self._readings = tuple(readings)
        self._now = now
        self._defect = defect
        self._begun = now()
        self._read_at: Seconds | None = None
        self._reading: asyncio.Task[None] | None = None

    @property
    def age(self) -> Seconds:
        """How old the counters are."""
        return self._now() - (self._begun if self._read_at is None else self._read_at)

    async def read(self) -> None:
        """Read now, or join the reading under way."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())
        await asyncio.shield(self._reading)

    async def fresh(self) -> None:
        """At most FRESH old when it returns, or as old as they are after PATIENCE."""
        if self._read_at is not None and self.age < FRESH:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await self.read()

    async def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reading

    async def _read(self) -> None:
        for reading in self._readings:
            try:
                await reading()
            except Exception as error:
                self._defect("kernel counters", error)
                return
        self._read_at = self._now()
