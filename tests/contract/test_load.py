"""What every enforcer promises when it is full, in the middle of a change, or kept waiting by others."""

from __future__ import annotations

import asyncio
from itertools import islice

import pytest

from dnsguard.core.errors import KernelError
from dnsguard.core.model import Address
from tests.contract.subject import Subject
from tests.contract.test_enforcer import (
    OTHER,
    PEER,
    PEER6,
    WEB,
    WEB_AND_MAIL,
    arm,
    element,
    packet,
    passing,
    running,
    tickets,
    write,
)


def peer(number: int) -> Address:
    """None of those that the tests here send to."""
    return Address((0xC6120000 + number).to_bytes(4))


async def fill(subject: Subject) -> None:
    """Pod one's leases of tcp_443 take all the room there is."""
    one, two = subject.places
    await subject.enforcer.apply(running({one: WEB, two: WEB}))
    assert await arm(subject, write(one), *(write(one, peer(n)) for n in range(1, subject.capacity))) is None


async def test_a_full_set_refuses_the_ticket_that_needs_more_of_it_and_no_other(small: Subject) -> None:
    one, two = small.places
    await fill(small)
    before, more, refresh, more_and_refresh = numbers = [*islice(tickets, 4)]
    small.enforcer.arm(before, [write(one, seconds=30)])
    small.enforcer.arm(more, [write(one, OTHER)])
    small.enforcer.arm(refresh, [write(one, peer(1), seconds=600)])
    small.enforcer.arm(more_and_refresh, [write(one, peer(2), seconds=600), write(two)])
    reasons = [await small.settled[number] for number in numbers]
    assert [bool(reason) for reason in reasons] == [False, True, False, True]
    assert await small.decide(packet(one))
    assert not await small.decide(packet(one, peer=OTHER))
    assert not await small.decide(packet(two))
    left = {held.key: held.remaining_ms for held in await small.enforcer.read()}
    assert left[write(one, peer(1)).key] > 500_000


async def test_a_full_set_has_room_again_for_as_much_as_is_removed(small: Subject) -> None:
    one, two = small.places
    await fill(small)
    await small.enforcer.apply(running({one: WEB, two: WEB}), (), [element(write(one))])
    assert await arm(small, write(two)) is None
    assert await arm(small, write(one, OTHER))
    assert not await small.decide(packet(one))
    assert await small.decide(packet(two))


async def test_elements_that_a_full_set_has_not_can_be_removed(small: Subject) -> None:
    one, two = small.places
    await fill(small)
    gone = [element(write(one, OTHER)), element(write(one)), element(write(two))]
    await small.enforcer.apply(running({one: WEB, two: WEB}), (), gone)
    assert not await small.decide(packet(one))


async def test_a_change_that_a_full_set_refuses_leaves_everything_as_it_was(small: Subject) -> None:
    one, _ = small.places
    await fill(small)
    with pytest.raises(KernelError):
        await small.enforcer.apply(running({one: WEB_AND_MAIL}), [write(one, peer(1), seconds=600), write(one, OTHER)])
    assert await passing(small, one, (25, 443)) == [443]
    assert await arm(small, write(one, peer(1))) is None
    assert await arm(small, write(one, scope="tcp_25"))


async def test_what_is_armed_during_changes_is_settled_in_order_and_open(subject: Subject) -> None:
    one, two = subject.places
    generations = [running({one: WEB, two: WEB_AND_MAIL}), running({one: WEB_AND_MAIL, two: WEB})]
    await subject.enforcer.apply(generations[1])
    changes, numbers = [], []
    for turn in range(20):
        changes.append(subject.enforcer.apply(generations[turn % 2]))
        for number in islice(tickets, 20):
            numbers.append(number)
            subject.enforcer.arm(number, [write(one, peer(len(numbers)))])
    await asyncio.gather(*(waited(change) for change in changes))
    assert [await subject.settled[number] for number in numbers] == [None] * 400
    assert {held.key for held in await subject.enforcer.read()} == {write(one, peer(n)).key for n in range(1, 401)}


async def waited(change: object) -> None:
    await change  # type: ignore[misc]  # `gather` takes no bare awaitable


async def test_a_lease_can_be_armed_in_a_scope_that_the_change_before_it_brings(subject: Subject) -> None:
    one, _ = subject.places
    await subject.enforcer.apply(running({one: WEB}))
    early, late = islice(tickets, 2)
    subject.enforcer.arm(early, [write(one, scope="tcp_25")])
    change = subject.enforcer.apply(running({one: WEB_AND_MAIL}))
    subject.enforcer.arm(late, [write(one, scope="tcp_25")])
    await change
    assert await subject.settled[early]
    assert await subject.settled[late] is None
    assert await subject.decide(packet(one, 25))


async def test_an_address_is_open_when_its_lease_is_acknowledged_however_long_that_took(subject: Subject) -> None:
    one, _ = subject.places
    await subject.enforcer.apply(running({one: WEB}))
    with subject.hindered():
        for last in range(1, 60):
            address = Address(bytes((203, 0, 113, last)))
            assert not await subject.decide(packet(one, peer=address))
            assert await arm(subject, write(one, address)) is None
            assert await subject.decide(packet(one, peer=address))


async def test_changes_are_made_however_long_they_are_kept_waiting(subject: Subject) -> None:
    one, two = subject.places
    with subject.hindered():
        for _ in range(3):
            await subject.enforcer.apply(running({one: WEB}), [write(one), write(one, PEER6)])
            assert await passing(subject, one, (25, 443), PEER6) == [443]
            await subject.enforcer.apply(running({one: WEB_AND_MAIL, two: WEB}), (), [element(write(one))])
            assert await passing(subject, one, (25, 443), PEER) == []
