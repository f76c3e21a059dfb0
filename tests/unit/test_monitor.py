"""Events watched live: over a real control server, by readers that are fast, slow, gone or asleep."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from dnsguard.cli.monitor import KIND_WIDTH, line
from dnsguard.control import api
from dnsguard.control.api import ControlServer
from dnsguard.control.calls import CallError, EventType
from dnsguard.control.client import ControlClient
from dnsguard.engine.contracts import EventKind
from dnsguard.observe import watching
from dnsguard.observe.catalog import INFO
from dnsguard.observe.events import Event, EventLog
from dnsguard.observe.ratelimit import LineLimiter
from dnsguard.observe.watching import EVERYTHING, PREFIXES, QUEUE, Watcher, Watching, kinds_of

ALL = frozenset(EventKind)


class Guard:
    """An event log that is watched over a control socket."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.logged: list[Event] = []
        self.pods: dict[str, list[str]] = {}
        self.defects: list[Exception] = []
        self.log = EventLog([self.logged.append], LineLimiter(1), time.monotonic, queries="None", level=INFO)
        rows = Watching(self.log, lambda text: self.pods.get(text, ())).rows
        calls = {"monitor": rows, "pods": self.pod_rows}
        self.server = ControlServer(folder, calls, lambda call, error: self.defects.append(error))

    async def pod_rows(self, pod: str) -> list[dict[str, str]]:
        if pod not in self.pods:
            raise CallError(f"no pod on this node is called {pod}")
        return [{"pod": pod}]

    def drop(self, times: int = 1, pod: str = "shop/a", **fields: object) -> None:
        for number in range(times):
            self.log.emit(EventKind.FLOW_DENIED, pod=pod, address=b"\xc0\x00\x02\x01", port=number, **fields)

    async def watched(self, by: int = 1) -> None:
        await until(lambda: len(self.log.watchers) == by)

    def reader(self, **arguments: str) -> Iterator[Any]:
        return ControlClient(self.folder).rows("monitor", **arguments)


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not what():
            await asyncio.sleep(0.005)


async def some(rows: Iterator[Any], count: int) -> list[Any]:
    """The next rows, read in a thread as another process would."""
    return await asyncio.to_thread(lambda: [next(rows) for _ in range(count)])


@pytest.fixture
async def guard(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Guard]:
    made = Guard(tmp_path)
    await made.server.start()
    yield made
    await made.server.stop()
    assert made.defects == []
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


@contextlib.contextmanager
def connection(guard: Guard) -> Iterator[socket.socket]:
    """A reader that has asked, and reads only when a test makes it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(bytes(guard.server.path))
        sock.send(b"GET /v1/monitor HTTP/1.1\r\nHost: x\r\n\r\n")
        yield sock


# ---- what is seen


async def test_a_watcher_sees_events_that_the_log_leaves_out(guard: Guard) -> None:
    rows = guard.reader()
    first = asyncio.ensure_future(some(rows, 3))
    await guard.watched()
    guard.log.emit(EventKind.QUERY_ALLOWED, pod="shop/a", name=b"\x01x\x04test\x00", type="A")
    guard.log.emit(EventKind.LEASE_ENDED, pod="shop/a", name="x.test", address=b"\xc0\x00\x02\x01")
    guard.drop()
    told = await first
    assert [row["event"] for row in told] == ["query_allowed", "lease_ended", "flow_denied"]
    assert told[0].items() >= {"pod": "shop/a", "name": "x.test", "type": "A"}.items()
    assert told[0]["time"].endswith("Z") and told[0]["message"] == "shop/a resolves x.test (A)"
    assert [event.kind for event in guard.logged] == [EventKind.FLOW_DENIED]


async def test_the_logs_rate_limit_holds_nothing_back_from_a_watcher(guard: Guard) -> None:
    first = asyncio.ensure_future(some(guard.reader(), 100))
    await guard.watched()
    guard.drop(100)
    assert [row["port"] for row in await first] == list(range(100))
    assert len(guard.logged) == 1


async def test_several_watchers_see_the_same_each_of_its_types(guard: Guard) -> None:
    drops = asyncio.ensure_future(some(guard.reader(type="drop"), 2))
    both = asyncio.ensure_future(some(guard.reader(type="drop,policy"), 3))
    await guard.watched(by=2)
    guard.drop()
    guard.log.emit(EventKind.POLICY_LOADED, generation=2)
    guard.drop()
    assert [row["event"] for row in await drops] == ["flow_denied", "flow_denied"]
    assert [row["event"] for row in await both] == ["flow_denied", "policy_loaded", "flow_denied"]


@pytest.mark.parametrize("text", ["shop/a", "10.0.0.5", "veth1"])
async def test_a_pod_is_meant_by_its_name_its_address_or_its_link(text: str, guard: Guard) -> None:
    guard.pods = {"10.0.0.5": ["shop/a"], "veth1": ["shop/a"]}
    first = asyncio.ensure_future(some(guard.reader(pod=text), 2))
    await guard.watched()
    guard.drop(pod="shop/b")
    guard.log.emit(EventKind.POD_CAME, pod="shop/a", pod_ip=[b"\x0a\x00\x00\x05"], link="veth1")
    guard.drop(pod="shop/a")
    assert [row["event"] for row in await first] == ["pod_came", "flow_denied"]


async def test_a_pod_that_comes_later_is_meant_too(guard: Guard) -> None:
    first = asyncio.ensure_future(some(guard.reader(pod="10.0.0.5"), 1))
    await guard.watched()
    guard.pods = {"10.0.0.5": ["shop/a"]}
    while not first.done():
        guard.drop()
        await asyncio.sleep(0.01)
    assert (await first)[0]["pod"] == "shop/a"


def test_every_type_has_its_kinds_and_none_is_of_two() -> None:
    of = [kinds_of(type.value) for type in EventType]
    assert all(of) and sum(map(len, of)) == len(frozenset().union(*of))
    assert set(PREFIXES) == {type.value for type in EventType}
    assert kinds_of("lease") == {
        EventKind.LEASE_OPENED,
        EventKind.LEASE_ENDED,
        EventKind.LEASE_REFUSED,
        EventKind.LEASES_PURGED,
        EventKind.FLOWS_CUT,
    }
    assert kinds_of("drop") == {EventKind.FLOW_DENIED, EventKind.FLOW_AUDITED}


def test_without_a_type_all_is_told_but_what_is_of_the_log() -> None:
    assert EventKind.UPSTREAM_DOWN in EVERYTHING and EventKind.EVENTS_SUPPRESSED not in EVERYTHING
    assert kinds_of("") == EVERYTHING


async def test_an_unknown_type_is_refused_with_those_that_there_are(guard: Guard) -> None:
    with pytest.raises(CallError, match="unknown type of event 'drops'; known: query, drop, lease, policy"):
        await some(guard.reader(type="drops"), 1)


async def test_only_so_many_may_watch(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "MOST", 1)
    with connection(guard):
        await guard.watched()
        with pytest.raises(CallError, match="1 watch already"):
            await some(guard.reader(), 1)


# ---- what it costs


def test_nothing_is_put_into_words_while_nobody_watches() -> None:
    log = EventLog([], LineLimiter(1), time.monotonic, queries="None", level=INFO)
    watcher = Watcher(kinds_of("query,lease"))
    assert (log.all_queries, log.all_leases) == (False, False)
    log.watch(watcher)
    assert (log.all_queries, log.all_leases) == (True, True)
    log.unwatch(watcher)
    assert (log.all_queries, log.all_leases) == (False, False)


def test_a_full_queue_counts_what_it_loses_and_goes_on() -> None:
    log = EventLog([], LineLimiter(1), time.monotonic)
    watcher = Watcher(ALL)
    log.watch(watcher)
    for _ in range(QUEUE + 7):
        log.emit(EventKind.POLICY_LOADED, generation=1)
    assert watcher.take()[QUEUE - 1 :][1:] == [{"lost": 7}]
    log.emit(EventKind.POLICY_LOADED, generation=2)
    assert [row["generation"] for row in watcher.take()] == [2]


def test_events_of_other_pods_are_not_lost_for_a_pods_watcher() -> None:
    log = EventLog([], LineLimiter(1), time.monotonic)
    watcher = Watcher(ALL, "shop/a")
    log.watch(watcher)
    for _ in range(QUEUE):
        log.emit(EventKind.FLOW_DENIED, pod="shop/a")
    log.emit(EventKind.FLOW_DENIED, pod="shop/b")
    assert not any("lost" in row for row in watcher.take())


def test_a_defect_in_a_watchers_event_costs_the_emitter_nothing() -> None:
    class Bad:
        def __str__(self) -> str:
            raise ZeroDivisionError

    log = EventLog([], LineLimiter(1), time.monotonic)
    log.watch(Watcher(ALL))
    log.emit(EventKind.POLICY_LOADED, generation=Bad())
    assert log.failed == 2  # the log's line, and the watcher's


# ---- readers


async def test_a_slow_reader_is_told_how_many_it_lost_and_slows_nobody(guard: Guard) -> None:
    with connection(guard) as slow:
        await guard.watched()
        fast = asyncio.ensure_future(some(guard.reader(type="policy"), 1))
        await guard.watched(by=2)
        emitted = 0
        while not any(isinstance(one, Watcher) and one._lost for one in guard.log.watchers):
            guard.drop(100, reason="x" * 1000)
            emitted += 100
            await asyncio.sleep(0)
        guard.log.emit(EventKind.POLICY_LOADED, generation=2)
        assert (await fast)[0]["generation"] == 2
        told = await asyncio.to_thread(_rows_until_lost, slow.makefile("rb"))
    assert sum(row.get("lost", 1) for row in told) == emitted + 1


def _rows_until_lost(stream: IO[bytes]) -> list[Any]:
    """The rows of a chunked reply, up to the first that says that some were lost."""
    rows: list[Any] = []
    while not rows or "lost" not in rows[-1]:
        text = stream.readline()
        if text.startswith(b"{"):
            rows.append(json.loads(text))
    return rows


async def test_a_reader_that_does_not_read_is_cut_off(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "PATIENCE", 0.2)
    monkeypatch.setattr(watching, "STALLED", 0.1)
    with connection(guard):
        await guard.watched()
        while guard.log.watchers:
            guard.drop(100, reason="x" * 1000)
            await asyncio.sleep(0.005)
    told = guard.logged[-1]
    assert told.kind is EventKind.WATCHER_CUT_OFF
    assert int(told.fields["lost"]) > 0


async def test_a_reader_that_went_is_noticed_though_nothing_happens(guard: Guard) -> None:
    with connection(guard):
        await guard.watched()
    await guard.watched(by=0)


async def test_the_end_of_the_daemon_ends_the_rows_at_once(guard: Guard) -> None:
    rows = guard.reader()
    first = asyncio.ensure_future(some(rows, 1))
    await guard.watched()
    guard.drop()
    await first
    rest = asyncio.ensure_future(asyncio.to_thread(list, rows))
    await guard.server.stop()
    assert await rest == []
    assert guard.log.watchers == ()


# ---- the command


@pytest.fixture
def beside(tmp_path: Path) -> Iterator[tuple[Guard, Callable[[Callable[[], Any]], Any], list[str]]]:
    """A guard in a thread, how to do something in its loop, and the arguments of a command that watches it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def doing(what: Callable[[], Any]) -> Any:
        result = what()
        return await result if asyncio.iscoroutine(result) else result

    def do(what: Callable[[], Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(doing(what), loop).result(15)

    (tmp_path / "config.yaml").write_text(f"upstreams: [10.96.0.10]\npaths: {{runtime: {tmp_path}}}\n")
    guard = do(lambda: Guard(tmp_path))
    do(guard.server.start)
    yield guard, do, ["-m", "dnsguard", "monitor", "--config", str(tmp_path / "config.yaml")]
    do(guard.server.stop)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)
    loop.close()


@contextlib.contextmanager
def command(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_the_command_shows_events_as_they_happen_and_ctrl_c_ends_it_quietly(beside: Any) -> None:
    guard, do, arguments = beside
    guard.pods = {"shop/a": ["shop/a"]}
    with command(*arguments, "--type", "drop", "--type", "policy", "--pod", "shop/a") as process:
        do(guard.watched)
        do(lambda: guard.drop(protocol="tcp", reason="never resolved", count=12))
        assert process.stdout is not None
        told = process.stdout.readline()
        assert told[14:].split(maxsplit=1) == [
            "flow_denied",
            "shop/a may not connect to 192.0.2.1 port 0/tcp: never resolved (12 packets)\n",
        ]
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=10) == ("", "")
        assert process.returncode == 0


def test_the_command_says_that_it_waits_for_a_pod_that_is_not_there(beside: Any) -> None:
    guard, do, arguments = beside
    with command(*arguments, "--pod", "shop/x") as process:
        do(guard.watched)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=10) == ("", "no pod on this node is called shop/x; waiting for it\n")
        assert process.returncode == 0


def test_the_command_in_json_prints_one_object_a_line(beside: Any) -> None:
    guard, do, arguments = beside
    with command(*arguments, "--json") as process:
        do(guard.watched)
        do(lambda: guard.drop(2, protocol="tcp", verdict="denied"))
        assert process.stdout is not None
        rows = [json.loads(process.stdout.readline()) for _ in range(2)]
    assert [row["port"] for row in rows] == [0, 1]
    assert rows[0].items() >= {"event": "flow_denied", "pod": "shop/a", "address": "192.0.2.1"}.items()


def test_the_command_says_that_the_daemon_has_stopped(beside: Any) -> None:
    guard, do, arguments = beside
    with command(*arguments) as process:
        do(guard.watched)
        do(guard.server.stop)
        assert process.communicate(timeout=10) == ("", "the daemon has stopped\n")
        assert process.returncode == 1


def test_lines_are_aligned_whatever_the_event_is() -> None:
    told = line({"time": "2026-11-28T10:00:00.123456Z", "event": "pod_came", "message": "a\x1b[31m came"})
    assert told[8:12] == ".123" and told[14 : 14 + KIND_WIDTH].rstrip() == "pod_came"
    assert told[14 + KIND_WIDTH + 2 :] == "a\\x1b[31m came"
    assert line({"lost": 3}).index("3") == 14 + KIND_WIDTH + 2
    assert max(len(kind) for kind in EventKind) == KIND_WIDTH
