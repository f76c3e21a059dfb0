"""One generated scenario, played: the enforcer goes over to it, and every packet there is gets sent."""

from __future__ import annotations

from typing import NamedTuple

from dnsguard.core.model import Packet
from dnsguard.engine.contracts import Element
from tests.contract.generator import Scenario, every_packet
from tests.contract.subject import Subject


class Misjudged(NamedTuple):
    """A packet that passed and should not have, or the other way about."""

    packet: Packet
    passed: bool


def packets(scenario: Scenario) -> list[tuple[int, Packet]]:
    """What is sent, as (index of the pod, packet)."""
    return [(pod, packet) for pod, place in enumerate(scenario.places) for packet in every_packet(place)]


async def decisions(subject: Subject, scenario: Scenario) -> list[bool]:
    """Go over from whatever is in force to this scenario, and send its packets: which passed?"""
    gone = {Element(held.scope, held.key) for held in await subject.enforcer.read()}
    made = {Element(asked.scope, asked.key) for asked in scenario.writes}
    await subject.enforcer.apply(scenario.desired, scenario.writes, gone - made)
    return await subject.decide_all([packet for _, packet in packets(scenario)])


async def misjudged(subject: Subject, scenario: Scenario) -> list[Misjudged]:
    """The packets that the enforcer decides otherwise than the rules say."""
    passed = await decisions(subject, scenario)
    return [
        Misjudged(packet, did)
        for (pod, packet), did in zip(packets(scenario), passed, strict=True)
        if did != scenario.expected(pod, packet)
    ]
