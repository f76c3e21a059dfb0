"""Metrics and health over HTTP: `/metrics`, `/healthz` (loop and writer go on), `/readyz` (intercepting and enforcing).

Needs an address, a registry and functions that tell whether the daemon is ready and alive. Serves nothing else, reads
no request bodies, and takes a bounded number of connections from the kernel's queue.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from dnsguard.core.errors import DnsguardError

BACKLOG: Final = 16
IDLE: Final = 30.0
"""Seconds that a scraper's connection is kept between requests."""


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

    @property
    def port(self) -> int:
        """The port that is listened on: of use when port 0 was asked for."""
        if self._runner is None:
            raise RuntimeError("not started")
        return int(self._runner.addresses[0][1])

    async def start(self) -> None:
        """Raises DnsguardError when the address is taken, absent or not permitted."""
        app = web.Application(client_max_size=1024)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        runner = web.AppRunner(app, access_log=None, keepalive_timeout=IDLE)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port, backlog=BACKLOG).start()
        except OSError as error:
            await runner.cleanup()
            raise DnsguardError(f"metrics.listen: {self._listen}: {_reason(error)}") from error
        self._runner = runner

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _metrics(self, request: web.Request) -> web.Response:
        await self._health.refresh()
        body = generate_latest(self._registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _healthz(self, request: web.Request) -> web.Response:
        return _verdict("ok", self._health.stuck())

    async def _readyz(self, request: web.Request) -> web.Response:
        return _verdict("ready", self._health.missing())


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
