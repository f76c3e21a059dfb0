"""The control socket, over a real unix socket in a folder of its own."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dnsguard import __version__
from dnsguard.control import api
from dnsguard.control.api import ControlServer, Handler
from dnsguard.control.calls import CALLS, DENIED, MISSING, USAGE, WRONG, Call, CallError, exit_code_of, socket_path
from dnsguard.control.client import ControlClient, NotRunningError
from dnsguard.core.errors import DnsguardError, MissingFeatureError, PolicyError


class Daemon:
    """A control server whose calls do what a test says; clients run in a thread, as other processes would."""

    def __init__(self, runtime: Path, **handlers: Handler) -> None:
        self.defects: list[tuple[str, Exception]] = []
        self.server = ControlServer(runtime, handlers, lambda call, error: self.defects.append((call, error)))
        self.client = ControlClient(runtime)

    async def call(self, name: str, /, **arguments: str) -> Any:
        return await asyncio.to_thread(self.client.call, name, **arguments)

    async def rows(self, name: str, /, **arguments: str) -> list[Any]:
        return await asyncio.to_thread(lambda: list(self.client.rows(name, **arguments)))

    async def __aenter__(self) -> Daemon:
        await self.server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.server.stop()


async def version() -> dict[str, str]:
    return {"version": "9"}


async def test_a_call_returns_its_object(tmp_path: Path) -> None:
    async with Daemon(tmp_path, version=version) as daemon:
        assert await daemon.call("version") == {"version": "9"}


async def test_parameters_arrive_as_they_were_written(tmp_path: Path) -> None:
    async def explain(**arguments: str) -> dict[str, str]:
        return arguments

    given = {"pod": "shop/a b&c=d", "name": "bü.test", "type": "A"}
    async with Daemon(tmp_path, explain=explain) as daemon:
        assert await daemon.call("explain", **given) == given


@pytest.mark.parametrize("count", [0, 1, api.ROWS_AT_ONCE, 1000])
async def test_rows_arrive_complete_and_in_order(count: int, tmp_path: Path) -> None:
    async def leases() -> Iterator[dict[str, int]]:
        return ({"n": n} for n in range(count))

    async with Daemon(tmp_path, leases=leases) as daemon:
        assert await daemon.rows("leases") == [{"n": n} for n in range(count)]


async def test_many_rows_do_not_keep_the_loop_from_its_other_work(tmp_path: Path) -> None:
    turns: list[int] = []

    async def leases() -> Iterator[dict[str, int]]:
        def rows() -> Iterator[dict[str, int]]:
            for n in range(api.ROWS_AT_ONCE * 20):
                if n % api.ROWS_AT_ONCE == 0:
                    asyncio.get_running_loop().call_soon(turns.append, n)
                yield {"seen": len(turns)}

        return rows()

    async with Daemon(tmp_path, leases=leases) as daemon:
        assert (await daemon.rows("leases"))[-1]["seen"] >= 18


async def test_rows_that_break_off_are_an_error_and_not_a_short_list(tmp_path: Path) -> None:
    async def leases() -> Iterator[dict[str, int]]:
        def rows() -> Iterator[dict[str, int]]:
            for n in range(api.ROWS_AT_ONCE + 1):
                yield {"n": n}
            raise RuntimeError("a defect")

        return rows()

    async with Daemon(tmp_path, leases=leases) as daemon:
        with pytest.raises(CallError, match="broke off"):
            await daemon.rows("leases")


async def test_a_reader_that_goes_early_is_no_defect(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def leases() -> Iterator[dict[str, str]]:
        return ({"n": "x" * 1000} for _ in range(20_000))

    def go(daemon: Daemon) -> None:
        rows = daemon.client.rows("leases")
        next(iter(rows))

    async with Daemon(tmp_path, leases=leases) as daemon:
        await asyncio.to_thread(go, daemon)
    assert daemon.defects == []
    assert caplog.records == []


async def test_an_operators_mistake_comes_back_with_its_text_and_exit_code(tmp_path: Path) -> None:
    async def reload() -> None:
        raise PolicyError("a.yaml:3:5: error: x")

    async with Daemon(tmp_path, reload=reload) as daemon:
        with pytest.raises(CallError, match=r"^a\.yaml:3:5: error: x$") as raised:
            await daemon.call("reload")
    assert raised.value.exit_code == WRONG and daemon.defects == []


async def test_a_defect_is_reported_and_told_without_its_details(tmp_path: Path) -> None:
    async def status() -> None:
        raise ZeroDivisionError("secret")

    async with Daemon(tmp_path, status=status) as daemon:
        with pytest.raises(CallError, match=r"^internal error"):
            await daemon.call("status")
    assert [(call, type(error)) for call, error in daemon.defects] == [("/v1/status", ZeroDivisionError)]


async def test_a_call_that_takes_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "CALLS", {**CALLS, "status": Call("GET", limit=0.01)})

    async def status() -> None:
        await asyncio.Event().wait()

    async with Daemon(tmp_path, status=status) as daemon:
        with pytest.raises(CallError, match="took longer than"):
            await daemon.call("status")


async def test_a_missing_parameter_is_a_usage_error(tmp_path: Path) -> None:
    async def explain(**_: str) -> None: ...

    async with Daemon(tmp_path, explain=explain) as daemon:
        with pytest.raises(CallError, match="parameter 'pod' is missing") as raised:
            await daemon.call("explain", name="x.test")
    assert raised.value.exit_code == USAGE


async def test_an_unknown_parameter_is_a_usage_error(tmp_path: Path) -> None:
    async with Daemon(tmp_path, version=version) as daemon:
        with pytest.raises(CallError, match="unknown parameter 'colour'; known here: none"):
            await daemon.call("version", colour="red")


async def test_a_call_that_the_daemon_does_not_have_is_an_error(tmp_path: Path) -> None:
    async with Daemon(tmp_path, version=version) as daemon:
        with pytest.raises(CallError, match="GET /v1/status: Not Found"):
            await daemon.call("status")


def test_a_handler_outside_the_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not in the table"):
        ControlServer(tmp_path, {"destroy": version}, lambda *_: None)


async def test_a_reload_cannot_be_asked_for_with_get(tmp_path: Path) -> None:
    async with Daemon(tmp_path, reload=version) as daemon:
        reply = await asyncio.to_thread(raw, daemon.server.path, b"GET /v1/reload HTTP/1.1\r\nHost: x\r\n\r\n")
    assert reply.startswith(b"HTTP/1.1 405")


async def test_an_endless_request_is_cut_off(tmp_path: Path) -> None:
    async with Daemon(tmp_path, version=version) as daemon:
        request = b"GET /v1/version?" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n"
        reply = await asyncio.to_thread(raw, daemon.server.path, request)
    assert reply.startswith((b"HTTP/1.0 400", b"HTTP/1.1 400"))


def raw(path: Path, request: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(bytes(path))
        sock.sendall(request)
        return sock.recv(4096)


async def test_the_socket_is_for_its_owner_and_group_only(tmp_path: Path) -> None:
    async with Daemon(tmp_path, version=version) as daemon:
        mode = daemon.server.path.stat().st_mode
    assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o660


async def test_the_socket_belongs_to_the_group_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[int, int]] = []
    monkeypatch.setattr(api.grp, "getgrnam", lambda name: type("Group", (), {"gr_gid": 4242}))
    monkeypatch.setattr(api.os, "chown", lambda path, uid, gid: given.append((uid, gid)))
    async with Daemon(tmp_path, version=version):
        assert given == [(-1, 4242)]


async def test_stopping_removes_the_socket(tmp_path: Path) -> None:
    async with Daemon(tmp_path, version=version):
        pass
    assert not list(os.scandir(tmp_path))


async def test_the_socket_of_a_dead_daemon_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(bytes(socket_path(tmp_path)))
    async with Daemon(tmp_path, version=version) as daemon:
        assert await daemon.call("version") == {"version": "9"}


async def test_the_socket_of_a_living_daemon_is_left_alone(tmp_path: Path) -> None:
    async with Daemon(tmp_path, version=version) as first:
        with pytest.raises(CallError, match="another daemon listens"):
            await Daemon(tmp_path, version=version).server.start()
        assert await first.call("version") == {"version": "9"}


async def test_a_runtime_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CallError, match=r"does .*/absent exist"):
        await Daemon(tmp_path / "absent", version=version).server.start()


def test_a_path_that_does_not_fit_into_a_sockets_address_is_an_error() -> None:
    with pytest.raises(CallError, match=r"paths\.runtime is too long: .* at most 103 octets"):
        socket_path(Path("/" + "x" * 100))


def test_the_longest_path_can_be_bound(tmp_path: Path) -> None:
    directory = tmp_path / ("x" * (103 - len(bytes(tmp_path)) - len("//control.sock")))
    directory.mkdir()
    api.bind(socket_path(directory)).close()
    assert len(bytes(socket_path(directory))) == 103


def test_without_a_socket_the_client_says_how_to_start_the_daemon(tmp_path: Path) -> None:
    with pytest.raises(NotRunningError, match=r"not running \(no socket at .*control\.sock\): start it with"):
        ControlClient(tmp_path).call("version")


def test_with_a_dead_socket_the_client_says_how_to_start_the_daemon(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(bytes(socket_path(tmp_path)))
    with pytest.raises(NotRunningError, match="nobody listens"):
        list(ControlClient(tmp_path).rows("leases"))


def test_without_permission_the_client_names_the_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("dnsguard.control.client._UnixConnection.connect", refuse)
    with pytest.raises(CallError, match="permission denied: run as root, or as a member of group dnsguard") as denied:
        ControlClient(tmp_path).call("version")
    assert denied.value.exit_code == MISSING


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (b"", "broke off"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", "broke off"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nxyz", "not JSON"),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 3\r\n\r\nxyz", "answered 500 Oops"),
        (b"garbage\r\n\r\n", "broke off"),
    ],
)
def test_an_answer_that_is_none_is_an_error_in_words(reply: bytes, message: str, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(bytes(socket_path(tmp_path)))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(reply)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(CallError, match=message):
            ControlClient(tmp_path).call("version")
        thread.join()


async def test_another_version_of_the_daemon_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "__version__", "9.9.9")
    async with Daemon(tmp_path, version=version) as daemon:
        await daemon.call("version")
    assert daemon.client.version_note() == (
        f"the daemon runs version 9.9.9, this is {__version__}: restart it to use the new one"
    )


async def test_the_same_version_is_not_mentioned(tmp_path: Path) -> None:
    async with Daemon(tmp_path, version=version) as daemon:
        await daemon.call("version")
    assert daemon.client.version_note() is None


@pytest.mark.parametrize(
    ("error", "code"),
    [(DnsguardError(""), 1), (MissingFeatureError(""), 77), (CallError("", DENIED), 3), (PolicyError(""), 1)],
)
def test_each_error_has_its_exit_code(error: DnsguardError, code: int) -> None:
    assert exit_code_of(error) == code
    assert code in (WRONG, DENIED, MISSING)
