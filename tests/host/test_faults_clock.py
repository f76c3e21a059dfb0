"""The wall clock jumps a day ahead and a day back: nothing opens longer or shorter, and nothing ends.

Only for the service, by libfaketime: the machine's clock is not touched.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dnsguard.control.client import ControlClient
from tests.host.host import UNIT, Host, hosting
from tests.host.troubles import answered, events, fresh_name, is_whole
from tests.host.watch import closed
from tests.node.scene import DB

pytestmark = pytest.mark.node

CLOCK = "/run/clock"
FAKED = f"""[Service]
Environment=LD_PRELOAD=%s FAKETIME_TIMESTAMP_FILE={CLOCK} FAKETIME_NO_CACHE=1 FAKETIME_DONT_FAKE_MONOTONIC=1
"""
DAY = 86_400
FRESH = "198.18.0.9"
SHOWN = 60
"""The TTL of what the upstream tells; leases outlive it by ttl.grace, here 1 s."""


@pytest.fixture(scope="module")
def node(image: Path) -> Iterator[Host]:
    with hosting([image], start=False) as host:
        set_clock(host, 0)
        host.machine.write(f"/run/systemd/system/{UNIT}.d/clock.conf", FAKED % library(host))
        host.machine.systemctl("daemon-reload")
        host.scene.zone.put("*.fresh.example.com", "A", FRESH)
        host.daemon.start()
        yield host


def library(host: Host) -> str:
    """Where the package has put it: in a folder that is named after the machine's architecture."""
    listed = host.machine.run("dpkg-query", "--listfiles", "libfaketime").stdout.split()
    return next(path for path in listed if path.endswith("/libfaketimeMT.so.1"))


def set_clock(host: Host, seconds: int) -> None:
    """Set the service's clock so far from the machine's."""
    host.machine.write(CLOCK, f"{seconds:+d}\n")


def last_seen(host: Host) -> float:
    """When learn says that shop/a was last seen, in seconds of the service's clock."""
    return max(float(row["last"]) for row in host.daemon.ask("learn") if row["pod"] == "shop/a")


@pytest.mark.parametrize("jump", [DAY, -DAY], ids=["a day ahead", "a day back"])
def test_leases_and_ttls_do_not_notice_a_jump(node: Host, jump: int) -> None:
    scene, pid = node.scene, node.daemon.pid
    set_clock(node, 0)
    scene.zone.put("db.example.com", "A", DB, ttl=3)
    node.until(lambda: scene.lease_left(DB) == 0.0)
    assert scene.resolve(scene.a, "db.example.com") == [DB]
    shown, began = scene.ask(scene.a, "db.example.com").rr[0].ttl, time.monotonic()

    steps = len(events(node, "clock_stepped"))
    with closed(node):
        set_clock(node, jump)
        assert scene.opens(scene.a, DB)
        reply = scene.ask(scene.a, "db.example.com")
        assert reply.rr[0].ttl <= shown
        assert is_whole(node)
        assert 0.0 <= scene.lease_left(DB) <= 4.0
        node.until(lambda: not scene.opens(scene.a, DB))
        assert time.monotonic() - began >= shown
        assert scene.lease_left(DB) == 0.0
        assert is_whole(node)
    assert node.daemon.pid == pid
    ways = {told["DNSGUARD_WAY"] for told in events(node, "clock_stepped")[steps:]}
    assert ways == {"ahead" if jump > 0 else "back"}


@pytest.mark.parametrize("jump", [DAY, -DAY], ids=["a day ahead", "a day back"])
def test_a_restart_on_the_other_day_restores_what_was_open_and_no_more(node: Host, jump: int) -> None:
    scene = node.scene
    set_clock(node, 0)
    assert answered(node, name := fresh_name()) == [FRESH]
    left, began = scene.lease_left(FRESH), time.monotonic()

    with closed(node):
        set_clock(node, jump)
        node.machine.systemctl("restart", UNIT)
        assert scene.opens(scene.a, FRESH)
        assert scene.lease_left(FRESH) <= left - (time.monotonic() - began) + 2.0
        rows = [row for row in node.daemon.ask("leases") if row["address"] == FRESH]
        assert [name in row["names"] for row in rows] == [True]
        assert is_whole(node)


def test_learn_says_when_by_the_clock_as_it_is_now(node: Host) -> None:
    for jump in (DAY, -DAY, 0):
        set_clock(node, jump)
        assert is_whole(node)
        node.machine.systemctl("restart", UNIT)  # what the file holds is of another day
        assert is_whole(node)

        assert abs(last_seen(node) - (time.time() + jump)) < 120


def test_what_is_watched_live_has_the_time_of_the_clock_as_it_is(node: Host) -> None:
    set_clock(node, -DAY)
    with closed(node):  # something to see
        told = next(iter(ControlClient(node.machine.root / "run/dnsguard").rows("monitor")))["time"]

    yesterday = (datetime.now(UTC) - timedelta(days=1)).strftime("%Y-%m-%d")
    assert told.startswith(yesterday)
