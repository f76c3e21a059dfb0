"""Metrics and health over HTTP: `/metrics`, `/healthz` (the loop runs), `/readyz` (intercepting and enforcing).

Needs an address, a registry and a function that tells whether the daemon is ready. Serves nothing else, reads no
request bodies, and takes a bounded number of connections from the kernel's queue.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from dnsguard.core.errors import DnsguardError

BACKLOG: Final = 16
IDLE: Final = 30.0
"""Seconds that a scraper's connection is kept between requests."""


class HealthServer:
    """Listens between `start` and `stop`. `ready` returns None when ready, else what is missing."""

    def __init__(self, listen: str, registry: CollectorRegistry, ready: Callable[[], str | None]) -> None:
        """`listen` is `host:port`, `[v6]:port` or `:port` (every address); raises DnsguardError when it is none."""
        self._listen = listen
        self._host, self._port = split_listen(listen)
        self._registry = registry
        self._ready = ready
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
        body = generate_latest(self._registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        missing = self._ready()
        return web.Response(text="ready\n") if missing is None else web.Response(status=503, text=f"{missing}\n")


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
