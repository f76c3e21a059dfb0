"""The kernel's counters at a scrape: fresh, read by one at a time, and never waited for without end."""

from __future__ import annotations

import asyncio
import threading

import pytest

from dnsguard.daemon import kernel_counters
from dnsguard.daemon.gauges import stuck
from dnsguard.daemon.kernel_counters import FRESH, KernelCounters
from dnsguard.daemon.supervision import STUCK
from dnsguard.enforce.enforcer import LineEnforcer


class Kernel:
    """Readings that a test holds up or breaks."""

    def __init__(self) -> None:
        self.now = 100.0
        self.read = 0
        self.at_once = 0
        self.most_at_once = 0
        self.go = asyncio.Event()
        self.go.set()
        self.error: Exception | None = None
        self.defects: list[tuple[str, Exception]] = []
        self.counters = KernelCounters([self.reading], lambda: self.now, lambda *told: self.defects.append(told))

    async def reading(self) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.go.wait()
            if self.error is not None:
                raise self.error
            self.read += 1
        finally:
            self.at_once -= 1


@pytest.fixture
async def kernel() -> Kernel:
    return Kernel()


async def test_a_scrape_reads_the_kernel(kernel: Kernel) -> None:
    await kernel.counters.fresh()
    assert kernel.read == 1
    assert kernel.counters.age == 0.0


async def test_what_was_just_read_is_not_read_again(kernel: Kernel) -> None:
    await kernel.counters.fresh()
    kernel.now += FRESH / 2
    await kernel.counters.fresh()
    assert kernel.read == 1
    kernel.now += FRESH
    await kernel.counters.fresh()
    assert kernel.read == 2


async def test_scrapes_and_the_background_share_one_reading(kernel: Kernel) -> None:
    kernel.go.clear()
    waiting = [asyncio.create_task(call()) for call in (kernel.counters.read, *[kernel.counters.fresh] * 5)]
    await asyncio.sleep(0)
    kernel.go.set()
    await asyncio.gather(*waiting)
    assert (kernel.read, kernel.most_at_once) == (1, 1)


async def test_a_kernel_that_does_not_answer_holds_up_no_scrape(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_counters, "PATIENCE", 0.01)
    kernel.go.clear()
    await kernel.counters.fresh()
    await kernel.counters.fresh()
    assert (kernel.read, kernel.most_at_once) == (0, 1)
    kernel.now += 7
    assert kernel.counters.age == 7.0
    await kernel.counters.close()
    assert kernel.at_once == 0


async def test_a_reading_that_fails_is_told_and_the_age_grows(kernel: Kernel) -> None:
    kernel.error = OSError("no such table")
    await kernel.counters.fresh()
    kernel.now += 3
    assert kernel.counters.age == 3.0
    assert kernel.defects == [("kernel counters", kernel.error)]


async def test_a_scraper_that_goes_away_ends_no_reading(kernel: Kernel) -> None:
    kernel.go.clear()
    scraper = asyncio.create_task(kernel.counters.fresh())
    await asyncio.sleep(0)
    scraper.cancel()
    with pytest.raises(asyncio.CancelledError):
        await scraper
    kernel.go.set()
    await kernel.counters.read()
    assert kernel.read == 1


async def test_a_writer_that_stands_still_is_not_alive() -> None:
    enforcer, go = LineEnforcer(lambda upto, refused: None), threading.Event()
    working = enforcer.do(lambda: go.wait(10))
    while enforcer.busy_since is None:
        await asyncio.sleep(0)
    now = enforcer.busy_since
    assert stuck(enforcer, now + STUCK) == ""
    assert stuck(enforcer, now + STUCK + 1).endswith("at one piece of work for 11 s")
    go.set()
    await working
    await enforcer.close()
    assert stuck(enforcer, now + STUCK + 1) == ""
