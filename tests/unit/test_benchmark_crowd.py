"""The crowd's frames are questions that a node would take for its pods'."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

import yaml
from benchmarks.crowd import address, question
from benchmarks.names import Kind, name
from benchmarks.scale import RULES, Size, allowlist
from dnslib import DNSRecord

from dnsguard.sources.allowlist import diagnose


def test_a_frame_holds_the_question_of_its_pod() -> None:
    frame = question(258, 70)

    assert IPv4Address(frame[26:30]) == IPv4Address(address(258)) == IPv4Address("10.100.1.2")
    assert struct.unpack("!4H", frame[34:42]) == (30_000, 53, len(frame) - 34, 0)
    asked = DNSRecord.parse(frame[42:])
    assert (asked.header.id, str(asked.q.qname)) == (70, f"{name(70, Kind.ONE_A)}.")


def test_the_sum_of_its_header_is_right() -> None:
    words = struct.unpack("!10H", question(1000, 999)[14:34])
    total = sum(words)
    assert (total & 0xFFFF) + (total >> 16) == 0xFFFF


def test_every_pod_has_rules_that_no_other_has() -> None:
    text = "".join(allowlist(Size(pods=300, names=1), changed=range(1)))

    assert diagnose(text.encode(), "allowlist.yaml") == []
    policies = yaml.safe_load(text)["policies"].values()
    assert {len(policy["egress"]) for policy in policies} == {RULES}
    assert len({str(policy) for policy in policies}) == 300
