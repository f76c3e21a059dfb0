"""Readers of what the kernel reports: denied packets and foreign changes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnsguard.core.model import Address, Flow, LinkIndex
from dnsguard.enforce.denials import Denial
from dnsguard.enforce.nftables import netlink
from dnsguard.enforce.nftables.denied import denials, read_addresses
from dnsguard.enforce.nftables.watch import Changes
from dnsguard.node.conntrack import read_flow

POD, PEER = Address(bytes([10, 0, 0, 5])), Address(bytes([192, 0, 2, 1]))
POD6, PEER6 = Address(bytes(15) + b"\x05"), Address(bytes(15) + b"\x01")


def ipv4(protocol: int, data: bytes, options: int = 0) -> bytes:
    head = struct.pack(">BBHHHBBH", 0x45 + options, 0, 0, 0, 0, 64, protocol, 0)
    return head + POD + PEER + bytes(4 * options) + data


def ipv6(protocol: int, data: bytes) -> bytes:
    return struct.pack(">IHBB", 6 << 28, len(data), protocol, 64) + POD6 + PEER6 + data


def tcp(flags: int) -> bytes:
    return struct.pack(">HHIIBBHHH", 4000, 443, 0, 0, 5 << 4, flags, 0, 0, 0)


def report(prefix: str, packet: bytes, link: int = 7) -> bytes:
    body = netlink.text(10, prefix) + netlink.attribute(4, struct.pack(">I", link)) + netlink.attribute(9, packet)
    return netlink.message(0x400, 0, 0, netlink.generic(2) + body)


def test_a_report_names_link_addresses_port_and_reason() -> None:
    packet = ipv4(6, struct.pack(">HH", 4000, 443))
    assert list(denials(report("dnsguard default", packet))) == [
        Denial(LinkIndex(7), POD, PEER, 6, 443, "default", None)
    ]


def test_a_report_of_a_rule_names_its_number() -> None:
    (denial,) = denials(report("dnsguard 12", ipv4(17, struct.pack(">HH", 1, 2))))
    assert (denial.reason, denial.rule) == ("rule", 12)


@pytest.mark.parametrize(
    ("packet", "begins"),
    [
        (ipv4(6, tcp(flags=0x02)), True),
        (ipv4(6, tcp(flags=0x10)), True),
        (ipv4(6, tcp(flags=0x04), options=3), False),
        (ipv6(0, bytes([6, 0]) + bytes(6) + tcp(flags=0x14)), False),
        (ipv4(1, bytes([8, 0])), True),
        (ipv4(1, bytes([3, 3])), False),
        (ipv6(58, bytes([4, 2])), False),
        (ipv6(58, bytes([128, 0])), True),
        (ipv4(132, bytes(12) + bytes([1])), True),
        (ipv4(132, bytes(12) + bytes([6])), False),
        (ipv4(6, tcp(flags=0x04)[:13]), True),
        (ipv4(17, tcp(flags=0x04)), True),
    ],
)
def test_a_report_says_of_a_mere_answer_that_it_begins_nothing(packet: bytes, begins: bool) -> None:
    (denial,) = denials(report("dnsguard default", packet))
    assert denial.begins is begins


@pytest.mark.parametrize(
    "packet",
    [
        ipv4(6, struct.pack(">HH", 4000, 443), options=3),
        ipv6(6, struct.pack(">HH", 4000, 443)),
        ipv6(0, bytes([60, 0]) + bytes(6) + bytes([6, 1]) + bytes(14) + struct.pack(">HH", 4000, 443)),
        ipv6(44, bytes([6, 0]) + bytes(6) + struct.pack(">HH", 4000, 443)),
    ],
)
def test_the_port_is_found_behind_options_and_extension_headers(packet: bytes) -> None:
    found = read_addresses(packet)
    assert found and found[2:] == (6, 443)


def test_a_protocol_without_ports_has_port_0() -> None:
    found = read_addresses(ipv4(1, bytes([8, 0, 0, 0])))
    assert found and found[2:] == (1, 0)


def test_a_number_that_no_rule_has_is_a_reason_as_it_stands() -> None:
    (denial,) = denials(report("dnsguard " + "9" * 5000, ipv4(6, bytes(4))))
    assert (denial.reason, denial.rule) == ("9" * 5000, None)


def test_reports_of_other_prefixes_are_passed_over() -> None:
    assert list(denials(report("another", ipv4(6, bytes(4))))) == []


@given(st.binary(max_size=200), st.binary(max_size=100))
def test_any_bytes_are_read_without_an_error(datagram: bytes, packet: bytes) -> None:
    list(denials(datagram))
    list(denials(report("dnsguard default", packet)))
    list(Changes().read(datagram))
    list(Changes().read(netlink.table_message(0, 0, 0, datagram)))
    list(read_flow(datagram))


def entry(protocol: bytes, source: bytes = POD, destination: bytes = PEER) -> bytes:
    """The attributes of a conntrack entry, with the same tuple for both directions."""
    addresses = netlink.attribute(1, source) + netlink.attribute(2, destination)
    both = netlink.nested(1, addresses) + netlink.nested(2, protocol)
    return netlink.nested(1, both) + netlink.nested(2, both)


def test_a_flow_is_read_from_its_two_tuples() -> None:
    ports = netlink.attribute(2, b"\x0f\xa0") + netlink.attribute(3, b"\x01\xbb")
    assert list(read_flow(entry(netlink.attribute(1, b"\x06") + ports))) == [Flow(6, POD, 4000, PEER, 443, POD, 4000)]


@pytest.mark.parametrize(
    "attributes",
    [
        entry(netlink.attribute(1, b"")),
        entry(netlink.attribute(1, b"\x06"), source=POD[:3]),
        entry(netlink.attribute(1, b"\x06"), destination=PEER6),
        entry(netlink.attribute(1, b"\x06"), source=b"", destination=b""),
    ],
    ids=["no protocol", "a short address", "two families", "no addresses"],
)
def test_an_entry_without_a_protocol_or_without_two_addresses_of_one_family_is_no_flow(attributes: bytes) -> None:
    assert list(read_flow(attributes)) == []


def changed(kind: int, table: str, family: int = 1) -> bytes:
    return netlink.message(0xA00 | kind, 0, 0, netlink.generic(family) + netlink.text(1, table))


def generation(name: str, pid: int) -> bytes:
    body = netlink.attribute(2, struct.pack(">I", pid)) + netlink.text(3, name)
    return netlink.message(0xA0F, 0, 0, netlink.generic(0) + body)


def test_a_change_of_our_table_is_reported_once_with_its_author() -> None:
    changes = Changes()
    assert list(changes.read(changed(8, "dnsguard") + changed(2, "dnsguard"))) == []
    assert list(changes.read(generation("nft", 42))) == ["rule deleted by nft[42]"]
    assert list(changes.read(generation("nft", 43))) == []


def test_changes_of_other_tables_and_families_are_not_reported() -> None:
    data = changed(8, "dnsguard2") + changed(8, "dnsguard", family=2) + generation("nft", 42)
    assert list(Changes().read(data)) == []
