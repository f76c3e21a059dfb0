"""What the run of the suites on many kernels does when a part of it goes wrong; none of it starts a virtual machine."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernels import page, virtual
from tests.kernels.archive import ArchiveError, newest
from tests.kernels.guest import Results, read
from tests.kernels.suites import Outcome, Suite, apart, run


def test_work_that_does_not_end_is_killed_with_what_it_started(tmp_path: Path) -> None:
    def sleep() -> None:
        process = subprocess.Popen(["sleep", "600"])
        (tmp_path / "pid").write_text(str(process.pid))
        process.wait()

    assert not apart(sleep, tmp_path / "log", seconds=0.5)
    assert comes(lambda: gone((tmp_path / "pid").read_text()))


def gone(pid: str) -> bool:
    try:
        return "State:\tZ" in Path("/proc", pid, "status").read_text()
    except OSError:
        return True


def comes(condition: Callable[[], bool], within: float = 5.0) -> bool:
    deadline = time.monotonic() + within
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


@pytest.mark.parametrize(
    ("chosen", "good"), [("archives_newest and not something_ran", True), ("no_test_is_called_so", False)]
)
def test_a_suite_is_good_when_something_ran_and_passed(chosen: str, good: bool, tmp_path: Path) -> None:
    outcome = run(Suite("self", ("tests/kernels/test_run.py",), chosen, 1, 60), tmp_path)
    assert (outcome.good, outcome.passed) == (good, int(good))


@pytest.mark.parametrize(
    "outcome",
    [Outcome("s", 0, 0, 9, 1.0), Outcome("s", 9, 1, 0, 1.0), Outcome("s", 9, 0, 0, 1.0, late=True)],
)
def test_nothing_run_something_failed_or_an_end_that_did_not_come_is_not_good(outcome: Outcome) -> None:
    assert not outcome.good


def test_the_archives_newest_generic_kernel_of_a_series_is_taken() -> None:
    offered = [
        ("linux-image-6.1.0-9-amd64", "6.1.27-1"),
        ("linux-image-6.1.0-10-amd64", "6.1.38-1"),
        ("linux-image-6.1.0-11-cloud-amd64", "6.1.40-1"),
        ("linux-image-6.12.1-amd64", "6.12.1-1"),
    ]
    assert newest("6.1", offered) == ("6.1.38-1", "6.1.0-10-amd64")


def test_a_series_that_the_archive_does_not_have_is_told() -> None:
    with pytest.raises(ArchiveError, match=r"no kernel 5\.10"):
        newest("5.10", [("linux-image-6.1.0-9-amd64", "6.1.27-1")])


def test_a_virtual_machine_that_a_killed_run_left_is_ended(tmp_path: Path) -> None:
    folder = tmp_path / "4194304000" / "6.1"
    folder.mkdir(parents=True)
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", str(folder / "qemu.pid")])
    (folder / "qemu.pid").write_text(f"{left.pid}\n")
    # a process that has only just begun has no command line yet
    assert comes(lambda: b"qemu.pid" in Path("/proc", str(left.pid), "cmdline").read_bytes())
    try:
        virtual.sweep(tmp_path)
        assert left.wait(5) == -signal.SIGKILL
    finally:
        left.kill()
        left.wait()
    assert not folder.exists()


def test_a_process_that_has_the_number_of_a_machine_that_ended_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "4194304000" / "6.1"
    folder.mkdir(parents=True)
    other = subprocess.Popen(["sleep", "600"])
    (folder / "qemu.pid").write_text(f"{other.pid}\n")
    try:
        virtual.sweep(tmp_path)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.json")
    results.features, results.outcomes = {"tcx": "no"}, [Outcome("load", 3, 0, 1, 2.5)]
    results.write()
    again = read(tmp_path / "results.json")
    assert (again.features, again.outcomes) == (results.features, results.outcomes)


def test_a_run_on_one_kernel_leaves_the_others_columns_on_the_page(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(f"before\n{page.BEGIN}\n{page.END}\nafter\n")
    page.write({"6.1": {"tcx": "no"}}, path)
    page.write({"5.10": {"tcx": "no"}, "6.12": {"tcx": "yes"}}, path)
    table = "|  | 5.10 | 6.1 | 6.12 |\n| --- | --- | --- | --- |\n| tcx | no | no | yes |\n"
    assert path.read_text() == f"before\n{page.BEGIN}\n{table}{page.END}\nafter\n"
