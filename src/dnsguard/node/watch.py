"""A thread that follows the node's links, addresses, routes and rules, and asks and changes them on request.

In a thread because the kernel answers such requests under one lock of its own, which tearing down other pods can hold
for long. What the followers keep is only ever touched in this thread; they post results to the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import queue
import select
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol, TypeVar

from dnsguard.core.errors import KernelError
from dnsguard.node.rtnetlink import GROUPS, Flag, Message, Type, dump, error_number, messages, request

T = TypeVar("T")

SO_RCVBUFFORCE = 33
BUFFER = 8 << 20
"""Octets of notifications the kernel may hold for us: some 5,000 links coming at once."""
DATAGRAM = 256 << 10
"""The kernel's largest: a link with many virtual functions, or a part of a dump."""
DUMPS = (Type.GET_LINK, Type.GET_ADDRESS, Type.GET_RULE, Type.GET_ROUTE)
"""Links before what refers to them."""
ROUND = 256
"""Notifications taken before requests have their turn."""
ATTEMPTS = 10
"""A dump that a change interrupted is asked for again."""
TIMEOUT_SECONDS = 5
RETRY_SECONDS = 0.5

OpenSocket = Callable[[int], socket.socket]
"""Opens a route netlink socket that hears these multicast groups."""


class Follower(Protocol):
    """Learns from messages. Every method but `attach` is called in the watch's thread."""

    def attach(self, watch: Watch) -> None:
        """The watch that this follower belongs to, told before anything else."""

    def reset(self) -> None:
        """Forget everything: messages that tell the whole state follow."""

    def apply(self, message: Message) -> None:
        """Take in one message, which may repeat what is known."""

    def settle(self) -> None:
        """No more messages wait: act on what changed."""


def open_socket(groups: int = 0) -> socket.socket:
    """A route netlink socket of the calling thread's network namespace."""
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    # Not settimeout: with it Python waits even where MSG_DONTWAIT forbids.
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("=qq", TIMEOUT_SECONDS, 0))
    with contextlib.suppress(PermissionError):  # reading alone needs no privilege
        opened.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
    opened.bind((0, groups))
    return opened


class Watch:
    """`start` reads the whole state into the followers, then follows it until `stop`.

    What followers `post`, and `on_problem(text)`, are called in the event loop's thread.
    """

    def __init__(
        self, followers: Sequence[Follower], on_problem: Callable[[str], None], *, opener: OpenSocket = open_socket
    ) -> None:
        self._followers, self._on_problem, self._open = followers, on_problem, opener
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._requests: socket.socket | None = None
        self._notifications: socket.socket | None = None
        self._sequence = 0
        self._stopping = False
        self._stale = True
        self._thread = threading.Thread(target=self._run, name="netlink", daemon=True)
        for follower in followers:
            follower.attach(self)

    async def start(self) -> None:
        """Returns when every follower has settled once and what they posted was called. Raises KernelError."""
        self._loop = asyncio.get_running_loop()
        first = self.call(self._resynchronize)
        self._thread.start()
        await asyncio.wrap_future(first)

    def stop(self) -> None:
        """End the thread and close its sockets. Calls that were not begun fail with KernelError."""
        if self._stopping:
            return
        self._stopping = True
        if self._thread.ident is None:
            self._end()
            return
        os.eventfd_write(self._wake, 1)
        self._thread.join()

    def call(self, do: Callable[[], T]) -> Future[T]:
        """Run `do` in the watch's thread."""
        result: Future[T] = Future()

        def run() -> None:
            if not result.set_running_or_notify_cancel():
                return
            try:
                if self._stopping:
                    raise KernelError("links and routes are no longer followed")
                result.set_result(do())
            except BaseException as error:
                result.set_exception(error)

        if self._stopping:
            run()
        else:
            self._calls.put(run)
            os.eventfd_write(self._wake, 1)
        return result

    # -- in the thread, and what followers may call there ---------------------------------------------------------

    def post(self, do: Callable[..., object], *values: object) -> None:
        """Have `do(*values)` called in the event loop's thread; in the order of the posts."""
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody wants to know any more
            self._loop.call_soon_threadsafe(do, *values)

    def ask(self, kind: Type, flags: int, body: bytes) -> Message | None:
        """One request and its reply (None when it was only acknowledged). Raises OSError with the kernel's errno."""
        if self._requests is None:
            self._requests = self._open(0)
        self._sequence += 1
        self._requests.send(request(kind, flags, self._sequence, body))
        while True:
            for message in messages(self._requests.recv(DATAGRAM)):
                if message.sequence != self._sequence:
                    continue
                if message.type == Type.ERROR:
                    _raise(error_number(message))
                    return None
                return message

    def invalidate(self) -> None:
        """What is known may be wrong: read everything again before the next `settle`."""
        self._stale = True

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._run_calls()
                self._wait()
                self._take_notifications()
            except Exception as error:
                self.post(self._on_problem, f"following links and routes: {error}; reading them again")
                self._stale = True
                select.select([self._wake], [], [], RETRY_SECONDS)
        self._end()

    def _end(self) -> None:
        self._run_calls()
        for one in (self._requests, self._notifications):
            if one is not None:
                one.close()
        os.close(self._wake)

    def _wait(self) -> None:
        if self._stale or self._notifications is None:
            return
        waiting = select.poll()
        waiting.register(self._wake, select.POLLIN)
        waiting.register(self._notifications, select.POLLIN)
        waiting.poll()

    def _run_calls(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        while True:
            try:
                self._calls.get_nowait()()
            except queue.Empty:
                return

    def _take_notifications(self) -> None:
        for _ in range(ROUND):
            if self._stale or self._notifications is None:
                break
            try:
                data = self._notifications.recv(DATAGRAM, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # that one: some were lost
                    raise
                self._stale = True
            else:
                self._apply(data)
        if self._stale:
            self._resynchronize()
        else:
            self._settle()

    def _resynchronize(self) -> None:
        """A fresh socket and the whole state: dump and notifications come through one queue, so in their order."""
        for _ in range(ATTEMPTS):
            self._reopen()
            for follower in self._followers:
                follower.reset()
            if all(self._dump(kind) for kind in DUMPS):
                self._stale = False
                self._settle()
                if not self._stale:
                    return
        raise KernelError(f"links and routes changed during each of {ATTEMPTS} attempts to read them")

    def _reopen(self) -> None:
        if self._notifications is not None:
            self._notifications.close()
            self._notifications = None
        self._notifications = self._open(GROUPS)

    def _dump(self, kind: Type) -> bool:
        """True when the dump is whole."""
        assert self._notifications is not None
        self._sequence += 1
        self._notifications.send(dump(kind, self._sequence))
        while True:
            try:
                data = self._notifications.recv(DATAGRAM)
            except BlockingIOError as error:
                raise KernelError("the kernel does not answer a request for its links and routes") from error
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    return False
                raise
            for message in messages(data):
                if message.sequence == self._sequence and message.type in (Type.DONE, Type.ERROR):
                    _raise(error_number(message))
                    return not message.flags & Flag.DUMP_INTERRUPTED
                if message.flags & Flag.DUMP_INTERRUPTED:
                    return False
                self._tell(message)

    def _apply(self, data: bytes) -> None:
        for message in messages(data):
            self._tell(message)

    def _tell(self, message: Message) -> None:
        for follower in self._followers:
            follower.apply(message)

    def _settle(self) -> None:
        for follower in self._followers:
            follower.settle()


def _raise(number: int) -> None:
    if number:
        raise OSError(number, os.strerror(number))
