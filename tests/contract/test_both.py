"""nftables and eBPF side by side: what one of them does when the other refuses, and after a restart."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from dnsguard.core.errors import KernelError
from dnsguard.core.model import Action, Program, ProgramRule, Scope, Tier
from dnsguard.enforce.nftables import Layout, NftEnforcer
from dnsguard.engine.contracts import Desired, Element
from tests.contract import ebpf
from tests.contract.ebpf import BpfSubject
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
    write,
)
from tests.contract.test_load import peer
from tests.node.nftables_lab import LAYOUT, inside

pytestmark = pytest.mark.node

FEW = replace(LAYOUT, leases=0)


@asynccontextmanager
async def both(layout: Layout = LAYOUT, maps: Layout = LAYOUT) -> AsyncIterator[BpfSubject]:
    async with ebpf.started(layout, own=True, beside_nftables=True, maps=maps) as subject:
        yield subject


def in_maps(subject: BpfSubject) -> int:
    return len([*subject.maps["leases"].items()])


async def in_table(subject: BpfSubject) -> int:
    """Elements of nftables alone, read by an enforcer that has no second line."""
    await subject.enforcer.close()
    with inside(subject.lab.node):
        alone = await NftEnforcer.create(LAYOUT, subject.settled, subject.damage.append, lambda denial: None, own=True)
    try:
        return len(await alone.read())
    finally:
        await alone.close()


@pytest.mark.parametrize(("layout", "maps"), [(LAYOUT, FEW), (FEW, LAYOUT)], ids=["maps", "table"])
async def test_a_lease_that_one_has_no_room_for_is_in_neither(layout: Layout, maps: Layout) -> None:
    async with both(layout, maps) as subject:
        one, _ = subject.places
        await subject.enforcer.apply(running({one: WEB}))
        room = FEW.lease_set_size
        assert await arm(subject, *(write(one, peer(number)) for number in range(room))) is None
        assert await arm(subject, write(one))
        assert await arm(subject, write(one, peer(0), seconds=90)) is None
        assert not await subject.decide(packet(one))
        assert (in_maps(subject), await in_table(subject)) == (room, room)


async def test_a_change_that_nftables_refuses_is_taken_back_in_ebpf() -> None:
    async with both() as subject:
        one, two = subject.places
        await subject.enforcer.apply(running({one: WEB}), [write(one)])
        before = {name: dict(subject.maps[name].items()) for name in ("pairs", "programs", "leases")}
        rule = ProgramRule(Tier.POD, Action.ACCEPT, (), scope=Scope("4: no name of a set", ()))
        with pytest.raises(KernelError, match="cannot be the name"):
            await subject.enforcer.apply(running({one: WEB_AND_MAIL, two: Program("p_0123456789ab", (rule,))}), [])
        assert {name: dict(subject.maps[name].items()) for name in before} == before
        assert await passing(subject, one, (25, 443)) == [443]


async def test_after_a_restart_both_hold_what_both_held_and_nothing_else() -> None:
    async with both() as subject:
        one, two = subject.places
        desired = running({one: WEB_AND_MAIL, two: WEB})
        await subject.enforcer.apply(desired, [write(one), write(one, OTHER), write(two, PEER6)])
        await subject.enforcer.close()
        lost = next(key for key, _ in subject.maps["leases"].items() if OTHER in key)
        subject.maps["leases"].delete(lost)
        await subject.start(own=True)
        left = {element(write(one)), element(write(two, PEER6))}
        assert {Element(held.scope, held.key) for held in await subject.enforcer.read()} == left
        assert await subject.enforcer.running() == desired.pairs
        await subject.enforcer.apply(desired)
        assert await subject.decide(packet(one))
        assert not await subject.decide(packet(one, peer=OTHER))
        assert (in_maps(subject), await in_table(subject)) == (2, 2)


async def test_ebpf_that_begins_beside_a_table_full_of_leases_opens_them_too() -> None:
    async with both() as subject:
        one, two = subject.places
        desired = running({one: WEB, two: WEB})
        await subject.enforcer.apply(desired, [write(one), write(two), write(one, PEER6)])
        await subject.enforcer.close()
        for name in ("pairs", "leases"):
            subject.maps[name].delete_many([key for key, _ in subject.maps[name].items()])
        await subject.start(own=True)
        assert not await subject.decide(packet(one))
        assert await subject.enforcer.running() == desired.pairs
        await subject.enforcer.apply(desired, (), [element(write(two))])
        assert await passing(subject, one, (25, 443)) == [443]
        assert await passing(subject, one, (25, 443), PEER6) == [443]
        assert await passing(subject, two, (25, 443), PEER) == []
        assert len(await subject.enforcer.read()) == 2


async def test_what_is_open_in_one_line_only_is_closed() -> None:
    async with both() as subject:
        one, _ = subject.places
        await subject.enforcer.apply(running({one: WEB}))
        await arm(subject, write(one), write(one, OTHER))
        subject.maps["leases"].delete(next(key for key, _ in subject.maps["leases"].items() if OTHER in key))
        assert await subject.decide(packet(one))
        assert not await subject.decide(packet(one, peer=OTHER))
        assert len(await subject.enforcer.read()) == 1
        await subject.enforcer.apply(Desired())
        assert in_maps(subject) == 1, "nobody's, until it is swept"
