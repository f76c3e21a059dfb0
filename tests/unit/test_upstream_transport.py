"""UDP and TCP together, against a small real server, in the event loop that the daemon uses."""

from __future__ import annotations

from pathlib import Path

import pytest
import uvloop

from dnsguard.demo.server import Zone, open_sockets, served
from dnsguard.upstream.transport import Transport
from tests.upstreams import Inbox, Server, ask, until


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def zone() -> Zone:
    zone = Zone()
    zone.put("*.test", "A", "192.0.2.1")
    return zone


def test_a_thousand_questions_over_both_ways_are_answered_and_nothing_is_left(zone: Zone) -> None:
    inbox = Inbox()
    sockets = open_sockets(["127.0.0.1", "::1"], 0)
    servers = [Server("127.0.0.1", port := sockets[0].getsockname()[1]), Server("::1", port)]

    async def run() -> None:
        zone_is_served = ask("first.test", stream=True)
        transport = Transport(servers, inbox.reports)
        transport.ask(zone_is_served)
        await until(lambda: inbox.ended == 1)
        before = descriptors()
        for n in range(1000):
            transport.ask(ask(f"n{n}.test", server=n % 2, stream=n % 5 == 0))
            if n % 100 == 99:
                await until(lambda n=n: inbox.ended == n + 2)  # type: ignore[misc]
        transport.close()
        await until(lambda: descriptors() <= before)

    with served(zone, sockets):
        uvloop.run(run())

    assert len(inbox.answered) == 1001


async def test_an_attempt_that_has_ended_may_be_abandoned() -> None:
    inbox = Inbox()
    transport = Transport([Server("255.255.255.255", 53)], inbox.reports)
    attempt = ask("a.test")
    transport.ask(attempt)

    transport.abandon(attempt, timed_out=True)

    assert inbox.ended == 1


async def test_a_server_without_an_ip_address_is_an_error() -> None:
    with pytest.raises(OSError, match=r"not known|not supported"):
        Transport([Server("resolver.test", 53)], Inbox().reports)
