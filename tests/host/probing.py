"""Somebody in a pod who never stops asking for what he may and knocking where he may not."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from dnslib import DNSRecord

from dnsguard.demo.lab import Lab, Pod
from tests.node.daemon import ANY_RESOLVER
from tests.node.scene import PORT

PAUSE = 0.005
FIRST_RETRY = 1.0
"""Seconds after which a client asks again."""
KNOCKS = 200
"""Connections that are waited for at a time."""


@dataclass
class Counts:
    """`late`: answered when asked a second time; `opened`: connections that should not have been."""

    asked: int = 0
    late: int = 0
    lost: int = 0
    knocked: int = 0
    opened: int = 0


class Probing:
    """A context, while which `counts` grow. `closed` are addresses that must stay closed."""

    def __init__(self, lab: Lab, pod: Pod, name: str, *closed: str) -> None:
        self.counts = Counts()
        self._closed = closed
        self._query = bytes(DNSRecord.question(name).pack())
        self._knocking: deque[socket.socket] = deque()
        self._end = threading.Event()
        self._thread = threading.Thread(target=lambda: lab.inside(pod.namespace, self._probe), name="probing")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def _probe(self) -> None:
        while not self._end.wait(PAUSE):
            self._ask()
            for address in self._closed:
                self._knock(address)
        while self._knocking:
            self._look(self._knocking.popleft())

    def _ask(self) -> None:
        self.counts.asked += 1
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(FIRST_RETRY)
            client.connect((ANY_RESOLVER, 53))
            for attempt in range(2):
                client.send(self._query)
                with contextlib.suppress(TimeoutError):
                    client.recv(4096)
                    self.counts.late += attempt
                    return
        self.counts.lost += 1

    def _knock(self, address: str) -> None:
        self.counts.knocked += 1
        client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            client.connect((address, PORT))
        self._knocking.append(client)
        if len(self._knocking) > KNOCKS:
            self._look(self._knocking.popleft())

    def _look(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.getpeername()
            self.counts.opened += 1
