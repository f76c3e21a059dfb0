"""Whether the daemon is ready, what it waits for when it is not, and which lines do not decide where they should."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

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
        self.absent: Mapping[str, str] = {}
        """Why a line that the configuration asks for decides nowhere, by its name."""
        self.links: Callable[[], Iterable[str]] = tuple
        """The names of the pods' links."""

    def gaps(self) -> list[Gap]:
        """The links on which an enforcer does not decide, and why."""
        links = sorted(self.links()) if self.absent else []
        nowhere = [(line, link, why) for line, why in self.absent.items() for link in links]
        somewhere = [(LINE, link, why) for link, why in sorted(self.failures().items())]
        return [{"enforcer": line, "link": link, "reason": why} for line, link, why in (*nowhere, *somewhere)]

    def missing(self) -> str:
        """What readiness waits for; empty when it is there."""
        gaps = self.gaps() if self._insist else []
        return self.phase or (f"eBPF is not the first on {' '.join(gap['link'] for gap in gaps)}" if gaps else "")
