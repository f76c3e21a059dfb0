"""Which rule came nearest to allowing a name or a packet, and by what it missed."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnsguard.core.model import Action, Address, BlockPeer, DomainPeer, Packet, Policy, PortRange, Ports, Protocol, Rule
from dnsguard.core.names import parse_name, parse_pattern
from dnsguard.core.nearest import MOST_MISSES, missed_name, missed_packet, one_letter_apart
from dnsguard.core.policy import EffectivePolicy, effective

HTTPS = (PortRange(Protocol.TCP, 443, 443),)


def named(*patterns: str, excepts: tuple[str, ...] = ()) -> EffectivePolicy:
    peer = DomainPeer(tuple(map(parse_pattern, patterns)), tuple(map(parse_pattern, excepts)))
    return effective((Policy("web", (Rule((peer,), ports=HTTPS),)),), Action.DENY)


def blocks(*rules: tuple[str, Ports], excepts: tuple[str, ...] = ()) -> EffectivePolicy:
    holes = tuple(map(ip_network, excepts))
    written = tuple(Rule(blocks=(BlockPeer(ip_network(cidr), holes),), ports=ports) for cidr, ports in rules)
    return effective((Policy("web", written),), Action.DENY)


def packet(address: str, port: int = 443) -> Packet:
    return Packet(Address(bytes(4)), Address(ip_address(address).packed), Protocol.TCP, port)


@pytest.mark.parametrize(
    ("pattern", "name", "miss"),
    [
        ("*.example.com", "example.com", "apex"),
        ("example.com", "www.example.com", "below"),
        ("com", "www.example.com", None),
        ("db.example.com", "db.example.com.shop.svc.cluster.local", "searched"),
        ("*.example.com", "db.example.com.cluster.local", "searched"),
        ("*.example.com", ".", None),
        ("api.example.com", "apo.example.com", "typo"),
        ("api.example.com", "ap.example.com", "typo"),
        ("api.example.com", "apii.example.com", "typo"),
        ("api.example.com", "api.exmaple.com", "typo"),
        ("*.example.com", "a.b.exampel.com", "typo"),
        ("*.example.com", "exampel.com", None),
        ("api.example.com", "mail.example.com", "label"),
        ("api.com", "mail.com", None),
        ("api.example.com", "mail.test", None),
    ],
)
def test_a_name_is_missed_by_what_differs(pattern: str, name: str, miss: str | None) -> None:
    found = missed_name(named(pattern), parse_name(name))

    assert [one.miss for one in found] == ([miss] if miss else [])


def test_an_except_that_took_the_name_out_is_named() -> None:
    (missed,) = missed_name(named("*.s3.test", excepts=("secret.s3.test",)), parse_name("secret.s3.test"))

    assert (missed.miss, missed.pattern, missed.hole) == (
        "excepted",
        parse_pattern("*.s3.test"),
        parse_pattern("secret.s3.test"),
    )


def test_the_most_telling_misses_come_first_and_are_few() -> None:
    patterns = [f"n{number}.www.example.com" for number in range(9)]
    found = missed_name(named(*patterns, "example.com", "*.www.example.com"), parse_name("www.example.com"))

    assert [one.miss for one in found] == ["apex", "below"]
    assert len(missed_name(named(*patterns), parse_name("other.www.example.com"))) == MOST_MISSES


@pytest.mark.parametrize(
    ("cidr", "ports", "address", "miss"),
    [
        ("10.0.0.0/24", (PortRange(Protocol.TCP, 80, 80),), "10.0.0.9", "port"),
        ("10.0.0.0/24", HTTPS, "10.0.1.9", "beside"),
        ("10.0.0.0/24", HTTPS, "10.0.15.9", "beside"),
        ("10.0.0.0/24", HTTPS, "10.0.16.9", None),
        ("10.0.0.0/24", (PortRange(Protocol.TCP, 80, 80),), "10.0.1.9", None),
        ("10.0.0.0/8", HTTPS, "11.0.0.1", None),
        ("0.0.0.0/0", (PortRange(Protocol.TCP, 80, 80),), "192.0.2.1", "port"),
        ("fd00::/8", HTTPS, "192.0.2.1", None),
    ],
)
def test_a_packet_is_missed_by_port_or_by_a_block_beside_it(
    cidr: str, ports: Ports, address: str, miss: str | None
) -> None:
    found = missed_packet(blocks((cidr, ports)), packet(address))

    assert [one.miss for one in found] == ([miss] if miss else [])


def test_an_except_that_took_the_address_out_is_named() -> None:
    (missed,) = missed_packet(blocks(("10.0.0.0/16", HTTPS), excepts=("10.0.5.0/24",)), packet("10.0.5.1"))

    assert (missed.miss, missed.hole) == ("excepted", ip_network("10.0.5.0/24"))


@given(st.text("abc.", min_size=7, max_size=20), st.integers(0, 30), st.sampled_from(("change", "drop", "add", "swap")))
def test_one_slip_is_one_letter_and_the_same_text_is_none(text: str, place: int, slip: str) -> None:
    at = place % (len(text) - 1)
    other = {
        "change": text[:at] + "z" + text[at + 1 :],
        "drop": text[:at] + text[at + 1 :],
        "add": text[:at] + "z" + text[at:],
        "swap": text[:at] + text[at + 1] + text[at] + text[at + 2 :],
    }[slip]

    assert one_letter_apart(text, other) == one_letter_apart(other, text) == (text != other)


@given(st.text("abc", min_size=6, max_size=12), st.integers(0, 4))
def test_two_slips_apart_from_each_other_are_not_one(text: str, at: int) -> None:
    assert not one_letter_apart(text, "z" + text[1:-1] + "z")
    assert not one_letter_apart(text, text[:at] + "zz" + text[at:])
