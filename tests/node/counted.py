"""dnsguard that says what its books hold: `python -m tests.node.counted run --config PATH`, and then SIGUSR2.

The answer is a JSON object in the file `books`, beside the configuration.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys

from dnsguard import service
from dnsguard.cli import main

FILE = "books"


def books(of: service.Service) -> dict[str, int]:
    """How many of each there are in memory."""
    engine = of._engine
    feed, exchanges, leases = engine.feed, engine.exchanges, engine.leases
    tables = leases.pods.values()
    assert of._line is not None
    return {
        "tasks": len(asyncio.all_tasks()),
        "pods": len(engine.pods),
        "pods with leases": len(tables),
        "leases": len(leases),
        "elements": leases.elements,
        "leases to look at": sum(map(len, leases._turns.values())),
        "ended leases": leases.ended,
        "names of leases": sum(len(table.per_name) for table in tables),
        "scopes of leases": sum(len(table.by_scope) for table in tables),
        "exchanges": len(exchanges),
        "fetches": len(engine.fetches),
        "batches": len(exchanges.gate._batches),
        "strangers": len(exchanges._strangers),
        "pods not enforced": len(exchanges.opening.unenforced),
        "cut flows": sum(len(cuts) for cuts in engine.revocation.cuts.values()),
        "denied names": len(feed._denied),
        "sources of kernel answers": len(feed._sources),
        "kernel answers": len(of._line.answers),
        "drops by pod": len(of._drops.by_pod),
        "kernel answers by pod": len(of._answers.by_pod),
        "log shares": len(of._events._limiter._buckets),
        "pods with past denials": len(of._events.recent._pods),
        "past denials": sum(map(len, of._events.recent._pods.values())),
        "cached answers": len(engine.cache),
        "seen names": sum(one.names_kept for one in of._book.pods.values()),
        "seen flows": sum(one.flows_kept for one in of._book.pods.values()),
        "links": len(of._line._attachments._links),
    }


class Counted(service.Service):
    async def run(self) -> int:
        def tell() -> None:
            path = self._config.parent / FILE
            path.with_suffix(".new").write_text(json.dumps(books(self)))
            path.with_suffix(".new").replace(path)

        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, tell)
        return await super().run()


if __name__ == "__main__":
    service.Service = Counted  # type: ignore[misc]
    sys.exit(main())
