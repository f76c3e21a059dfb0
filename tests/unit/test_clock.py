"""Steps of the wall clock are told, each once, and nothing else about it is."""

from __future__ import annotations

import pytest

from dnsguard.daemon.clock import STEP, ClockSteps
from dnsguard.engine.contracts import EventKind
from tests.replay.stage import Told


class Clocks:
    wall = 1_800_000_000.0
    steady = 50.0


@pytest.mark.parametrize(("jump", "way"), [(86_400.0, "ahead"), (-86_400.0, "back"), (STEP, "ahead")])
async def test_a_step_is_told_once(jump: float, way: str) -> None:
    clocks, told = Clocks(), Told()
    steps = ClockSteps(told, lambda: clocks.wall, lambda: clocks.steady)
    clocks.wall += jump + 5.0
    clocks.steady += 5.0

    await steps.look()
    await steps.look()

    assert told.events == [(EventKind.CLOCK_STEPPED, {"seconds": abs(jump), "way": way})]


async def test_time_that_passes_and_a_clock_that_is_bent_are_no_steps() -> None:
    clocks, told = Clocks(), Told()
    steps = ClockSteps(told, lambda: clocks.wall, lambda: clocks.steady)
    for _ in range(1000):
        clocks.wall += 5.5
        clocks.steady += 5.0
        await steps.look()

    assert told.events == []
