"""Every trace out of the kernel, when no daemon runs: the table, the eBPF programs and maps, the rules and
the routes."""

from __future__ import annotations

import asyncio

from dnsguard.config.settings import Settings
from dnsguard.daemon import assembly, owed
from dnsguard.daemon.lock import only_one
from dnsguard.enforce.bpf.attach import remove_all
from dnsguard.enforce.nftables import remove_table
from dnsguard.node.routing import Interception
from dnsguard.node.watch import Watch


def cleanup(settings: Settings) -> int:
    """Remove every trace from the kernel; returns the exit code. Raises CallError while a daemon runs."""
    with only_one(settings.paths.runtime):
        remove_table()
        remove_all(settings.paths.bpffs)
        asyncio.run(_remove_routes(settings))
        (settings.paths.runtime / owed.FILE).unlink(missing_ok=True)  # to flows that were governed till now
    return 0


async def _remove_routes(settings: Settings) -> None:
    interception = Interception(assembly.interception_route(settings), lambda what: None, lambda text: None)
    watch = Watch([interception], lambda text: None)
    try:
        await watch.start()
        await interception.remove()
    finally:
        watch.stop()
