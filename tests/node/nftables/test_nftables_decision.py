"""A pod's first packets against programs and leases in the real kernel."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from dnsguard.core.model import Action, Packet, PortRange, Program, ProgramRule, Protocol, Scope, Tier
from dnsguard.engine.contracts import Desired, Element, Write
from tests.node.nftables_lab import OTHER, OTHER6, PEER, PEER6, POD, POD6, Subject, addr

pytestmark = pytest.mark.node

WEB = Scope("tcp_443", (PortRange(Protocol.TCP, 443, 443),))
RANGE = Scope("tcp_8000_8010_udp_53", (PortRange(Protocol.TCP, 8000, 8010), PortRange(Protocol.UDP, 514, 514)))
ANY = Scope("any", ())
HOUR = 3_600_000


def leasing(*scopes: Scope, name: str = "p_1ea5e5000000") -> Program:
    return Program(name, tuple(ProgramRule(Tier.POD, Action.ACCEPT, s.ports, scope=s) for s in scopes))


def blocks(action: Action, *cidrs: str, tier: Tier = Tier.POD, port: int | None = None) -> ProgramRule:
    ports = (PortRange(Protocol.TCP, port, port),) if port else ()
    return ProgramRule(tier, action, ports, tuple(ip_network(cidr) for cidr in cidrs))


async def run(subject: Subject, program: Program, *writes: Write) -> None:
    link = subject.lab.link()
    desired = Desired((program,), {(link, POD): program.name, (link, POD6): program.name})
    await subject.enforcer.apply(desired, writes)


def tcp(destination: bytes, port: int, source: bytes | None = None) -> Packet:
    source = source or (POD if len(destination) == 4 else POD6)
    return Packet(source, destination, Protocol.TCP, port)  # type: ignore[arg-type]


@pytest.mark.parametrize(("pod", "peer"), [(POD, PEER), (POD6, PEER6)])
async def test_a_lease_opens_its_address_on_its_ports_only(subject: Subject, pod: bytes, peer: bytes) -> None:
    await run(subject, leasing(WEB), Write("tcp_443", pod + peer, HOUR))
    assert await subject.decide(tcp(peer, 443))
    assert not await subject.decide(tcp(peer, 444))
    assert not await subject.decide(Packet(pod, peer, Protocol.UDP, 443))  # type: ignore[arg-type]
    assert not await subject.decide(tcp(peer[:-1] + b"\x07", 443))


async def test_a_lease_of_ranges_opens_every_protocol_and_port_in_them(subject: Subject) -> None:
    await run(subject, leasing(RANGE), Write(RANGE.name, POD + PEER, HOUR))
    opened = {port for port in (7999, 8000, 8005, 8010, 8011) if await subject.decide(tcp(PEER, port))}
    assert opened == {8000, 8005, 8010}
    assert await subject.decide(Packet(POD, PEER, Protocol.UDP, 514))


async def test_a_lease_of_all_ports_opens_every_protocol(subject: Subject) -> None:
    await run(subject, leasing(ANY), Write("any", POD + PEER, HOUR), Write("any", POD6 + PEER6, HOUR))
    for protocol, port in ((6, 1), (17, 65535), (132, 7), (1, 0), (254, 0)):
        assert await subject.decide(Packet(POD, PEER, protocol, port)), protocol
    assert await subject.decide(Packet(POD6, PEER6, 58, 0))


async def test_the_other_pod_cannot_use_a_lease_that_is_not_its_own(subject: Subject) -> None:
    program = leasing(WEB)
    links = {subject.lab.link(): (POD, POD6), subject.lab.link("vethb"): (OTHER, OTHER6)}
    pairs = {(link, address): program.name for link, both in links.items() for address in both}
    await subject.enforcer.apply(Desired((program,), pairs), [Write("tcp_443", POD + PEER, HOUR)])
    assert await subject.decide(tcp(PEER, 443))
    assert not await subject.decide(tcp(PEER, 443, OTHER))


async def test_a_lease_ends_by_itself(subject: Subject) -> None:
    await run(subject, leasing(WEB), Write("tcp_443", POD + PEER, 30))
    held = [each for each in await subject.enforcer.read() if each.remaining_ms > 30]
    assert not held
    while await subject.decide(tcp(PEER, 443)):
        pass


async def test_a_removed_lease_is_closed_at_once(subject: Subject) -> None:
    program = leasing(WEB)
    await run(subject, program, Write("tcp_443", POD + PEER, HOUR))
    desired = Desired((program,), {(subject.lab.link(), POD): program.name})
    await subject.enforcer.apply(desired, (), [Element("tcp_443", POD + PEER), Element("tcp_443", POD + POD)])
    assert not await subject.decide(tcp(PEER, 443))


async def test_blocks_open_their_networks_on_their_ports(subject: Subject) -> None:
    rules = (
        blocks(Action.ACCEPT, "192.0.2.0/25", "198.18.0.0/15", "2001:db8::/64", port=80),
        blocks(Action.ACCEPT, "203.0.113.9/32"),
    )
    await run(subject, Program("p_blocks", rules))
    assert await subject.decide(tcp(PEER, 80))
    assert await subject.decide(tcp(addr("198.19.1.1"), 80))
    assert await subject.decide(tcp(PEER6, 80))
    assert not await subject.decide(tcp(PEER, 81))
    assert not await subject.decide(tcp(addr("192.0.2.129"), 80))
    assert await subject.decide(Packet(POD, addr("203.0.113.9"), Protocol.UDP, 9))


async def test_a_rule_for_every_address_is_of_its_family_only(subject: Subject) -> None:
    await run(subject, Program("p_all4", (blocks(Action.ACCEPT, "0.0.0.0/0", port=80),)))
    assert await subject.decide(tcp(PEER, 80))
    assert not await subject.decide(tcp(PEER6, 80))


async def test_the_first_matching_rule_decides(subject: Subject) -> None:
    rules = (blocks(Action.DENY, "192.0.2.80/32"), blocks(Action.ACCEPT, "192.0.2.0/24"))
    await run(subject, Program("p_order", rules))
    assert not await subject.decide(tcp(PEER, 80))
    assert await subject.decide(tcp(addr("192.0.2.81"), 80))


async def test_pass_skips_the_rest_of_its_tier_and_no_more(subject: Subject) -> None:
    rules = (
        blocks(Action.PASS, "192.0.2.0/25", tier=Tier.ADMIN),
        blocks(Action.DENY, "192.0.2.0/24", tier=Tier.ADMIN),
        blocks(Action.DENY, "192.0.2.81/32"),
        blocks(Action.ACCEPT, "192.0.2.0/24"),
    )
    await run(subject, Program("p_pass", rules))
    assert await subject.decide(tcp(PEER, 80))
    assert not await subject.decide(tcp(addr("192.0.2.81"), 80))
    assert not await subject.decide(tcp(addr("192.0.2.200"), 80))


async def test_a_default_of_accept_lets_through_what_no_rule_matches(subject: Subject) -> None:
    await run(subject, Program("p_allow", (blocks(Action.DENY, "192.0.2.80/32"),), Action.ACCEPT))
    assert await subject.decide(tcp(addr("203.0.113.1"), 80))
    assert not await subject.decide(tcp(PEER, 80))


async def test_a_link_and_address_without_a_program_is_closed(subject: Subject) -> None:
    await run(subject, Program("p_allow", (), Action.ACCEPT))
    assert not await subject.decide(tcp(PEER, 80, addr("10.244.0.99")))
    assert not await subject.decide(tcp(PEER, 80, OTHER))


async def test_an_address_on_another_link_than_its_own_is_a_forgery(subject: Subject) -> None:
    await run(subject, Program("p_allow", (), Action.ACCEPT))
    assert not subject.lab.decide(tcp(PEER, 80), start=subject.lab.other)
    assert not subject.lab.decide(tcp(PEER6, 80), start=subject.lab.other)


async def test_an_excluded_pair_is_let_through_and_only_on_its_link(subject: Subject) -> None:
    excluded = frozenset({(subject.lab.link(), POD), (subject.lab.link(), POD6)})
    await subject.enforcer.apply(Desired((), {}, excluded))
    assert await subject.decide(tcp(PEER, 80))
    assert await subject.decide(tcp(PEER6, 80))
    assert not subject.lab.decide(tcp(PEER, 80), start=subject.lab.other)


async def test_traffic_of_links_that_are_not_governed_is_untouched(subject: Subject) -> None:
    await subject.enforcer.apply(Desired())
    lab = subject.lab
    for source, destination in ((PEER, OTHER), (POD, OTHER), (PEER6, OTHER6)):
        packet = lab.first(Packet(source, destination, Protocol.TCP, 15353))
        assert lab.through(packet, start=lab.world, end=lab.other)
