"""Starts that fail wait longer and longer: counted from one process to the next, ended by one that gets ready."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import pytest

from dnsguard.daemon import backoff
from dnsguard.daemon.backoff import WAITS, Starts


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long each start would have waited; nobody stops one."""
    waits: list[float] = []

    def never_stopped(wait: float) -> bool:
        waits.append(wait)
        return False

    monkeypatch.setattr(backoff, "_stopped", never_stopped)
    return waits


def failing(folder: Path | None, why: str = "no upstreams") -> list[str]:
    """One more process that does not get ready; what it said while it waited."""
    told: list[str] = []
    starts = Starts(folder)
    assert starts.begin(told.append)
    starts.failed(why)
    return told


def test_each_failure_in_a_row_has_the_next_start_wait_longer_to_a_limit(tmp_path: Path, waited: list[float]) -> None:
    for _ in range(len(WAITS) + 3):
        failing(tmp_path)

    assert waited == [*WAITS[1:], *[WAITS[-1]] * 3]
    assert waited == sorted(waited)


def test_a_start_that_waits_says_how_many_failed_and_why(tmp_path: Path, waited: list[float]) -> None:
    assert failing(tmp_path, "config.yaml:1:1: no\nand more") == []

    (told,) = failing(tmp_path)

    assert told == "failed starts in a row: 1; this one waits 0.5 s; the last said: config.yaml:1:1: no\nand more"


def test_one_that_is_killed_while_it_starts_has_failed_too(tmp_path: Path, waited: list[float]) -> None:
    Starts(tmp_path).begin(lambda text: None)
    told: list[str] = []

    Starts(tmp_path).begin(told.append)

    assert told == ["failed starts in a row: 1; this one waits 0.5 s; the last said: nothing"]


def test_one_that_gets_ready_ends_the_count(tmp_path: Path, waited: list[float]) -> None:
    failing(tmp_path)
    failing(tmp_path)
    Starts(tmp_path).over()

    assert failing(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"\n", b"many\nwhy", b"-7\nwhy", b"\xff\xfe", b"9" * 100_000])
def test_a_file_that_cannot_be_understood_counts_nothing(tmp_path: Path, waited: list[float], content: bytes) -> None:
    (tmp_path / backoff.FILE).write_bytes(content)

    assert failing(tmp_path) == []
    assert len(failing(tmp_path)) == 1


def test_where_nothing_can_be_written_a_start_never_waits(tmp_path: Path, waited: list[float]) -> None:
    for folder in (tmp_path / "missing", None):
        assert failing(folder) == failing(folder) == []
        Starts(folder).over()


def test_it_is_the_runtime_directory_of_the_service_that_counts() -> None:
    environment = {"RUNTIME_DIRECTORY": "/run/dnsguard:/run/other"}

    assert Starts.from_environment(environment)._file == Path("/run/dnsguard/starts")
    assert Starts.from_environment({})._file is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_whoever_stops_a_start_that_waits_is_not_made_to_wait_and_ends_the_count(
    tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / backoff.FILE).write_text("100\nwhy")
    began = time.monotonic()

    def stop(text: str) -> None:
        # to this thread alone: others of the test run do not block it
        threading.Timer(0.05, signal.pthread_kill, (threading.get_ident(), number)).start()

    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        assert not Starts(tmp_path).begin(stop)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    assert time.monotonic() - began < WAITS[-1]
    assert not (tmp_path / backoff.FILE).exists()


def test_a_cause_that_stays_is_told_once_and_again_every_hundred_starts(tmp_path: Path, waited: list[float]) -> None:
    def told(why: str) -> bool:
        starts = Starts(tmp_path)
        starts.begin(lambda text: None)
        return starts.failed(why)

    assert [told("no upstreams") for _ in range(202)] == [number in (0, 99, 199) for number in range(202)]
    assert told("no route")
    assert Starts(None).failed("no route")


@pytest.mark.parametrize(
    ("left", "how"),
    [
        ("signal KILL\n", "it was killed by SIGKILL"),
        ("core-dump SEGV\n", "it crashed by SIGSEGV"),
        ("watchdog ABRT\n", "it hung, and the watchdog ended it"),
        ("timeout KILL\n", "it took too long to start, reload or stop, and systemd killed it"),
        ("oom-kill KILL\n", "the kernel killed it for want of memory"),
        ("protocol 0\n", "systemd calls it protocol"),
        (
            "signal KILL\noom_kill 2\n",
            "it was killed by SIGKILL; the kernel has killed a process of this service for want of memory",
        ),
        ("signal \x1b[31m{status}\n", "it was killed by SIG\\x1b[31m{status}"),
        ("", ""),
        ("\n", ""),
    ],
)
def test_how_the_process_before_was_ended_is_told_once(tmp_path: Path, left: str, how: str) -> None:
    (tmp_path / backoff.ENDED).write_text(left)

    assert (Starts(tmp_path).ended(), Starts(tmp_path).ended()) == (how, "")


def test_of_a_process_that_ended_by_itself_nothing_is_told(tmp_path: Path) -> None:
    (tmp_path / "folder" / backoff.ENDED).mkdir(parents=True)

    for folder in (tmp_path, tmp_path / "folder", tmp_path / "missing", None):
        assert Starts(folder).ended() == ""
