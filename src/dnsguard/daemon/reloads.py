"""Reloads belong to the daemon: one after another, each to its end, whoever asked for it still waits or not.

Who asks while one is under way waits for the next, which reads the files as they are then, and shares it with all who
ask meanwhile. Nothing but the stop of the daemon ends one before its time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from dnsguard.control.calls import CallError, Reloaded
from dnsguard.core.errors import DnsguardError

STOPPED: Final = "dnsguard stops: its next process begins with the files as they are then"

Waiting = list[asyncio.Future[Reloaded]]


class Reloads:
    """`one` reads the files and goes over to what they say, or raises DnsguardError. Call `next` each time that `asked`
    is set."""

    def __init__(self, one: Callable[[], Awaitable[Reloaded]]) -> None:
        self._one = one
        self.asked = asyncio.Event()
        self.under_way = False
        self._waiting: Waiting = []
        self._closed = False

    async def ask(self) -> Reloaded:
        """What came of a reload that begins after this call. Whoever gives up waiting changes nothing."""
        if self._closed:
            raise CallError(STOPPED)
        outcome: asyncio.Future[Reloaded] = asyncio.get_running_loop().create_future()
        self._waiting.append(outcome)
        self.asked.set()
        return await outcome

    async def next(self) -> None:
        waiting, self._waiting = self._waiting, []
        self.under_way = True
        try:
            reloaded = await self._one()
        except DnsguardError as error:
            _refuse(waiting, error)
        except BaseException as error:
            stopped = isinstance(error, asyncio.CancelledError)
            _refuse(waiting, CallError(STOPPED if stopped else "internal error; the daemon's log has the details"))
            raise
        else:
            for outcome in _still_there(waiting):
                outcome.set_result(reloaded)
        finally:
            self.under_way = False

    def close(self) -> None:
        """None will begin any more: whoever waits for one is told, and whoever asks yet."""
        self._closed = True
        _refuse(self._waiting, CallError(STOPPED))


def _refuse(waiting: Waiting, error: DnsguardError) -> None:
    for outcome in _still_there(waiting):
        outcome.set_exception(error)


def _still_there(waiting: Waiting) -> Waiting:
    return [outcome for outcome in waiting if not outcome.done()]
