"""A restart loses nothing: what a busy pod notices of it, on a node with an allowlist of 1,000 pods.

Every 5 ms a question over UDP and one over TCP, new connections to what was answered, ten open flows, and every other
millisecond tries of what is denied. A query counts as answered at the first try when the client did not have to send
it again; a TCP client connects again and repeats what was not answered.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.busy import Busy, busy_host, dying, nothing_is_lost_for_good
from tests.host.dying import BEFORE, BEHIND
from tests.host.host import UNIT, Host

pytestmark = pytest.mark.node


@pytest.fixture(scope="module")
def busy(image: Path) -> Iterator[Host]:
    with busy_host([image]) as host:
        yield host


@pytest.mark.parametrize("how", [("restart",), ("stop", "start")], ids=["restart", "stop and start"])
def test_a_planned_restart_is_not_noticed_but_for_the_wait(busy: Host, how: tuple[str, ...]) -> None:
    with Busy(busy) as traffic:
        before = busy.daemon.pid
        for verb in how:
            busy.machine.systemctl(verb, UNIT)

    assert busy.daemon.pid not in (0, before)
    nothing_is_lost_for_good(traffic.result)
    assert "retry" not in traffic.result["udp"], traffic.result


def test_a_killed_daemon_costs_a_query_under_way_one_retry_at_the_most(busy: Host) -> None:
    with Busy(busy) as traffic:
        before = busy.daemon.pid
        busy.daemon.signal(signal.SIGKILL)
        busy.until_replaced(before)

    nothing_is_lost_for_good(traffic.result)


def test_a_daemon_that_crashes_again_and_again_opens_nothing_and_loses_nothing(busy: Host) -> None:
    with Busy(busy) as traffic:
        for _ in range(3):
            before = busy.daemon.pid
            busy.daemon.signal(signal.SIGKILL)
            busy.until(lambda: busy.daemon.pid not in (0, before))  # noqa: B023
        busy.until(busy.daemon.ready)

    nothing_is_lost_for_good(traffic.result)


@pytest.mark.parametrize("where", [BEFORE, BEHIND])
def test_a_daemon_that_dies_in_the_middle_of_a_commit_opens_nothing_and_loses_nothing(busy: Host, where: str) -> None:
    with dying(busy) as die, Busy(busy) as traffic:
        die(busy, where)

    nothing_is_lost_for_good(traffic.result)


@pytest.mark.parametrize("verb", ["daemon-reload", "daemon-reexec"])
def test_systemd_reading_its_units_again_is_not_noticed(busy: Host, verb: str) -> None:
    with Busy(busy) as traffic:
        before = busy.daemon.pid
        busy.machine.systemctl(verb)

    assert busy.daemon.pid == before
    nothing_is_lost_for_good(traffic.result)
    assert "retry" not in traffic.result["udp"], traffic.result
    assert "retry" not in traffic.result["tcp"], traffic.result
