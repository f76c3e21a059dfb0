"""What a node does to a daemon: files go or cannot be read, no memory, SIGKILL. Closed meanwhile, whole soon after."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from dnslib import DNSRecord

from tests.host import memory
from tests.host.host import CONFIG, UNIT, Host, hosting
from tests.host.troubles import (
    PATIENCE,
    WHOLE,
    answered,
    events,
    flow_of,
    fresh_name,
    is_whole,
    restarts,
    whole_soon,
)
from tests.host.watch import closed
from tests.node.daemon import ANY_RESOLVER
from tests.node.scene import ALLOWLIST

pytestmark = pytest.mark.node

FRESH = "198.18.0.9"
FOLDER = "/etc/dnsguard"
RUNTIME = "/run/dnsguard"
READER = "dnsguard.sources.loader"
BIG = 20_000
"""Pods of an allowlist that takes seconds to read."""


@pytest.fixture(scope="module")
def node(image: Path) -> Iterator[Host]:
    with hosting([image]) as host:
        host.scene.zone.put("*.fresh.example.com", "A", FRESH)
        yield host


# -- files ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def unreadable(host: Host, path: str) -> Iterator[None]:
    mode = host.machine.shell(f"stat -c %a {path}").strip()
    host.machine.run("chmod", "000", path)
    try:
        yield
    finally:
        host.machine.run("chmod", mode, path)


@contextlib.contextmanager
def missing(host: Host, path: str) -> Iterator[None]:
    host.machine.run("mv", path, "/run/aside")
    try:
        yield
    finally:
        host.machine.run("mv", "/run/aside", path)


HIDINGS = {
    "a folder of mode 000": (unreadable, FOLDER, "permission denied"),
    "a missing configuration": (missing, CONFIG, "there is no such file"),
    "a missing allowlist": (missing, f"{FOLDER}/allowlist.yaml", "there is no such file"),
}


@pytest.mark.parametrize("hiding", HIDINGS)
def test_a_reload_that_cannot_read_says_so_and_the_policy_before_stays(node: Host, hiding: str) -> None:
    how, path, why = HIDINGS[hiding]
    before, told = node.daemon.ask("status")["generation"], len(events(node, "policy_not_taken"))

    with how(node, path), closed(node):
        assert node.machine.systemctl("reload", UNIT, check=False).returncode != 0
        status = node.machine.show(UNIT, "StatusText")["StatusText"]
        assert is_whole(node)
        assert node.daemon.ask("status")["generation"] == before

    assert "; the last reload was refused: " + path in status
    assert why in status
    (event,) = events(node, "policy_not_taken")[told:]
    assert why in event["DNSGUARD_REASON"]
    node.machine.systemctl("reload", UNIT)
    assert is_whole(node)


@pytest.mark.parametrize("hiding", HIDINGS)
def test_a_start_that_cannot_read_opens_nothing_and_is_tried_until_it_can(node: Host, hiding: str) -> None:
    how, path, _ = HIDINGS[hiding]
    before = restarts(node)

    with flow_of(node) as flow:
        with how(node, path), closed(node):
            node.daemon.signal(signal.SIGKILL)
            node.until(lambda: restarts(node) >= before + 2, PATIENCE)
            assert answered(node, fresh_name()) == []
            assert flow.alive()

        node.until(lambda: is_whole(node), WHOLE)
        assert flow.alive()


def test_a_control_socket_that_somebody_removes_is_made_again(node: Host) -> None:
    before, pid = len(events(node, "runtime_restored")), node.daemon.pid

    with whole_soon(node), closed(node):
        node.machine.shell(f"rm {RUNTIME}/control.sock")

    node.until(node.daemon.ready, WHOLE)
    assert node.daemon.pid == pid
    (told,) = events(node, "runtime_restored")[before:]
    assert (told["DNSGUARD_WHAT"], told["DNSGUARD_PATH"]) == ("the control socket", RUNTIME)
    assert node.machine.shell(f"stat -c '%U:%G %a' {RUNTIME}/control.sock") == "dnsguard:dnsguard 660\n"


def by_hand(node: Host, user: str) -> subprocess.CompletedProcess[str]:
    """A daemon that somebody starts beside the service."""
    return node.machine.run("setpriv", f"--reuid={user}", "--clear-groups", "/usr/bin/dnsguard", "run", check=False)


def test_with_its_lock_removed_a_daemon_is_still_the_only_one(node: Host) -> None:
    before = len(events(node, "runtime_restored"))

    with closed(node):
        node.machine.shell(f"rm {RUNTIME}/*")
        node.until(lambda: len(events(node, "runtime_restored")) > before, WHOLE)
        second = by_hand(node, "dnsguard")

    assert (second.returncode, second.stderr) == (1, f"dnsguard: a daemon is running on {RUNTIME}; stop it first\n")
    assert is_whole(node)
    assert len(events(node, "runtime_restored")) == before + 1


@pytest.mark.parametrize(
    ("user", "why"),
    [("dnsguard", f"a daemon is running on {RUNTIME}; "), ("root", f"{RUNTIME} is for user dnsguard, ")],
)
def test_a_second_daemon_beside_the_service_is_refused_and_harms_nothing(node: Host, user: str, why: str) -> None:
    pid = node.daemon.pid

    with flow_of(node) as flow, closed(node):
        second = by_hand(node, user)
        assert flow.alive()

    assert second.returncode == 1
    assert second.stderr.startswith(f"dnsguard: {why}")

    assert is_whole(node)
    assert (node.daemon.pid, node.daemon.ready()) == (pid, True)


def test_with_its_runtime_directory_removed_the_service_starts_anew(node: Host) -> None:
    before, pid = len(events(node, "runtime_lost")), node.daemon.pid

    with flow_of(node) as flow:
        with closed(node):
            node.machine.shell(f"rm -r {RUNTIME}")
            node.until(lambda: (node.machine.root / RUNTIME[1:]).exists(), PATIENCE)

        node.until(lambda: is_whole(node), WHOLE)
        assert flow.alive()
    node.until(node.daemon.ready, WHOLE)
    assert node.daemon.pid != pid
    (told,) = events(node, "runtime_lost")[before:]
    assert told["DNSGUARD_PATH"] == RUNTIME
    assert "root" not in told["DNSGUARD_REASON"]


# -- processes --------------------------------------------------------------------------------------------------------


def readers(host: Host) -> list[int]:
    """The processes that read an allowlist in the machine, as this side counts them."""
    namespace = (host.machine.root.parent / "ns/pid").stat().st_ino
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if READER in (entry / "cmdline").read_text() and (entry / "ns/pid").stat().st_ino == namespace:
                found.append(int(entry.name))
    return found


def write_large(host: Host) -> None:
    """An allowlist that takes long to read."""
    pods = {f"10.{100 + n // 65536}.{n // 256 % 256}.{n % 256}": ["db.example.com"] for n in range(BIG)}
    host.daemon.write("allowlist.yaml", "Allowlist", {**ALLOWLIST, "pods": {**ALLOWLIST["pods"], **pods}})


@contextlib.contextmanager
def reading_for_long(host: Host) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A reload of an allowlist that takes long, and the process that reads it."""
    write_large(host)
    reload = host.machine.popen("systemctl", "reload", UNIT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        host.until(lambda: bool(readers(host)))
        yield reload, readers(host)[0]
    finally:
        reload.wait(PATIENCE)
        host.daemon.write("allowlist.yaml", "Allowlist", ALLOWLIST)
        host.machine.systemctl("reload", UNIT)


def test_a_start_that_reads_a_large_allowlist_can_be_stopped(node: Host) -> None:
    told = len(events(node, "ended_badly"))
    write_large(node)
    node.machine.systemctl("restart", "--no-block", UNIT)
    node.until(lambda: bool(readers(node)))

    node.machine.systemctl("stop", "dnsguard.socket", UNIT)

    assert node.machine.show(UNIT, "ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
    assert not readers(node)
    node.daemon.write("allowlist.yaml", "Allowlist", ALLOWLIST)
    node.machine.systemctl("start", "dnsguard.socket", UNIT)
    node.until(lambda: is_whole(node), WHOLE)
    assert len(events(node, "ended_badly")) == told


@pytest.mark.parametrize("killer", ["SIGKILL", "out of memory"])
def test_when_the_process_that_reads_an_allowlist_is_killed_the_policy_before_stays(node: Host, killer: str) -> None:
    pid, before = node.daemon.pid, len(events(node, "policy_not_taken"))

    with contextlib.ExitStack() as ending, closed(node), reading_for_long(node) as (reload, reader):
        # it is to go rather than the daemon
        node.until(lambda: Path(f"/proc/{reader}/oom_score_adj").read_text() == "500\n", PATIENCE)
        if killer == "SIGKILL":
            os.kill(reader, signal.SIGKILL)
        else:
            group = ending.enter_context(memory.little_memory("reader", 4 << 20))
            (group / "cgroup.procs").write_text(str(reader))
        assert reload.wait(PATIENCE) != 0
        if killer != "SIGKILL":
            assert memory.kills(group) == 1
        assert is_whole(node)

    assert node.daemon.pid == pid
    (told,) = events(node, "policy_not_taken")[before:]
    assert "the process that reads it was killed (out of memory?)" in told["DNSGUARD_REASON"]


def test_a_daemon_that_the_kernel_kills_for_memory_is_closed_until_it_is_back_and_loses_no_flow(node: Host) -> None:
    before, told = restarts(node), len(events(node, "ended_badly"))

    with flow_of(node) as flow:
        with memory.little_memory("daemon", 1 << 20) as group, closed(node):
            (group / "cgroup.procs").write_text(str(pid_outside(node)))
            node.until(lambda: ask_much(node) and memory.kills(group) > 0, PATIENCE)
            node.until(lambda: restarts(node) > before, PATIENCE)

        node.until(lambda: is_whole(node), WHOLE)
        assert flow.alive()
    assert restarts(node) == before + 1
    (how,) = events(node, "ended_badly")[told:]
    assert how["DNSGUARD_REASON"].startswith("it was killed by SIGKILL")


def ask_much(host: Host) -> bool:
    """Questions for names that must be kept. Nobody waits for the answers."""
    with host.scene.client(host.scene.a, ANY_RESOLVER) as client:
        for _ in range(500):
            client.send(bytes(DNSRecord.question(fresh_name()).pack()))
    return True


def pid_outside(host: Host) -> int:
    """The daemon's, as this side counts."""
    namespace, inside = (host.machine.root.parent / "ns/pid").stat().st_ino, host.daemon.pid
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and (entry / "ns/pid").stat().st_ino == namespace:
                numbers = next(line for line in (entry / "status").read_text().splitlines() if line.startswith("NSpid"))
                if int(numbers.split()[-1]) == inside:
                    return int(entry.name)
    raise LookupError(f"no process is {inside} there")
