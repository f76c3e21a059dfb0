"""Conntrack in the real kernel: whose flows, seen from which side, and forgetting them."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator

import pytest

from dnsguard.core.model import Flow
from dnsguard.node.conntrack import Conntrack
from tests.node.nftables_lab import OTHER, PEER, PEER6, POD, POD6, SYN, TCP, UDP, Lab, addr, inside, ip, tcp, udp

pytestmark = pytest.mark.node


@pytest.fixture
async def conntrack(lab: Lab) -> AsyncIterator[Conntrack]:
    lab.nft("table inet t { chain c { type filter hook forward priority 0; ct state new accept\n }\n}")
    with inside(lab.node):
        conntrack = Conntrack()
    yield conntrack
    await conntrack.close()


async def test_it_lists_the_flows_that_an_address_began_and_no_others(lab: Lab, conntrack: Conntrack) -> None:
    assert lab.through(ip(POD, PEER, UDP, udp(4000, 53000, lab.nonce())))
    assert lab.through(ip(POD6, PEER6, TCP, tcp(4001, 443, SYN, lab.nonce())))
    assert lab.through(ip(OTHER, PEER, UDP, udp(4002, 53000, lab.nonce())), start=lab.other)
    assert lab.through(ip(PEER, POD, UDP, udp(4003, 53000, lab.nonce())), start=lab.world, end=lab.pod)
    assert sorted(await conntrack.begun_by({POD, POD6})) == [
        Flow(TCP, POD6, 4001, PEER6, 443, PEER6, 443),
        Flow(UDP, POD, 4000, PEER, 53000, PEER, 53000),
    ]


async def test_a_translated_flow_tells_where_its_replies_come_from(lab: Lab, conntrack: Conntrack) -> None:
    lab.nft("table ip n { chain d { type nat hook prerouting priority -100; udp dport 80 dnat to 192.0.2.9:8080\n }\n}")
    lab.send(ip(POD, PEER, UDP, udp(4000, 80, lab.nonce())))
    assert await conntrack.begun_by([POD]) == [Flow(UDP, POD, 4000, PEER, 80, addr("192.0.2.9"), 8080)]


async def test_deleted_flows_are_gone_and_unknown_ones_ignored(lab: Lab, conntrack: Conntrack) -> None:
    echo = struct.pack(">BBHHH", 8, 0, 0, 77, 1)
    for packet in (
        ip(POD, PEER, UDP, udp(4000, 80, lab.nonce())),
        ip(POD, PEER, TCP, tcp(4000, 80, SYN, lab.nonce())),
        ip(POD, PEER, 1, echo + lab.nonce()),
        ip(POD6, PEER6, 58, struct.pack(">BBHHH", 128, 0, 0, 78, 1) + lab.nonce()),
        ip(POD, PEER, 254, lab.nonce()),
    ):
        assert lab.through(packet)
    flows = list(await conntrack.begun_by([POD, POD6]))
    assert len(flows) == 5
    kept = flows.pop(0)
    await conntrack.delete([*flows, Flow(UDP, POD, 1, PEER, 2, PEER, 2)])
    assert await conntrack.begun_by([POD, POD6]) == [kept]


async def test_more_flows_than_one_datagram_holds_are_all_listed_and_all_deleted(
    lab: Lab, conntrack: Conntrack
) -> None:
    for port in range(1, 601):
        lab.frames[lab.pod].send(bytes([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0]) + ip(POD, PEER, UDP, udp(port, 80)))
    lab.send(ip(POD, PEER, UDP, udp(601, 80, lab.nonce())))
    flows = await conntrack.begun_by([POD])
    assert {flow.pod_port for flow in flows} == set(range(1, 602))
    await conntrack.delete(flows)
    assert await conntrack.begun_by([POD]) == []


async def test_answers_that_do_not_fit_into_the_socket_cost_no_flow_its_end(lab: Lab, conntrack: Conntrack) -> None:
    for port in range(1, 301):
        lab.frames[lab.pod].send(bytes([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0]) + ip(POD, PEER, UDP, udp(port, 80)))
    lab.send(ip(POD, PEER, UDP, udp(301, 80, lab.nonce())))
    vars(conntrack)["_socket"].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    flows = await conntrack.begun_by([POD])
    assert len(flows) == 301
    await conntrack.delete(flows)
    assert await conntrack.begun_by([POD]) == []


async def test_no_address_has_no_flows(conntrack: Conntrack) -> None:
    assert await conntrack.begun_by([]) == []
