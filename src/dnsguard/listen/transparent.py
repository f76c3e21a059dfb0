"""The sockets that TPROXY hands the pods' DNS packets to: transparent, on the wildcard address, replies marked.

Needs CAP_NET_ADMIN (or CAP_NET_RAW for the transparency alone). A socket belongs for life to the network namespace of
the thread that opened it. Linux: Documentation/networking/tproxy.rst.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dnsguard.core.errors import KernelError, MissingFeatureError

# Not in the socket module of Python 3.11; linux/in.h, linux/in6.h, asm-generic/socket.h.
IP_PKTINFO = 8
IP_PKTOPTIONS = 9
IP_TRANSPARENT = 19
IPV6_2292PKTOPTIONS = 6
IPV6_TRANSPARENT = 75
SO_SNDBUFFORCE = 32
SO_RCVBUFFORCE = 33

UDP_BUFFER = 4 << 20
"""Octets the kernel may hold for us each way: some 5,000 small queries, 50 ms at 100,000 a second."""
BACKLOG = 1024
"""TCP connections that may wait to be accepted; also bounded by net.core.somaxconn."""
FAMILIES = (socket.AF_INET, socket.AF_INET6)


@dataclass(frozen=True, slots=True)
class ListenSockets:
    """What the listeners run on: one socket of each kind and family (no IPv6 ones where the kernel has none)."""

    udp: tuple[socket.socket, ...]
    tcp: tuple[socket.socket, ...]
    unfit: tuple[str, ...] = ()
    """What was offered and is not used, with the reason."""

    def close(self) -> None:
        for opened in (*self.udp, *self.tcp):
            opened.close()


def open_sockets(port: int, reply_mark: int, offered: Iterable[socket.socket] = ()) -> ListenSockets:
    """Bind UDP and TCP, IPv4 and IPv6, on `port`; whatever they send carries `reply_mark`.

    Sockets that somebody else has bound are `offered`: those that fit are used, with what already waits in them, and
    the others are closed. Raises MissingFeatureError without the privilege, KernelError when the port is taken.
    """
    fit, unfit = _sifted(offered, port)
    opened = list(fit.values())
    try:
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            for family in _families():
                if (family, kind) not in fit:
                    opened.append(_bound(family, kind, port))
        for one in opened:
            _prepare(one, reply_mark)
    except BaseException:
        for one in opened:
            one.close()
        raise
    return _sorted(opened, unfit)


def _sifted(
    offered: Iterable[socket.socket], port: int
) -> tuple[dict[tuple[int, int], socket.socket], tuple[str, ...]]:
    """Those that can be used, by family and kind, and what is wrong with the others."""
    fit: dict[tuple[int, int], socket.socket] = {}
    unfit = []
    for one in offered:
        place = (one.family, one.type)
        if why := _unfit(one, port) or ("there are two of it" if place in fit else ""):
            unfit.append(f"{_described(one)}: {why}")
            one.close()
        else:
            fit[place] = one
    return fit, tuple(unfit)


def _unfit(offered: socket.socket, port: int) -> str:
    """Why it cannot be used; empty when it can."""
    if offered.family not in FAMILIES or offered.type not in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        return "neither UDP nor TCP"
    address, bound = offered.getsockname()[:2]
    if bound != port:
        return f"dns.listenPort is {port}"
    if address not in ("0.0.0.0", "::"):
        return "intercepted queries are for every address"
    if offered.family == socket.AF_INET6 and not offered.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
        return "it takes IPv4, too (BindIPv6Only=ipv6-only is missing)"
    return ""


def _described(offered: socket.socket) -> str:
    kind = {socket.SOCK_DGRAM: "UDP", socket.SOCK_STREAM: "TCP"}.get(offered.type, offered.type.name)
    place = offered.getsockname()
    return f"{kind} {place[0]} port {place[1]}" if offered.family in FAMILIES else f"{kind} {place!r}"


def _families() -> Iterator[socket.AddressFamily]:
    for family in FAMILIES:
        try:
            socket.socket(family, socket.SOCK_DGRAM).close()
        except OSError as error:
            if error.errno != errno.EAFNOSUPPORT:  # a kernel booted with ipv6.disable=1
                raise
        else:
            yield family


def _bound(family: int, kind: int, port: int) -> socket.socket:
    opened = socket.socket(family, kind)
    try:
        with _said(f"{'TCP' if kind == socket.SOCK_STREAM else 'UDP'} port {port}"):
            if family == socket.AF_INET6:
                opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if kind == socket.SOCK_STREAM:
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
    except BaseException:
        opened.close()
        raise
    return opened


def _prepare(opened: socket.socket, reply_mark: int) -> None:
    with _said("the sockets for pods' queries"):
        _make_transparent(opened, reply_mark)
    if opened.type == socket.SOCK_STREAM:
        opened.listen(BACKLOG)


def _make_transparent(opened: socket.socket, reply_mark: int) -> None:
    opened.setblocking(False)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, reply_mark)  # a TCP listener's is inherited by its connections
    if opened.family == socket.AF_INET:
        opened.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
        opened.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    else:
        opened.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    if opened.type == socket.SOCK_DGRAM:
        opened.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, UDP_BUFFER)
        opened.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, UDP_BUFFER)


def _sorted(opened: Iterable[socket.socket], unfit: tuple[str, ...]) -> ListenSockets:
    every = sorted(opened, key=lambda one: one.family)
    return ListenSockets(
        udp=tuple(one for one in every if one.type == socket.SOCK_DGRAM),
        tcp=tuple(one for one in every if one.type == socket.SOCK_STREAM),
        unfit=unfit,
    )


@contextmanager
def _said(what: str) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise MissingFeatureError(
            f"{what}: transparent sockets need CAP_NET_ADMIN ({error.strerror}); run as root or grant the capability"
        ) from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise KernelError(f"{what} is in use by another program; stop it or set another dns.listenPort") from error
        raise KernelError(f"{what}: {error.strerror}") from error
