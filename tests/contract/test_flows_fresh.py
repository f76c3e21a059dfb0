"""Leases that are all asked for at once, each used the moment it is acknowledged."""

from __future__ import annotations

from itertools import islice

from tests.contract.subject import Subject
from tests.contract.test_enforcer import WEB, packet, running, tickets, write
from tests.contract.test_load import peer

LEASES = 500


async def test_of_500_fresh_leases_armed_at_once_each_lets_the_first_packet_through(subject: Subject) -> None:
    one, _ = subject.places
    await subject.enforcer.apply(running({one: WEB}))
    asked = [*enumerate(islice(tickets, LEASES))]
    for number, ticket in asked:
        subject.enforcer.arm(ticket, [write(one, peer(number))])
    lost = [
        number
        for number, ticket in asked
        if await subject.settled[ticket] or not await subject.decide(packet(one, peer=peer(number)))
    ]
    assert lost == []
