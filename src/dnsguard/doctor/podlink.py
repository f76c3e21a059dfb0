"""A pod link for a moment: a network namespace without a name, and a pair of links into it.

The namespace lives by an open descriptor, and the pair with the namespace: both are gone when this process is, however
it ends, and with them the addresses, the routes and what dnsguard put on the link.
"""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from ipaddress import ip_address
from typing import Any, Final, Self, TypeVar

from pyroute2 import IPRoute

from dnsguard.core.errors import KernelError
from dnsguard.doctor.node import FAMILIES, Node, Refusal

T = TypeVar("T")

ADDRESSES: Final = ("203.0.113.253", "2001:db8:646f:63::fd")
"""Of the pod: from the blocks for documentation, which nobody has (RFC 5737, RFC 3849)."""
GATEWAYS: Final = ("169.254.1.1", "fe80::1")
_ENDS: Final = tuple(zip(ADDRESSES, GATEWAYS, strict=True))[: len(FAMILIES)]
_MAC: Final = "ee:ee:ee:ee:ee:ee"
_NEWNET: Final = 0x40000000
_LONGEST_NAME: Final = 15
_libc = ctypes.CDLL(None, use_errno=True)


def link_name(patterns: Iterable[str]) -> str:
    """A name that `pods.interfaces` matches and no link has. Raises KernelError when it names single links only."""
    mark = f"dg{os.getpid() % 100_000}"
    for pattern in patterns:
        if pattern.endswith("*") and len(pattern) - 1 + len(mark) <= _LONGEST_NAME:
            return pattern[:-1] + mark
    raise KernelError("pods.interfaces has no pattern with a `*` that leaves room for a name")


class PodLink:
    """`with PodLink(name) as pod:` the node has a link of that name with `ADDRESSES` routed to it. Raises what
    is in `node.Refusal`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> Self:
        self._namespace = _new_namespace()
        try:
            with IPRoute() as node:
                self._node_side(node)
            self.inside(self._pod_side)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with suppress(*Refusal), IPRoute() as node:
            node.link("del", ifname=self.name)
        os.close(self._namespace)

    def inside(self, do: Callable[[], T]) -> T:
        """What `do()` returns or raises, done in the pod's namespace."""
        return _in_thread(self._namespace, do)

    def _node_side(self, node: IPRoute) -> None:
        peer = {"ifname": "eth0", "net_ns_fd": self._namespace}
        node.link("add", ifname=self.name, kind="veth", address=_MAC, peer=peer)
        self.number: int = node.link_lookup(ifname=self.name)[0]
        node.link("set", index=self.number, state="up")
        if socket.AF_INET6 in FAMILIES:
            node.addr("add", index=self.number, address=GATEWAYS[1], prefixlen=64, flags=_NODAD)
        for address, _ in _ENDS:
            node.route("add", dst=_host(address), oif=self.number, scope=253)

    def _pod_side(self) -> None:
        with IPRoute() as pod:
            link: int = pod.link_lookup(ifname="eth0")[0]
            pod.link("set", index=link, state="up")
            for address, gateway in _ENDS:
                _join(pod, link, address, gateway)


_NODAD: Final = 0x02
"""IFA_F_NODAD: usable at once."""


def _join(pod: IPRoute, link: int, address: str, gateway: str) -> None:
    version = ip_address(address).version
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    flags: dict[str, Any] = {} if version == 4 else {"flags": _NODAD}
    pod.addr("add", index=link, address=address, prefixlen=32 if version == 4 else 128, **flags)
    pod.neigh("add", dst=gateway, lladdr=_MAC, ifindex=link, state=0x80, family=family)
    if version == 4:
        pod.route("add", dst=f"{gateway}/32", oif=link, scope=253)
    pod.route("add", dst="default", gateway=gateway, oif=link, family=family)


def _host(address: str) -> str:
    return f"{address}/{ip_address(address).max_prefixlen}"


def _new_namespace() -> int:
    """A descriptor of a new network namespace, made in a thread that ends in it."""

    def make() -> int:
        if _libc.unshare(_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), "unshare")
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    return _in_thread(None, make)


def _in_thread(namespace: int | None, do: Callable[[], T]) -> T:
    result: list[T] = []
    failure: list[BaseException] = []

    def enter_and_do() -> None:
        try:
            if namespace is not None and _libc.setns(namespace, _NEWNET) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), "setns")
            result.append(do())
        except BaseException as error:  # handed to the caller's thread, which raises it
            failure.append(error)

    thread = threading.Thread(target=enter_and_do, name="doctor's pod")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


def asked_addresses(node: Node) -> dict[int, str]:
    """Whom a pod of this node would ask, by IP version: an intercepted resolver, an upstream, or nobody."""
    wanted = node.settings.dns.intercept or tuple(upstream.address for upstream in node.settings.upstreams)
    nobody = {4: "192.0.2.53", 6: "2001:db8:646f:63::53"}
    return {v: next((str(one) for one in wanted if one.version == v), nobody[v]) for v in (4, 6)}
