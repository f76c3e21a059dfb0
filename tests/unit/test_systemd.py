"""What is said to systemd and taken from it, over a real notification socket."""

from __future__ import annotations

import array
import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dnsguard.core.errors import KernelError
from dnsguard.daemon.supervision import OWNER, STUCK, Supervision
from dnsguard.node.systemd import Inherited, Systemd


class Manager:
    """The other end: what a service manager would read."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self._socket.settimeout(5)

    def heard(self) -> tuple[str, list[int]]:
        """The next message, and the descriptors that came with it."""
        text, ancillary, *_ = self._socket.recvmsg(4096, 256)
        descriptors = array.array("i")
        for _, _, data in ancillary:
            descriptors.frombytes(data)
        return text.decode(), list(descriptors)

    def everything(self) -> list[str]:
        self._socket.settimeout(0)
        found = []
        while True:
            try:
                found.append(self.heard()[0])
            except BlockingIOError:
                return found

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path / "notify")
    yield made
    made.close()


def test_without_systemd_nothing_is_said_and_nothing_was_inherited() -> None:
    quiet = Systemd.from_environment({})

    quiet.ready()

    assert (quiet.watchdog, quiet.take("dns"), quiet.settled()) == (0.0, [], False)


def test_what_is_meant_for_this_process_is_taken_out_of_the_environment() -> None:
    environment = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "20000000", "WATCHDOG_PID": str(os.getpid()), "A": "b"}

    found = Systemd.from_environment(environment)

    assert environment == {"A": "b"}
    assert found.watchdog == 20.0


@pytest.mark.parametrize("pid", ["", "1", "junk"])
def test_descriptors_and_a_watchdog_of_another_process_are_not_ours(pid: str) -> None:
    meant = {"LISTEN_PID": pid, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "dns", "WATCHDOG_USEC": "9", "WATCHDOG_PID": "1"}

    found = Systemd.from_environment(meant)

    assert (found.take("dns"), found.watchdog) == ([], 0.0)


def test_a_status_is_one_line_and_said_once(manager: Manager) -> None:
    systemd = Systemd(manager.path)

    for text in ("a.yaml:1:1: error: x\n\n  a.yaml:2:1: error: y\n", "a.yaml:1:1: error: x\na.yaml:2:1: error: y", "b"):
        systemd.status(text)

    assert manager.everything() == ["STATUS=a.yaml:1:1: error: x | a.yaml:2:1: error: y", "STATUS=b"]


def test_a_manager_that_does_not_read_is_not_waited_for(manager: Manager) -> None:
    systemd = Systemd(manager.path)

    for _ in range(2000):
        systemd.alive()

    assert set(manager.everything()) == {"WATCHDOG=1"}


def test_a_kept_socket_arrives_with_its_name(manager: Manager) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", 0))
        Systemd(manager.path).keep("listening", [one])

        text, (descriptor,) = manager.heard()

        assert text.splitlines() == ["FDSTORE=1", "FDNAME=listening", "FDPOLL=0"]
        with socket.socket(fileno=descriptor) as copy:
            assert copy.getsockname() == one.getsockname()


def test_settled_waits_until_the_manager_has_let_go_of_the_barrier(manager: Manager) -> None:
    def let_go() -> None:
        for descriptor in manager.heard()[1]:
            os.close(descriptor)

    threading.Thread(target=let_go).start()

    assert Systemd(manager.path).settled()


def test_settled_gives_up_on_a_manager_that_holds_it(manager: Manager) -> None:
    assert not Systemd(manager.path).settled(patience=0.05)


# -- signs of life ----------------------------------------------------------------------------------------------------


def looked(manager: Manager, busy_since: float | None, now: float) -> list[str]:
    supervision = Supervision(Systemd(manager.path, watchdog=20.0), clock=lambda: now)
    supervision.watch(lambda: busy_since)
    supervision.look("ready")
    return manager.everything()


def test_a_writer_that_gets_on_is_a_sign_of_life(manager: Manager) -> None:
    assert looked(manager, None, 100.0) == ["STATUS=ready", "WATCHDOG=1"]
    assert looked(manager, 95.0, 100.0) == ["STATUS=ready", "WATCHDOG=1"]


def test_a_writer_that_hangs_is_none(manager: Manager) -> None:
    assert looked(manager, 89.0, 100.0) == ["STATUS=ready"]


def test_a_sign_of_life_comes_well_before_it_is_missed() -> None:
    assert Supervision(Systemd("", watchdog=4.0)).interval == 1.0
    assert Supervision(Systemd("", watchdog=600.0)).interval == 5.0


async def test_a_start_that_takes_long_asks_for_more_time(manager: Manager) -> None:
    async with Supervision(Systemd(manager.path)).starting():
        await asyncio.sleep(0)

        assert manager.everything() == ["EXTEND_TIMEOUT_USEC=30000000"]


@pytest.mark.parametrize("watchdog", [0.0, 2 * STUCK])
async def test_a_start_asks_for_no_more_time_while_its_writer_hangs(
    manager: Manager, monkeypatch: pytest.MonkeyPatch, watchdog: float
) -> None:
    monkeypatch.setattr("dnsguard.daemon.supervision.LOOK", 0.0)
    supervision = Supervision(Systemd(manager.path, watchdog), clock=lambda: 100.0)
    busy_since = [100.0 - STUCK]
    supervision.watch(lambda: busy_since[-1])

    async with supervision.starting():
        for _ in range(3):
            await asyncio.sleep(0)
        assert manager.everything() == []

        busy_since.append(100.1 - STUCK)
        for _ in range(3):
            await asyncio.sleep(0)
        assert set(manager.everything()) == {"EXTEND_TIMEOUT_USEC=30000000"}


def test_a_refused_reload_is_in_the_status_until_one_is_accepted(manager: Manager) -> None:
    supervision = Supervision(Systemd(manager.path))

    with pytest.raises(KernelError), supervision.reloading(lambda: "ready"):
        raise KernelError("a.yaml:1:1: error: x")
    supervision.tell("ready: 3 pods")
    with supervision.reloading(lambda: "ready"):
        pass

    refused = "the last reload was refused: a.yaml:1:1: error: x"
    assert manager.everything() == [f"STATUS=ready; {refused}", f"STATUS=ready: 3 pods; {refused}", "STATUS=ready"]


# -- what is kept -----------------------------------------------------------------------------------------------------


def test_the_table_s_owner_is_let_go_on_both_sides(manager: Manager) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as owner:
        inherited = [Inherited(OWNER, os.dup(owner.fileno()))]
    said: list[str] = []

    def let_go() -> None:
        for _ in range(2):
            text, descriptors = manager.heard()
            said.append(text)
            for descriptor in descriptors:
                os.close(descriptor)

    thread = threading.Thread(target=let_go)
    thread.start()

    Supervision(Systemd(manager.path, inherited=inherited)).release_table()

    thread.join()
    assert said == ["FDSTOREREMOVE=1\nFDNAME=table", "BARRIER=1"]
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(inherited[0].descriptor)
