"""A real CoreDNS in the lab, and our own transport asking it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop
from dnslib import DNSRecord

from dnsguard.demo.lab import Lab, inside
from dnsguard.upstream.transport import Transport
from tests.coredns import CoreDns, coredns_binary, running_coredns
from tests.upstreams import Inbox, Server, ask, until

pytestmark = pytest.mark.node

MANY = tuple(f"many 5 IN A 192.0.2.{n}" for n in range(100))
ZONES = {"example.test": ("www 5 IN A 192.0.2.1", "alias 5 IN CNAME www", *MANY)}


@pytest.fixture
def coredns(lab: Lab) -> Iterator[CoreDns]:
    with running_coredns(lab, ZONES) as server:
        yield server


def test_a_zone_may_change_while_it_is_served(coredns: CoreDns) -> None:
    before = coredns.ask("www.example.test")

    coredns.write("example.test", "www 5 IN A 192.0.2.2")
    coredns.serving("www.example.test", "192.0.2.2")

    assert before == ["192.0.2.1"]


def test_our_transport_is_answered_over_udp_and_tcp(lab: Lab, coredns: CoreDns) -> None:
    inbox = Inbox()
    attempts = [
        ask("alias.example.test"),
        ask("many.example.test"),
        ask("many.example.test", stream=True),
        ask("none.test"),
    ]

    async def run() -> None:
        transport = Transport([Server(coredns.address, 53)], inbox.reports)
        for attempt in attempts:
            transport.ask(attempt)
        await until(lambda: inbox.ended == len(attempts))
        transport.close()

    # The thread of the event loop stands in the node's namespace, so its sockets belong there.
    inside(lab.node, lambda: uvloop.run(run()))

    replies = [DNSRecord.parse(inbox.answered[attempt]) for attempt in attempts]
    assert [len(reply.rr) for reply in replies[:1] + replies[2:]] == [2, 100, 0]
    assert [reply.header.tc for reply in replies] == [0, 1, 0, 0]


def test_one_that_cannot_start_is_an_error_with_its_last_words(lab: Lab) -> None:
    elsewhere = "10.99.0.77"

    with pytest.raises(RuntimeError, match="cannot assign"), running_coredns(lab, ZONES, address=elsewhere):
        pass


def test_a_coredns_on_the_path_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy("/bin/true", tmp_path / "coredns")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    assert coredns_binary() == tmp_path / "coredns"
