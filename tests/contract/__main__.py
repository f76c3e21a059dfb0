"""`python -m tests.contract`: generated scenarios over every enforcer, or measurements.

    --cases 20000    send at least so many packets through nftables, through eBPF and through both; each has to be
                     decided there and in memory as its rules say. The smallest scenario that is not is printed
    --flows 1000     play so many histories of flows to nftables, to eBPF and to both; where they let different packets
                     there must be a reason in the table of tests/contract/flows_judge.py
    --seed 7         the scenarios of an earlier run; it prints its seed
    --measure        what changes cost, and leases while another process writes

Needs root. Exit codes: 0 all decided alike, 1 not, 77 not root.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

import hypothesis
from hypothesis import HealthCheck, given, settings

from dnsguard.core.model import Packet
from tests.contract import ebpf, flows_play
from tests.contract.flows import History, histories
from tests.contract.flows_judge import counted, wrong
from tests.contract.generator import Scenario, every_packet, scenarios
from tests.contract.measure import measure
from tests.contract.nftables import started
from tests.contract.scenario import decisions, packets
from tests.contract.subject import MemorySubject, Subject
from tests.node.nftables_lab import LAYOUT

MISSING = 77
AT_MOST = 400
"""Scenarios in one lab: what passed is remembered by connection tracking for minutes."""
AT_MOST_HISTORIES = 2000


class Answers(NamedTuple):
    """Whether one packet passed: by its rules read one by one, in memory, and in the kernel by each line and both."""

    rules: bool
    memory: bool
    nftables: bool
    ebpf: bool
    both: bool


@asynccontextmanager
async def subjects(*, own: bool) -> AsyncIterator[list[Subject]]:
    """In the order of `Answers`: one in memory, and three in fresh labs."""
    async with AsyncExitStack() as labs:
        kernels: list[Subject] = [
            await labs.enter_async_context(started(LAYOUT, own=own)),
            await labs.enter_async_context(ebpf.started(LAYOUT, own=own, beside_nftables=False)),
            await labs.enter_async_context(ebpf.started(LAYOUT, own=own, beside_nftables=True)),
        ]
        assert len({each.crowd for each in kernels}) == 1, "the labs' links have the same numbers"
        yield [MemorySubject(crowd=kernels[0].crowd), *kernels]


def play(examples: int, seed: int, *, own: bool) -> Counter[Answers]:
    """Scenarios in fresh labs. Raises AssertionError, with the smallest scenario found, where they do not agree."""
    counts: Counter[Answers] = Counter()
    with asyncio.Runner() as runner:
        labs = subjects(own=own)
        compared = runner.run(labs.__aenter__())

        @hypothesis.seed(seed)
        @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(scenarios(compared[0].crowd))
        def agree(scenario: Scenario) -> None:
            answers = runner.run(compare(scenario, compared))
            wrong = [(packet, each) for packet, each in answers if len(set(each)) > 1]
            assert not wrong, wrong[:5]
            counts.update(each for _, each in answers)

        try:
            agree()
        finally:
            runner.run(labs.__aexit__(None, None, None))
    return counts


async def compare(scenario: Scenario, compared: Sequence[Subject]) -> list[tuple[Packet, Answers]]:
    passed = [await decisions(subject, scenario) for subject in compared]
    return [
        (packet, Answers(scenario.expected(pod, packet), *each))
        for (pod, packet), *each in zip(packets(scenario), *passed, strict=True)
    ]


def run(cases: int, seed: int) -> None:
    """Labs, by turns with an owned table and one that others may change, until so many packets were sent."""
    counts: Counter[Answers] = Counter()
    size = len(MemorySubject.crowd) * len([*every_packet(MemorySubject.crowd[0])])
    turn = 0
    while (left := cases - counts.total()) > 0:
        counts += play(min(AT_MOST, -(-left // size)), seed + turn, own=turn % 2 == 0)
        turn += 1
    passed = sum(number for answers, number in counts.items() if answers.rules)
    print(f"{counts.total()} packets decided alike, {passed} of them let through")


def play_flows(number: int, seed: int) -> None:
    """So many histories, in fresh labs now and then. Raises AssertionError, with the smallest that is wrong."""
    counts: Counter[str] = Counter()
    for turn, begin in enumerate(range(0, number, AT_MOST_HISTORIES)):
        counts += _histories(min(AT_MOST_HISTORIES, number - begin), seed + turn)
    print(f"{number} histories: " + ", ".join(f"{count} {what}" for what, count in counts.most_common()))


def _histories(number: int, seed: int) -> Counter[str]:
    counts: Counter[str] = Counter()
    with asyncio.Runner() as runner:
        made = flows_play.labs()
        labs = runner.run(made.__aenter__())

        @hypothesis.seed(seed)
        @settings(max_examples=number, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(histories())
        def agree(history: History) -> None:
            fates = runner.run(labs.play(history))
            found = wrong(fates)
            assert not found, found[:5]
            counts.update(counted(fates))

        try:
            agree()
        finally:
            runner.run(made.__aexit__(None, None, None))
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.contract", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--flows", type=int, metavar="HISTORIES")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--measure", action="store_true")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("the tests of the kernel's tables need root", file=sys.stderr)
        return MISSING
    if options.measure:
        asyncio.run(measure())
        return 0
    print(f"seed {options.seed}", flush=True)
    try:
        if options.flows:
            play_flows(options.flows, options.seed)
        else:
            run(options.cases, options.seed)
    except AssertionError as error:
        print(error, *getattr(error, "__notes__", ()), sep="\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
