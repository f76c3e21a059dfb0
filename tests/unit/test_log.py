"""The log: lines as text and JSON, and a standard error that is slow, stopped or gone."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import pty
import select
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvloop
from aiohttp.http_exceptions import BadStatusLine

from dnsguard.engine.contracts import EventKind
from dnsguard.observe import outlet as outlet_module
from dnsguard.observe.events import EventLog
from dnsguard.observe.log import Log, open_log
from dnsguard.observe.outlet import Outlet, open_stream
from dnsguard.observe.ratelimit import LineLimiter


@pytest.fixture
def clean_logging() -> Iterator[None]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)
    logging.captureWarnings(False)


class Pipe:
    """A small pipe whose reader reads when the test says so."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, 4096)
        os.set_blocking(self.reader, False)

    def read(self) -> bytes:
        taken = b""
        while True:
            try:
                chunk = os.read(self.reader, 65536)
            except BlockingIOError:
                return taken
            if not chunk:
                return taken
            taken += chunk


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    for fd in (made.reader, made.writer):
        try:
            os.close(fd)
        except OSError as error:
            assert error.errno == 9  # closed by the test


def lost(count: int) -> bytes:
    return f"LOST {count}\n".encode()


LINE = b"x" * 99 + b"\n"


def test_a_full_pipe_does_not_block_and_keeps_what_fits(pipe: Pipe) -> None:
    outlet = Outlet(open_stream(pipe.writer), lost, max_waiting=1000)
    for _ in range(100):
        outlet.write(LINE)
    assert 0 < outlet.dropped < 60
    assert os.get_blocking(pipe.writer), "the descriptor we share with others is left as it was"


def test_the_count_of_dropped_lines_is_said_when_it_flows_again(pipe: Pipe) -> None:
    outlet = Outlet(open_stream(pipe.writer), lost, max_waiting=1000)
    for _ in range(100):
        outlet.write(LINE)
    first = pipe.read()
    outlet.write(b"after\n")
    lines = (first + pipe.read()).splitlines()
    assert lines[-2:] == [b"LOST %d" % outlet.dropped, b"after"]
    assert len(lines) - 2 + outlet.dropped == 100


def test_no_line_is_torn_when_the_pipe_takes_half_of_it(pipe: Pipe) -> None:
    outlet = Outlet(open_stream(pipe.writer), lost)
    taken = b""
    for _ in range(200):
        outlet.write(LINE)
        if len(taken) % 3 == 0:
            taken += os.read(pipe.reader, 37)
    for _ in range(10):
        taken += pipe.read()
        outlet.flush()
    assert taken == LINE * 200


def test_a_line_larger_than_the_buffer_is_dropped_and_said(pipe: Pipe) -> None:
    outlet = Outlet(open_stream(pipe.writer), lost, max_waiting=100)
    outlet.write(b"y" * 101)
    outlet.write(b"after\n")
    assert pipe.read() == b"LOST 1\nafter\n"


def test_a_reader_that_has_gone_costs_lines_and_nothing_else(pipe: Pipe) -> None:
    outlet = Outlet(open_stream(pipe.writer), lost)
    os.close(pipe.reader)
    for _ in range(3):
        outlet.write(LINE)
    assert outlet.dropped == 3


def test_without_a_way_to_open_the_pipe_again_it_is_polled(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr(outlet_module.os, "open", refuse)
    outlet = Outlet(open_stream(pipe.writer), lost, max_waiting=1000)
    for _ in range(100):
        outlet.write(LINE)
    assert outlet.dropped > 0
    assert pipe.read().startswith(LINE)


def test_a_full_socket_does_not_block() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        outlet = Outlet(open_stream(ours.fileno()), lost, max_waiting=1000)
        for _ in range(10_000):
            outlet.write(LINE)
        assert outlet.dropped > 0
        outlet.close()


def test_lines_are_appended_to_a_file(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        outlet = Outlet(open_stream(file.fileno()), lost)
        outlet.write(b"one\n")
        file.write(b"two\n")
        file.flush()
        outlet.write(b"three\n")
        outlet.close()
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\nthree\n"


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run])
def test_the_loop_writes_what_waits_as_soon_as_there_is_room(pipe: Pipe, runner: Callable[..., None]) -> None:
    async def scenario() -> None:
        outlet = Outlet(open_stream(pipe.writer), lost)
        outlet.attach(asyncio.get_running_loop())
        for _ in range(100):
            outlet.write(LINE)
        taken = b""
        async with asyncio.timeout(5):
            while len(taken) < 100 * len(LINE):
                taken += pipe.read()
                await asyncio.sleep(0)
        assert taken == LINE * 100
        outlet.close()

    runner(scenario())


def test_closing_waits_only_so_long_for_a_reader_that_has_stopped(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlet_module, "LAST_WAIT_MS", 1)
    outlet = Outlet(open_stream(pipe.writer), lost)
    for _ in range(100):
        outlet.write(LINE)
    outlet.close()
    assert 0 < len(pipe.read()) <= 4096


# ---- lines


def event_log(log: Log) -> EventLog:
    return EventLog([log.write], LineLimiter(1000), lambda: 0.0)


def deny(log: Log) -> None:
    event_log(log).emit(
        EventKind.QUERY_DENIED, pod="shop/a", name="x.test", type="A", reason="no rule allows this name"
    )


def test_json_has_message_event_and_message_id(pipe: Pipe, clean_logging: None) -> None:
    deny(open_log("json", "info", pipe.writer))
    line = json.loads(pipe.read())
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "message": "shop/a may not resolve x.test (A): no rule allows this name",
        "event": "query_denied",
        "message_id": "7a46d40837fd4be587dd2d463afaf428",
        "pod": "shop/a",
        "name": "x.test",
        "type": "A",
        "reason": "no rule allows this name",
    }


def test_text_has_key_value_pairs_and_no_colours_in_a_pipe(pipe: Pipe, clean_logging: None) -> None:
    deny(open_log("auto", "info", pipe.writer))
    line = pipe.read().decode()
    assert "\x1b" not in line
    assert "pod=shop/a name=x.test type=A reason='no rule allows this name' event=query_denied\n" in line


def test_text_is_coloured_on_a_terminal(clean_logging: None) -> None:
    ours, theirs = pty.openpty()
    deny(open_log("auto", "info", theirs))
    assert select.select([ours], [], [], 5)[0]
    assert b"\x1b[" in os.read(ours, 4096)
    os.close(ours)
    os.close(theirs)


def test_the_standard_librarys_messages_arrive_and_are_escaped(pipe: Pipe, clean_logging: None) -> None:
    open_log("json", "debug", pipe.writer)
    logging.getLogger("aiohttp.server").warning("bad \x1b[31m request\nfake line")
    logging.getLogger("aiohttp.server").debug("noise")
    line = json.loads(pipe.read())
    assert line["message"] == "bad \\x1b[31m request\\nfake line"
    assert line["logger"] == "aiohttp.server"


def test_a_librarys_flood_is_cut_to_its_share(pipe: Pipe, clean_logging: None) -> None:
    open_log("json", "info", pipe.writer)
    for _ in range(100):
        logging.getLogger("aiohttp.server").warning("bad")
    assert len(pipe.read().splitlines()) <= 12


def test_a_peers_broken_request_gives_no_traceback(pipe: Pipe, clean_logging: None) -> None:
    open_log("json", "info", pipe.writer)
    try:
        raise BadStatusLine("x")
    except BadStatusLine:
        logging.getLogger("aiohttp.server").exception("Error handling request")
    assert "exception" not in json.loads(pipe.read())


@pytest.mark.parametrize("form", ["text", "json"])
def test_an_exceptions_text_cannot_bring_escapes_in(form: str, pipe: Pipe, clean_logging: None) -> None:
    log = open_log(form, "info", pipe.writer)
    try:
        raise ValueError("\x1b]0;title\x07")
    except ValueError:
        log.logger.exception("unexpected")
    assert b"\x1b" not in pipe.read()


@pytest.mark.parametrize("form", ["text", "json"])
def test_lost_lines_are_said_in_the_logs_own_form(form: str, pipe: Pipe, clean_logging: None) -> None:
    log = open_log(form, "info", pipe.writer)
    log.outlet._max_waiting = 1000
    for _ in range(100):
        log.logger.info("y" * 80)
    taken = pipe.read()
    log.outlet.flush()
    last = (taken + pipe.read()).splitlines()[-1].decode()
    assert log.outlet.dropped > 0
    assert f"{log.outlet.dropped} log lines were dropped" in last
    assert (json.loads(last)["event"] == "log_lines_dropped") if form == "json" else "event=log_lines_dropped" in last


def test_opening_the_log_again_does_not_double_the_lines(pipe: Pipe, clean_logging: None) -> None:
    open_log("json", "info", pipe.writer)
    open_log("json", "info", pipe.writer)
    logging.getLogger("x").warning("once")
    assert len(pipe.read().splitlines()) == 1
