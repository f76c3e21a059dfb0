"""Metrics and health over HTTP: `/metrics`, `/healthz` (loop and writer go on), `/readyz` (intercepting and enforcing).

Needs an address, a registry and functions that tell whether the daemon is ready and alive. Serves nothing else, and
reads no request bodies. Any user of the node may connect and ask as often as he likes: connections are few, the oldest
makes room for the next, and metrics are written one after another, in a tenth of the loop's time.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from dnsguard.core.errors import DnsguardError

BACKLOG: Final = 16
MOST: Final = 32
"""Connections at a time, or a few more while they come."""
IDLE: Final = 30.0
"""Seconds that a scraper's connection is kept between requests."""
PART: Final = 0.1
"""Of the loop's time, for writing metrics: some 3 ms each time."""
PATIENCE: Final = 1.0
"""Seconds that whoever is being answered gets at a stop."""


async def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Health:
    """What is asked. `missing` is what readiness waits for, `stuck` why the daemon is not alive; both are empty when
    all is well. `refresh` is awaited before a scrape: it must end soon, and must not raise."""

    missing: Callable[[], str]
    stuck: Callable[[], str] = str
    refresh: Callable[[], Awaitable[None]] = _nothing


class HealthServer:
    """Listens between `start` and `stop`."""

    def __init__(self, listen: str, registry: CollectorRegistry, health: Health) -> None:
        """`listen` is `host:port`, `[v6]:port` or `:port` (every address); raises DnsguardError when it is none."""
        self._listen = listen
        self._host, self._port = split_listen(listen)
        self._registry = registry
        self._health = health
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None
        self._writing = asyncio.Lock()
        self._rested = 0.0
        """When metrics may be written again."""

    @property
    def port(self) -> int:
        """The port that is listened on: of use when port 0 was asked for."""
        if self._server is None:
            raise RuntimeError("not started")
        return int(self._server.sockets[0].getsockname()[1])

    async def start(self) -> None:
        """Raises DnsguardError when the address is taken, absent or not permitted."""
        app = web.Application(client_max_size=1024)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        runner = web.AppRunner(app, access_log=None, keepalive_timeout=IDLE, shutdown_timeout=PATIENCE)
        await runner.setup()
        assert runner.server is not None
        loop, accept = asyncio.get_running_loop(), partial(_another, runner.server)
        try:
            self._server = await loop.create_server(accept, self._host, self._port, backlog=BACKLOG)
        except OSError as error:
            await runner.cleanup()
            raise DnsguardError(f"metrics.listen: {self._listen}: {_reason(error)}") from error
        self._runner = runner

    async def stop(self) -> None:
        if self._server is not None and self._runner is not None:
            self._server.close()
            await self._runner.cleanup()
            self._server = self._runner = None

    async def _metrics(self, request: web.Request) -> web.Response:
        async with self._writing:
            await asyncio.sleep(max(0.0, self._rested - time.monotonic()))
            await self._health.refresh()
            begun = time.monotonic()
            body = generate_latest(self._registry)
            ended = time.monotonic()
            self._rested = ended + (ended - begun) * (1 - PART) / PART
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _healthz(self, request: web.Request) -> web.Response:
        return _verdict("ok", self._health.stuck())

    async def _readyz(self, request: web.Request) -> web.Response:
        return _verdict("ready", self._health.missing())


def _another(server: web.Server) -> asyncio.Protocol:
    """What reads one more connection; the oldest of too many are cut, whatever they wait for."""
    transports = [one.transport for one in server.connections if one.transport is not None]
    for transport in transports[: max(0, len(transports) + 1 - MOST)]:
        transport.abort()
    return server()


def _verdict(good: str, wrong: str) -> web.Response:
    return web.Response(status=503, text=f"{wrong}\n") if wrong else web.Response(text=f"{good}\n")


def split_listen(listen: str) -> tuple[str | None, int]:
    """(host, port); no host is every address. Raises DnsguardError."""
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise DnsguardError(
            f"metrics.listen: {listen} is not an address and a port; write 127.0.0.1:9353 or [::1]:9353"
        )
    return host.removeprefix("[").removesuffix("]") or None, int(port)


def _reason(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "the port is in use by another program; choose another, or null to serve no metrics"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this node does not have that address"
    return error.strerror or str(error)
