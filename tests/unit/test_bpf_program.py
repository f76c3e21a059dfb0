"""A program's entries, read as the kernel reads them: by longest prefix, and rule for rule."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnsguard.core.compile import Decision, compile_program, decide
from dnsguard.core.errors import KernelError
from dnsguard.core.model import (
    Action,
    Address,
    LinkIndex,
    Packet,
    PortRange,
    Ports,
    Program,
    ProgramRule,
    Protocol,
    Tier,
)
from dnsguard.enforce.bpf.layout import scope_number
from dnsguard.enforce.bpf.program import BlockPrefix, Entries, PortPrefix, entries, name_of, number_of
from tests.contract.generator import Place, Scenario, address, every_packet, scenarios

PLACE = Place(LinkIndex(11), address("10.244.0.5"), address("fd00:10:244::5"))
NAME = "p_0123456789ab"
ports = st.integers(0, 65535)


def program(*rules: ProgramRule) -> Program:
    return Program(NAME, rules)


def accept(ports: Ports = (), *networks: str) -> ProgramRule:
    return ProgramRule(Tier.POD, Action.ACCEPT, ports, tuple(map(ip_network, networks)))


def tcp(first: int, last: int) -> PortRange:
    return PortRange(Protocol.TCP, first, last)


def of_port(held: Entries, protocol: int, port: int) -> int:
    fitting = [each for each in held.ports if each.protocol == protocol and _fits(each, port)]
    return max(fitting, key=lambda each: each.length).rules if fitting else 0


def _fits(prefix: PortPrefix, port: int) -> bool:
    return (prefix.port ^ port) >> (16 - prefix.length) == 0


def of_block(held: Entries, peer: Address) -> int:
    fitting = [each for each in held.blocks if _holds(each, peer)]
    return max(fitting, key=lambda each: each.length).rules if fitting else 0


def _holds(prefix: BlockPrefix, peer: Address) -> bool:
    if len(prefix.network) != len(peer):
        return False
    return (int.from_bytes(prefix.network) ^ int.from_bytes(peer)) >> (8 * len(peer) - prefix.length) == 0


def decide_by_entries(held: Entries, packet: Packet, leased: frozenset[int]) -> Decision:
    """What the kernel does with them, lowest bit first."""
    blocked = of_block(held, packet.destination)
    left = (held.any_port | of_port(held, packet.protocol, packet.port)) & (blocked | held.leased)
    while left:
        rule = left & -left
        number = rule.bit_length() - 1
        left ^= rule
        if not blocked & rule and held.scopes[number] not in leased:
            continue
        if held.passes & rule:
            left &= ~next(tier for tier in held.tiers if tier & rule)
        else:
            return Decision(Action.ACCEPT if held.accept & rule else Action.DENY, number)
    return Decision(Action.ACCEPT if held.default_accept else Action.DENY, None)


@settings(max_examples=100, deadline=None)
@given(scenarios([PLACE]))
def test_entries_decide_every_packet_as_the_program_does(scenario: Scenario) -> None:
    compiled = compile_program(scenario.effective[0])
    held = entries(compiled)
    writes = scenario.writes
    for packet in every_packet(PLACE):
        scopes = {write.scope for write in writes if write.key == packet.source + packet.destination}
        by_entries = decide_by_entries(held, packet, frozenset(map(scope_number, scopes)))
        assert by_entries == decide(compiled, packet, scopes.__contains__), packet


@given(st.lists(st.tuples(ports, ports), min_size=1, max_size=4), ports)
def test_a_port_has_the_rules_whose_ranges_hold_it(spans: list[tuple[int, int]], port: int) -> None:
    ranges = [(min(span), max(span)) for span in spans]
    held = entries(program(*(accept((tcp(*each),)) for each in ranges)))
    for at in {port, *(edge + step for each in ranges for edge in each for step in (-1, 0, 1))} & set(range(65536)):
        holding = sum(1 << n for n, (first, last) in enumerate(ranges) if first <= at <= last)
        assert of_port(held, Protocol.TCP, at) == holding


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)), max_size=6), st.integers(0, 2**32 - 1))
def test_an_address_has_the_rules_whose_networks_hold_it(blocks: list[tuple[int, int]], peer: int) -> None:
    networks = [ip_network((value >> 32 - length << 32 - length, length)) for value, length in blocks]
    held = entries(program(*(accept((), str(network)) for network in networks)))
    for at in (peer, *(int(network[edge]) for network in networks for edge in (0, -1))):
        holding = sum(
            1 << n for n, network in enumerate(networks) if (at ^ int(network[0])) & int(network.netmask) == 0
        )
        assert of_block(held, Address(at.to_bytes(4, "big"))) == holding


def test_the_families_are_apart() -> None:
    held = entries(program(accept((), "::/0"), accept((), "0.0.0.0/0")))
    assert of_block(held, address("192.0.2.1")) == 0b10
    assert of_block(held, address("2001:db8::1")) == 0b01


def test_a_range_takes_the_fewest_prefixes() -> None:
    held = entries(program(accept((tcp(8000, 8010),))))
    assert [(each.port, each.length) for each in held.ports] == [(8000, 13), (8008, 15), (8010, 16)]
    assert [each.length for each in entries(program(accept((tcp(0, 65535),)))).ports] == [0]


def test_a_prefix_that_adds_nothing_to_a_wider_one_takes_no_entry() -> None:
    both = ProgramRule(
        Tier.POD, Action.ACCEPT, (tcp(0, 65535), tcp(443, 443)), (ip_network("10.0.0.0/8"), ip_network("10.1.0.0/16"))
    )
    held = entries(program(both))
    assert (len(held.ports), len(held.blocks)) == (1, 1)


def test_a_program_is_numbered_by_its_name_and_has_its_name_by_its_number() -> None:
    assert name_of(number_of(NAME)) == NAME
    assert entries(program()).number == 0x0123456789AB


@pytest.mark.parametrize("name", ["p_1", "p_nowhere", "p_0123456789AB", "q_0123456789ab", "p_0123456789abc"])
def test_a_name_that_is_not_made_from_content_has_no_number(name: str) -> None:
    with pytest.raises(KernelError, match="has no number"):
        entries(replace(program(), name=name))


def test_more_rules_than_a_word_has_bits_are_refused() -> None:
    assert entries(program(*[accept()] * 64)).accept == 2**64 - 1
    with pytest.raises(KernelError, match="at most 64"):
        entries(program(*[accept()] * 65))
