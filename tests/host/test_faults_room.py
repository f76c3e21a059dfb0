"""A node on which room runs out: disks full under the state files and the journal, no file descriptors left."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from dnslib import DNSRecord

from dnsguard.learning.state import read_rows
from tests.host.host import UNIT, Host, hosting
from tests.host.troubles import PATIENCE, WHOLE, answered, dropped, events, fresh_name, is_whole, whole_soon
from tests.host.watch import closed
from tests.node.daemon import ANY_RESOLVER
from tests.node.scene import ALLOWLIST, DB, addresses, exchange

pytestmark = pytest.mark.node

FRESH = "198.18.0.9"
RUNTIME, STATE, JOURNAL = "/run/dnsguard", "/var/lib/dnsguard", "/run/log/journal"
FEW, FEWER = 160, 24
"""Descriptors: so few that two pods can use up what connections may have; and less than the daemon has open."""
MANY = 4_000
"""Pods of a policy that does not fit into what is left of a full disk."""
EACH = 60
"""Connections of one pod."""


@pytest.fixture(scope="module")
def small(image: Path) -> Iterator[Host]:
    """A node whose state files have little room: a file system of 8 MiB each."""
    with hosting([image], start=False) as host:
        for folder in (RUNTIME, STATE):
            host.machine.shell(
                f"mount -t tmpfs -o size=8m,mode=750,uid=$(id -u dnsguard),gid=$(id -g dnsguard) state {folder}"
            )
        host.scene.zone.put("*.fresh.example.com", "A", FRESH)
        host.daemon.start()
        yield host


def fill(host: Host, folder: str) -> None:
    host.machine.run("dd", "if=/dev/zero", f"of={folder}/other", "bs=4k", "oflag=append", "conv=notrunc", check=False)


@contextlib.contextmanager
def full(host: Host, folder: str) -> Iterator[None]:
    fill(host, folder)
    assert host.machine.shell(f"df --output=avail {folder} | tail -1").strip() == "0"
    try:
        yield
    finally:
        host.machine.run("rm", f"{folder}/other")


def test_names_that_find_no_room_delay_nothing_and_are_written_when_there_is_some(small: Host) -> None:
    with whole_soon(small), full(small, RUNTIME), closed(small):
        small.until(lambda: is_whole(small) and bool(events(small, "state_file_unwritable")), PATIENCE)
        for _ in range(5):
            assert is_whole(small)

    small.until(lambda: bool(events(small, "state_file_written")), WHOLE)
    assert len(events(small, "state_file_unwritable", path=f"{RUNTIME}/names.sqlite")) == 1
    assert len(events(small, "state_file_written", path=f"{RUNTIME}/names.sqlite")) == 1
    before = small.scene.elements("10.244.0.5")
    small.machine.systemctl("restart", UNIT)  # what was written is what the next process needs
    assert FRESH in before and small.scene.opens(small.scene.a, FRESH)


def test_a_reload_without_room_for_the_policy_says_so_and_the_one_before_stays(small: Host) -> None:
    pods = {f"10.100.{n // 256}.{n % 256}": ["db.example.com"] for n in range(MANY)}
    small.daemon.write("allowlist.yaml", "Allowlist", {**ALLOWLIST, "pods": {**ALLOWLIST["pods"], **pods}})

    before = len(events(small, "state_file_unwritable"))
    with full(small, RUNTIME), closed(small):
        small.until(lambda: is_whole(small) and len(events(small, "state_file_unwritable")) > before, PATIENCE)
        fill(small, RUNTIME)  # the names have made way
        refused = small.daemon.call("reload")
        assert is_whole(small)

    assert refused.returncode == 1
    assert "No space left on device" in refused.stderr
    small.machine.systemctl("reload", UNIT)


def test_what_learn_has_seen_is_kept_in_memory_while_the_disk_is_full(small: Host, tmp_path: Path) -> None:
    with full(small, STATE), closed(small):
        for _ in range(5):
            assert is_whole(small)
            asked = [row["names"] for row in small.daemon.ask("learn") if row["pod"] == "shop/a"]
        assert "fresh.example.com" in str(asked)

    small.until(lambda: bool(events(small, "state_file_written", path=f"{STATE}/seen.sqlite")), WHOLE)
    (failed,) = events(small, "seen_file_failed")
    assert f"{STATE}/seen.sqlite cannot be written" in failed["DNSGUARD_REASON"]
    (written,) = events(small, "state_file_written", path=f"{STATE}/seen.sqlite")
    assert written["PRIORITY"] == "6"
    # SQLite would follow the link that leads into the machine to where it does not lead.
    copy = shutil.copy(small.machine.root / STATE[1:] / "seen.sqlite", tmp_path)
    assert "shop/a" in [row["pod"] for row in read_rows(Path(copy))]


def test_a_full_journal_delays_no_query_and_takes_every_line(small: Host) -> None:
    """journald makes room of its oldest files, or drops lines: neither is dnsguard's to wait for, nor to count."""
    small.machine.shell(f"mount -t tmpfs -o size=1m journal {JOURNAL} && systemctl restart systemd-journald")
    try:
        with full(small, JOURNAL), closed(small):
            for _ in range(5):
                assert is_whole(small)  # each at the first try: what waits for its answer does so for 1.2 s
    finally:
        with whole_soon(small):
            small.machine.shell(f"umount -l {JOURNAL} && systemctl restart systemd-journald")
    assert answered(small, "full.journal.example.org") == []
    small.until(lambda: bool(events(small, "query_denied", name="full.journal.example.org")), WHOLE)
    assert (dropped(small), events(small, "log_lines_dropped")) == (0, [])


# -- descriptors ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def few(image: Path) -> Iterator[Host]:
    """A node whose daemon may have FEW descriptors, and whose pods may open more connections than that."""
    with hosting([image], start=False, limits={"tcpConnections": 1000}) as host:
        host.machine.write(f"/run/systemd/system/{UNIT}.d/few.conf", f"[Service]\nLimitNOFILE={FEW}\n")
        host.machine.systemctl("daemon-reload")
        host.scene.zone.put("*.fresh.example.com", "A", FRESH)
        host.daemon.start()
        yield host


@contextlib.contextmanager
def connections(host: Host) -> Iterator[None]:
    """More of two pods than there are descriptors for."""
    with contextlib.ExitStack() as opened:
        for _ in range(EACH):
            for pod in (host.scene.a, host.scene.b):
                opened.enter_context(host.scene.client(pod, ANY_RESOLVER, stream=True))
        yield


@contextlib.contextmanager
def at_most(host: Host, descriptors: int) -> Iterator[None]:
    """The soft limit of the daemon is less than what it has open: the next socket is refused."""
    limit = ("setpriv", "--reuid=dnsguard", "--regid=dnsguard", "--clear-groups", "prlimit", f"--pid={host.daemon.pid}")
    host.machine.run(*limit, f"--nofile={descriptors}:")
    try:
        yield
    finally:
        host.machine.run(*limit, f"--nofile={FEW}:")


def busy(host: Host) -> float:
    """Seconds of processor time that the daemon has used."""
    fields = host.machine.read(f"/proc/{host.daemon.pid}/stat").rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / 100


def told(host: Host) -> tuple[int, int]:
    return len(events(host, "descriptors_short")), len(events(host, "descriptors_free"))


def test_connections_of_pods_leave_descriptors_for_the_upstreams_and_a_reload(few: Host) -> None:
    short, free = told(few)

    with connections(few), closed(few):
        few.until(lambda: told(few) == (short + 1, free), PATIENCE)
        assert is_whole(few)
        few.machine.systemctl("reload", UNIT)
        assert few.daemon.ready()

    few.until(lambda: bool(answered(few, fresh_name(), stream=True)), WHOLE)
    few.until(lambda: told(few) == (short + 1, free + 1), WHOLE)
    assert events(few, "upstream_down") == []


def test_without_any_descriptor_the_daemon_does_not_spin_and_blames_no_upstream(few: Host) -> None:
    scene = few.scene
    assert is_whole(few)
    short, free = told(few)

    with whole_soon(few), at_most(few, FEWER), scene.client(scene.a, ANY_RESOLVER, stream=True), closed(few):
        few.until(lambda: told(few)[0] > short, PATIENCE)
        assert answered(few, fresh_name()) == []
        began, used = time.monotonic(), busy(few)
        assert [answered(few, fresh_name()) for _ in range(3)] == [[]] * 3
        share = (busy(few) - used) / (time.monotonic() - began)
        assert few.scene.opens(scene.a, FRESH)  # what is open stays so

    few.until(lambda: bool(answered(few, fresh_name(), stream=True)), WHOLE)
    few.until(lambda: told(few) == (short + 1, free + 1), WHOLE)
    assert share < 0.1
    assert events(few, "upstream_down") == []


def test_a_connection_that_came_while_there_was_no_descriptor_is_answered_once_there_is(few: Host) -> None:
    scene, before = few.scene, told(few)[0]
    question = bytes(DNSRecord.question("db.example.com").pack())

    with scene.client(scene.a, ANY_RESOLVER, stream=True) as client:
        with at_most(few, FEWER):
            second = scene.client(scene.a, ANY_RESOLVER, stream=True)
            few.until(lambda: told(few)[0] > before, PATIENCE)
        with second:
            for waiting in (client, second):
                waiting.settimeout(WHOLE)
                assert addresses(exchange(waiting, question, True)) == [DB]
