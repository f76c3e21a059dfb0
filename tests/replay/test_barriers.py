"""Deny and Pass rules before a rule with names: files cannot say them yet, so the policies are model objects."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network

import pytest

from dnsguard.core.model import (
    Action,
    BlockPeer,
    DomainPeer,
    Pattern,
    PodEntry,
    Policy,
    PortRange,
    Ports,
    Protocol,
    Rule,
)
from dnsguard.core.names import parse_name
from dnsguard.upstream.scripted import Answer
from tests.replay.stage import Entries, Stage, respond

HTTPS: Ports = (PortRange(Protocol.TCP, 443, 443),)
WEB: Ports = (PortRange(Protocol.TCP, 80, 80), PortRange(Protocol.TCP, 443, 443))
NET = "192.0.2.0/28"


def names(*texts: str, ports: Ports = HTTPS) -> Rule:
    return Rule((DomainPeer(tuple(Pattern(parse_name(text)) for text in texts)),), ports=ports)


def deny(cidr: str = NET, ports: Ports = HTTPS) -> Rule:
    return Rule(blocks=(BlockPeer(ip_network(cidr)),), ports=ports, action=Action.DENY)


def entries(*rules: Rule) -> Entries:
    return Entries(PodEntry(ip_network("10.244.0.5"), "shop/web", (Policy("p", rules),)))


@pytest.fixture
def stages() -> Iterator[list[Stage]]:
    made: list[Stage] = []
    yield made
    for stage in made:
        stage.check()
        stage.check_nothing_left()
        stage.close()


def play(stages: list[Stage], *rules: Rule) -> Stage:
    stage = Stage(entries(*rules))
    stage.script("a.example.com", "A", Answer(respond("a.example.com. 60 A 192.0.2.1\na.example.com. 60 A 192.0.2.99")))
    stage.script("b.example.com", "A", Answer(respond("b.example.com. 60 A 192.0.2.1")))
    stages.append(stage)
    return stage


def test_an_address_that_an_earlier_deny_closes_on_all_ports_is_not_shown(stages: list[Stage]) -> None:
    stage = play(stages, deny(), names("a.example.com"))

    reply = stage.ask("web", "a.example.com").reply

    assert reply.addresses == ["192.0.2.99"]
    assert stage.passes("web", "192.0.2.99", 443)
    assert not stage.passes("web", "192.0.2.1", 443)


def test_when_a_deny_closes_every_address_the_pod_gets_nodata_and_the_reason(stages: list[Stage]) -> None:
    stage = play(stages, deny(), names("b.example.com"))

    reply = stage.ask("web", "b.example.com").reply

    assert (reply.rcode, reply.answer, reply.ttls) == ("NOERROR", [], {5})
    assert reply.ede is not None
    assert reply.ede[0] == 15
    assert stage.counters.answers_withheld["denied"] == 1


def test_an_address_that_a_deny_closes_on_some_ports_is_shown_and_open_on_the_others(stages: list[Stage]) -> None:
    stage = play(stages, deny(), names("b.example.com", ports=WEB))

    assert stage.ask("web", "b.example.com").reply.addresses == ["192.0.2.1"]
    assert stage.passes("web", "192.0.2.1", 80)
    assert not stage.passes("web", "192.0.2.1", 443)


def test_two_names_on_one_address_stay_apart_with_a_deny_between_their_rules(stages: list[Stage]) -> None:
    stage = play(stages, names("a.example.com"), deny(), names("b.example.com"))

    hidden = stage.ask("web", "b.example.com").reply
    closed = not stage.passes("web", "192.0.2.1", 443)
    shown = stage.ask("web", "a.example.com").reply

    assert hidden.addresses == []
    assert closed
    assert shown.addresses == ["192.0.2.1", "192.0.2.99"]
    assert stage.passes("web", "192.0.2.1", 443)


def test_a_deny_that_comes_by_a_reload_closes_the_lease_and_cuts_the_flow(stages: list[Stage]) -> None:
    stage = play(stages, names("b.example.com"))
    stage.ask("web", "b.example.com")
    flow = stage.connect("web", "192.0.2.1", 443)

    stage.reload(entries(deny(), names("b.example.com")))

    assert not stage.passes("web", "192.0.2.1", 443)
    assert not stage.flowing(flow)
    assert stage.enforcer.held() == []


def test_a_pass_leaves_the_address_to_the_next_tier(stages: list[Stage]) -> None:
    past = Rule(blocks=(BlockPeer(ip_network(NET)),), ports=HTTPS, action=Action.PASS)
    stage = play(stages, past, names("a.example.com"))

    assert stage.ask("web", "a.example.com").reply.addresses == ["192.0.2.99"]


def test_more_rules_than_a_program_holds_deny_all_with_an_event(stages: list[Stage]) -> None:
    many = [names("a.example.com", ports=(PortRange(Protocol.TCP, port, port),)) for port in range(1, 67)]

    stage = play(stages, *many)

    assert stage.ask("web", "a.example.com").reply.rcode == "NXDOMAIN"
    assert "pod_conflict" in [kind.value for kind in stage.told.kinds()]
