"""Whether the daemon is ready, and what it waits for when it is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dnsguard.control.calls import Gap
from dnsguard.daemon.beside import LINE


class Readiness:
    """`insist`: not ready either while the eBPF line is not the first on a link."""

    def __init__(self, *, insist: bool) -> None:
        self._insist = insist
        self.phase = "starting"
        """What the whole daemon is at; empty while it intercepts and enforces."""
        self.failures: Callable[[], Mapping[str, str]] = dict
        """Why the eBPF line is not the first on a link, by its name."""

    def gaps(self) -> list[Gap]:
        """The links on which an enforcer does not decide, and why."""
        return [{"enforcer": LINE, "link": name, "reason": why} for name, why in sorted(self.failures().items())]

    def missing(self) -> str:
        """What readiness waits for; empty when it is there."""
        gaps = self.gaps() if self._insist else []
        return self.phase or (f"eBPF is not the first on {' '.join(gap['link'] for gap in gaps)}" if gaps else "")
