"""A daemon that hangs, as a whole or in one thread, is ended and replaced. Closed meanwhile, whole soon after."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from dnsguard.enforce.bpf.events import dropped
from dnsguard.enforce.bpf.syscall import Map, get_pinned
from tests.host import hanging
from tests.host.faults import drop_in
from tests.host.host import UNIT, Host, hosting
from tests.host.troubles import (
    PATIENCE,
    WHOLE,
    answered,
    entries,
    events,
    flow_of,
    fresh_name,
    is_whole,
    restarts,
)
from tests.host.watch import closed

pytestmark = pytest.mark.node

FRESH = "198.18.0.9"
COUNTS = "sys/fs/bpf/dnsguard/maps/counts"
PROGRAM = "/usr/lib/hanging.py"
HANGING = f"ExecStart=\nExecStart=/opt/dnsguard/bin/python -I {PROGRAM} run\nWatchdogSec=3\nTimeoutStartSec=5"
ENDS = {
    "Watchdog timeout": "it hung, and the watchdog ended it",
    "start operation timed out": "it took too long to start, reload or stop, and systemd killed it",
}
"""What systemd says, and then the daemon."""
STACKS = "Fatal Python error: Aborted"


@pytest.fixture(scope="module")
def node(image: Path) -> Iterator[Host]:
    with hosting([image]) as host:
        host.scene.zone.put("*.fresh.example.com", "A", FRESH)
        yield host


@pytest.fixture(scope="module")
def hangs(node: Host) -> Iterator[Host]:
    """The node, from here on with a daemon that hangs where `ask` says, and a systemd that waits some seconds only."""
    node.machine.write(PROGRAM, Path(hanging.__file__).read_text())
    with drop_in(node, "hanging", HANGING):
        node.machine.systemctl("restart", UNIT)
        yield node


def ask(host: Host, place: str) -> None:
    host.machine.write(str(hanging.ASKED / place), "")


@contextlib.contextmanager
def replaced(host: Host, why: str, times: int = 1) -> Iterator[None]:
    """Inside, the daemon comes to hang. systemd says why it ends it and the daemon where its threads are; until another
    is there all is closed, and soon whole with that one, which has told how the one before was ended."""
    before, ended, stacks = restarts(host), entries(host, why), entries(host, STACKS)
    told = len(events(host, "ended_badly"))
    with flow_of(host) as flow:
        with closed(host):
            yield
            host.until(lambda: restarts(host) >= before + times, PATIENCE)
        host.until(lambda: is_whole(host), WHOLE)
        assert flow.alive()
    assert restarts(host) == before + times
    assert (entries(host, why), entries(host, STACKS)) == (ended + 1, stacks + 1)
    ends = events(host, "ended_badly")[told:]
    assert len(ends) == times
    assert ends[-1]["DNSGUARD_REASON"] == ENDS[why]


def unheard(host: Host) -> int:
    """Queries that eBPF has dropped because no daemon had vouched for their being heard."""
    with contextlib.closing(Map(get_pinned(host.machine.root / COUNTS))) as counts:
        return sum(one.packets for one in dropped(counts) if one.reason == "listener")


def test_a_daemon_that_stands_still_is_replaced_by_the_unit_as_it_is_shipped(node: Host) -> None:
    """It is silent for longer than eBPF lets queries up without a daemon."""
    before = unheard(node)
    assert node.machine.show(UNIT, "WatchdogUSec") == {"WatchdogUSec": "20s"}

    with replaced(node, "Watchdog timeout"):
        node.daemon.signal(signal.SIGSTOP)
        assert answered(node, fresh_name()) == []

    assert unheard(node) > before


def test_a_daemon_whose_loop_hangs_while_its_threads_go_on_is_replaced(hangs: Host) -> None:
    with replaced(hangs, "Watchdog timeout"):
        ask(hangs, hanging.LOOP)
        hangs.until(lambda: answered(hangs, fresh_name()) == [])


def test_a_daemon_whose_writer_hangs_while_its_loop_turns_is_replaced(hangs: Host) -> None:
    with replaced(hangs, "Watchdog timeout"):
        ask(hangs, hanging.WRITER)
        assert answered(hangs, fresh_name()) == []
        assert hangs.daemon.ready()  # says the loop


def test_a_start_whose_writer_hangs_is_ended_and_the_next_one_gets_ready(hangs: Host) -> None:
    with replaced(hangs, "start operation timed out", times=2):
        ask(hangs, hanging.TAKE_OVER)
        hangs.daemon.signal(signal.SIGKILL)
