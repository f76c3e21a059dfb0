"""What changes owe to open flows, in the runtime directory until it is done: should the process be killed after the
kernel went over and before the flows that the new policy forbids were cut, the next one judges exactly those pods'.

Written in the event loop before each change that closes anything, and removed behind it: one small file, and no sync,
as it need not outlive the node, whose flows end with it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from dnsguard.core.model import Address
from dnsguard.core.pods import address_text
from dnsguard.daemon.whole import read_whole, write_whole
from dnsguard.engine.change import Seen
from dnsguard.engine.contracts import NOTHING, EventKind, Events, Owed
from dnsguard.names_file.content import set_aside

FILE: Final = "owed.json"


class OwedFile:
    """A `Reminder`."""

    def __init__(self, runtime: Path, events: Events) -> None:
        self.path = runtime / FILE
        self._events = events
        self._kept: Owed | None = None
        """What the file says; None while that is not known."""
        self._lost = False

    def read(self, seen: Seen, *, everything: bool) -> Owed:
        """What an earlier process left to do. The flows of all pods in `seen` are to be judged when `everything` is,
        or when the file is not one that was written."""
        try:
            found = _parsed(read_whole(self.path))
        except FileNotFoundError:
            found = self._kept = NOTHING
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            self._set_aside(error)
            found, everything = NOTHING, True
        if not everything:
            return found
        here = frozenset(address for state in seen.values() if state is not None for address in state[1])
        return Owed(here, found.forget)

    def _set_aside(self, error: Exception) -> None:
        with contextlib.suppress(OSError):  # the next change writes it anew
            aside = set_aside(self.path)
            self._events.emit(EventKind.STATE_FILE_SET_ASIDE, path=str(self.path), reason=str(error), aside=str(aside))

    def keep(self, owed: Owed) -> None:
        if owed == self._kept:
            return
        try:
            self._write(owed)
        except OSError as error:
            self._kept = None
            self._tell(lost=True, reason=error.strerror)
        else:
            self._kept = owed
            if owed != NOTHING:  # to remove a file takes no room
                self._tell(lost=False)

    def _write(self, owed: Owed) -> None:
        if owed == NOTHING:
            self.path.unlink(missing_ok=True)
            return
        write_whole(self.path, json.dumps({"judge": _texts(owed.judge), "forget": _texts(owed.forget)}) + "\n")

    def _tell(self, *, lost: bool, **reason: object) -> None:
        if lost is not self._lost:
            kind = EventKind.STATE_FILE_UNWRITABLE if lost else EventKind.STATE_FILE_WRITTEN
            self._events.emit(kind, path=str(self.path), **reason)
        self._lost = lost


def _texts(addresses: Iterable[Address]) -> list[str]:
    return sorted(map(address_text, addresses))


def _parsed(content: str) -> Owed:
    read = json.loads(content)
    return Owed(_addresses(read["judge"]), _addresses(read["forget"]))


def _addresses(texts: Iterable[str]) -> frozenset[Address]:
    return frozenset(Address(ip_address(str(text)).packed) for text in texts)
