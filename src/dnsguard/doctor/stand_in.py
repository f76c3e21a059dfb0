"""Interception on one link, as the daemon would do it, for the moment of a probe.

Rule and route carry a protocol number of the doctor's own; the rule speaks of that one link. They outlive a killed run
(nothing in the kernel ties a rule to a process) and do nothing without the link; the next run removes them.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
from typing import Final, Self

from pyroute2 import IPRoute

from dnsguard.doctor.node import FAMILIES, Refusal
from dnsguard.doctor.trace import Trace
from dnsguard.listen.transparent import IP_TRANSPARENT, IPV6_TRANSPARENT
from dnsguard.node.routing import LOOPBACK, InterceptionRoute

PROTOCOL: Final = 154
"""Of the rule and the route."""
_NAMES: Final = {socket.AF_INET: "ip", socket.AF_INET6: "ip6"}
_ORIGINAL: Final = {socket.AF_INET: (socket.IPPROTO_IP, 20), socket.AF_INET6: (socket.IPPROTO_IPV6, 74)}
"""IP_RECVORIGDSTADDR and IPV6_RECVORIGDSTADDR."""


class StandIn:
    """Answers what comes in by `link` to port 53: with the query itself, from the address that was asked."""

    def __init__(self, link: str, trace: Trace, route: InterceptionRoute) -> None:
        self._link, self._trace, self._route = link, trace, route
        self._listening: list[socket.socket] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="stand-in")

    def __enter__(self) -> Self:
        sweep(self._route.table)
        try:
            self._listening = [
                _listener(family, kind) for family in FAMILIES for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM)
            ]
            self._intercept()
            self._deliver()
        except BaseException:
            self._close()
            raise
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._close()

    def _close(self) -> None:
        sweep(self._route.table)
        for each in self._listening:
            each.close()

    def _intercept(self) -> None:
        """At the daemon's place: after connection tracking, before every DNAT."""
        self._trace.run("add chain inet {table} intercept { type filter hook prerouting priority -150; }")
        mark = f"meta mark set meta mark or {self._route.mark:#x}"
        for each in self._listening:
            protocol = "udp" if each.type == socket.SOCK_DGRAM else "tcp"
            version = 4 if each.family == socket.AF_INET else 6
            self._trace.run(
                f'add rule inet {{table}} intercept iifname "{self._link}" meta nfproto ipv{version} '
                f"{protocol} dport 53 tproxy {_NAMES[each.family]} to :{each.getsockname()[1]} {mark} accept"
            )

    def _deliver(self) -> None:
        route = self._route
        with IPRoute() as kernel:
            for family in FAMILIES:
                everywhere = "0.0.0.0/0" if family == socket.AF_INET else "::/0"
                kernel.route(
                    "add", family=family, dst=everywhere, table=route.table, type="local", oif=LOOPBACK, proto=PROTOCOL,
                    scope=254,
                )  # fmt: skip
                kernel.rule(
                    "add", family=family, priority=route.priority, table=route.table, fwmark=route.mark,
                    fwmask=route.mark, iifname=self._link, protocol=PROTOCOL,
                )  # fmt: skip

    def _serve(self) -> None:
        with selectors.DefaultSelector() as ready:
            for each in self._listening:
                ready.register(each, selectors.EVENT_READ)
            while not self._stop.is_set():
                for key, _ in ready.select(0.05):
                    with contextlib.suppress(OSError):
                        _answer(key.fileobj)  # type: ignore[arg-type]


def sweep(table: int) -> None:
    """Remove what a killed run left: every rule of ours, and the routes of this table."""
    with IPRoute() as kernel:
        for family in FAMILIES:
            with contextlib.suppress(*Refusal):
                for rule in list(kernel.get_rules(family=family)):
                    if rule.get("protocol") == PROTOCOL:
                        kernel.rule(
                            "del",
                            family=family,
                            priority=rule.get("priority"),
                            protocol=PROTOCOL,
                            table=rule.get("table"),
                            iifname=rule.get("iifname"),
                        )
                kernel.flush_routes(family=family, proto=PROTOCOL, type=2, table=table)


def _listener(family: int, kind: socket.SocketKind) -> socket.socket:
    opened = socket.socket(family, kind)
    if family == socket.AF_INET6:
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
    else:
        opened.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
    if kind == socket.SOCK_DGRAM:
        opened.setsockopt(*_ORIGINAL[socket.AddressFamily(family)], 1)
    opened.bind(("", 0))
    opened.setblocking(False)
    if kind == socket.SOCK_STREAM:
        opened.listen()
    return opened


def _answer(listening: socket.socket) -> None:
    if listening.type == socket.SOCK_STREAM:
        connection, _ = listening.accept()
        with connection:
            connection.settimeout(1)
            connection.sendall(connection.recv(4096))
        return
    query, ancillary, _, client = listening.recvmsg(4096, 256)
    asked = next(data for level, kind, data in ancillary if (level, kind) == _ORIGINAL[listening.family])
    with _from(listening.family, asked) as reply:
        reply.sendto(query, client)


def _from(family: int, place: bytes) -> socket.socket:
    """A socket that sends from an address and port that are not ours."""
    (port,) = struct.unpack_from(">H", place, 2)
    octets = place[4:8] if family == socket.AF_INET else place[8:24]
    opened = socket.socket(family, socket.SOCK_DGRAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    level, option = (
        (socket.IPPROTO_IP, IP_TRANSPARENT) if family == socket.AF_INET else (socket.IPPROTO_IPV6, IPV6_TRANSPARENT)
    )
    opened.setsockopt(level, option, 1)
    opened.bind((socket.inet_ntop(family, octets), port))
    return opened
