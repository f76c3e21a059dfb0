"""Histories of flows: eBPF remembers by itself, and lets what connection tracking would have let. `flows.py` makes
them, `flows_play.py` plays them, and `flows_judge.py` has the reasons for what is decided otherwise."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings

from tests.contract.flows import TCP, History, Step, Talk, What, histories
from tests.contract.flows_judge import DEVIATIONS, SEEN_LESS, counted, wrong
from tests.contract.flows_play import Labs
from tests.contract.flows_play import labs as made

pytestmark = pytest.mark.node
WEB = (Talk(TCP, 40001, 443),)
SYN, ANSWERED = Step(What.SYN, 0, True), Step(What.SYN_ACK, 0, False)
ENDS = Step(What.LEASE_ENDS, 0, True)


@pytest_asyncio.fixture
async def labs() -> AsyncIterator[Labs]:
    async with made() as labs:
        yield labs


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(history=histories())
async def test_each_packet_of_a_history_has_the_same_fate_in_nftables_and_in_ebpf_or_there_is_a_reason(
    labs: Labs, history: History
) -> None:
    assert wrong(await labs.play(history)) == []


EXAMPLES = {
    "taken up by the peer": (Step(What.ACK, 0, False),),
    "invalid, towards the pod": (ENDS, Step(What.FIN, 0, False)),
    "invalid, or answered by what is": (Step(What.SYN, 0, False), ENDS, Step(What.FIN, 0, True)),
    "begun anew": (Step(What.ACK, 0, True), Step(What.ACK, 0, False), SYN, ENDS, Step(What.ACK, 0, True)),
    "reset by what is invalid": (
        *(Step(What.SYN, 0, False), Step(What.RST, 0, False), ENDS),
        *(Step(What.ACK, 0, False), Step(What.ACK, 0, True)),
    ),
    "not seen": (SYN, ANSWERED, ENDS, SYN, ANSWERED, Step(What.ACK, 0, True)),
}


@pytest.mark.parametrize("family", [4, 6])
async def test_every_deviation_that_has_a_reason_is_there(labs: Labs, family: int) -> None:
    assert set(EXAMPLES) == {each.name for each in (*DEVIATIONS, SEEN_LESS)}
    for name, steps in EXAMPLES.items():
        assert name in counted(await labs.play(History(family, WEB, steps)))
