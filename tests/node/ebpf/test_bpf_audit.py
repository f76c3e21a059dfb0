"""Audit in the eBPF line: what the policy does not let goes on without a word, what is forged or unreadable not."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from dnsguard.enforce.bpf.layout import What
from dnsguard.enforce.bpf.ring import Ring
from tests.node.ebpf.live import at_work
from tests.node.ebpf.rig import OTHER, OTHER6, PEER, POD, POD6, SOURCE, Rig, Verdict, address
from tests.node.ebpf.test_decision import FE80, SYN_443, ip4
from tests.node.nftables_lab import ACK, SYN, ip, tcp, udp

PASS, DROP = Verdict.PASS, Verdict.DROP
LATER = ip4(bytes(64), fragment=10)
QUERY = ip(POD, OTHER, 17, udp(40000, 53, b"question"))


@pytest.fixture
def silent(rig: Rig) -> Iterator[Rig]:
    """A rig in Audit, of whose packets nothing was counted or reported in the end, but for queries that went up."""
    rig.audit()
    ring = Ring(rig.maps["reports"].fd)
    yield rig
    assert [what for what in What if what is not What.ASKED and rig.counted(what)] == []
    assert list(ring.read(10)) == []
    ring.close()


@pytest.mark.parametrize(
    "packet",
    [
        ip(POD, OTHER, 6, SYN_443),
        ip(POD6, OTHER6, 17, udp(1, 443)),
        ip(POD, PEER, 6, tcp(1, 80, SYN)),
        ip(POD, OTHER, 1, b"\x08" + bytes(7)),
        LATER,
    ],
    ids=["a SYN", "a datagram", "another port", "an echo request", "a fragment whose first was not let"],
)
def test_what_no_rule_accepts_goes_on(silent: Rig, packet: bytes) -> None:
    assert silent.from_pod(packet) is PASS


def test_a_pair_whose_program_is_not_there_goes_on(silent: Rig) -> None:
    silent.pair(POD, SOURCE, program=1)
    assert silent.from_pod(ip(POD, OTHER, 6, SYN_443)) is PASS


def test_a_query_goes_up_that_nobody_vouches_for_or_that_is_beyond_the_rate(silent: Rig) -> None:
    silent.vouch(0)
    silent.query_rate(per_second=1, burst=1)
    assert [silent.from_pod(QUERY) for _ in range(5)] == [PASS] * 5


def test_towards_a_pod_tcp_need_not_begin_with_a_syn_and_opens_no_flow(silent: Rig) -> None:
    assert silent.to_pod(ip(OTHER, POD, 6, tcp(50000, 80, ACK))) is PASS
    assert silent.flows() == 0


def test_a_flow_is_remembered_when_audit_ends_like_one_of_connection_tracking(rig: Rig) -> None:
    rig.audit()
    out, back = ip(POD, OTHER, 6, tcp(40000, 80, ACK)), ip(OTHER, POD, 6, tcp(80, 40000, ACK))
    assert rig.from_pod(ip(POD, OTHER, 6, tcp(40000, 80, SYN))) is PASS
    assert rig.to_pod(ip(OTHER, POD, 6, tcp(80, 40000, SYN | ACK))) is PASS
    rig.audit(False)
    assert (rig.from_pod(out), rig.to_pod(back)) == (PASS, PASS)
    assert rig.from_pod(ip(POD, OTHER, 6, tcp(40001, 80, SYN))) is DROP
    rig.cut(SOURCE, 6, 40000, 80, OTHER)
    assert (rig.from_pod(out), rig.to_pod(back)) == (DROP, DROP)


def test_a_flow_that_was_cut_passes_and_is_cut_again_when_audit_ends(rig: Rig) -> None:
    out, back = ip(POD, PEER, 6, SYN_443), ip(PEER, POD, 6, tcp(443, 40000, SYN | ACK))
    rig.cut(SOURCE, 6, 40000, 443, PEER)
    rig.audit()
    assert (rig.from_pod(out), rig.to_pod(back)) == (PASS, PASS)
    rig.audit(False)
    assert (rig.from_pod(out), rig.to_pod(back)) == (DROP, DROP)


@pytest.mark.parametrize(
    ("packet", "why"),
    [
        (ip(FE80, OTHER6, 17, udp(40000, 53, b"question")), What.DROP_SOURCE),
        (ip4(SYN_443[:16]), What.DROP_MALFORMED),
    ],
    ids=["a query of a link-local source", "cut short"],
)
def test_what_is_forged_or_cannot_be_read_is_dropped_and_counted(rig: Rig, packet: bytes, why: What) -> None:
    rig.audit()
    assert rig.from_pod(packet) is DROP
    assert rig.counted(why) == 1


def test_a_tagged_frame_is_dropped(rig: Rig) -> None:
    rig.audit()
    assert rig.from_pod(struct.pack(">HH", 5, 0x0800) + ip(POD, PEER, 6, SYN_443), kind=0x8100) is DROP


async def test_a_source_that_is_no_pairs_goes_on_where_it_is_routed_to_its_link_and_is_plain() -> None:
    async with at_work(beside_nftables=False) as subject:
        lab = subject.lab
        await subject.enforcer.audit(True)
        passed = {
            source: lab.through(ip(address(source), peer, 17, udp(40000, 443, lab.nonce())))
            for source, peer in (
                ("10.244.0.5", OTHER),
                ("fd00:10:244::5", OTHER6),
                ("10.244.0.6", OTHER),  # routed to another link
                ("fd00:10:244::6", OTHER6),
                ("10.9.9.9", OTHER),  # to the world
                ("2001:db8:bad::9", OTHER6),
                ("198.51.100.1", OTHER),  # the node's own
            )
        }
        assert [source for source, did in passed.items() if did] == ["10.244.0.5", "fd00:10:244::5"]
        options = ip4(udp(40000, 443, lab.nonce()), options=b"\1\1\1\1", protocol=17)
        assert not lab.through(options)
