"""Open flows: what passes because a flow is open, and what ends it."""

from __future__ import annotations

import struct
from dataclasses import replace
from functools import partial

import pytest

from dnsguard.core.errors import KernelError
from dnsguard.core.model import Action, Flow, Packet, Program, Protocol
from dnsguard.enforce.nftables import elements, netlink
from dnsguard.enforce.nftables.netlink import Part
from dnsguard.enforce.nftables.session import TABLE_ATTRIBUTE
from dnsguard.engine.contracts import Desired, Element, Write
from tests.node.nftables.test_nftables_decision import ANY, HOUR, leasing
from tests.node.nftables_lab import (
    ACK,
    LAYOUT,
    OTHER,
    OTHER6,
    PEER,
    PEER6,
    POD,
    POD6,
    RST,
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
)  # fmt: skip

pytestmark = pytest.mark.node
GRE_LIKE = 254


class Conversation:
    """A flow between a pod and a peer in the world, packet by packet; True when the packet arrived."""

    def __init__(self, lab: Lab, pod: bytes = POD, peer: bytes = PEER, ports: tuple[int, int] = (40001, 443)) -> None:
        self.lab, self.pod, self.peer, self.ports = lab, pod, peer, ports

    def _pod_says(self, protocol: int, data: bytes, start: str | None = None) -> bool:
        return self.lab.through(ip(self.pod, self.peer, protocol, data), start=start)  # type: ignore[arg-type]

    def _peer_says(self, protocol: int, data: bytes) -> bool:
        end = self.lab.other if self.pod in (OTHER, OTHER6) else self.lab.pod
        packet = ip(self.peer, self.pod, protocol, data)  # type: ignore[arg-type]
        return self.lab.through(packet, start=self.lab.world, end=end)

    def pod_tcp(self, flags: int, seq: int, ack: int = 0, start: str | None = None) -> bool:
        return self._pod_says(TCP, tcp(*self.ports, flags, self.lab.nonce(), seq=seq, ack=ack), start)

    def peer_tcp(self, flags: int, seq: int, ack: int = 0) -> bool:
        return self._peer_says(TCP, tcp(*reversed(self.ports), flags, self.lab.nonce(), seq=seq, ack=ack))

    def pod_udp(self, start: str | None = None) -> bool:
        return self._pod_says(UDP, udp(*self.ports, self.lab.nonce()), start)

    def peer_udp(self) -> bool:
        return self._peer_says(UDP, udp(*reversed(self.ports), self.lab.nonce()))

    def pod_raw(self, start: str | None = None) -> bool:
        return self._pod_says(GRE_LIKE, self.lab.nonce(), start)

    def peer_raw(self) -> bool:
        return self._peer_says(GRE_LIKE, self.lab.nonce())

    def open_tcp(self) -> None:
        assert self.pod_tcp(SYN, 1000)
        assert self.peer_tcp(SYN_ACK, 5000, 1009)
        assert self.pod_tcp(ACK, 1009, 5009)

    def flow(self, protocol: int) -> Flow:
        pod_port, port = self.ports if protocol != GRE_LIKE else (0, 0)
        return Flow(protocol, self.pod, pod_port, self.peer, port, self.peer, port)  # type: ignore[arg-type]


def _both_pods(subject: Subject) -> Desired:
    program = leasing(ANY)
    links = {POD: subject.lab.link(), POD6: subject.lab.link(), OTHER: subject.lab.link("vethb")}
    links[OTHER6] = links[OTHER]
    return Desired((program,), {(links[pod], pod): program.name for pod in links})


async def lease(subject: Subject, *pods: bytes) -> None:
    writes = [Write("any", pod + (PEER if len(pod) == 4 else PEER6), HOUR) for pod in pods or (POD, POD6)]
    await subject.enforcer.apply(_both_pods(subject), writes)


async def end_lease(subject: Subject, pod: bytes = POD, peer: bytes = PEER) -> None:
    """Take a lease out and change nothing else."""
    await subject.enforcer.apply(_both_pods(subject), (), [Element("any", pod + peer)])


@pytest.mark.parametrize(("pod", "peer"), [(POD, PEER), (POD6, PEER6)])
async def test_an_open_tcp_flow_outlives_its_lease_and_a_new_one_on_its_ports_does_not_begin(
    subject: Subject, pod: bytes, peer: bytes
) -> None:
    await lease(subject)
    talk = Conversation(subject.lab, pod, peer)
    talk.open_tcp()
    await end_lease(subject, pod, peer)
    assert talk.pod_tcp(ACK, 1017, 5009)
    assert talk.peer_tcp(RST | ACK, 5009, 1025)
    assert not talk.pod_tcp(SYN, 90000)


async def test_a_udp_flow_is_open_once_a_reply_was_seen(subject: Subject) -> None:
    await lease(subject)
    answered, silent = Conversation(subject.lab), Conversation(subject.lab, ports=(40002, 443))
    assert answered.pod_udp()
    assert answered.peer_udp()
    assert silent.pod_udp()
    await end_lease(subject)
    assert answered.pod_udp()
    assert not silent.pod_udp()


async def test_a_pod_answers_a_flow_that_its_peer_began(subject: Subject) -> None:
    await lease(subject, OTHER)
    talk = Conversation(subject.lab)
    assert talk.peer_tcp(SYN, 7000)
    assert talk.pod_tcp(SYN_ACK, 100, 7009)
    assert talk.peer_tcp(ACK, 7009, 109)
    assert talk.pod_tcp(ACK, 109, 7017)


@pytest.mark.parametrize(("pod", "peer"), [(POD, PEER), (POD6, PEER6)])
async def test_an_inbound_tcp_flow_begins_with_a_syn(subject: Subject, pod: bytes, peer: bytes) -> None:
    await lease(subject, OTHER)
    talk = Conversation(subject.lab, pod, peer)
    assert not talk.peer_tcp(ACK, 7000, 1)
    assert talk.peer_tcp(SYN, 8000)


async def test_an_excluded_pod_takes_up_flows_without_a_syn(subject: Subject) -> None:
    link = subject.lab.link()
    await subject.enforcer.apply(Desired((), {}, frozenset({(link, POD), (link, POD6)})))
    assert Conversation(subject.lab).peer_tcp(ACK, 7000, 1)
    assert Conversation(subject.lab, POD6, PEER6).peer_tcp(ACK, 7000, 1)


@pytest.mark.parametrize(("pod", "peer", "forger"), [(OTHER, PEER, POD), (OTHER6, PEER6, POD6)])
async def test_a_forged_source_does_not_ride_on_another_pods_flow(
    subject: Subject, pod: bytes, peer: bytes, forger: bytes
) -> None:
    await lease(subject, pod)
    talk = Conversation(subject.lab, pod, peer)
    assert talk.pod_udp(start=subject.lab.other)
    assert talk.peer_udp()
    assert talk.pod_udp(start=subject.lab.other)
    assert not talk.pod_udp(start=subject.lab.pod)


@pytest.mark.parametrize("protocol", [TCP, UDP, GRE_LIKE])
@pytest.mark.parametrize(("pod", "peer"), [(POD, PEER), (POD6, PEER6)])
async def test_a_cut_drops_both_directions_whatever_is_leased_until_it_is_undone(
    subject: Subject, protocol: int, pod: bytes, peer: bytes
) -> None:
    await lease(subject)
    talk = Conversation(subject.lab, pod, peer)
    says = {TCP: lambda: talk.pod_tcp(SYN, 1), UDP: talk.pod_udp, GRE_LIKE: talk.pod_raw}[protocol]
    hears = {TCP: lambda: talk.peer_tcp(SYN, 1), UDP: talk.peer_udp, GRE_LIKE: talk.peer_raw}[protocol]
    await subject.enforcer.cut([talk.flow(protocol)])
    assert (says(), hears()) == (False, False)
    await subject.enforcer.uncut([talk.flow(protocol), talk.flow(protocol)])
    assert (says(), hears()) == (True, True)


async def test_a_cut_leaves_another_flow_of_the_same_two_alone(subject: Subject) -> None:
    await lease(subject)
    cut, alive = Conversation(subject.lab), Conversation(subject.lab, ports=(40002, 443))
    alive.open_tcp()
    await subject.enforcer.cut([cut.flow(TCP)])
    assert alive.pod_tcp(ACK, 1017, 5009)
    assert alive.peer_tcp(ACK, 5009, 1017)


async def test_a_pod_with_more_flows_than_can_be_cut_leaves_room_for_the_cuts_of_others(lab: Lab) -> None:
    subject = await start(lab, replace(LAYOUT, flows=0))
    try:
        await lease(subject, POD, OTHER)
        many = [Flow(UDP, POD, port, PEER, 443, PEER, 443) for port in range(1, 1100)]
        other = Conversation(lab, OTHER)
        with pytest.raises(KernelError, match="1 pod"):
            await subject.enforcer.cut([*many, other.flow(UDP)])
        assert not other.pod_udp(start=lab.other)
        await subject.enforcer.cut(many[:1000])
    finally:
        await subject.close()


async def test_cuts_that_ended_in_silence_do_not_stand_in_the_way_of_a_repair(lab: Lab) -> None:
    subject = await start(lab, replace(LAYOUT, flows=1600))
    try:
        await lease(subject)
        for turn in range(2):
            peers = [addr(f"198.18.{turn}.{n}") for n in range(20)]
            await subject.enforcer.cut([Flow(p, POD, 0, peer, 0, peer, 0) for p in range(200, 240) for peer in peers])
            silence = Part(netlink.DELSETELEM, 0, TABLE_ATTRIBUTE + netlink.text(2, "cut_portless4"))
            session = subject.enforcer._session
            await subject.enforcer._writer.do(partial(session.commit, [silence], "to empty the set"))
        await subject.enforcer.repair()
        assert await subject.enforcer.verify() == []
    finally:
        await subject.close()


@pytest.mark.parametrize("way", ["pod", "peer"])
@pytest.mark.parametrize("protocol", [UDP, GRE_LIKE])
@pytest.mark.parametrize(("pod", "peer"), [(POD, PEER), (POD6, PEER6)])
async def test_every_packet_that_a_cut_drops_renews_it(
    subject: Subject, way: str, protocol: int, pod: bytes, peer: bytes
) -> None:
    await lease(subject)
    talk = Conversation(subject.lab, pod, peer)
    name = ("cut" if protocol == UDP else "cut_portless") + ("4" if len(pod) == 4 else "6")
    await subject.enforcer.cut([talk.flow(protocol)])
    before = await left(subject, name)
    says = {("pod", UDP): talk.pod_udp, ("pod", GRE_LIKE): talk.pod_raw, ("peer", UDP): talk.peer_udp}
    while await left(subject, name) > before - 20:
        pass
    assert not says.get((way, protocol), talk.peer_raw)()
    assert await left(subject, name) > before - 15


async def left(subject: Subject, name: str) -> int:
    session = subject.enforcer._session
    found = await subject.enforcer._writer.do(lambda: list(elements.dump_set(session, name)))
    return elements.remaining_ms(found[0])


async def test_a_translated_flow_is_cut_by_the_address_its_replies_come_from(subject: Subject) -> None:
    await lease(subject)
    backend = addr("192.0.2.99")
    talk = Conversation(subject.lab, peer=backend)
    flow = Flow(Protocol.UDP, POD, 40001, PEER, 443, backend, 443)
    assert talk.peer_udp()
    await subject.enforcer.cut([flow])
    assert not talk.peer_udp()


def icmp_error(kind: int, code: int, inner: bytes, lab: Lab) -> bytes:
    return struct.pack(">BBHI", kind, code, 0, 0) + inner[:48] + bytes(64) + lab.nonce()


@pytest.mark.parametrize(
    ("pod", "peer", "protocol", "kind"),
    [(POD, PEER, 1, 3), (POD, PEER, 1, 11), (POD6, PEER6, 58, 1), (POD6, PEER6, 58, 2)],
)
async def test_an_icmp_error_passes_about_an_open_flow_and_to_its_peer_only(
    subject: Subject, pod: bytes, peer: bytes, protocol: int, kind: int
) -> None:
    await lease(subject, OTHER)
    lab = subject.lab
    talk = Conversation(lab, pod, peer)
    inner = ip(peer, pod, UDP, udp(443, 40001, bytes(32)))  # type: ignore[arg-type]
    error = lambda to: lab.through(ip(pod, to, protocol, icmp_error(kind, 0, inner, lab)))  # type: ignore[arg-type] # noqa: E731
    assert not error(peer)
    assert talk.peer_udp()
    assert error(peer)
    assert not error(peer[:-1] + b"\x77")


async def test_an_icmp_message_that_is_no_error_needs_a_rule_of_its_own(subject: Subject) -> None:
    await lease(subject, OTHER)
    lab = subject.lab
    talk = Conversation(lab)
    assert talk.peer_udp()
    inner = ip(PEER, POD, UDP, udp(443, 40001, bytes(32)))
    assert not lab.through(ip(POD, PEER, 1, icmp_error(5, 1, inner, lab)))  # a redirect


async def test_an_echo_reply_passes(subject: Subject) -> None:
    await lease(subject, OTHER)
    lab = subject.lab
    for pod, peer, protocol, request, reply in ((POD, PEER, 1, 8, 0), (POD6, PEER6, 58, 128, 129)):
        ask = struct.pack(">BBHHH", request, 0, 0, 77, 1) + lab.nonce()
        say = struct.pack(">BBHHH", reply, 0, 0, 77, 1) + lab.nonce()
        assert lab.through(ip(peer, pod, protocol, ask), start=lab.world, end=lab.pod)
        assert lab.through(ip(pod, peer, protocol, say))


async def test_a_new_program_that_allows_nothing_leaves_open_flows_alone(subject: Subject) -> None:
    await lease(subject)
    talk = Conversation(subject.lab)
    talk.open_tcp()
    program = Program("p_000000000000", (), Action.DENY)
    await subject.enforcer.apply(Desired((program,), {(subject.lab.link(), POD): program.name}))
    assert talk.pod_tcp(ACK, 1017, 5009)
    assert not await subject.decide(Packet(POD, PEER, Protocol.TCP, 443))
