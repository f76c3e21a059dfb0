"""`python -m tests.contract`: generated scenarios over the kernel and the enforcer in memory at once, or measurements.

    --cases 20000    send at least so many packets; each must be decided by both as its rules say (root)
    --seed 7         which scenarios; without it others each time
    --measure        how long changes take, and leases while another process writes (root)

Exit codes: 0 all decided alike, 1 not, 77 not root.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys

import hypothesis
from hypothesis import HealthCheck, given, settings

from tests.contract.generator import Scenario, scenarios
from tests.contract.measure import measure
from tests.contract.nftables import started
from tests.contract.scenario import misjudged, packets
from tests.contract.subject import MemorySubject
from tests.node.nftables_lab import LAYOUT

PER_LAB = 100_000
"""Packets after which a fresh lab is made: connection tracking remembers what passed for minutes."""


def play(cases: int, seed: int, *, own: bool) -> int:
    """Scenarios until so many packets were sent; the number sent. Raises AssertionError with the smallest scenario
    that is decided wrongly."""
    sent = 0
    with asyncio.Runner() as runner:
        context = started(LAYOUT, own=own)
        kernel = runner.run(context.__aenter__())
        memory = MemorySubject(kernel.crowd)

        @hypothesis.seed(seed)
        @settings(max_examples=max(1, cases // _size(kernel.crowd)), deadline=None, database=None, print_blob=False,
                  suppress_health_check=list(HealthCheck))
        @given(scenarios(kernel.crowd))
        def every(scenario: Scenario) -> None:
            nonlocal sent
            sent += len(packets(scenario))
            for subject in (memory, kernel):
                assert runner.run(misjudged(subject, scenario)) == [], subject

        try:
            every()
        finally:
            runner.run(context.__aexit__(None, None, None))
    return sent
