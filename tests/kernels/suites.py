"""Which tests run on every kernel, and how long they may take there; `run` runs one suite and counts."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from xml.etree import ElementTree

import pytest

TOP = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Suite:
    """`tests`: paths. `chosen`: pytest's -k over their names. `cases`: of each function at most so many are run.

    `seconds`: what it may take, under emulation and on a machine that has other things to do. A test that loads the
    programs takes a second there, one that makes a network of namespaces ten: so these are few.
    """

    name: str
    tests: tuple[str, ...]
    chosen: str
    cases: int
    seconds: int


QUIET = ("-q", "--color=no", "-p", "no:cacheprovider", "--durations=10")
LAST_SECONDS = 20.0
SAMPLE = ("-p", "tests.kernels.sample")

SUITES = (
    Suite(
        "load",
        tuple(f"tests/node/ebpf/test_bpf_{room}.py" for room in ("syscall", "load", "attach")),
        "reads_back or are_written or says_how_many or sizes_asked or every_map_that_is_shared or takes_the_maps "
        "or another_size or verifiers_log or both_sides_of_a_link or meets_the_program or got_before_ours",
        2,
        240,
    ),
    Suite(
        "decision",
        ("tests/node/ebpf/test_decision.py",),
        "lowest_rule or until_its_end or another_link or ipv4_is_read or ipv6_is_read or tagged or fragment "
        "or discovery or somebody_vouches or beyond_the_pods_rate or decided_anew or only_when_answered "
        "or icmp_error or cut_flow",
        1,
        180,
    ),
    Suite(
        "answers",
        tuple(f"tests/node/ebpf/test_answers{room}.py" for room in ("", "_books")),
        "user_space_would_send or letter_is_echoed or ttl_is_what or other_is or larger_than_the_client "
        "or unusual or damaged or right_one or full_share or swept",
        1,
        180,
    ),
    Suite(
        "nftables",
        tuple(f"tests/node/nftables/test_nftables_{room}.py" for room in ("decision", "enforcer", "flows")),
        "opens_its_address or pass_skips or taken_over or loses_no_packet or foreign_changes "
        # as any kernel can: the other case is for those that have the feature
        "or (refreshes_what_is_there or new_process) and False or outlives_its_lease or both_directions",
        1,
        420,
    ),
    Suite(
        "audit",
        ("tests/node/ebpf/test_bpf_audit.py", "tests/node/nftables/test_nftables_audit.py"),
        "no_rule_accepts or nobody_vouches or routed_to_its_link_and_is_plain or more_than_its_share or ends_what "
        "or meets_no_dnat or behind_a_services_address",
        1,
        420,
    ),
    Suite(
        "doctor",
        ("tests/node/test_doctor.py",),
        "this_kernel_and_its or (a_pods_query_is_named and not beside) or another_program",
        1,
        300,
    ),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one suite; `late`: it did not end within its time, and what it had counted by then is lost."""

    suite: str
    passed: int
    failed: int
    skipped: int
    seconds: float
    late: bool = False

    @property
    def good(self) -> bool:
        return self.passed > 0 and not self.failed and not self.late

    def __str__(self) -> str:
        counts = f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"
        return f"{self.suite:<10}{'did not end' if self.late else counts} in {self.seconds:.0f} s"


def run(suite: Suite, folder: Path) -> Outcome:
    """Run it; `<suite>.log` and `<suite>.xml` are then in `folder`. Ends it, and what it started, after its time."""
    junit = folder / f"{suite.name}.xml"
    options = [*QUIET, *SAMPLE, f"--cases={suite.cases}", f"--junitxml={junit}", "-k", suite.chosen]
    started = time.monotonic()
    late = not apart(lambda: pytest.main([*options, *suite.tests]), folder / f"{suite.name}.log", suite.seconds)
    return Outcome(suite.name, *_counts(junit), time.monotonic() - started, late)


def apart(work: Callable[[], object], log: Path, seconds: float) -> bool:
    """Do it in a fork of this process, which has imported most of it: an import takes seconds under emulation.

    What it says goes to `log`. Whether it ended within its time; if not it is killed, with what it started.
    """
    process = get_context("fork").Process(target=_alone, args=(work, log))
    process.start()
    for number in (signal.SIGINT, signal.SIGKILL):  # by a SIGINT pytest still tells in which test it was
        process.join(seconds if number == signal.SIGINT else LAST_SECONDS)
        if process.exitcode is not None:
            return number == signal.SIGINT
        with suppress(ProcessLookupError):
            os.killpg(process.pid or 0, number)
    process.join()
    return False


def _alone(work: Callable[[], object], log: Path) -> None:
    os.setsid()
    os.chdir(TOP)
    for descriptor, path, flags in ((0, Path(os.devnull), os.O_RDONLY), (1, log, os.O_WRONLY | os.O_CREAT)):
        os.dup2(os.open(path, flags, 0o644), descriptor)
    os.dup2(1, 2)
    work()


def _counts(junit: Path) -> tuple[int, int, int]:
    """Passed, failed, skipped; nothing of what did not come to its end."""
    try:
        suite = next(ElementTree.parse(junit).getroot().iter("testsuite"))
    except (OSError, ElementTree.ParseError, StopIteration):
        return 0, 0, 0
    tests, failures, errors, skipped = (int(suite.get(k, "0")) for k in ("tests", "failures", "errors", "skipped"))
    return tests - failures - errors - skipped, failures + errors, skipped
