"""The daemon's side of the control socket: HTTP on a unix socket, a table of calls, one JSON object or one row a line.

Given `name -> async function(**texts)`, it knows no service. A function raises DnsguardError for what the operator can
put right; anything else is reported to `on_error` and told as an internal error. The socket's mode (0660, group
`dnsguard` where there is one) is the only permission check.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import itertools
import json
import os
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from dnsguard import __version__
from dnsguard.control.calls import (
    CALLS,
    MISSING,
    USAGE,
    VERSION_HEADER,
    WRONG,
    Call,
    CallError,
    exit_code_of,
    socket_path,
)
from dnsguard.core.errors import DnsguardError

GROUP: Final = "dnsguard"
MAX_REQUEST: Final = 16 * 1024
"""Octets of a request's body; none of the calls needs any."""
ROWS_AT_ONCE: Final = 64
"""Rows made into text before the loop gets its turn: about 0.3 ms."""
PATIENCE: Final = 30.0
"""Seconds in which the reader of a live call has to take what it was sent."""
IDLE: Final = 15.0
BACKLOG: Final = 16

_ENCODER: Final = json.JSONEncoder(separators=(",", ":"))

Handler = Callable[..., Awaitable[Any]]
"""Takes the call's parameters as keyword texts; returns a JSON object, for `rows` an iterable that does not change
while it is read, and for `live` an asynchronous generator of lists of rows: an empty one now and then lets the server
see whether the reader is still there."""

STATUS_OF_EXIT: Final = {USAGE: 400, WRONG: 409, MISSING: 501}


class ControlServer:
    """Listens between `start` and `stop`."""

    def __init__(
        self, runtime: Path, handlers: Mapping[str, Handler], on_error: Callable[[str, Exception], None]
    ) -> None:
        """`on_error(call, error)` is told of defects. Raises CallError when `runtime` is too long for a socket."""
        if unknown := handlers.keys() - CALLS.keys():
            raise ValueError(f"not in the table of calls: {', '.join(sorted(unknown))}")
        self.path = socket_path(runtime)
        self._handlers = dict(handlers)
        self._on_error = on_error
        self._runner: web.AppRunner | None = None
        self._site: web.SockSite | None = None
        self._inode = 0
        self._stopping = False

    async def start(self) -> None:
        """Raises CallError when another daemon listens there or the directory cannot be used."""
        sock = bind(self.path)
        app = web.Application(client_max_size=MAX_REQUEST, middlewares=[self._boundary])
        for name in self._handlers:
            app.router.add_route(CALLS[name].method, f"/v1/{name}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, keepalive_timeout=IDLE, shutdown_timeout=1.0)
        await self._runner.setup()
        await self._listen(self._runner, sock)

    async def _listen(self, runner: web.AppRunner, sock: socket.socket) -> None:
        self._inode = self.path.stat().st_ino
        self._site = web.SockSite(runner, sock, backlog=BACKLOG)
        await self._site.start()

    def stands(self) -> bool:
        """Whether whoever looks for the socket finds this one."""
        try:
            return self.path.stat().st_ino == self._inode
        except OSError:
            return False

    async def renew(self) -> None:
        """Listen on a new socket in the place of the one that somebody removed. Calls under way go on. Raises as
        `start` does."""
        if self._runner is None:
            return
        sock, before = bind(self.path), self._site
        if before is not None:
            await before.stop()
        await self._listen(self._runner, sock)

    async def stop(self) -> None:
        """Requests under way get a second to end, and live ones end by themselves."""
        self._stopping = True
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
            self.path.unlink(missing_ok=True)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        name = request.path.rpartition("/")[2]
        call = CALLS[name]
        arguments = _arguments(call, request)
        try:
            async with asyncio.timeout(call.limit):
                result = await self._handlers[name](**arguments)
        except TimeoutError as error:
            late = f": {call.late}" if call.late else ""
            raise CallError(f"{name} took longer than {call.limit:.0f} s{late}") from error
        if call.live:
            return await self._send_live(request, result)
        return await _send_rows(request, result) if call.rows else web.json_response(result)

    async def _send_live(self, request: web.Request, found: AsyncGenerator[Sequence[Any], None]) -> web.StreamResponse:
        response = _rows_response()
        async with contextlib.aclosing(found):
            # A reader may go whenever it likes: aiohttp would log what is raised here as a defect.
            with contextlib.suppress(ConnectionError):
                async for rows in found:
                    if not response.prepared:
                        # Not before it has begun: who has the headers misses nothing from then on.
                        await response.prepare(request)
                    if self._stopping or request.transport is None:
                        break
                    for start in range(0, len(rows), ROWS_AT_ONCE):
                        await _write_in_time(request, response, _lines(rows[start : start + ROWS_AT_ONCE]))
                        await asyncio.sleep(0)
                await response.write(b"\n")
        return response

    @web.middleware
    async def _boundary(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            response = await handler(request)
        except web.HTTPException as error:
            response = _failure(f"{request.method} {request.path}: {error.reason}", USAGE, error.status)
        except DnsguardError as error:
            exit_code = exit_code_of(error)
            response = _failure(str(error), exit_code, STATUS_OF_EXIT.get(exit_code, 409))
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:
            self._on_error(request.path, error)
            response = _failure("internal error; the daemon's log has the details", WRONG, 500)
        if not response.prepared:
            response.headers[VERSION_HEADER] = __version__
        return response


def bind(path: Path) -> socket.socket:
    """A bound socket at `path` with its final mode and group, in the place of a stale one.

    It is made under another name and moved, so that it never stands there with a wider mode.
    """
    _refuse_a_living_one(path)
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        before = os.umask(0o117)  # binding takes its mode from here, as there is no fchmod before bind(2)
        try:
            sock.bind(bytes(new))
        finally:
            os.umask(before)
        _give_to_group(new)
        sock.listen(BACKLOG)
        new.rename(path)
    except OSError as error:
        sock.close()
        new.unlink(missing_ok=True)
        raise CallError(
            f"cannot listen on {path}: {error.strerror}; does {path.parent} exist, and is it ours?"
        ) from error
    return sock


def _refuse_a_living_one(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(bytes(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return
        except OSError as error:
            raise CallError(f"cannot tell whether a daemon listens on {path}: {error.strerror or error}") from error
    raise CallError(f"another daemon listens on {path}; stop it, or give this one its own paths.runtime")


def _give_to_group(path: Path) -> None:
    try:
        gid = grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return
    # Not root and not a member: the socket then stays with our own group.
    with contextlib.suppress(PermissionError):
        os.chown(path, -1, gid)


def _arguments(call: Call, request: web.Request) -> dict[str, str]:
    given = dict(request.query)
    known = call.required | call.optional
    if wrong := [key for key in given if key not in known]:
        raise CallError(f"unknown parameter {wrong[0]!r}; known here: {', '.join(sorted(known)) or 'none'}", USAGE)
    if missing := sorted(call.required - given.keys()):
        raise CallError(f"parameter {missing[0]!r} is missing", USAGE)
    return given


def _failure(text: str, exit_code: int, status: int) -> web.Response:
    return web.json_response({"error": text, "exit": exit_code}, status=status)


def _rows_response() -> web.StreamResponse:
    return web.StreamResponse(headers={"Content-Type": "application/x-ndjson", VERSION_HEADER: __version__})


async def _send_rows(request: web.Request, rows: Iterable[Any]) -> web.StreamResponse:
    response = _rows_response()
    await response.prepare(request)
    left = iter(rows)
    with contextlib.suppress(ConnectionError):  # as with live ones
        while some := list(itertools.islice(left, ROWS_AT_ONCE)):
            await response.write(_lines(some))
            await asyncio.sleep(0)
        # A last empty line tells the client that nothing was cut off.
        await response.write(b"\n")
        await response.write_eof()
    return response


def _lines(rows: Iterable[Any]) -> bytes:
    return "".join(_ENCODER.encode(row) + "\n" for row in rows).encode()


async def _write_in_time(request: web.Request, response: web.StreamResponse, data: bytes) -> None:
    """Raises ConnectionError, with the connection cut, when the reader does not take what was sent before."""
    try:
        async with asyncio.timeout(PATIENCE):
            await response.write(data)
    except TimeoutError as error:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionError("the reader does not read") from error
