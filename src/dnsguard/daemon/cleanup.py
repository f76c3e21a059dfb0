"""Every trace out of the kernel, when no daemon runs: the table, the eBPF programs and maps, the rules and
the routes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dnsguard.config.settings import Settings
from dnsguard.daemon import assembly, owed
from dnsguard.daemon.lock import only_one
from dnsguard.enforce.bpf.attach import remove_all
from dnsguard.enforce.nftables import remove_table
from dnsguard.enforce.nftables.session import TABLE
from dnsguard.node.routing import Interception, Part
from dnsguard.node.rtnetlink import Route
from dnsguard.node.watch import Watch


@dataclass(frozen=True, slots=True)
class Removed:
    """What was there. `str()` is a line for an operator."""

    table: bool = False
    programs: int = 0
    """Places of eBPF programs on links."""
    maps: int = 0
    rules: int = 0
    routes: int = 0

    def __str__(self) -> str:
        if parts := ", ".join(self._parts()):
            return f"removed: {parts}; pods are unfiltered now"
        return "nothing of dnsguard is in the kernel"

    def _parts(self) -> Iterator[str]:
        if self.table:
            yield f"table inet {TABLE}"
        for word, count in zip(("program", "map", "rule", "route"), self._counts(), strict=True):
            if count:
                yield f"{count} {word}{'s' if count > 1 else ''}"

    def _counts(self) -> tuple[int, int, int, int]:
        return self.programs, self.maps, self.rules, self.routes


def cleanup(settings: Settings) -> Removed:
    """Remove every trace from the kernel. Raises CallError while a daemon runs."""
    with only_one(settings.paths.runtime):
        table = remove_table()
        programs, maps = remove_all(settings.paths.bpffs)
        parts = asyncio.run(_remove_routes(settings))
        (settings.paths.runtime / owed.FILE).unlink(missing_ok=True)  # to flows that were governed till now
    routes = sum(isinstance(part, Route) for part in parts)
    return Removed(table, programs, maps, len(parts) - routes, routes)


async def _remove_routes(settings: Settings) -> Sequence[Part]:
    interception = Interception(assembly.interception_route(settings), lambda what: None, lambda text: None)
    watch = Watch([interception], lambda text: None)
    try:
        await watch.start()
        return await interception.remove()
    finally:
        watch.stop()
