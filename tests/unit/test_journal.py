"""Entries to a journald that takes them, takes none, has gone, or is back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import uvloop

from dnsguard.engine.contracts import EventKind
from dnsguard.observe import journal
from dnsguard.observe import outlet as outlet_module
from dnsguard.observe.catalog import CATALOG
from dnsguard.observe.events import EventLog
from dnsguard.observe.journal import FIRST_RETRY, LAST_RETRY, JournalChannel, entry
from dnsguard.observe.log import Log, open_log, tell_end
from dnsguard.observe.outlet import LaterError, Outlet
from dnsguard.observe.ratelimit import LineLimiter
from tests.journald import Journald, fields

KNOWN = {"MESSAGE", "PRIORITY", "MESSAGE_ID", "SYSLOG_IDENTIFIER", "DNSGUARD_EVENT"}


@pytest.fixture(autouse=True)
def clean_logging() -> Iterator[None]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)
    logging.captureWarnings(False)


@pytest.fixture
def journald(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Journald]:
    made = Journald(tmp_path / "socket")
    monkeypatch.setattr(journal, "SOCKET", made.path)
    yield made
    made.go()


def lost(count: int) -> bytes:
    return entry([("MESSAGE", f"LOST {count}")])


def numbered(number: int) -> bytes:
    return entry([("MESSAGE", f"{number} {'x' * 200}")])


def numbers(entries: list[Mapping[str, str]]) -> list[int]:
    return [int(one["MESSAGE"].split()[0]) for one in entries if not one["MESSAGE"].startswith("LOST")]


def event_log(log: Log) -> EventLog:
    return EventLog([log.write], LineLimiter(1000), lambda: 0.0, queries="All", level=logging.DEBUG)


# ---- what an entry holds


def test_a_denied_query_has_every_field_of_its_own(journald: Journald) -> None:
    event_log(open_log("journald", "info")).emit(
        EventKind.QUERY_DENIED,
        pod="shop/backend-0",
        pod_ip=b"\x0a\xf4\x00\x05",
        name=b"\3www\7example\3com\0",
        type="A",
        verdict="denied",
        rule=3,
        policy="backend",
        reason="no rule allows this name",
        suppressed="4 query_denied",
    )
    assert journald.entries() == [
        {
            "MESSAGE": "shop/backend-0 may not resolve www.example.com (A): no rule allows this name",
            "PRIORITY": "6",
            "MESSAGE_ID": "7a46d40837fd4be587dd2d463afaf428",
            "SYSLOG_IDENTIFIER": "dnsguard",
            "DNSGUARD_EVENT": "query_denied",
            "DNSGUARD_POD": "shop/backend-0",
            "DNSGUARD_POD_IP": "10.244.0.5",
            "DNSGUARD_NAME": "www.example.com",
            "DNSGUARD_TYPE": "A",
            "DNSGUARD_VERDICT": "denied",
            "DNSGUARD_RULE": "3",
            "DNSGUARD_POLICY": "backend",
            "DNSGUARD_REASON": "no rule allows this name",
            "DNSGUARD_SUPPRESSED": "4 query_denied",
        }
    ]


def test_a_pods_every_address_is_a_field_of_its_own(journald: Journald) -> None:
    log = open_log("journald", "info")
    addresses = {"shop/a": (b"\x0a\xf4\x00\x05", b"\xfd" + bytes(14) + b"\x05")}
    EventLog([log.write], LineLimiter(1), lambda: 0.0, pod_ips=lambda pod: addresses.get(pod, ())).emit(
        EventKind.QUERY_DENIED, pod="shop/a", name=b"\1x\0"
    )
    (one,) = journald.raw()
    assert [value for key, value in one if key == "DNSGUARD_POD_IP"] == ["10.244.0.5", "fd00::5"]


@pytest.mark.parametrize(("level", "priority"), [(10, "7"), (20, "6"), (30, "4"), (40, "3")])
def test_levels_are_syslogs_priorities(level: int, priority: str, journald: Journald) -> None:
    log = event_log(open_log("journald", "debug"))
    kind = next(kind for kind, description in CATALOG.items() if description.level == level)
    log.emit(kind)
    assert journald.entries()[0]["PRIORITY"] == priority


def test_an_internal_error_says_where_it_was_raised(journald: Journald) -> None:
    log = event_log(open_log("journald", "info"))
    try:
        raise ValueError("\x1b]0;title\x07")
    except ValueError as error:
        kept = error
    log.emit(EventKind.INTERNAL_ERROR, where="UDP queries", reason="ValueError", exc_info=kept)
    (one,) = journald.entries()
    assert one["CODE_FILE"] == __file__
    assert one["CODE_FUNC"] == "test_an_internal_error_says_where_it_was_raised"
    assert int(one["CODE_LINE"]) > 0
    assert one["DNSGUARD_EXCEPTION"].startswith("Traceback (most recent call last):\n")
    assert one["DNSGUARD_EXCEPTION"].endswith("ValueError: \\x1b]0;title\\x07")


def test_other_events_have_no_place_in_the_code(journald: Journald) -> None:
    event_log(open_log("journald", "info")).emit(EventKind.STARTED, version="1")
    assert set(journald.entries()[0]) == KNOWN | {"DNSGUARD_VERSION"}


def test_the_standard_librarys_messages_go_to_the_journal_too(journald: Journald) -> None:
    open_log("journald", "info")
    logging.getLogger("aiohttp.server").warning("bad \x1b[31m request\nfake line")
    try:
        raise ValueError("why")
    except ValueError:
        logging.getLogger("asyncio").exception("a task failed")
    first, second = journald.entries()
    assert first == {
        "MESSAGE": "bad \\x1b[31m request\\nfake line",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "dnsguard",
        "DNSGUARD_LOGGER": "aiohttp.server",
    }
    assert second["PRIORITY"] == "3"
    assert "ValueError: why" in second["DNSGUARD_EXCEPTION"]


def test_what_is_over_a_pods_share_is_counted_in_its_next_entry(journald: Journald) -> None:
    now = 0.0
    log = EventLog([open_log("journald", "info").write], LineLimiter(1), lambda: now)
    for _ in range(5):
        log.emit(EventKind.QUERY_DENIED, pod="shop/a", name=b"\1x\0")
    now = 1.0
    log.emit(EventKind.QUERY_DENIED, pod="shop/a", name=b"\1x\0")
    assert [one.get("DNSGUARD_SUPPRESSED") for one in journald.entries()] == [None, "4 query_denied"]


def test_a_value_cannot_begin_another_field() -> None:
    hostile = "x\nPRIORITY=0\n\nMESSAGE\n\1\0\0\0\0\0\0\0x\n"
    assert fields(entry([("MESSAGE", hostile), ("DNSGUARD_NAME", "y")])) == [
        ("MESSAGE", hostile),
        ("DNSGUARD_NAME", "y"),
    ]


# ---- when the journal is chosen


def test_auto_is_the_journal_when_standard_error_is_its_socket(
    journald: Journald, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "stderr").open("wb") as stderr:
        status = os.fstat(stderr.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        event_log(open_log("auto", "info", stderr.fileno())).emit(EventKind.READY)
    assert [one["DNSGUARD_EVENT"] for one in journald.entries()] == ["ready"]
    assert (tmp_path / "stderr").read_bytes() == b""


@pytest.mark.parametrize("stream", ["1:2", "", "nonsense"])
def test_auto_is_text_when_standard_error_is_another(
    stream: str, journald: Journald, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", stream)
    with (tmp_path / "stderr").open("wb") as stderr:
        event_log(open_log("auto", "info", stderr.fileno())).emit(EventKind.READY)
    assert journald.entries() == []
    assert b"event=ready" in (tmp_path / "stderr").read_bytes()


def test_auto_is_text_when_the_journal_takes_no_entries(
    journald: Journald, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journald.go()
    with (tmp_path / "stderr").open("wb") as stderr:
        status = os.fstat(stderr.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        event_log(open_log("auto", "info", stderr.fileno())).emit(EventKind.READY)
    assert b"event=ready" in (tmp_path / "stderr").read_bytes()


# ---- large entries


def test_what_is_too_large_for_a_datagram_goes_as_a_sealed_file(journald: Journald) -> None:
    outlet = Outlet(JournalChannel(journald.path), lost)
    large = "y" * 600_000
    outlet.write(entry([("MESSAGE", large)]))
    outlet.write(entry([("MESSAGE", "after")]))
    assert [one["MESSAGE"] for one in journald.entries()] == [large, "after"]
    assert outlet.dropped == 0


def test_a_large_entry_costs_itself_only_when_there_is_no_descriptor(journald: Journald) -> None:
    outlet = Outlet(JournalChannel(journald.path), lost)
    outlet.write(numbered(1))
    with no_descriptors():
        outlet.write(entry([("MESSAGE", "y" * 600_000)]))
    outlet.write(numbered(2))
    assert outlet.dropped == 1
    assert [one["MESSAGE"].split()[0] for one in journald.entries()] == ["1", "LOST", "2"]


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


# ---- a journald that takes none


def test_a_full_journal_costs_lines_and_no_time_and_says_how_many(journald: Journald) -> None:
    outlet = Outlet(JournalChannel(journald.path), lost, max_waiting=5000)
    for number in range(2000):
        outlet.write(numbered(number))
    assert outlet.dropped > 0
    taken = []
    while more := journald.entries():
        taken += more
        outlet.flush()
    assert numbers(taken) == list(range(2000 - outlet.dropped))
    assert [one["MESSAGE"] for one in taken if "LOST" in one["MESSAGE"]] == [f"LOST {outlet.dropped}"]


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run])
def test_the_loop_sends_what_waits_as_soon_as_journald_reads(runner: Callable[..., None], journald: Journald) -> None:
    async def scenario() -> None:
        outlet = Outlet(JournalChannel(journald.path), lost)
        outlet.attach(asyncio.get_running_loop())
        for number in range(2000):
            outlet.write(numbered(number))
        taken: list[int] = []
        async with asyncio.timeout(10):
            while len(taken) < 2000:
                taken += numbers(journald.entries())
                await asyncio.sleep(0)
        assert taken == list(range(2000))
        assert outlet.dropped == 0
        outlet.close()

    runner(scenario())


def test_closing_waits_only_so_long_for_a_journald_that_has_stopped(
    journald: Journald, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outlet_module, "LAST_WAIT_MS", 1)
    outlet = Outlet(JournalChannel(journald.path), lost)
    for number in range(2000):
        outlet.write(numbered(number))
    outlet.close()
    assert numbers(journald.entries())[:2] == [0, 1]


# ---- a journald that is not there


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run])
def test_a_journald_that_was_gone_gets_what_waited_when_it_is_back(
    runner: Callable[..., None], journald: Journald
) -> None:
    async def scenario() -> None:
        outlet = Outlet(JournalChannel(journald.path), lost, max_waiting=1000)
        outlet.attach(asyncio.get_running_loop())
        outlet.write(numbered(0))
        assert numbers(journald.entries()) == [0]
        journald.go()
        for number in range(1, 11):
            outlet.write(numbered(number))
        journald.listen()
        taken: list[Mapping[str, str]] = []
        async with asyncio.timeout(10):
            while not any("LOST" in one["MESSAGE"] for one in taken):
                taken += journald.entries()
                await asyncio.sleep(0.01)
        assert 0 < outlet.dropped < 10
        assert numbers(taken) == list(range(1, 11 - outlet.dropped))
        assert taken[-1]["MESSAGE"] == f"LOST {outlet.dropped}"
        outlet.close()

    runner(scenario())


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run])
def test_a_journald_that_goes_while_it_is_full_is_found_again(runner: Callable[..., None], journald: Journald) -> None:
    async def scenario() -> None:
        outlet = Outlet(JournalChannel(journald.path), lost)
        outlet.attach(asyncio.get_running_loop())
        for number in range(2000):
            outlet.write(numbered(number))
        await asyncio.sleep(0)
        read = len(journald.entries())
        for number in range(2000, 3000):
            outlet.write(numbered(number))
        journald.go()
        journald.listen()
        taken: list[int] = []
        async with asyncio.timeout(10):
            while 2999 not in taken:
                taken += numbers(journald.entries())
                await asyncio.sleep(0.001)
        assert read > 0
        assert taken == sorted(taken)
        outlet.close()

    runner(scenario())


def test_another_that_listens_at_the_same_place_is_used_at_once(journald: Journald) -> None:
    outlet = Outlet(JournalChannel(journald.path), lost)
    outlet.write(numbered(0))
    journald.go()
    journald.listen()
    outlet.write(numbered(1))
    assert numbers(journald.entries()) == [1]


def test_while_nobody_listens_it_looks_again_ever_more_seldom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(journal.time, "monotonic", lambda: now)
    channel, waits = JournalChannel(tmp_path / "socket"), []
    for _ in range(8):
        with pytest.raises(LaterError) as later:
            channel.write(b"x")
        waits.append(later.value.seconds)
        now += later.value.seconds
    assert waits == [FIRST_RETRY * 2**n for n in range(5)] + [LAST_RETRY] * 3


def test_nobody_looks_for_journald_before_the_time(journald: Journald) -> None:
    journald.go()
    channel = JournalChannel(journald.path)
    with pytest.raises(LaterError):
        channel.write(numbered(0))
    journald.listen()
    with pytest.raises(LaterError) as later:
        channel.write(numbered(0))
    assert 0 < later.value.seconds <= FIRST_RETRY


def test_a_missing_journal_is_no_obstacle_to_a_start(journald: Journald) -> None:
    journald.go()
    log = open_log("journald", "info")
    event_log(log).emit(EventKind.STARTED, version="1")
    begun = time.monotonic()
    log.outlet.close()
    assert time.monotonic() - begun < outlet_module.LAST_WAIT_MS / 1000


def test_lines_that_were_lost_are_told_as_an_event(journald: Journald) -> None:
    log = open_log("journald", "info")
    log.outlet._max_waiting = 100
    event_log(log).emit(EventKind.POLICY_WARNING, reason="z" * 200)
    log.outlet.flush()
    event_log(log).emit(EventKind.READY)
    told = journald.entries()[0]
    assert told["DNSGUARD_EVENT"] == "log_lines_dropped"
    assert told["MESSAGE_ID"] == CATALOG[EventKind.LOG_LINES_DROPPED].message_id.hex
    assert told["DNSGUARD_LINES"] == "1"
    assert told["PRIORITY"] == "4"


# ---- the last word of a process


def test_why_a_process_ends_is_one_entry_of_the_journal(journald: Journald, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "is_standard_error", lambda: True)

    tell_end("config.yaml:1:1: error: no\nconfig.yaml:2:1: error: nor this")

    (told,) = journald.entries()
    assert (told["DNSGUARD_EVENT"], told["PRIORITY"]) == ("start_failed", "3")
    assert told["MESSAGE"] == "dnsguard ends: config.yaml:1:1: error: no; config.yaml:2:1: error: nor this"


def test_a_defect_is_told_with_its_stack_where_nobody_keeps_a_journal_too(
    journald: Journald, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        raise ZeroDivisionError("three a.m.")
    except ZeroDivisionError as error:
        defect = error

    tell_end("internal error", defect)
    monkeypatch.setattr(journal, "is_standard_error", lambda: True)
    tell_end("internal error", defect)

    (told,) = journald.entries()
    for text in (told["DNSGUARD_EXCEPTION"], capsys.readouterr().err):
        assert "three a.m." in text and "test_journal.py" in text
