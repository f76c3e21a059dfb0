"""Audit in nftables: what is recorded, how much of it, and where a query goes that nobody listens for."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from ipaddress import ip_address

import pytest

from dnsguard.core.model import Action, Address, Flow, Packet, Program, Protocol
from dnsguard.enforce.denials import Denial
from dnsguard.enforce.nftables.inventory import sets
from dnsguard.engine.contracts import Desired
from tests.node.nftables.test_nftables_interception import Client, Listener, counted, query, until
from tests.node.nftables_lab import (
    LAYOUT,
    OTHER,
    OTHER6,
    PEER,
    PEER6,
    POD,
    POD6,
    SYN,
    SYN_ACK,
    TCP,
    UDP,
    Lab,
    Subject,
    addr,
    ip,
    start,
    tcp,
    udp,
    waiting,
)  # fmt: skip

pytestmark = pytest.mark.node

AUDIT = replace(LAYOUT, audit=True)
NOTHING = Program("p_0123456789ab")
EVERYTHING = Program("p_ba9876543210", (), Action.ACCEPT)
SERVICE, SERVICE6 = addr("10.96.0.10"), addr("fd00:10:96::a")
SERVICES = """
table ip kube { chain nat { type nat hook prerouting priority -100
  ip daddr 10.96.0.10 meta l4proto { tcp, udp } th dport 53 dnat to 192.0.2.80:53
 }
}
table ip6 kube { chain nat { type nat hook prerouting priority -100
  ip6 daddr fd00:10:96::a meta l4proto { tcp, udp } th dport 53 dnat to [2001:db8::80]:53
 }
}
"""


@pytest.fixture
async def audit(lab: Lab) -> AsyncIterator[Subject]:
    """An enforcer in Audit, whose pods may reach nothing."""
    subject = await start(lab, AUDIT)
    await govern(subject, NOTHING)
    yield subject
    await subject.close()


async def govern(subject: Subject, program: Program) -> None:
    link, other = subject.lab.link(), subject.lab.link("vethb")
    pairs = [(link, POD), (link, POD6), (other, OTHER), (other, OTHER6)]
    await subject.enforcer.apply(Desired((program,), dict.fromkeys(pairs, program.name)))


async def ports(subject: Subject, pod: Address = POD) -> list[int]:
    return sorted(each.port for each in await subject.enforcer.audited() if each.pod == pod)


def tcp_to(port: int, pod: Address = POD) -> Packet:
    return Packet(pod, PEER if len(pod) == 4 else PEER6, Protocol.TCP, port)


async def denied(subject: Subject) -> int:
    return sum(each.packets for each in await subject.enforcer.dropped() if each.reason == "default")


async def reaches(lab: Lab, server: Address, payload: bytes) -> None:
    """Wait for a packet to `server` that ends so to come to the world."""
    seen: list[bytes] = []

    def has_come() -> bool:
        seen.extend(frame[14:] for frame in waiting(lab.frames[lab.world]))
        return any(server in packet and packet.endswith(payload) for packet in seen)

    await until(has_come)


# ---- records


async def test_what_passes_is_counted_and_reported_as_what_is_dropped_is(audit: Subject) -> None:
    assert await audit.decide(tcp_to(443))
    await until(lambda: bool(audit.denials))
    assert audit.denials == [Denial(audit.lab.link(), POD, PEER, TCP, 443, "default")]
    assert await denied(audit) == 1


async def test_a_link_records_no_more_than_its_share_and_all_of_it_passes(lab: Lab) -> None:
    subject = await start(lab, replace(AUDIT, audited_per_link=3))
    try:
        await govern(subject, NOTHING)
        for port in (*range(1, 10), 1, 1, 9):
            assert await subject.decide(tcp_to(port))
        assert await subject.decide(tcp_to(7, OTHER))
        assert await ports(subject) == [1, 2, 3]
        assert await ports(subject, OTHER) == [7]
        packets = {each.port: each.packets for each in await subject.enforcer.audited() if each.pod == POD}
        assert packets == {1: 3, 2: 1, 3: 1}
        assert await denied(subject) == 13
    finally:
        await subject.close()


async def test_what_a_full_set_has_no_room_for_passes_and_is_counted(lab: Lab) -> None:
    subject = await start(lab, AUDIT, own=False)
    try:
        await govern(subject, NOTHING)
        members = (f"10.1.{n >> 8}.{n & 255} . 192.0.2.1 . tcp . 1" for n in range(AUDIT.audited_set_size))
        lab.nft(f"add element inet dnsguard audited_default_4 {{ {', '.join(members)} }}")
        assert await subject.decide(tcp_to(443))
        assert await subject.decide(tcp_to(443, POD6))
        assert await ports(subject) == []
        assert await ports(subject, POD6) == [443]
        assert await denied(subject) == 2
    finally:
        await subject.close()


# ---- whose mode it is


async def test_a_table_that_was_taken_away_is_made_again_in_audit(lab: Lab) -> None:
    subject = await start(lab, LAYOUT, own=False)
    try:
        await govern(subject, NOTHING)
        await subject.enforcer.audit(True)
        lab.nft("flush ruleset")
        await subject.enforcer.repair()
        assert await subject.enforcer.verify() == []
        assert await subject.decide(tcp_to(443))
        assert await ports(subject) == [443]
    finally:
        await subject.close()


async def test_a_switch_finds_a_table_that_was_taken_away_a_moment_ago(lab: Lab) -> None:
    subject = await start(lab, AUDIT, own=False)
    try:
        await govern(subject, NOTHING)
        lab.nft("delete table inet dnsguard")
        await subject.enforcer.audit(False)
        assert await subject.enforcer.verify() == []
        assert not await subject.decide(tcp_to(443))
    finally:
        await subject.close()


@pytest.mark.parametrize("own", [True, False])
async def test_a_process_that_does_not_audit_ends_what_an_earlier_one_did(lab: Lab, own: bool) -> None:
    subject = await start(lab, AUDIT, own=own)
    await govern(subject, NOTHING)
    assert await subject.decide(tcp_to(443))
    await subject.close()
    subject = await start(lab, LAYOUT, own=own)
    try:
        assert await subject.enforcer.audits()
        await govern(subject, NOTHING)
        assert not await subject.enforcer.audits()
        assert not await subject.decide(tcp_to(443))
        assert await subject.enforcer.verify() == []
        left = await subject.enforcer.do(lambda: sets(subject.enforcer._session))
        assert [name for name in left if "audit" in name] == []
    finally:
        await subject.close()


# ---- queries


@pytest.mark.parametrize(
    ("family", "service"), [(socket.AF_INET, SERVICE), (socket.AF_INET6, SERVICE6)], ids=["v4", "v6"]
)
async def test_a_query_that_somebody_listens_for_is_intercepted_and_meets_no_dnat(
    audit: Subject, family: int, service: Address
) -> None:
    audit.lab.intercept_routes()
    audit.lab.nft(SERVICES)
    listener = Listener(audit.lab)
    try:
        client = Client(audit.lab)
        with client.socket(family, socket.SOCK_DGRAM) as port:
            port.connect((str(ip_address(service)), 53))
            port.send(b"query")
            assert listener.echo(family) == b"query"
            assert port.recv(64) == b"answer"
        with client.socket(family, socket.SOCK_STREAM) as port:
            port.connect((str(ip_address(service)), 53))
            accepted, _ = listener.tcp[family].accept()
            with accepted:
                port.send(b"query")
                assert accepted.recv(64) == b"query"
        assert await counted(audit, "listener") == 0
    finally:
        listener.close()


@pytest.mark.parametrize(
    ("family", "service", "server", "pod"),
    [(socket.AF_INET, SERVICE, PEER, POD), (socket.AF_INET6, SERVICE6, PEER6, POD6)],
    ids=["v4", "v6"],
)
async def test_a_query_that_nobody_listens_for_is_answered_by_the_server_behind_a_services_address(
    audit: Subject, family: int, service: Address, server: Address, pod: Address
) -> None:
    lab = audit.lab
    lab.intercept_routes()
    lab.nft(SERVICES)
    with Client(lab).socket(family, socket.SOCK_DGRAM) as port:
        port.connect((str(ip_address(service)), 53))
        port.send(b"query")
        await reaches(lab, server, b"query")
        lab.send(ip(server, pod, UDP, udp(53, port.getsockname()[1], b"answer")), lab.world)
        assert port.recv(64) == b"answer"
    await until(lambda: [each.reason for each in audit.denials] == ["listener"])
    assert await counted(audit, "listener") == 1


async def test_a_connection_for_queries_that_nobody_listens_for_is_made_with_the_server(audit: Subject) -> None:
    lab = audit.lab
    lab.nft(SERVICES)
    assert lab.through(ip(POD, SERVICE, TCP, tcp(40_000, 53, SYN, lab.nonce())))
    answer = lab.nonce()
    assert lab.through(ip(PEER, POD, TCP, tcp(53, 40_000, SYN_ACK, answer)), start=lab.world, end=lab.pod)


async def test_the_same_socket_is_heard_again_when_somebody_listens_again(audit: Subject) -> None:
    lab = audit.lab
    lab.intercept_routes()
    lab.nft(SERVICES)
    with Client(lab).socket(socket.AF_INET, socket.SOCK_DGRAM) as port:
        port.connect((str(ip_address(SERVICE)), 53))
        for payload in (b"first", b"second"):
            listener = Listener(lab)
            port.send(b"query")
            assert listener.echo(socket.AF_INET) == b"query"
            assert port.recv(64) == b"answer"
            listener.close()
            port.send(payload)
            await reaches(lab, PEER, payload)


async def test_an_answer_passes_on_a_tuple_that_was_cut_when_audit_ended(audit: Subject) -> None:
    lab = audit.lab
    lab.intercept_routes()
    with Client(lab).socket(socket.AF_INET, socket.SOCK_DGRAM) as port:
        port.connect((str(ip_address(PEER)), 53))
        port.send(b"query")
        own = port.getsockname()[1]
        await audit.enforcer.audit(False)
        await audit.enforcer.cut([Flow(UDP, POD, own, PEER, 53, PEER, 53)])
        listener = Listener(lab)
        port.send(b"query")
        assert listener.echo(socket.AF_INET) == b"query"
        assert port.recv(64) == b"answer"
        listener.close()


@pytest.mark.parametrize("listens", [False, True])
@pytest.mark.parametrize(("source", "server"), [(OTHER, PEER), (OTHER6, PEER6), (addr("fe80::5"), PEER6)])
async def test_a_query_from_a_source_that_is_not_routed_to_its_link_is_dropped(
    audit: Subject, source: Address, server: Address, listens: bool
) -> None:
    audit.lab.intercept_routes()
    listener = Listener(audit.lab) if listens else None
    assert not audit.lab.through(query(audit.lab, source, server))
    assert await counted(audit, "source") == 1
    if listener:
        assert not listener.heard()
        listener.close()


# ---- flows


@pytest.mark.parametrize("sources", [(OTHER, addr("10.9.9.9")), (OTHER6, addr("fd00::9"))])
async def test_a_forged_source_takes_nothing_of_the_records_and_rides_on_no_flow(
    audit: Subject, sources: Sequence[Address]
) -> None:
    lab = audit.lab
    for source in sources:
        peer = PEER if len(source) == 4 else PEER6
        assert not lab.through(ip(source, peer, TCP, tcp(40_000, 443, SYN, lab.nonce())))
        assert not lab.through(ip(source, peer, UDP, udp(40_000, 443, lab.nonce())))
    assert await audit.enforcer.audited() == []
    assert await counted(audit, "source") == 4


async def test_a_flow_that_audit_let_open_goes_on_when_audit_ends_until_it_is_cut(audit: Subject) -> None:
    lab = audit.lab
    flow = Flow(TCP, POD, 40_000, PEER, 443, PEER, 443)

    def segment() -> bytes:
        return ip(POD, PEER, TCP, tcp(40_000, 443, 16, lab.nonce(), seq=1001, ack=1001))

    assert lab.through(ip(POD, PEER, TCP, tcp(40_000, 443, SYN, lab.nonce())))
    answer = tcp(443, 40_000, SYN_ACK, lab.nonce(), ack=1001)
    assert lab.through(ip(PEER, POD, TCP, answer), start=lab.world, end=lab.pod)
    await audit.enforcer.audit(False)
    assert lab.through(segment())
    await audit.enforcer.cut([flow])
    assert not lab.through(segment())
    assert await ports(audit) == []


async def test_what_a_program_allows_is_not_recorded(audit: Subject) -> None:
    await govern(audit, EVERYTHING)
    assert await audit.decide(tcp_to(443))
    assert await audit.enforcer.audited() == []
