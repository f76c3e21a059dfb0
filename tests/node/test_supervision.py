"""Which sockets for queries are used: those that systemd offers, those that were kept, or new ones."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import pytest

from dnsguard.daemon.supervision import LISTENING, OFFERED, Supervision
from dnsguard.demo.lab import Lab
from dnsguard.listen.transparent import ListenSockets
from dnsguard.node.systemd import Inherited, Systemd

pytestmark = pytest.mark.node

PORT = 15353


class Heard:
    """Events, as an engine room would be told; and what systemd would be told."""

    all_queries = all_leases = False

    def __init__(self) -> None:
        self.told: list[str] = []

    def emit(self, kind: Any, /, **fields: object) -> None:
        self.told.append(str(fields["reason"]))


class Kept(Systemd):
    """Notes what it is asked to keep."""

    def __init__(self, inherited: list[Inherited]) -> None:
        super().__init__(inherited=inherited)
        self.kept: list[socket.socket] = []

    def keep(self, name: str, sockets: Any) -> None:
        assert name == LISTENING
        self.kept += sockets


def bound(address: str, kind: int, port: int = PORT) -> socket.socket:
    one = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    one.bind((address, port))
    return one


def listening(
    lab: Lab, name: str, make: Callable[[], socket.socket], events: Heard
) -> tuple[Kept, Inherited, ListenSockets]:
    """What becomes of one socket that this process was started with."""

    def listen() -> tuple[Kept, Inherited, ListenSockets]:
        with make() as one:
            inherited = Inherited(name, os.dup(one.fileno()))
        systemd = Kept([inherited])
        return systemd, inherited, Supervision(systemd).listen(PORT, 0x2000, events)

    return lab.inside(lab.node, listen)


@pytest.mark.parametrize(("name", "kept"), [(OFFERED, 3), (LISTENING, 4)])
def test_a_socket_that_fits_is_used_and_all_that_is_not_the_unit_s_is_kept(lab: Lab, name: str, kept: int) -> None:
    events = Heard()

    systemd, inherited, sockets = listening(lab, name, lambda: bound("0.0.0.0", socket.SOCK_DGRAM), events)

    assert sockets.udp[0].fileno() == inherited.descriptor
    assert sockets.udp[0].getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == 0x2000
    assert (events.told, len(systemd.kept)) == ([], kept)
    sockets.close()


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: bound("0.0.0.0", socket.SOCK_DGRAM, 15400), "dns.listenPort is 15353"),
        (lambda: bound("127.0.0.1", socket.SOCK_STREAM), "every address"),
        (lambda: bound("::", socket.SOCK_DGRAM), "BindIPv6Only"),
        (lambda: socket.socketpair()[0], "neither UDP nor TCP"),
    ],
)
def test_a_socket_that_does_not_fit_is_told_and_another_opened(
    lab: Lab, make: Callable[[], socket.socket], why: str
) -> None:
    events = Heard()

    _, _, sockets = listening(lab, OFFERED, make, events)

    assert len(events.told) == 1 and why in events.told[0]
    assert len(sockets.udp) == len(sockets.tcp) == 2
    sockets.close()


def test_a_kept_socket_of_an_earlier_port_is_let_go_without_a_word(lab: Lab) -> None:
    events = Heard()

    _, _, sockets = listening(lab, LISTENING, lambda: bound("0.0.0.0", socket.SOCK_DGRAM, 15400), events)

    assert events.told == []
    assert {one.getsockname()[1] for one in (*sockets.udp, *sockets.tcp)} == {PORT}
    sockets.close()
