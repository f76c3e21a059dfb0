"""The demo as its viewer has it: every step, with eBPF and without, entering a pod, and that nothing stays however it
ends."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from dnsguard.core.errors import DnsguardError, MissingFeatureError
from dnsguard.demo import show
from dnsguard.demo.bpffs import mounted_bpffs
from dnsguard.demo.lab import NAMESPACES
from dnsguard.demo.stage import PREFIX
from tests.node.no_bpf import refuse_bpf

pytestmark = pytest.mark.node

TITLES = [step.title for step in show.story(show.ALLOWLIST)]
WITHOUT_EBPF = [step.title for step in show.story(show.ALLOWLIST, ebpf=False)]
FIRST_ACT = "1. "
STAYING = "Ctrl-C here"


class Demo:
    """A running `dnsguard demo`, and what it has printed so far."""

    def __init__(self, *arguments: str, first: Callable[[], None] | None = None) -> None:
        """`first` is called in the new process."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dnsguard", "demo", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=first,
        )
        self.printed = ""
        self._held: list[BinaryIO] = []

    def until(self, line_begins: str) -> None:
        """Read on until such a line has come."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.printed += line
            if line.startswith(line_begins):
                return
        raise AssertionError(f"ended before {line_begins!r}:\n{self.printed}")

    def end(self) -> int:
        """Read to the end; the exit code."""
        self.printed += self.process.communicate(timeout=60)[0]
        return self.process.returncode

    def places(self) -> set[int]:
        """What tells processes in the demo's namespaces from all others, also when the names are gone."""
        held = [path.open("rb") for path in namespaces(self.process.pid)]
        self._held += held  # a namespace that nobody holds gives its number to the next
        return {os.fstat(each.fileno()).st_ino for each in held}

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()
        for each in self._held:
            each.close()


@pytest.fixture
def demo() -> Iterator[Demo]:
    started = Demo()
    yield started
    started.kill()


@pytest.fixture(scope="module")
def whole_demos() -> Iterator[tuple[Demo, Demo, Demo]]:
    """One that plays to its end, one that stays afterwards, and one that may not use eBPF; side by side, for they
    mostly wait."""
    demos = Demo(), Demo("--keep"), Demo(first=refuse_bpf)
    yield demos
    for each in demos:
        each.kill()


def namespaces(pid: int) -> list[Path]:
    return sorted(NAMESPACES.glob(f"{PREFIX}-{pid}-*"))


def folders(pid: int) -> list[Path]:
    return sorted(Path(tempfile.gettempdir()).glob(f"{PREFIX}-{pid}-*"))


def mounts(pid: int) -> list[Path]:
    return [folder for folder, owner in mounted_bpffs(PREFIX) if owner == str(pid)]


def processes_in(places: set[int]) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "ns/net").stat().st_ino in places:
                found.append((entry / "cmdline").read_text())
        except OSError:
            continue  # ended meanwhile
    return found


def root_namespace() -> list[str]:
    commands = (
        ["nft", "list", "tables"],
        ["ip", "rule"],
        ["ip", "-6", "rule"],
        ["ip", "route", "show", "table", "all"],
    )
    return [subprocess.run(command, capture_output=True, text=True, check=True).stdout for command in commands]


def assert_nothing_is_left(pid: int, places: set[int]) -> None:
    assert namespaces(pid) == []
    assert folders(pid) == []
    assert processes_in(places) == []
    assert mounts(pid) == []


def results(demo: Demo) -> list[str]:
    """The titles of the steps that were as expected; their numbers are in order."""
    found = re.findall(r"^  OK  (\d+)\. (.+)$", demo.printed, re.MULTILINE)
    assert [int(number) for number, _ in found] == list(range(1, len(found) + 1))
    return [title for _, title in found]


def test_every_step_is_as_expected(whole_demos: tuple[Demo, Demo, Demo]) -> None:
    demo, _, _ = whole_demos
    before = root_namespace()

    assert demo.end() == 0, demo.printed

    assert results(demo) == TITLES
    assert "FAILED" not in demo.printed
    assert show.BOTH_LINES in demo.printed
    assert_nothing_is_left(demo.process.pid, set())
    assert root_namespace() == before


def test_a_kept_demo_says_how_to_enter_a_pod_and_ends_at_ctrl_c(whole_demos: tuple[Demo, Demo, Demo]) -> None:
    _, demo, _ = whole_demos
    demo.until(STAYING)
    places = demo.places()
    enter = re.search(r"^ +(sh \S+/enter-backend)$", demo.printed, re.MULTILINE)
    assert enter is not None

    page = subprocess.run([*enter[1].split(), "curl", "-sS", "http://api.example.com/"], capture_output=True, text=True)
    left = subprocess.Popen([*enter[1].split(), "sleep", "100"])
    demo.process.send_signal(signal.SIGINT)

    assert page.stdout == "hello from 192.0.2.10 port 80\n", page.stderr
    assert demo.end() == 0, demo.printed
    left.wait(5)
    assert_nothing_is_left(demo.process.pid, places)


def test_where_there_can_be_no_ebpf_the_demo_says_why_and_shows_nftables_alone(
    whole_demos: tuple[Demo, Demo, Demo],
) -> None:
    *_, demo = whole_demos

    assert demo.end() == 0, demo.printed

    reason = demo.printed.partition(f"  {show.ONE_LINE}\n")[2].splitlines()[0]
    assert "enforcement.ebpf is On, and cannot be: " in reason
    assert results(demo) == WITHOUT_EBPF == [title for title in TITLES if "in the kernel" not in title]
    assert_nothing_is_left(demo.process.pid, set())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_demo_leaves_nothing(demo: Demo, number: signal.Signals) -> None:
    before = root_namespace()
    step = random.randrange(1, len(TITLES) + 1)
    demo.until(f"{step}. ")
    places = demo.places()
    assert places

    os.killpg(demo.process.pid, number)  # as a terminal does

    assert demo.end() == 128 + number, f"step {step}: {demo.printed}"
    assert_nothing_is_left(demo.process.pid, places)
    assert root_namespace() == before


def test_a_demo_interrupted_while_it_sets_up_leaves_nothing(demo: Demo) -> None:
    while not namespaces(demo.process.pid):
        assert demo.process.poll() is None
    demo.process.send_signal(signal.SIGTERM)
    demo.process.send_signal(signal.SIGINT)

    assert demo.end() in (128 + signal.SIGTERM, 128 + signal.SIGINT), demo.printed
    assert_nothing_is_left(demo.process.pid, set())


def test_the_next_demo_removes_what_a_killed_one_left(demo: Demo) -> None:
    demo.until(FIRST_ACT)
    places = demo.places()
    demo.process.kill()
    demo.process.wait()
    assert places
    assert folders(demo.process.pid)
    assert mounts(demo.process.pid)

    successor = Demo()
    successor.until(FIRST_ACT)
    successor.process.terminate()
    assert successor.end() == 128 + signal.SIGTERM, successor.printed

    assert_nothing_is_left(demo.process.pid, places)


def test_a_step_that_is_not_as_expected_ends_the_demo_and_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    sabotaged = show.ALLOWLIST.replace("[api.example.com]", "[api.example.com, evil.example.org]")

    code = show.main(False, allowlist=sabotaged)

    told = capsys.readouterr().out
    assert code == 1
    assert "happened  hello from 203.0.113.66 port 80\n     FAILED\n" in told
    assert f"Step 3 is not as expected: {TITLES[2]}." in told
    assert "shop/backend resolves evil.example.org (A)" in told
    assert "4. " not in told
    assert_nothing_is_left(os.getpid(), set())


def test_an_allowlist_with_an_error_is_told_as_dnsguard_tells_it() -> None:
    with pytest.raises(DnsguardError, match=r"allowlist\.yaml:13:\d+: error: .*backend"):
        show.main(False, allowlist=show.ALLOWLIST.replace("  backend:", "  backing:"))
    assert_nothing_is_left(os.getpid(), set())


def test_a_demo_that_is_not_root_says_so() -> None:
    os.seteuid(65534)
    try:
        with pytest.raises(MissingFeatureError, match="need root"):
            show.main(False)
    finally:
        os.seteuid(0)


def test_a_demo_without_a_program_it_needs_names_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for tool in ("ip", "nsenter", "unshare", "mount"):
        (tmp_path / tool).write_text("#!/bin/sh\n")
        (tmp_path / tool).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingFeatureError, match="`curl` is missing: apt-get install -y curl"):
        show.main(False)
