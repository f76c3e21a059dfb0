"""The crowd's frames are questions that a node would take for its pods'."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

import yaml
from benchmarks.flows import CLOSED, PORT, Flows
from benchmarks.frames import ACK, DENIED, RST, SYN, address, question, segment
from benchmarks.names import Kind, name
from benchmarks.scale import RULES, Size, allowlist
from dnslib import DNSRecord

from dnsguard.sources.allowlist import diagnose


def test_a_frame_holds_the_question_of_its_pod() -> None:
    frame = question(258, 70, 7)

    assert IPv4Address(frame[26:30]) == IPv4Address(address(258)) == IPv4Address("10.100.1.2")
    assert struct.unpack("!4H", frame[34:42]) == (30_000, 53, len(frame) - 34, 0)
    asked = DNSRecord.parse(frame[42:])
    assert (asked.header.id, str(asked.q.qname)) == (7, f"{name(70, Kind.ONE_A)}.")


def test_the_sum_of_its_header_is_right() -> None:
    words = struct.unpack("!10H", question(1000, 999, 1)[14:34])
    total = sum(words)
    assert (total & 0xFFFF) + (total >> 16) == 0xFFFF


def test_from_a_certain_number_on_names_are_such_that_are_denied() -> None:
    asked = DNSRecord.parse(question(1, DENIED + 70, 7)[42:])

    assert str(asked.q.qname) == f"{name(70, Kind.DENIED)}."


def test_the_sum_of_a_segment_is_right() -> None:
    frame = segment(300, 40_000, (bytes((10, 128, 1, 2)), 443), SYN, (0, 0))
    pseudo = frame[26:34] + struct.pack("!2H", 6, 20)
    total = sum(struct.unpack("!16H", pseudo + frame[34:]))
    assert (total & 0xFFFF) + (total >> 16) == 0xFFFF


def answering(frame: bytes, flags: int = SYN | ACK) -> bytes:
    """What comes back to the pod whose SYN this is, its sequence number 6."""
    ports = frame[36:38] + frame[34:36]
    return frame[:26] + frame[30:34] + frame[26:30] + ports + struct.pack("!2IBB", 6, 1, 5 << 4, flags) + bytes(6)


def test_a_flow_stands_once_it_is_answered_and_ends_with_a_reset() -> None:
    sent: list[tuple[int, bytes]] = []
    flows = Flows(lambda pod, frame: sent.append((pod, frame)))
    peer = bytes((10, 128, 1, 2))

    flows.begin(3, peer, now=1.0)
    flows.take(answering(sent[0][1]))
    flows.take(answering(sent[0][1]))
    flows.end(before=1.0)
    assert len(sent) == 2
    flows.end(before=1.1)

    assert [(pod, frame[47], frame[30:34]) for pod, frame in sent] == [
        (3, SYN, peer), (3, ACK, peer), (3, RST | ACK, peer)
    ]  # fmt: skip
    assert struct.unpack("!2H2I", sent[1][1][34:46])[1:] == (PORT, 1, 7)
    assert (flows.begun, flows.stood) == (1, 1)


def test_a_flow_that_is_refused_does_not_stand() -> None:
    sent: list[bytes] = []
    flows = Flows(lambda pod, frame: sent.append(frame))

    flows.begin(3, bytes((10, 128, 1, 2)), now=1.0)
    flows.take(answering(sent[0], RST | ACK))
    flows.end(before=2.0)

    assert (len(sent), flows.begun, flows.stood) == (1, 1, 0)


def test_an_answer_that_comes_after_the_end_is_reset() -> None:
    sent: list[bytes] = []
    flows = Flows(lambda pod, frame: sent.append(frame))

    flows.begin(3, bytes((10, 128, 1, 2)), now=1.0)
    assert flows.unanswered
    flows.end(before=2.0)
    flows.take(answering(sent[0]))

    assert (sent[1][47], sent[1][30:34]) == (RST, bytes((10, 128, 1, 2)))
    assert struct.unpack("!I", sent[1][38:42]) == (1,)
    assert not flows.unanswered


def test_every_packet_to_what_is_closed_goes_to_another_address() -> None:
    sent: list[bytes] = []
    flows = Flows(lambda pod, frame: sent.append(frame))

    flows.knock(3)
    flows.knock(3)

    assert [int.from_bytes(frame[30:34]) for frame in sent] == [CLOSED, CLOSED + 1]
    assert flows.closed == 2


def test_every_pod_has_rules_that_no_other_has() -> None:
    text = "".join(allowlist(Size(pods=300, names=1), changed=range(1)))

    assert diagnose(text.encode(), "allowlist.yaml") == []
    policies = yaml.safe_load(text)["policies"].values()
    assert {len(policy["egress"]) for policy in policies} == {RULES}
    assert len({str(policy) for policy in policies}) == 300
