"""Which packets begin a flow in the kernel's program, and which end one: each beside one that differs in one thing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dnsguard.core.model import Address
from dnsguard.enforce.bpf.layout import Idle, What
from tests.node.ebpf.rig import BLOCKED_IN, BLOCKED_IN6, OTHER, OTHER6, PEER, POD, POD6, SOURCE, Rig, Verdict
from tests.node.nftables_lab import ACK, RST, SYN, SYN_ACK, ip, tcp, udp

PASS, DROP = Verdict.PASS, Verdict.DROP
FIN = 1
INIT, COOKIE, DATA = 1, 10, 0
ENDS = pytest.mark.parametrize(("own", "peer"), [(POD, BLOCKED_IN), (POD6, BLOCKED_IN6)])


def out(own: Address, peer: Address, flags: int) -> bytes:
    return ip(own, peer, 6, tcp(40000, 443, flags))


def back(own: Address, peer: Address, flags: int) -> bytes:
    return ip(peer, own, 6, tcp(443, 40000, flags))


@pytest.mark.parametrize(
    ("conversation", "idle"),
    [
        ([(out, SYN)], Idle.TCP_NEW),
        ([(out, SYN), (back, SYN_ACK)], Idle.TCP),
        ([(out, SYN), (back, SYN_ACK), (back, FIN | ACK)], Idle.TCP_CLOSING),
        ([(out, SYN), (back, SYN_ACK), (back, FIN | ACK), (out, FIN | ACK)], Idle.TCP_CLOSED),
        ([(out, SYN), (back, SYN_ACK), (out, FIN | ACK), (back, ACK)], Idle.TCP_CLOSING),
        ([(out, SYN), (back, SYN_ACK), (out, RST)], Idle.TCP_CLOSED),
        ([(out, SYN), (back, SYN_ACK), (back, RST)], Idle.TCP_CLOSING),  # anybody may have sent it
        ([(out, SYN), (back, SYN_ACK), (out, RST), (out, SYN)], Idle.TCP_NEW),
        ([(back, SYN)], Idle.TCP_ASKED),
        ([(back, SYN), (out, SYN_ACK)], Idle.TCP),
        ([(back, SYN), (out, SYN_ACK), (out, FIN | ACK), (back, FIN | ACK)], Idle.TCP_CLOSED),
    ],
)
def test_a_flow_that_is_over_or_that_nobody_answered_makes_room_soon(
    rig: Rig, conversation: list[tuple[Callable[[Address, Address, int], bytes], int]], idle: Idle
) -> None:
    for way, flags in conversation:
        send = rig.from_pod if way is out else rig.to_pod
        assert send(way(POD, BLOCKED_IN, flags)) is PASS
    assert rig.idle() is idle


@ENDS
def test_a_flow_that_was_refused_is_not_open(rig: Rig, own: Address, peer: Address) -> None:
    assert rig.from_pod(out(own, peer, SYN)) is PASS
    assert rig.to_pod(back(own, peer, RST | ACK)) is PASS
    rig.close_blocks()
    assert rig.from_pod(out(own, peer, ACK)) is DROP
    assert rig.to_pod(back(own, peer, SYN_ACK)) is DROP


@ENDS
def test_a_flow_that_the_pod_takes_back_is_not_open(rig: Rig, own: Address, peer: Address) -> None:
    assert rig.from_pod(out(own, peer, SYN)) is PASS
    assert rig.from_pod(out(own, peer, RST)) is PASS
    rig.close_blocks()
    assert rig.to_pod(back(own, peer, SYN_ACK)) is DROP
    assert rig.from_pod(out(own, peer, ACK)) is DROP


def test_a_pod_that_refuses_its_peer_says_nothing_more(rig: Rig) -> None:
    assert rig.to_pod(back(POD, OTHER, SYN)) is PASS
    assert rig.from_pod(out(POD, OTHER, RST | ACK)) is PASS
    assert rig.from_pod(out(POD, OTHER, ACK)) is DROP


def test_what_both_have_spoken_in_may_be_closed_after_a_reset(rig: Rig) -> None:
    assert rig.from_pod(out(POD, BLOCKED_IN, SYN)) is PASS
    assert rig.to_pod(back(POD, BLOCKED_IN, SYN_ACK)) is PASS
    rig.close_blocks()
    assert rig.to_pod(back(POD, BLOCKED_IN, RST | ACK)) is PASS
    assert rig.from_pod(out(POD, BLOCKED_IN, RST)) is PASS


def test_a_closing_flow_that_may_not_be_begun_anew_is_over(rig: Rig) -> None:
    assert rig.from_pod(out(POD, BLOCKED_IN, SYN)) is PASS
    assert rig.to_pod(back(POD, BLOCKED_IN, SYN_ACK)) is PASS
    rig.close_blocks()
    assert rig.from_pod(out(POD, BLOCKED_IN, SYN)) is DROP
    assert rig.from_pod(out(POD, BLOCKED_IN, ACK)) is PASS
    assert rig.to_pod(back(POD, BLOCKED_IN, FIN | ACK)) is PASS
    assert rig.from_pod(out(POD, BLOCKED_IN, ACK)) is PASS
    assert rig.from_pod(out(POD, BLOCKED_IN, SYN)) is DROP
    assert rig.from_pod(out(POD, BLOCKED_IN, ACK)) is DROP


def test_forged_segments_end_no_open_flow(rig: Rig) -> None:
    assert rig.from_pod(out(POD, BLOCKED_IN, SYN)) is PASS
    assert rig.to_pod(back(POD, BLOCKED_IN, SYN_ACK)) is PASS
    assert rig.from_pod(out(POD, BLOCKED_IN, ACK)) is PASS
    rig.close_blocks()
    for flags in (SYN, RST, SYN, RST | ACK):
        assert rig.to_pod(back(POD, BLOCKED_IN, flags)) is PASS
    assert rig.from_pod(out(POD, BLOCKED_IN, ACK)) is PASS


@pytest.mark.parametrize("flags", [0, SYN | FIN, SYN | RST, FIN, FIN | RST | ACK, SYN_ACK | FIN])
def test_flags_that_make_no_sense_begin_no_flow_and_belong_to_none(rig: Rig, flags: int) -> None:
    rig.to_pod(back(POD, OTHER, flags))
    assert rig.from_pod(out(POD, OTHER, SYN_ACK)) is DROP
    assert rig.from_pod(out(POD, BLOCKED_IN, SYN)) is PASS
    assert rig.to_pod(back(POD, BLOCKED_IN, SYN_ACK)) is PASS
    rig.close_blocks()
    assert rig.from_pod(out(POD, BLOCKED_IN, flags)) is DROP
    assert rig.from_pod(out(POD, BLOCKED_IN, ACK)) is PASS


@pytest.mark.parametrize(("flags", "opened"), [(ACK, True), (SYN_ACK, False), (FIN | ACK, False), (RST | ACK, False)])
def test_of_tcp_underway_only_an_ack_of_the_pod_is_taken_up(rig: Rig, flags: int, opened: bool) -> None:
    assert rig.from_pod(out(POD, BLOCKED_IN, flags)) is PASS
    assert rig.flows() == opened


def sctp(source: int, target: int, chunk: int) -> bytes:
    return source.to_bytes(2, "big") + target.to_bytes(2, "big") + bytes(8) + bytes([chunk, 0, 0, 20]) + bytes(16)


@pytest.mark.parametrize(("own", "peer"), [(POD, OTHER), (POD6, OTHER6)])
def test_an_sctp_association_begins_with_an_init(rig: Rig, own: Address, peer: Address) -> None:
    says = ip(own, peer, 132, sctp(4000, 443, DATA))
    for chunk in (DATA, COOKIE):
        assert rig.to_pod(ip(peer, own, 132, sctp(443, 4000, chunk))) is PASS
        assert rig.from_pod(says) is DROP
    assert rig.to_pod(ip(peer, own, 132, sctp(443, 4000, INIT))) is PASS
    assert rig.from_pod(says) is PASS


def test_what_a_pod_sends_of_an_sctp_association_without_an_init_is_decided_each_time(rig: Rig) -> None:
    says, hears = ip(POD, BLOCKED_IN, 132, sctp(4000, 443, DATA)), ip(BLOCKED_IN, POD, 132, sctp(443, 4000, DATA))
    assert (rig.from_pod(says), rig.to_pod(hears), rig.from_pod(says)) == (PASS, PASS, PASS)
    rig.close_blocks()
    assert rig.from_pod(says) is DROP


@pytest.mark.parametrize(
    ("own", "peer", "protocol", "ask", "answer"), [(POD, OTHER, 1, 8, 0), (POD6, OTHER6, 58, 128, 129)]
)
def test_an_echo_reply_that_nobody_asked_for_opens_nothing(
    rig: Rig, own: Address, peer: Address, protocol: int, ask: int, answer: int
) -> None:
    asks, answers = (bytes([kind, 0, 0, 0, 0, 5, 0, 1]) for kind in (ask, answer))
    assert rig.to_pod(ip(peer, own, protocol, answers)) is PASS
    assert rig.from_pod(ip(own, peer, protocol, asks)) is DROP
    assert rig.to_pod(ip(peer, own, protocol, asks)) is PASS
    assert rig.from_pod(ip(own, peer, protocol, asks)) is DROP
    assert rig.from_pod(ip(own, peer, protocol, answers)) is PASS


def test_what_the_peer_goes_on_with_passes_and_opens_nothing(rig: Rig) -> None:
    assert rig.to_pod(ip(PEER, POD, 6, tcp(443, 40000, ACK))) is PASS
    rig.end_lease(SOURCE, PEER)
    assert rig.from_pod(ip(POD, PEER, 6, tcp(40000, 443, ACK))) is DROP


# ---- what cannot be read, towards the pod


def test_what_cannot_be_read_does_not_reach_a_governed_pod(rig: Rig) -> None:
    whole = ip(OTHER, POD, 17, udp(5000, 6000, bytes(8)))
    assert rig.to_pod(whole) is PASS
    assert rig.to_pod(ip(OTHER, POD, 6, tcp(5000, 80, SYN)[:16])) is DROP
    assert rig.to_pod(ip(OTHER, PEER, 6, tcp(5000, 80, SYN)[:16])) is PASS
    assert rig.counted(What.DROP_MALFORMED) == 1


def test_a_cut_is_not_passed_by_in_tiny_fragments(rig: Rig) -> None:
    segment = tcp(443, 40000, SYN_ACK, bytes(8))
    assert rig.from_pod(out(POD, PEER, SYN)) is PASS
    rig.cut(SOURCE, 6, 40000, 443, PEER)
    first = bytearray(ip(PEER, POD, 6, segment)[:28])
    first[2:4], first[6:8] = (28).to_bytes(2, "big"), (0x2000).to_bytes(2, "big")
    assert rig.to_pod(bytes(first)) is DROP
