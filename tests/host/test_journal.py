"""What an operator asks the journal, and a journald that stands still, dies, or is not there: no pod notices."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dnslib import DNSLabel, DNSQuestion, DNSRecord

from dnsguard.engine.contracts import EventKind
from dnsguard.observe.catalog import CATALOG
from tests.host.host import UNIT, Host, hosting
from tests.host.machine import Machine
from tests.host.troubles import WHOLE, dropped, whole_soon
from tests.host.watch import closed
from tests.node.daemon import ANY_RESOLVER
from tests.node.scene import exchange, rcode

pytestmark = pytest.mark.node

UNBOUNDED = {"queriesPerSecond": 1_000_000, "burst": 1_000_000, "uniqueNamesPerMinute": 10_000_000}
JOURNALD = "systemd-journald.service"
SOCKETS = ("systemd-journald.socket", "systemd-journald-dev-log.socket", "systemd-journald-audit.socket")
STRICT = "[Journal]\nStorage=volatile\nRateLimitIntervalSec=1h\nRateLimitBurst=20\n"
SLOW = """
import os, select, signal, sys
journald = int(sys.argv[1])
try:
    while not select.select([sys.stdin], [], [], 0.01)[0]:
        os.kill(journald, signal.SIGSTOP)
        select.select([sys.stdin], [], [], 0.5)
        os.kill(journald, signal.SIGCONT)
finally:
    os.kill(journald, signal.SIGCONT)
"""
FRESH = "198.18.0.9"
PATIENCE = 2.0
"""Seconds for one query: clients ask again after 2.5 (musl) or 5 (glibc). Whoever waited for journald would wait for as
long as it is stopped."""


@pytest.fixture
def loud(image: Path) -> Iterator[Host]:
    """A node that writes a line for every denied query."""
    with hosting([image], limits={**UNBOUNDED, "logLines": 1_000_000}) as running:
        running.scene.zone.put("*.fresh.example.com", "A", FRESH)
        yield running


def deny(host: Host, names: Iterator[str], count: int) -> None:
    """So many questions of pod `a` for names it may not resolve, each answered before the next. Raises TimeoutError
    when an answer takes longer than PATIENCE."""
    with host.scene.client(host.scene.a, ANY_RESOLVER) as client:
        client.settimeout(PATIENCE)
        for _ in range(count):
            query = DNSRecord.question(next(names))
            assert rcode(exchange(client, bytes(query.pack()), stream=False)) == "NXDOMAIN"


def names() -> Iterator[str]:
    number = 0
    while True:
        number += 1
        yield f"n{number}.denied.example.org"


def entries(machine: Machine, *matches: str) -> list[dict[str, Any]]:
    """As an operator asks, without waiting for journald."""
    asked = machine.run("journalctl", "--unit=dnsguard", "--output=json", *matches).stdout
    return [json.loads(line) for line in asked.splitlines()]


def signal_journald(machine: Machine, signal: str) -> None:
    machine.run("kill", f"-{signal}", str(machine.main_pid(JOURNALD)))


@contextlib.contextmanager
def stopped_journald(machine: Machine) -> Iterator[None]:
    signal_journald(machine, "STOP")
    try:
        yield
    finally:
        signal_journald(machine, "CONT")


@contextlib.contextmanager
def slow_journald(machine: Machine) -> Iterator[None]:
    """It reads for a moment now and then."""
    slowing = machine.popen("/usr/bin/python3", "-c", SLOW, str(machine.main_pid(JOURNALD)), stdin=subprocess.PIPE)
    try:
        yield
    finally:
        slowing.communicate(timeout=10)
        assert slowing.returncode == 0


def told(host: Host) -> list[int]:
    """How many lines were dropped, each time that this was told."""
    found = entries(host.machine, "DNSGUARD_EVENT=log_lines_dropped")
    assert all(one["PRIORITY"] == "4" for one in found)
    return [int(one["DNSGUARD_LINES"]) for one in found]


def denied(host: Host) -> int:
    """How many lines the journal has of what `deny` asked."""
    return len(entries(host.machine, "DNSGUARD_EVENT=query_denied", "DNSGUARD_POD=shop/a"))


def all_lost_is_told(host: Host, asked: int) -> None:
    """Within WHOLE seconds; `asked` is how many questions were denied."""
    host.until(lambda: sum(told(host)) == dropped(host) > 0, WHOLE)
    assert 0 < asked - denied(host) <= dropped(host)  # what else was tried has lines, too


def test_an_operators_question_is_answered(host: Host) -> None:
    host.scene.ask(host.scene.a, "other.example.com")
    host.scene.ask(host.scene.b, "db.example.com")

    host.until(lambda: bool(entries(host.machine, "DNSGUARD_POD=shop/a", "DNSGUARD_VERDICT=denied")))

    (one,) = entries(host.machine, "DNSGUARD_POD=shop/a", "DNSGUARD_VERDICT=denied")
    assert entries(host.machine, "DNSGUARD_POD_IP=fd00:10:244::5", "DNSGUARD_VERDICT=denied") == [one]
    assert one["DNSGUARD_EVENT"] == "query_denied"
    assert one["DNSGUARD_POD_IP"] == ["10.244.0.5", "fd00:10:244::5"]
    assert one["DNSGUARD_NAME"] == "other.example.com"
    assert one["DNSGUARD_TYPE"] == "A"
    assert one["DNSGUARD_REASON"] == "no rule allows this name"
    assert one["DNSGUARD_POLICY"] == "web"
    assert one["MESSAGE"] == "shop/a may not resolve other.example.com (A): no rule allows this name"
    assert one["MESSAGE_ID"] == CATALOG[EventKind.QUERY_DENIED].message_id.hex
    assert one["PRIORITY"] == "6"
    assert one["SYSLOG_IDENTIFIER"] == "dnsguard"
    assert one["_TRANSPORT"] == "journal"


def test_journalctl_x_says_what_an_event_means_and_what_to_do(host: Host) -> None:
    host.machine.run("journalctl", "--update-catalog")

    said = host.machine.run("journalctl", "--unit=dnsguard", "-x", "DNSGUARD_EVENT=ready").stdout

    assert CATALOG[EventKind.READY].meaning in said.replace("\n░░ ", " ")
    assert CATALOG[EventKind.READY].advice in said


def test_the_bytes_of_a_name_forge_no_field_and_no_escape(host: Host) -> None:
    label = b"x\nDNSGUARD_POD=shop/b\nPRIORITY=0\n\x1b[31m"
    query = DNSRecord(q=DNSQuestion(DNSLabel([label, b"example", b"com"])))
    query.header.rd = 1
    with host.scene.client(host.scene.a, ANY_RESOLVER) as client:
        exchange(client, bytes(query.pack()), stream=False)

    host.until(lambda: bool(entries(host.machine, "DNSGUARD_EVENT=query_denied")))

    (one,) = entries(host.machine, "DNSGUARD_EVENT=query_denied")
    assert one["DNSGUARD_POD"] == "shop/a"
    assert one["PRIORITY"] == "6"
    assert one["DNSGUARD_NAME"].isprintable()
    assert entries(host.machine, "DNSGUARD_POD=shop/b", "DNSGUARD_EVENT=query_denied") == []


def test_the_last_word_of_a_daemon_that_stops_is_in_the_journal(host: Host) -> None:
    host.machine.systemctl("stop", UNIT)

    host.until(lambda: bool(entries(host.machine, "DNSGUARD_EVENT=stopped")))

    assert [one["DNSGUARD_EVENT"] for one in entries(host.machine)[-20:] if "DNSGUARD_EVENT" in one][-2:] == [
        "stopping",
        "stopped",
    ]


def test_a_pods_lines_are_limited_and_what_is_left_out_is_counted(image: Path) -> None:
    asked = names()
    with hosting([image], limits={**UNBOUNDED, "logLines": 2}) as host:
        deny(host, asked, 100)
        host.until(lambda: bool(entries(host.machine, "DNSGUARD_EVENT=events_suppressed")))
        written = entries(host.machine, "DNSGUARD_EVENT=query_denied", "DNSGUARD_POD=shop/a")
        (told,) = entries(host.machine, "DNSGUARD_EVENT=events_suppressed", "DNSGUARD_POD=shop/a")
        counted = sum(int(one["DNSGUARD_SUPPRESSED"].split()[0]) for one in written if "DNSGUARD_SUPPRESSED" in one)
        assert len(written) + counted + int(told["DNSGUARD_LINES"]) == 100
        assert len(written) < 100


def test_journalds_own_limit_of_lines_is_not_dnsguards(loud: Host) -> None:
    asked = names()
    loud.machine.write("/etc/systemd/journald.conf.d/machine.conf", STRICT)
    loud.machine.systemctl("restart", JOURNALD)
    deny(loud, asked, 200)
    loud.until(lambda: bool(entries(loud.machine, "DNSGUARD_NAME=n200.denied.example.org")))
    assert len(entries(loud.machine, "DNSGUARD_EVENT=query_denied")) == 200


def test_a_journald_that_stands_still_delays_no_query_and_hears_how_much_it_missed(loud: Host) -> None:
    asked = names()
    with closed(loud):
        deny(loud, asked, 10)
        with whole_soon(loud), stopped_journald(loud.machine):
            deny(loud, asked, 4000)
        all_lost_is_told(loud, 4010)
        deny(loud, asked, 1)
        loud.until(lambda: bool(entries(loud.machine, "DNSGUARD_NAME=n4011.denied.example.org")), WHOLE)
    assert len(told(loud)) == 1


def test_a_journald_that_is_slow_delays_no_query_and_hears_how_much_it_missed(loud: Host) -> None:
    asked = names()
    with closed(loud):
        with whole_soon(loud), slow_journald(loud.machine):
            deny(loud, asked, 4000)
        all_lost_is_told(loud, 4000)
        deny(loud, asked, 1)
        loud.until(lambda: bool(entries(loud.machine, "DNSGUARD_NAME=n4001.denied.example.org")), WHOLE)


def test_a_journald_that_is_killed_delays_no_query_and_loses_no_line(loud: Host) -> None:
    asked = names()
    with closed(loud):
        deny(loud, asked, 50)
        with whole_soon(loud):
            signal_journald(loud.machine, "KILL")
            deny(loud, asked, 50)
        loud.until(lambda: denied(loud) == 100, WHOLE)
    assert (dropped(loud), told(loud)) == (0, [])


def test_a_journal_that_goes_away_delays_no_query_and_gets_what_was_kept_when_it_is_back(loud: Host) -> None:
    asked = names()
    with closed(loud):
        deny(loud, asked, 1)
        with whole_soon(loud):
            loud.machine.systemctl("stop", *SOCKETS, JOURNALD)
            deny(loud, asked, 4000)
            loud.machine.systemctl("start", *SOCKETS, JOURNALD)
        all_lost_is_told(loud, 4001)
    assert entries(loud.machine, "DNSGUARD_NAME=n2.denied.example.org")
    assert len(told(loud)) == 1
