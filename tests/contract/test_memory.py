"""What the enforcer in memory can be told, beyond the contract."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from dnsguard.core.errors import KernelError
from dnsguard.core.model import Action, Address
from dnsguard.enforce.memory import CUT_SILENCE, MemoryEnforcer
from dnsguard.engine.contracts import Desired, Element, Enforcer, Held, Ticket
from tests.contract.generator import Place
from tests.contract.subject import MemorySubject
from tests.contract.test_enforcer import (
    OTHER,
    PEER,
    WEB,
    WEB_AND_MAIL,
    compiled,
    element,
    flow,
    named,
    packet,
    running,
    tcp,
    write,
)

ONE, TWO = MemorySubject.places
MAIL = compiled(named("b.test", tcp(25)))


class Clocked:
    """An enforcer on a clock that the test sets, with its acknowledgements in `log`."""

    def __init__(self, capacity: int | None = None) -> None:
        self.time = 100.0
        self.log: list[tuple[Ticket, dict[Ticket, str]]] = []
        self.damage: list[str] = []
        self.enforcer = MemoryEnforcer(
            self._acknowledge, lambda: self.time, capacity=capacity, on_damage=self.damage.append
        )
        self.enforcer.apply(running({ONE: WEB, TWO: WEB}))

    def _acknowledge(self, upto: Ticket, refused: Mapping[Ticket, str]) -> None:
        self.log.append((upto, dict(refused)))

    def open(self, place: Place = ONE, peer: Address = PEER) -> bool:
        return self.enforcer.decide(packet(place, peer=peer)).action is Action.ACCEPT


def test_it_is_an_enforcer_and_settles_before_the_call_returns() -> None:
    clocked = Clocked()
    enforcer: Enforcer = clocked.enforcer
    enforcer.arm(1, [write(ONE)])
    assert clocked.log == [(1, {})]
    assert clocked.open()


def test_awaiting_what_is_settled_needs_no_event_loop() -> None:
    outcome = Clocked().enforcer.read().__await__()
    with pytest.raises(StopIteration) as stopped:
        next(outcome)
    assert stopped.value.value == []


async def test_held_work_is_neither_done_nor_acknowledged_until_released() -> None:
    clocked = Clocked()
    clocked.enforcer.hold()
    clocked.enforcer.arm(1, [write(ONE)])
    clocked.enforcer.arm(2, [write(TWO)])
    reading = asyncio.ensure_future(clocked.enforcer.read())
    await asyncio.sleep(0)
    assert (clocked.log, clocked.open(), reading.done()) == ([], False, False)
    clocked.enforcer.release()
    assert clocked.log == [(2, {})]
    assert clocked.open()
    assert len(await reading) == 2


async def test_a_waiter_that_was_cancelled_is_left_alone() -> None:
    clocked = Clocked()
    clocked.enforcer.hold()
    reading = asyncio.ensure_future(clocked.enforcer.read())
    await asyncio.sleep(0)
    reading.cancel()
    await asyncio.sleep(0)
    clocked.enforcer.release()
    assert reading.cancelled()


def test_late_work_is_done_by_the_next_settle_after_its_time() -> None:
    clocked = Clocked()
    clocked.enforcer.latency = 0.5
    clocked.enforcer.arm(1, [write(ONE)])
    assert clocked.enforcer.next_deadline() == 100.5
    clocked.time = 100.4
    clocked.enforcer.settle()
    assert clocked.log == []
    clocked.time = 100.5
    clocked.enforcer.settle()
    assert clocked.log == [(1, {})]
    assert clocked.enforcer.next_deadline() is None


def test_acknowledgements_keep_their_place_before_a_later_change() -> None:
    clocked = Clocked()
    clocked.enforcer.hold()
    clocked.enforcer.arm(1, [write(ONE)])
    later = clocked.enforcer.apply(Desired())
    clocked.enforcer.arm(2, [write(ONE)])
    clocked.enforcer.release()
    assert later.settled  # type: ignore[attr-defined]
    assert [upto for upto, _ in clocked.log] == [1, 2]
    assert list(clocked.log[1][1]) == [2]


def test_it_refuses_all_writes_or_those_of_a_pod_or_of_a_scope_until_it_relents() -> None:
    clocked = Clocked()
    clocked.enforcer.apply(running({ONE: WEB_AND_MAIL, TWO: WEB_AND_MAIL}))
    clocked.enforcer.refuse("full", pods={ONE.v4}, scopes={"tcp_25"})
    clocked.enforcer.arm(1, [write(ONE, scope="tcp_25")])
    clocked.enforcer.arm(2, [write(TWO, scope="tcp_25"), write(ONE)])
    clocked.enforcer.refuse("all")
    clocked.enforcer.arm(3, [write(ONE)])
    clocked.enforcer.relent()
    clocked.enforcer.arm(4, [write(ONE)])
    assert clocked.log == [(1, {1: "full"}), (2, {}), (3, {3: "all"}), (4, {})]


async def test_a_refused_change_raises_and_changes_nothing() -> None:
    clocked = Clocked()
    clocked.enforcer.refuse_changes("busy")
    with pytest.raises(KernelError, match="busy"):
        await clocked.enforcer.apply(Desired())
    assert clocked.enforcer.desired == running({ONE: WEB, TWO: WEB})


async def test_a_change_that_adds_beyond_the_capacity_changes_nothing() -> None:
    clocked = Clocked(capacity=1)
    clocked.enforcer.arm(1, [write(ONE)])
    with pytest.raises(KernelError, match="set is full"):
        await clocked.enforcer.apply(running({ONE: MAIL}), [write(ONE, OTHER, "tcp_25"), write(ONE, PEER, "tcp_25")])
    assert clocked.open()
    clocked.enforcer.arm(2, [write(ONE)])
    assert clocked.log[-1] == (2, {})
    assert clocked.enforcer.desired == running({ONE: WEB, TWO: WEB})


def test_a_full_set_refuses_what_is_new_and_refreshes_what_it_has() -> None:
    clocked = Clocked(capacity=1)
    clocked.enforcer.arm(1, [write(ONE, seconds=5)])
    clocked.enforcer.arm(2, [write(ONE, OTHER)])
    clocked.enforcer.arm(3, [write(ONE, seconds=5)])
    clocked.time += 6
    clocked.enforcer.arm(4, [write(ONE, OTHER)])
    assert clocked.log == [(1, {}), (2, {2: "set is full"}), (3, {}), (4, {})]


def test_forgotten_elements_are_closed_and_the_damage_is_heard() -> None:
    clocked = Clocked()
    clocked.enforcer.arm(1, [write(ONE), write(TWO)])
    clocked.enforcer.forget([element(write(ONE)), Element("any", b"12345678")])
    assert (clocked.open(ONE), clocked.open(TWO)) == (False, True)
    assert clocked.damage == ["forgotten"]


def test_after_a_flush_everything_passes_until_the_next_change() -> None:
    clocked = Clocked()
    clocked.enforcer.forget()
    assert clocked.open()
    clocked.enforcer.apply(running({ONE: WEB}))
    assert not clocked.open()


def test_a_cut_ends_after_ten_minutes_of_silence_and_every_packet_renews_it() -> None:
    clocked = Clocked()
    clocked.enforcer.cut([flow(ONE)])
    clocked.time += CUT_SILENCE - 1
    assert not clocked.enforcer.carries(flow(ONE))
    clocked.time += CUT_SILENCE - 1
    assert not clocked.enforcer.carries(flow(ONE))
    clocked.time += CUT_SILENCE
    assert clocked.enforcer.carries(flow(ONE))


def test_the_time_left_is_rounded_up_to_milliseconds() -> None:
    clocked = Clocked()
    clocked.enforcer.arm(1, [write(ONE, seconds=2)])
    clocked.time += 0.5005
    assert clocked.enforcer.held() == [Held(*element(write(ONE)), 1500)]


def test_a_key_that_is_not_two_addresses_of_one_family_is_an_error() -> None:
    with pytest.raises(ValueError, match="two IPv4 or two IPv6"):
        Clocked().enforcer.arm(1, [write(ONE)._replace(key=b"123456")])


def test_what_was_asked_of_it_is_kept_in_order() -> None:
    clocked = Clocked()
    clocked.enforcer.arm(1, [write(ONE)])
    clocked.enforcer.uncut([flow(ONE)])
    assert clocked.enforcer.calls[1:] == [("arm", 1, (write(ONE),)), ("uncut", (flow(ONE),))]
