"""UDP and TCP as the one upstream that the engine asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

from dnsguard.engine.contracts import Attempt
from dnsguard.upstream.endpoint import Endpoint
from dnsguard.upstream.matching import Reports
from dnsguard.upstream.tcp import TcpUpstream
from dnsguard.upstream.udp import UdpUpstream


class Carrier(Protocol):
    """What holds an attempt that is under way: `attempt.handle` is a carrier and the two octets of the ID."""

    def abandon(self, identifier: bytes, *, timed_out: bool) -> None: ...


def abandon(attempt: Attempt, *, timed_out: bool) -> None:
    """Let its carrier forget it; one that has ended is ignored."""
    if attempt.handle is not None:
        carrier, identifier = cast(tuple[Carrier, bytes], attempt.handle)
        carrier.abandon(identifier, timed_out=timed_out)


class Transport:
    """A `contracts.Upstream` over real sockets. Build it in the running event loop.

    Raises OSError when a server's address is not an IP address. What was thrown away is counted in `reports.discarded`.
    """

    def __init__(self, servers: Sequence[Endpoint], reports: Reports) -> None:
        self.udp = UdpUpstream(servers, reports)
        self.tcp = TcpUpstream(servers, reports)

    def ask(self, attempt: Attempt) -> None:
        """Send it over what `attempt.stream` says. May call `failed` before it returns."""
        (self.tcp if attempt.stream else self.udp).ask(attempt)

    def abandon(self, attempt: Attempt, *, timed_out: bool) -> None:
        """Forget it; one that has ended already is ignored. After a time-out its socket is not used again."""
        abandon(attempt, timed_out=timed_out)

    def close(self) -> None:
        """Close every socket. Attempts still outstanding are forgotten, not failed."""
        self.udp.close()
        self.tcp.close()
