"""A thread that follows the node's links, addresses, routes and rules, and asks and changes them on request.

In a thread because the kernel answers such requests under one lock of its own, which tearing down other pods can hold
for long, and with an event loop of its own because pyroute2 knows asyncio's alone. Requests have a socket without
notifications: who waits in pyroute2 for a reply is not told that the socket overflowed. What the followers keep is
only ever touched in this thread; they post results to the daemon's event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Protocol, TypeVar

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from dnsguard.core.errors import KernelError
from dnsguard.node.rtnetlink import GROUPS, Change, Marshal, Message, read

T = TypeVar("T")

SO_RCVBUFFORCE = 33
BUFFER = 8 << 20
"""Octets of notifications the kernel may hold for us: some 5,000 links coming at once."""
GATHER_SECONDS, LATEST_SECONDS = 0.002, 0.05
"""What one program does at once is acted on at once: after that long a silence, or that long after it began."""
ATTEMPTS = 10
"""A dump that a change interrupted is asked for again."""
TIMEOUT_SECONDS = 5.0
READ_SECONDS = 30.0
"""For the whole state: 1,000 pods take a third of a second of an idle core."""
RETRY_SECONDS = 0.5
WITHOUT_STATISTICS = 8
"""RTEXT_FILTER_SKIP_STATS."""

OpenSocket = Callable[[int], socket.socket]
"""Opens a route netlink socket that hears these multicast groups."""


class Follower(Protocol):
    """Learns from changes. Every method but `attach` is called in the watch's thread."""

    def attach(self, watch: Watch) -> None:
        """The watch that this follower belongs to, told before anything else."""

    def reset(self) -> None:
        """Forget everything: changes that tell the whole state follow."""

    def apply(self, change: Change) -> None:
        """Take in one change, which may repeat what is known."""

    async def settle(self) -> None:
        """No more changes wait: act on them."""


def open_socket(groups: int = 0) -> socket.socket:
    """A route netlink socket of the calling thread's network namespace."""
    # SOCK_DGRAM, which means the same here: asyncio takes no SOCK_RAW.
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, socket.NETLINK_ROUTE)
    with contextlib.suppress(PermissionError):  # reading alone needs no privilege
        opened.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
    opened.bind((0, groups))
    return opened


class Watch:
    """`start` reads the whole state into the followers, then follows it until `stop`.

    What followers `post`, `on_problem(text)` and `on_missed()` (notifications were lost, and the whole state was read
    again) are called in the event loop's thread.
    """

    def __init__(
        self,
        followers: Sequence[Follower],
        on_problem: Callable[[str], None],
        *,
        on_missed: Callable[[], None] = lambda: None,
        opener: OpenSocket = open_socket,
    ) -> None:
        self._followers, self._on_problem, self._open_socket = followers, on_problem, opener
        self._on_missed, self._missed = on_missed, False
        self._outside: asyncio.AbstractEventLoop | None = None
        self._inside: asyncio.AbstractEventLoop | None = None
        self._kernel: AsyncIPRoute | None = None
        self._notifications: AsyncIPRoute | None = None
        self._turn = asyncio.Lock()
        self._first: Future[None] = Future()
        self._first.set_running_or_notify_cancel()
        self._stopping = False
        self._stale = True
        self._thread = threading.Thread(target=self._run, name="netlink", daemon=True)
        for follower in followers:
            follower.attach(self)

    async def start(self) -> None:
        """Returns when every follower has settled once and what they posted was called. Raises KernelError."""
        self._outside, self._inside = asyncio.get_running_loop(), asyncio.SelectorEventLoop()
        self._thread.start()
        await asyncio.wrap_future(self._first)

    def stop(self) -> None:
        """End the thread and close its sockets. Calls that have not returned fail with KernelError."""
        self._stopping = True
        if self._inside is not None and self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # it ended by itself
                # In two steps: calls that were just made begin first, so that they can tell of the end.
                self._inside.call_soon_threadsafe(self._inside.call_soon, self._cancel)
            self._thread.join()

    def call(self, do: Callable[[], Awaitable[T]]) -> Future[T]:
        """Run `do` in the watch's thread, where nothing else happens meanwhile but notifications."""
        if self._inside is None or self._stopping:
            failed: Future[T] = Future()
            failed.set_exception(_ended())
            return failed
        return asyncio.run_coroutine_threadsafe(self._in_turn(do), self._inside)

    # -- in the thread, and what followers may call there ---------------------------------------------------------

    def post(self, do: Callable[..., object], *values: object) -> None:
        """Have `do(*values)` called in the event loop's thread; in the order of the posts."""
        assert self._outside is not None
        with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody wants to know any more
            self._outside.call_soon_threadsafe(do, *values)

    async def ask(self, request: Callable[[AsyncIPRoute], Awaitable[T]], seconds: float | None = None) -> T:
        """What the kernel replies to `request`. Raises OSError with the kernel's errno, KernelError for no reply."""
        if self._kernel is None:
            self._kernel = await self._open(0)
        try:
            async with asyncio.timeout(seconds or TIMEOUT_SECONDS):
                return await request(self._kernel)
        except NetlinkError as error:
            raise OSError(error.code, os.strerror(error.code)) from error
        except TimeoutError as error:
            self._kernel.close()  # a late reply would be kept for ever
            self._kernel = None
            raise KernelError("the kernel does not answer a request about its links and routes") from error

    def invalidate(self) -> None:
        """What is known may be wrong: read everything again before the next `settle`. Called from `apply` alone."""
        self._stale = True

    def _run(self) -> None:
        inside = self._inside
        assert inside is not None
        with asyncio.Runner(loop_factory=lambda: inside) as runner, contextlib.suppress(asyncio.CancelledError):
            runner.run(self._follow())
        if not self._first.done():
            self._first.set_exception(_ended())

    def _cancel(self) -> None:
        for task in asyncio.all_tasks():
            task.cancel()

    async def _in_turn(self, do: Callable[[], Awaitable[T]]) -> T:
        try:
            async with self._turn:
                return await do()
        except asyncio.CancelledError:
            if self._stopping:
                raise _ended() from None
            raise

    async def _follow(self) -> None:
        try:
            while True:
                try:
                    await self._keep_up()
                except Exception as error:
                    if not self._first.done():
                        self._first.set_exception(KernelError(f"cannot follow links and routes ({error})"))
                        return
                    self.post(self._on_problem, f"following links and routes: {error}; reading them again")
                    self._stale = True
                    await asyncio.sleep(RETRY_SECONDS)
        finally:
            for one in (self._kernel, self._notifications):
                if one is not None:
                    one.close()

    async def _keep_up(self) -> None:
        """Everything at first and after a loss; else what is heard next and shortly after."""
        if not self._stale:
            await self._hear()
            await self._gather()
        async with self._turn:
            await (self._resynchronize() if self._stale else self._settle())

    async def _gather(self) -> None:
        loop = asyncio.get_running_loop()
        latest = loop.time() + LATEST_SECONDS
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GATHER_SECONDS) as silence:
                while not self._stale:
                    await self._hear()
                    silence.reschedule(min(loop.time() + GATHER_SECONDS, latest))

    async def _hear(self) -> None:
        """Take in one datagram of notifications, once there is one."""
        assert self._notifications is not None
        try:
            async for message in self._notifications.get():
                self._tell(message)
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # that one: some were lost
                raise
            self._stale = self._missed = True

    async def _resynchronize(self) -> None:
        """The whole state. What was heard while it was read repeats what led to it, so that is taken in before anything
        is acted on."""
        for _ in range(ATTEMPTS):
            if self._notifications is not None:
                self._notifications.close()
                self._notifications = None
            self._notifications = await self._open(GROUPS)
            self._stale = False
            for follower in self._followers:
                follower.reset()
            if not await self.ask(self._read_all, READ_SECONDS) or self._stale:
                continue
            await self._gather()
            if not self._stale:
                await self._settle()
                if not self._first.done():
                    self._first.set_result(None)
                if self._missed:
                    self._missed = False
                    self.post(self._on_missed)
                return
        self._stale = True
        raise KernelError(f"links and routes changed during each of {ATTEMPTS} attempts to read them")

    async def _read_all(self, kernel: AsyncIPRoute) -> bool:
        """True when it is whole. Links before what refers to them."""
        kernel.marshal.incomplete = False
        for dump in (
            partial(kernel.get_links, ext_mask=WITHOUT_STATISTICS),
            kernel.get_addr,
            kernel.get_rules,
            partial(kernel.get_routes, family=socket.AF_UNSPEC),
        ):
            async for message in await dump():
                self._tell(message)
        return not kernel.marshal.incomplete

    async def _open(self, groups: int) -> AsyncIPRoute:
        opened = AsyncIPRoute(use_socket=self._open_socket(groups))
        opened.set_marshal(Marshal())
        await opened.setup_endpoint()  # left to its first use, a timeout there would close the socket
        return opened

    def _tell(self, message: Message) -> None:
        if change := read(message):
            for follower in self._followers:
                follower.apply(change)

    async def _settle(self) -> None:
        for follower in self._followers:
            await follower.settle()


def _ended() -> KernelError:
    return KernelError("links and routes are no longer followed")
