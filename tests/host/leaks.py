"""Packets that a pod may never send, sent all the time, and whoever in the world hears one of them."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Self

from dnslib import DNSRecord

from dnsguard.demo.lab import Pod
from tests.node.daemon import ANY_RESOLVER
from tests.node.scene import OTHER, WRONG_PORT, Scene

EVERY = 0.002
NAME = "other.example.com"


class Leaks:
    """`with Leaks(scene, pod) as leaks:` sends, every other millisecond, a datagram to an address that no answer has
    named and a query for a name that no rule allows; both have somebody who would hear them. `heard` says which did.
    """

    def __init__(self, scene: Scene, pod: Pod) -> None:
        self._scene, self._pod = scene, pod
        self._ending = contextlib.ExitStack()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._send, name="leaks", daemon=True)
        self.sent = 0

    def __enter__(self) -> Self:
        lab = self._scene.lab
        lab.add_world_address(ANY_RESOLVER)
        self._ending.callback(lab.remove_world_address, ANY_RESOLVER)
        self._ears = [self._ear(OTHER, WRONG_PORT), self._ear(ANY_RESOLVER, 53)]
        self._mouths = [self._mouth(OTHER, WRONG_PORT), self._mouth(ANY_RESOLVER, 53)]
        self._asked = self._scene.zone.asked(NAME)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._ending.close()

    @property
    def heard(self) -> list[str]:
        """What came out since it was last asked."""
        return [*self.flows(), *self.queries(), *self._upstreams()]

    def flows(self) -> list[str]:
        """Datagrams to the address that were heard since this was last asked."""
        return [f"{OTHER}: {data!r}" for data in _waiting(self._ears[0])]

    def queries(self) -> list[str]:
        """The same for queries that were on their way to the pod's own resolver."""
        return [f"{ANY_RESOLVER}: {data!r}" for data in _waiting(self._ears[1])]

    def _upstreams(self) -> list[str]:
        before, self._asked = self._asked, self._scene.zone.asked(NAME)
        return [f"upstream was asked for {NAME}"] * (self._asked - before)

    def _ear(self, address: str, port: int) -> socket.socket:
        ear = self._ending.enter_context(self._scene.lab.socket(self._scene.lab.world, socket.AF_INET))
        ear.bind((address, port))
        ear.setblocking(False)
        return ear

    def _mouth(self, address: str, port: int) -> socket.socket:
        mouth = self._ending.enter_context(self._scene.lab.socket(self._pod.namespace, socket.AF_INET))
        mouth.connect((address, port))
        mouth.setblocking(False)
        return mouth

    def _send(self) -> None:
        query = bytes(DNSRecord.question(NAME).pack())
        while not self._over.wait(EVERY):
            for mouth, data in zip(self._mouths, (b"x", query), strict=True):
                with contextlib.suppress(OSError):  # an ICMP error about an earlier one
                    mouth.send(data)
            for _ in _waiting(self._mouths[1]):
                pass
            self.sent += 1


def _waiting(one: socket.socket) -> Iterator[bytes]:
    with contextlib.suppress(OSError):
        while True:
            yield one.recv(4096)
