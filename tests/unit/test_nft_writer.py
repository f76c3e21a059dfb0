"""The writer's queue: order, batches, acknowledgements, faults."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence

import pytest

from dnsguard.enforce.nftables import Layout, NftEnforcer
from dnsguard.enforce.writer import BusySince, Writer
from dnsguard.engine.contracts import Element, Write


class Kernel:
    """Takes batches; refuses the scope `bad`; fails as a whole on the scope `fault`."""

    def __init__(self) -> None:
        self.batches: list[list[Write]] = []

    def commit(self, writes: Sequence[Write]) -> Mapping[Element, str]:
        self.batches.append(list(writes))
        if any(write.scope == "fault" for write in writes):
            raise OSError("no such device")
        return {Element(write.scope, write.key): "ENFILE" for write in writes if write.scope == "bad"}


class Answers:
    def __init__(self) -> None:
        self.calls: list[tuple[int, dict[int, str]]] = []
        self.thread: int | None = None

    def acknowledge(self, upto: int, refused: Mapping[int, str]) -> None:
        self.calls.append((upto, dict(refused)))
        self.thread = threading.get_ident()


def write(scope: str = "good", key: bytes = b"12345678") -> list[Write]:
    return [Write(scope, key, 1000)]


async def test_what_gathers_while_the_writer_works_goes_in_one_batch_and_is_acknowledged_once() -> None:
    kernel, answers, release = Kernel(), Answers(), threading.Event()
    writer = Writer(kernel.commit, answers.acknowledge)
    writer.do(lambda: release.wait(5))
    for ticket in range(10):
        writer.arm(ticket, write())
    release.set()
    await writer.stop()
    assert [len(batch) for batch in kernel.batches] == [10]
    assert answers.calls == [(9, {})]
    assert answers.thread == threading.get_ident()


async def test_an_element_refused_fails_every_ticket_that_wrote_it_and_no_other() -> None:
    kernel, answers, release = Kernel(), Answers(), threading.Event()
    writer = Writer(kernel.commit, answers.acknowledge)
    writer.do(lambda: release.wait(5))
    for ticket, scope in enumerate(("good", "bad", "good", "bad")):
        writer.arm(ticket, write(scope))
    release.set()
    await writer.stop()
    assert answers.calls == [(3, {1: "ENFILE", 3: "ENFILE"})]


async def test_each_commit_is_measured_with_the_elements_it_made() -> None:
    measured: list[tuple[float, int]] = []
    writer = Writer(Kernel().commit, Answers().acknowledge, lambda seconds, made: measured.append((seconds, made)))
    writer.arm(1, [*write(), *write(key=b"87654321"), *write("bad")])
    await writer.stop()
    ((seconds, made),) = measured
    assert made == 2
    assert 0 <= seconds < 5


async def test_a_commit_that_breaks_fails_its_tickets_and_the_writer_goes_on() -> None:
    kernel, answers = Kernel(), Answers()
    writer = Writer(kernel.commit, answers.acknowledge)
    writer.arm(1, write("fault"))
    await writer.do(lambda: None)
    writer.arm(2, write())
    await writer.stop()
    assert answers.calls == [(1, {1: "no such device"}), (2, {})]


async def test_a_ticket_without_writes_is_acknowledged() -> None:
    answers = Answers()
    writer = Writer(Kernel().commit, answers.acknowledge)
    writer.arm(5, [])
    await writer.stop()
    assert answers.calls == [(5, {})]


async def test_a_long_queue_is_committed_in_pieces() -> None:
    kernel, release = Kernel(), threading.Event()
    writer = Writer(kernel.commit, Answers().acknowledge)
    writer.do(lambda: release.wait(5))
    for ticket in range(10):
        writer.arm(ticket, write() * 1000)
    release.set()
    await writer.stop()
    assert [len(batch) for batch in kernel.batches] == [5000, 5000]


async def test_jobs_and_writes_are_done_in_the_order_they_came() -> None:
    seen: list[str] = []
    writer = Writer(lambda writes: seen.append("arm") or {}, Answers().acknowledge)  # type: ignore[func-returns-value]
    writer.arm(1, write())
    first = writer.do(lambda: seen.append("do"))
    writer.arm(2, write())
    await writer.stop()
    assert first.done()
    assert seen == ["arm", "do", "arm"]


async def test_a_jobs_error_is_its_callers() -> None:
    writer = Writer(Kernel().commit, Answers().acknowledge)
    with pytest.raises(ZeroDivisionError):
        await writer.do(lambda: 1 // 0)
    await writer.stop()


async def test_a_caller_that_gave_up_disturbs_nobody() -> None:
    release = threading.Event()
    writer = Writer(Kernel().commit, Answers().acknowledge)
    job = writer.do(lambda: release.wait(5))
    job.cancel()
    release.set()
    assert await writer.do(lambda: 7) == 7
    await writer.stop()


async def test_after_stop_there_is_no_thread_and_no_work_is_taken() -> None:
    writer = Writer(Kernel().commit, Answers().acknowledge)
    await writer.stop()
    await writer.stop()
    assert not writer._thread.is_alive()
    with pytest.raises(RuntimeError):
        writer.do(lambda: None)


async def test_it_tells_since_when_it_is_busy() -> None:
    release = threading.Event()
    writer = Writer(Kernel().commit, Answers().acknowledge)
    job = writer.do(lambda: release.wait(5))
    await until(lambda: writer.busy_since is not None)
    release.set()
    await job
    await until(lambda: writer.busy_since is None)
    await writer.stop()


async def test_who_watches_the_writer_sees_its_first_work(monkeypatch: pytest.MonkeyPatch) -> None:
    release, watched = threading.Event(), list[BusySince]()
    monkeypatch.setattr(NftEnforcer, "_take_over", lambda *_: release.wait(5))
    nobody: Callable[[object], None] = lambda told: None  # noqa: E731
    creating = asyncio.create_task(
        NftEnforcer.create(Layout(("veth*",)), Answers().acknowledge, nobody, nobody, on_writer=watched.append)
    )

    await until(lambda: bool(watched) and watched[0]() is not None)

    creating.cancel()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await creating
    assert watched[0]() is None


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)
