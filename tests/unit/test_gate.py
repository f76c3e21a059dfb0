"""The gate: answers that wait for tickets, which settle in order."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pytest

from dnsguard.core.book import REFUSED, Armed
from dnsguard.core.lease import Lease, Write
from dnsguard.core.model import Address, PodId
from dnsguard.engine.gate import Exits, Gate

POD, OTHER = PodId(1), PodId(2)


class Box:
    """An enforcer that takes writes and says nothing, and what became of each answer. An answer is `pod:name`."""

    def __init__(self) -> None:
        self.ends: list[str] = []
        self.doubted: list[str] = []
        self.gate: Gate[str] = Gate(self, Exits(self._release, self._fail, self._doubt))  # type: ignore[arg-type]

    def arm(self, ticket: int, writes: Sequence[Write]) -> None: ...

    def _release(self, answer: str) -> None:
        self.ends.append(answer)

    def _fail(self, answer: str, reason: str) -> None:
        self.ends.append(f"{answer} {reason}")

    def _doubt(self, answer: str, pods: Collection[PodId]) -> None:
        if int(answer[0]) in pods:
            self.doubted.append(answer)

    def submit(self, pod: PodId = POD) -> Lease:
        """One lease under the next ticket."""
        lease = Lease(pod, "any", Address(b"\1\2\3\4"))
        lease.ticket, lease.written = self.gate.next_ticket, 40.0
        self.gate.submit(Armed([], [lease], lease.ticket), 0.0)
        return lease


@pytest.fixture
def box() -> Box:
    return Box()


def test_an_answer_leaves_when_its_ticket_is_settled_and_not_before(box: Box) -> None:
    box.submit()
    box.submit()
    box.gate.hold("1:a", 2, 0.0)

    box.gate.acknowledge(1, {})
    early = list(box.ends)
    box.gate.acknowledge(2, {})

    assert early == []
    assert box.ends == ["1:a"]


def test_what_is_settled_is_not_held(box: Box) -> None:
    box.submit()
    box.gate.acknowledge(1, {})

    assert not box.gate.hold("1:a", 1, 0.0)


def test_a_refused_ticket_fails_its_own_answers_and_doubts_those_of_its_pod(box: Box) -> None:
    lease = box.submit()
    box.submit()
    box.submit(OTHER)
    for ticket, answer in enumerate(["1:a", "1:b", "2:c"], 1):
        box.gate.hold(answer, ticket, 0.0)

    box.gate.acknowledge(3, {1: "full"})

    assert box.ends == ["1:a full", "1:b", "2:c"]
    assert box.doubted == ["1:a", "1:b"]
    assert lease.written == REFUSED


def test_an_answer_that_waits_a_second_fails_and_the_ticket_stays(box: Box) -> None:
    box.submit()
    box.gate.hold("1:a", 1, 0.0)
    box.gate.hold("1:b", 1, 0.5)

    box.gate.tick(1.2)

    assert box.ends == ["1:a the kernel did not acknowledge the address within 1 s"]
    assert box.gate.holding == 1
    box.gate.acknowledge(1, {})
    assert box.ends[1:] == ["1:b"]


def test_what_was_written_behind_a_change_waits_for_its_end(box: Box) -> None:
    change = box.gate.begin_change([], 0.0)
    box.submit()
    box.gate.hold("1:a", change, 0.0)
    box.gate.hold("1:b", 2, 0.0)

    box.gate.acknowledge(2, {})
    early = list(box.ends)
    box.gate.end_change(change, done=True)

    assert early == []
    assert box.ends == ["1:a", "1:b"]


def test_a_change_that_ends_before_earlier_writes_are_acknowledged_waits_for_them(box: Box) -> None:
    box.submit()
    change = box.gate.begin_change([], 0.0)
    box.gate.hold("1:a", 1, 0.0)
    box.gate.hold("1:b", change, 0.0)

    box.gate.end_change(change, done=True)
    early = list(box.ends)
    box.gate.acknowledge(1, {})

    assert early == []
    assert box.ends == ["1:a", "1:b"]


def test_a_change_that_was_not_done_doubts_whoever_counts_on_its_leases(box: Box) -> None:
    lease = Lease(POD, "any", Address(b"\1\2\3\4"))
    change = box.gate.begin_change([lease], 0.0)
    box.gate.hold("1:a", change, 0.0)
    box.gate.hold("2:b", change, 0.0)
    lease.written = 40.0

    box.gate.end_change(change, done=False, pods=[OTHER])

    assert box.doubted == ["1:a", "2:b"]
    assert box.ends == ["1:a", "2:b"]
    assert lease.written == REFUSED


def test_refusals_of_tickets_nobody_knows_are_nothing(box: Box) -> None:
    box.submit()

    box.gate.acknowledge(1, {7: "full"})

    assert box.gate.settled == 1
