"""A reload, once begun, runs to its end, whoever asked for it still waits or not; only the daemon's stop ends it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from dnsguard.control import api
from dnsguard.control.api import ControlServer
from dnsguard.control.calls import CALLS, Call, CallError, Reloaded
from dnsguard.control.client import ControlClient
from dnsguard.core.errors import KernelError
from dnsguard.daemon.background import Background
from dnsguard.daemon.reloads import STOPPED, Reloads
from dnsguard.engine.counters import Counters
from tests.replay.stage import Stage
from tests.unit.test_policies import Daemon

SECONDS = 10.0
ALLOWLIST = "pods: {10.244.0.5: [db.example.com]}\n"


class Told:
    all_queries = all_leases = False

    def emit(self, *_: object, **__: object) -> None: ...


class Work:
    """Stands for a reload: goes on when it is let, and ends as a test says. `begun` counts them."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.begun = self.ended = 0
        self.fails: Exception | None = None

    async def one(self) -> Reloaded:
        self.begun += 1
        await self.go_on.wait()
        if self.fails is not None:
            raise self.fails
        self.ended += 1
        return {"generation": 1 + self.begun, "diagnostics": [], "changed": 0}


class Running:
    """Reloads as the service runs them."""

    def __init__(self, one: Callable[[], Any]) -> None:
        self.reloads = Reloads(one)
        self.counters = Counters()
        background = Background(Told(), self.counters)
        self._task = asyncio.create_task(background.whenever(self.reloads.asked, "reload", self.reloads.next))

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
async def running(work: Work) -> AsyncIterator[Running]:
    running = Running(work.one)
    yield running
    await running.stop()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.001)


async def test_one_goes_on_when_who_asked_for_it_stops_waiting(running: Running, work: Work) -> None:
    asking = asyncio.create_task(running.reloads.ask())
    await until(lambda: work.begun)

    asking.cancel()
    await until(asking.done)

    assert running.reloads.under_way
    work.go_on.set()
    await until(lambda: work.ended)


@pytest.mark.parametrize("mode", ["Audit", "Enforce"])
async def test_a_switch_of_modes_goes_on_when_who_asked_for_it_stops_waiting(tmp_path: Path, mode: str) -> None:
    daemon = Daemon(tmp_path, "Enforce" if mode == "Audit" else "Audit")
    daemon.configure(mode)
    go_on, policy = asyncio.Event(), daemon.changes.policy

    async def slowly(store: Any) -> Any:
        outcome = await policy(store)
        await go_on.wait()
        return outcome

    daemon.changes.policy = slowly  # type: ignore[method-assign]
    running = Running(daemon.reload)
    asking = asyncio.create_task(running.reloads.ask())
    await until(lambda: "policy" in daemon.changes.asked)

    asking.cancel()
    await until(asking.done)
    go_on.set()
    await until(lambda: daemon.applied)

    assert daemon.changes.asked == (["Audit", "policy"] if mode == "Audit" else ["policy", "Enforce"])
    assert [one.mode.value for one in daemon.applied] == [mode]
    await running.stop()
    daemon.policies.close()


def test_engine_and_kernel_are_in_one_mode_when_who_asked_stops_waiting_for_a_slow_kernel() -> None:
    stage = Stage(ALLOWLIST, "mode: Audit\n")

    async def enforce() -> Reloaded:
        await stage.engine.changes.audit(False)
        return {"generation": 1, "diagnostics": [], "changed": 0}

    reloads = Reloads(enforce)
    stage.enforcer.hold()
    asking = stage.start(reloads.ask())
    stage.start(reloads.next())

    asking.cancel()
    stage.spin()
    stage.enforcer.release()
    stage.spin()

    assert (stage.engine.exchanges.audit, stage.engine.revocation.audit, stage.enforcer._audit) == (False,) * 3
    assert not reloads.under_way
    stage.close()


async def test_at_the_stop_who_waits_for_the_next_is_told_and_who_asks_yet(running: Running, work: Work) -> None:
    first = asyncio.create_task(running.reloads.ask())
    await until(lambda: work.begun)
    second = asyncio.create_task(running.reloads.ask())
    await asyncio.sleep(0)

    await running.stop()
    running.reloads.close()

    for asking in (first, second, asyncio.create_task(running.reloads.ask())):
        with pytest.raises(CallError, match=STOPPED):
            await asking


async def test_a_stop_ends_it_also_when_its_clean_up_fails() -> None:
    async def one() -> Reloaded:
        try:
            await asyncio.sleep(60)
        finally:
            raise KernelError("EBUSY")

    running = Running(one)
    running.reloads.asked.set()
    await until(lambda: running.reloads.under_way)

    async with asyncio.timeout(SECONDS):
        await running.stop()


async def test_who_waits_too_long_on_the_control_socket_is_told_that_it_goes_on(
    tmp_path: Path, running: Running, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "CALLS", {**CALLS, "reload": Call("POST", limit=0.05, late=CALLS["reload"].late)})
    server = ControlServer(tmp_path, {"reload": running.reloads.ask}, lambda call, error: None)
    await server.start()

    with pytest.raises(CallError, match=r"took longer than .*: it goes on, and `dnsguard status` tells how it ended"):
        await asyncio.to_thread(ControlClient(tmp_path).call, "reload")

    work.go_on.set()
    await until(lambda: work.ended)
    await server.stop()


async def test_who_hangs_up_on_the_control_socket_ends_no_reload(tmp_path: Path, running: Running, work: Work) -> None:
    server = ControlServer(tmp_path, {"reload": running.reloads.ask}, lambda call, error: None)
    await server.start()
    _, writer = await asyncio.open_unix_connection(server.path)
    writer.write(b"POST /v1/reload HTTP/1.1\r\nHost: x\r\n\r\n")
    await until(lambda: work.begun)

    writer.close()
    await writer.wait_closed()
    work.go_on.set()

    await until(lambda: work.ended)
    await server.stop()


async def test_who_asks_meanwhile_shares_the_next_which_begins_after_the_first(running: Running, work: Work) -> None:
    first = asyncio.create_task(running.reloads.ask())
    await until(lambda: work.begun)
    more = [asyncio.create_task(running.reloads.ask()) for _ in range(3)]
    await asyncio.sleep(0)

    work.go_on.set()
    told = await asyncio.gather(first, *more)

    assert [one["generation"] for one in told] == [2, 3, 3, 3]


async def test_a_refusal_is_told_to_who_waits_and_is_no_defect(running: Running, work: Work) -> None:
    work.fails = KernelError("EBUSY")
    work.go_on.set()

    with pytest.raises(KernelError, match="EBUSY"):
        await running.reloads.ask()
    running.reloads.asked.set()  # as a signal does: nobody waits
    await until(lambda: work.begun == 2)

    assert not running.counters.internal_errors


async def test_after_a_defect_the_next_reload_is_done(running: Running, work: Work) -> None:
    work.fails = ZeroDivisionError("secret")
    work.go_on.set()
    with pytest.raises(CallError, match=r"^internal error; the daemon's log has the details$"):
        await running.reloads.ask()
    work.fails = None

    await running.reloads.ask()

    assert running.counters.internal_errors == {"reload": 1}


async def test_a_stop_ends_it_at_once_with_all_taken_back_and_says_so(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, "Enforce")
    daemon.configure("Audit")

    async def never(store: Any) -> Any:
        daemon.changes.asked.append("policy")
        await asyncio.Event().wait()

    daemon.changes.policy = never  # type: ignore[method-assign]
    running = Running(daemon.reload)
    asking = asyncio.create_task(running.reloads.ask())
    await until(lambda: "policy" in daemon.changes.asked)

    await running.stop()

    with pytest.raises(CallError, match="dnsguard stops"):
        await asking
    assert daemon.changes.asked == ["Audit", "policy", "Enforce"]
    assert daemon.applied == []
    daemon.policies.close()
