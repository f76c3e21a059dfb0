"""Reading and building rtnetlink messages."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dnsguard.core.model import Address, LinkIndex
from dnsguard.node.rtnetlink import (
    Flag,
    Message,
    PolicyRule,
    Route,
    Type,
    attributes,
    dump,
    error_number,
    messages,
    read_address,
    read_link,
    read_route,
    read_rule,
    request,
    route_body,
    rule_body,
)

numbers = st.integers(min_value=0, max_value=2**32 - 1)
READERS = (read_link, read_address, read_route, read_rule)


@given(numbers, st.binary(max_size=40), st.binary(max_size=40))
def test_requests_one_after_another_are_read_back(sequence: int, first: bytes, second: bytes) -> None:
    data = b""
    for payload in (first, second):
        one = request(Type.GET_ROUTE, Flag.ACK, sequence, payload)
        data += one.ljust((len(one) + 3) & ~3, b"\0")
    expected = [Message(Type.GET_ROUTE, Flag.ACK | Flag.REQUEST, sequence, payload) for payload in (first, second)]
    assert list(messages(data)) == expected


@given(numbers, numbers, numbers, numbers)
def test_a_rule_is_read_back_as_it_was_built(priority: int, table: int, mark: int, mask: int) -> None:
    rule = PolicyRule(2, priority, table, mark, mask, protocol=153)
    assert read_rule(rule_body(rule)) == rule


@given(st.sampled_from([(2, 4), (10, 16)]), numbers, numbers, st.integers(min_value=0, max_value=128), st.data())
def test_a_route_is_read_back_as_it_was_built(
    family: tuple[int, int], table: int, priority: int, length: int, data: st.DataObject
) -> None:
    size = family[1]
    destination = data.draw(st.binary(min_size=size, max_size=size)) if length else bytes(size)
    route = Route(family[0], table, Address(destination), length, LinkIndex(7), 1, 153, priority)
    assert read_route(route_body(route)) == route


@given(st.binary(max_size=200))
def test_any_octets_are_read_without_an_error(data: bytes) -> None:
    for message in messages(data):
        error_number(message)
    attributes(data, 0)
    for read in READERS:
        read(data)


@given(st.sampled_from([Type.GET_LINK, Type.GET_ADDRESS, Type.GET_ROUTE, Type.GET_RULE]), st.binary(max_size=120))
def test_any_attributes_are_read_without_an_error(kind: Type, tail: bytes) -> None:
    (message,) = messages(dump(kind, 1))
    for read in READERS:
        read(message.payload[:16] + tail)


def test_a_route_to_what_is_no_ip_address_is_none() -> None:
    route = b"\x02" + bytes(11)
    assert read_route(route + b"\x08\0\x01\0" + bytes(4)) is not None
    assert read_route(route + b"\x07\0\x01\0" + bytes(4)) is None


def test_what_a_bridge_tells_of_its_ports_is_not_about_a_link() -> None:
    name = b"\x0a\0\x03\0veth0\0\0\0"
    assert read_link(bytes(16) + name) is not None
    assert read_link(b"\x07" + bytes(15) + name) is None
