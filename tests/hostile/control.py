"""The control socket: whatever a client sends, the daemon's handlers see only what the table of calls allows."""

from __future__ import annotations

import asyncio
import atexit
import json
import logging
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from functools import cache
from pathlib import Path
from typing import Any

from dnsguard.control.api import ControlServer
from dnsguard.control.calls import CALLS, VERSION_HEADER
from tests.hostile.connections import End, turns

ANSWERS: dict[str, Any] = {name: [{"row": 1}] if call.rows else {"called": name} for name, call in CALLS.items()}
STATUSES = {100, 200, 400, 404, 405, 408, 409, 413, 417, 431, 500, 501, 505}


class Daemon:
    """A control server with calls that check what they are given. Lives until the process ends."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.runtime = Path(tempfile.mkdtemp(prefix="dnsguard-hostile-"))
        self.defects: list[Exception] = []
        self.server = ControlServer(
            self.runtime, {name: call_of(name) for name in CALLS}, lambda _, error: self.defects.append(error)
        )
        self.loop.run_until_complete(self.server.start())
        atexit.register(self.close)

    def close(self) -> None:
        self.loop.run_until_complete(self.server.stop())
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.run_until_complete(turns())
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()
        shutil.rmtree(self.runtime, ignore_errors=True)

    def told(self, request: bytes) -> bytes:
        """All that the daemon sends to a client that sends this, nothing more, and goes."""
        return self.loop.run_until_complete(self._told(request))

    async def _told(self, request: bytes) -> bytes:
        runner = self.server._runner
        assert runner is not None and runner.server is not None
        connection, client = runner.server(), End()
        connection.connection_made(client)
        connection.data_received(request)
        await turns()
        connection.connection_lost(None)
        await turns()
        return bytes(client.told)


def call_of(name: str) -> Callable[..., Awaitable[Any]]:
    async def handler(**given: str) -> Any:
        call = CALLS[name]
        assert call.required <= given.keys() <= call.required | call.optional
        assert all(isinstance(value, str) for value in given.values())
        return ANSWERS[name]

    return handler


@cache
def daemon() -> Daemon:
    return Daemon()


def control(data: bytes) -> None:
    """One connection's octets: HTTP answers or none, no defect, and the next client is served as ever."""
    living = daemon()
    living.defects.clear()
    logging.disable(logging.CRITICAL)  # aiohttp writes of each bad request; log.py gives that a limit
    try:
        check(living, data)
    finally:
        logging.disable(logging.NOTSET)


def check(living: Daemon, data: bytes) -> None:
    told = living.told(data)
    assert not living.defects, living.defects
    if told:
        version, status = told.split(b" ", 2)[:2]
        assert version.startswith(b"HTTP/")
        assert int(status) in STATUSES
    after = living.told(b"GET /v1/status HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n")
    head, _, body = after.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ") and VERSION_HEADER.encode() in head
    assert json.loads(body) == ANSWERS["status"]
