"""What nftables is asked about open flows and about what a hostile pod tries, asked of eBPF alone and of both.

The questions are those of tests/node/nftables. Not asked are those about nftables' own sets, and one that eBPF answers
otherwise: it puts no fragments together. A first fragment has to hold the header, and to come first.
"""

# ruff: noqa: F401  (tests that are collected here once more, with the fixture below)

from __future__ import annotations

import struct
from collections.abc import AsyncIterator

import pytest

from tests.contract.ebpf import BpfSubject
from tests.node.ebpf.live import at_work
from tests.node.nftables.test_nftables_evasion import (
    arriving,
    segment,
    test_a_forged_reset_does_not_end_the_flow_of_another_pod,
    test_a_later_fragment_that_looks_like_a_beginning_passes_alone_no_more_than_in_order,
    test_a_pod_cannot_answer_its_own_flow_by_forging_its_peer,
    test_a_source_route_does_not_carry_a_packet_past_the_address_that_was_decided,
    test_an_icmp_error_about_a_flow_that_nobody_answered_passes_no_longer_than_its_lease,
    test_an_icmp_error_about_a_flow_that_was_answered_passes,
    test_an_sctp_association_is_decided_anew_on_the_ports_of_an_open_one,
    test_of_fragments_that_overlap_what_arrives_has_the_port_that_was_decided,
    test_ports_behind_extension_headers_are_found,
    web,
)
from tests.node.nftables.test_nftables_flows import (
    test_a_cut_drops_both_directions_whatever_is_leased_until_it_is_undone,
    test_a_cut_leaves_another_flow_of_the_same_two_alone,
    test_a_forged_source_does_not_ride_on_another_pods_flow,
    test_a_new_program_that_allows_nothing_leaves_open_flows_alone,
    test_a_pod_answers_a_flow_that_its_peer_began,
    test_a_udp_flow_is_open_once_a_reply_was_seen,
    test_an_echo_reply_passes,
    test_an_excluded_pod_takes_up_flows_without_a_syn,
    test_an_icmp_error_passes_about_an_open_flow_and_to_its_peer_only,
    test_an_icmp_message_that_is_no_error_needs_a_rule_of_its_own,
    test_an_inbound_tcp_flow_begins_with_a_syn,
    test_an_open_tcp_flow_outlives_its_lease_and_a_new_one_on_its_ports_does_not_begin,
)
from tests.node.nftables_lab import PEER, PEER6, POD, POD6, TCP, checksum


@pytest.fixture(params=["ebpf", "both"])
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[BpfSubject]:
    async with at_work(beside_nftables=request.param == "both") as subject:
        yield subject


def in_two(data: bytes, length: int, number: int) -> list[bytes]:
    """A TCP segment of the pod behind an IP header of that length, its own header whole in the first fragment."""
    found = []
    for piece, offset, more in ((data[:24], 0, True), (data[24:], 24, False)):
        if length == 20:
            head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(piece), number, more * 0x2000 | offset // 8, 64, TCP, 0)
            head += POD + PEER
            found.append(head[:10] + struct.pack(">H", checksum(head)) + head[12:] + piece)
        else:
            fragment = struct.pack(">BBHI", TCP, 0, offset | more, number) + piece
            found.append(struct.pack(">IHBB", 6 << 28, len(fragment), 44, 64) + POD6 + PEER6 + fragment)
    return found


@pytest.mark.parametrize("length", [20, 40])
async def test_fragments_pass_behind_a_first_one_that_was_let_and_not_before(subject: BpfSubject, length: int) -> None:
    await web(subject)  # type: ignore[arg-type]
    for number, (port, passes) in enumerate(((443, True), (444, False))):
        data = segment(length, port, subject.lab)
        assert bool(arriving(subject.lab, in_two(data, length, number), data)) == passes
        assert not arriving(subject.lab, in_two(data, length, 10 + number)[::-1], data)
