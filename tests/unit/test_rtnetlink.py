"""Reading what rtnetlink tells, and what pyroute2 makes of our requests."""

from __future__ import annotations

import gc
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.iproute.linux import get_arguments_processor
from pyroute2.netlink import NLM_F_DUMP_INTR, NLM_F_MULTI, NLM_F_REPLACE, NLMSG_DONE, NLMSG_NOOP, nlmsg
from pyroute2.netlink.rtnl import RTM_DELRULE, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWROUTE, RTM_NEWRULE
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from dnsguard.core.model import Address, LinkIndex
from dnsguard.node.rtnetlink import LOCAL, Change, Link, LinkAddress, Marshal, Message, PolicyRule, Route, read

numbers = st.integers(min_value=1, max_value=2**32 - 1)
IPV4, IPV6 = socket.AF_INET, socket.AF_INET6


def octets(message: nlmsg, kind: int, flags: int = 0) -> bytes:
    message["header"]["type"], message["header"]["flags"] = kind, flags
    message.reset()
    message.encode()
    return bytes(message.data)


def filled(message: nlmsg, **fields: int) -> nlmsg:
    message.update(fields)
    return message


def requested(message: nlmsg, room: str, command: str, fields: dict[str, Any]) -> nlmsg:
    """The message that pyroute2's `route` or `rule` sends."""
    arguments = get_arguments_processor(room, command, fields, {"strict_check": False})
    for name, _ in message.fields:
        message[name] = arguments.get_value(name, default=0, mode="field")
    names = ((type(message).name2nla(key), value) for key, value in arguments.items())
    message["attrs"] = [(name, value) for name, value in names if message.valid_nla(name) and value is not None]
    return message


def told(data: bytes) -> list[Message]:
    return list(Marshal().parse(data))


def change(message: nlmsg, kind: int, flags: int = 0) -> Change | None:
    (one,) = told(octets(message, kind, flags))
    return read(one)


@given(numbers, numbers, numbers, numbers)
def test_a_rule_is_read_back_as_it_was_requested(priority: int, table: int, mark: int, mask: int) -> None:
    rule = PolicyRule(IPV4, priority, table, mark, mask, protocol=153)
    assert change(requested(fibmsg(), "rule", "add", rule.fields), RTM_NEWRULE) == Change(rule, True, False)


@given(st.sampled_from([(IPV4, 4), (IPV6, 16)]), numbers, numbers, st.integers(min_value=0, max_value=128), st.data())
def test_a_route_is_read_back_as_it_was_requested(
    family: tuple[int, int], table: int, priority: int, length: int, data: st.DataObject
) -> None:
    size = family[1]
    destination = data.draw(st.binary(min_size=size, max_size=size)) if length else bytes(size)
    route = Route(family[0], table, Address(destination), length, LinkIndex(7), LOCAL, 153, priority)
    message = requested(rtmsg(), "route", "replace", route.fields)
    assert change(message, RTM_NEWROUTE, NLM_F_REPLACE) == Change(route, True, True)


def test_what_was_read_leaves_nothing_for_the_garbage_collector() -> None:
    route = Route(IPV6, 5353, Address(bytes(range(16))), 128, LinkIndex(7), protocol=153)
    data = octets(requested(rtmsg(), "route", "replace", route.fields), RTM_NEWROUTE)
    gc.collect()
    gc.disable()
    try:
        assert [read(one) for one in told(data * 100)] == [Change(route, True, False)] * 100
        assert gc.collect() < 100
    finally:
        gc.enable()


def test_an_address_of_a_point_to_point_link_is_the_nodes_own_end() -> None:
    message = filled(ifaddrmsg(), family=IPV4, index=3, prefixlen=32)
    message["attrs"] = [("IFA_ADDRESS", "192.0.2.2"), ("IFA_LOCAL", "192.0.2.1")]
    own = LinkAddress(LinkIndex(3), Address(bytes((192, 0, 2, 1))))
    assert change(message, RTM_NEWADDR) == Change(own, True, False)


@pytest.mark.parametrize("family", [socket.AF_UNSPEC, 7])
def test_what_a_bridge_tells_of_its_ports_is_not_about_a_link(family: int) -> None:
    message = filled(ifinfmsg(), family=family, index=3, flags=1)
    message["attrs"] = [("IFLA_IFNAME", "veth0")]
    expected = Change(Link(LinkIndex(3), "veth0", True), True, False) if family == socket.AF_UNSPEC else None
    assert change(message, RTM_NEWLINK) == expected


@pytest.mark.parametrize("narrowing", [("FRA_IIFNAME", "eth0"), ("FRA_DST", "192.0.2.1"), ("FRA_IP_PROTO", 17)])
def test_a_rule_that_looks_at_more_than_the_mark_is_selective(narrowing: tuple[str, object]) -> None:
    message = requested(fibmsg(), "rule", "del", PolicyRule(IPV4, 5, 99, 1, 1).fields)
    message["attrs"].append(narrowing)
    assert change(message, RTM_DELRULE) == Change(PolicyRule(IPV4, 5, 99, 1, 1, selective=True), False, False)


def test_the_kernels_own_routes_are_passed_over_but_end_no_dump() -> None:
    message = filled(rtmsg(), family=IPV4, type=LOCAL, proto=2, dst_len=32)
    (passed,) = told(octets(message, RTM_NEWROUTE, NLM_F_MULTI))
    assert (passed["header"]["type"], passed["header"]["flags"]) == (NLMSG_NOOP, NLM_F_MULTI)
    assert read(passed) is None


def test_one_that_replaces_a_pods_route_is_not_passed_over() -> None:
    message = filled(rtmsg(), family=IPV4, type=LOCAL, proto=2, dst_len=32)
    assert change(message, RTM_NEWROUTE, NLM_F_REPLACE) is not None


@pytest.mark.parametrize(
    ("flags", "number", "incomplete"), [(0, 0, False), (NLM_F_DUMP_INTR, 0, True), (0, -105, True)]
)
def test_a_dump_that_was_interrupted_or_failed_is_incomplete(flags: int, number: int, incomplete: bool) -> None:
    marshal = Marshal()
    data = octets(nlmsg(), NLMSG_DONE, flags | NLM_F_MULTI) + number.to_bytes(4, "little", signed=True)
    list(marshal.parse(len(data).to_bytes(4, "little") + data[4:]))
    assert marshal.incomplete is incomplete
