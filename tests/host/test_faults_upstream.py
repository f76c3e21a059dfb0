"""Upstreams that are silent, refuse, fail or answer garbage: closed meanwhile, told of once, soon whole afterwards."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dnslib import RCODE

from tests.host.host import Host, hosting
from tests.host.troubles import PATIENCE, WHOLE, answered, events, fresh_name, is_whole
from tests.host.watch import closed
from tests.node.scene import DB

pytestmark = pytest.mark.node

HEADER = 12
FRESH = "198.18.0.9"


@pytest.fixture(scope="module")
def node(image: Path) -> Iterator[Host]:
    with hosting([image]) as host:
        host.scene.zone.put("*.fresh.example.com", "A", FRESH)
        yield host


@contextlib.contextmanager
def packets(host: Host, verdict: str) -> Iterator[None]:
    """What arrives at the upstream's port meets this verdict of nftables."""
    world = host.lab.world
    host.lab.sysctl(world, ipv4__icmp_ratelimit=0)  # one ICMP error for each packet that is rejected
    rules = f"add table inet fault; add chain inet fault in {{ type filter hook input priority 0; }}; \
        add rule inet fault in meta l4proto {{ tcp, udp }} th dport 53 {verdict}"
    host.lab.run(world, "nft", rules)
    try:
        yield
    finally:
        host.lab.run(world, "nft", "delete table inet fault")


@contextlib.contextmanager
def replies(host: Host, **how: Any) -> Iterator[None]:
    """The upstream replies to everything, the question of a probe included, like that."""
    zone = host.scene.zone
    zone.put(".", "NS", "ns.example.com.", **how)
    zone.put("*.fresh.example.com", "A", FRESH, **how)
    try:
        yield
    finally:
        zone.put(".", "NS", "ns.example.com.")
        zone.put("*.fresh.example.com", "A", FRESH)


def noise(packet: bytes) -> Iterable[bytes]:
    return [os.urandom(len(packet))]


def another_question(packet: bytes) -> Iterable[bytes]:
    return [packet[:HEADER] + bytes([packet[HEADER] ^ 1]) + packet[HEADER + 1 :]]


def broken_records(packet: bytes) -> Iterable[bytes]:
    """The right ID and question, then a part of a record: neither the OPT at the end nor all of the address."""
    return [packet[:-15]]


Fault = Callable[[Host], contextlib.AbstractContextManager[None]]
FAULTS: dict[str, tuple[Fault, str, str]] = {
    "silent": (lambda host: packets(host, "drop"), "upstream_down", "timeout"),
    "port unreachable": (lambda host: packets(host, "reject"), "upstream_down", "refused"),
    "noise": (lambda host: replies(host, spoil=noise), "upstream_down", "timeout"),
    "another question": (lambda host: replies(host, spoil=another_question), "upstream_down", "timeout"),
    "REFUSED": (lambda host: replies(host, rcode=RCODE.REFUSED), "upstream_failing", "REFUSED"),
    "SERVFAIL": (lambda host: replies(host, rcode=RCODE.SERVFAIL), "upstream_failing", "SERVFAIL"),
    "broken records": (lambda host: replies(host, spoil=broken_records), "upstream_failing", "malformed"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_upstream_that_is_no_use_opens_nothing_is_told_of_once_and_is_used_again_when_it_is_back(
    node: Host, fault: str
) -> None:
    broken, kind, reason = FAULTS[fault]
    node.until(lambda: node.daemon.ask("status")["in_flight"] == 0)  # nothing waits that another fault has delayed
    seen = {one: len(events(node, one)) for one in ("upstream_down", "upstream_failing", "upstream_up")}

    with broken(node), closed(node):
        node.until(lambda: bool(answered(node, fresh_name())) or len(events(node, kind)) > seen[kind], PATIENCE)
        assert answered(node, fresh_name()) == []

    node.until(lambda: is_whole(node), WHOLE)
    node.until(lambda: len(events(node, "upstream_up")) > seen["upstream_up"], WHOLE)
    told = {one: len(events(node, one)) - before for one, before in seen.items()}
    assert told == {"upstream_down": 0, "upstream_failing": 0, "upstream_up": 1, kind: 1}
    last = events(node, kind)[-1]
    assert last["DNSGUARD_REASON"].startswith(reason)
    assert last["DNSGUARD_UPSTREAM"] == "10.99.0.2:53"


def test_what_was_open_stays_open_and_a_known_name_is_answered_while_the_upstream_is_silent(node: Host) -> None:
    scene = node.scene
    scene.zone.put("db.example.com", "A", DB, ttl=1)
    assert scene.resolve(scene.a, "db.example.com") == [DB]
    flow = scene.connect(scene.a, DB)
    assert flow is not None

    with flow, packets(node, "drop"), closed(node):
        node.until(lambda: scene.lease_left(DB) == 0.0)
        stale = answered(node, "db.example.com") or answered(node, "db.example.com")

        assert stale == [DB]
        assert scene.opens(scene.a, DB)
        assert flow.alive()
