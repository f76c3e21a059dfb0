"""Every scenario of the YAML files beside this one."""

from __future__ import annotations

import pytest

from tests.replay.script import Scenario, play, scenarios


@pytest.mark.parametrize("scenario", list(scenarios()), ids=lambda s: f"{s.file}: {s.title}")
def test_it_plays_as_written(scenario: Scenario) -> None:
    play(scenario)
