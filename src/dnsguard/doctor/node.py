"""The node as the checks see it: settings, links, policy rules and the daemon, read once."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from dnsguard.config.settings import Settings
from dnsguard.control.calls import CallError, Status
from dnsguard.control.client import ControlClient, NotRunningError
from dnsguard.node.links import LinkPatterns
from dnsguard.node.rtnetlink import PolicyRule, Route, read

FAMILIES = (socket.AF_INET, socket.AF_INET6) if Path("/proc/sys/net/ipv6").is_dir() else (socket.AF_INET,)
"""Of this kernel: it may have been started with ipv6.disable=1."""
Refusal = (OSError, NetlinkError)
"""What pyroute2 raises when the kernel says no; its own error is no OSError."""


class NodeLink(NamedTuple):
    """`kind` is empty for hardware; `master` is the link that it is a port of (0: none)."""

    number: int
    name: str
    kind: str
    master: int


@dataclass(frozen=True, slots=True)
class Node:
    """`routes` are those of interception's own table. `daemon` is what it says of itself, None while none runs;
    `hidden`: why it could not be asked. `proc` and `run` are where to look."""

    settings: Settings
    links: Sequence[NodeLink] = ()
    rules: Sequence[PolicyRule] = ()
    routes: Sequence[Route] = ()
    daemon: Status | None = None
    hidden: str = ""
    proc: Path = field(default=Path("/proc"))
    run: Path = field(default=Path("/run"))

    @property
    def pod_links(self) -> list[NodeLink]:
        patterns = LinkPatterns(self.settings.pods.interfaces)
        return [link for link in self.links if link.name in patterns]

    def link(self, number: int) -> NodeLink | None:
        return next((link for link in self.links if link.number == number), None)

    def sysctl(self, name: str) -> str | None:
        """`net/ipv4/ip_forward`; None when there is none."""
        try:
            return (self.proc / "sys" / name).read_text().strip()
        except OSError:
            return None


def look(settings: Settings) -> Node:
    """The node that this process runs on. Netlink tells links, rules and routes to everybody."""
    table = settings.interception.table
    with IPRoute() as kernel:
        links = [_link(message) for message in kernel.get_links()]
        rules = [each for each in _changes(kernel, "get_rules") if isinstance(each, PolicyRule)]
        routes = [each for each in _changes(kernel, "get_routes", table=table) if isinstance(each, Route)]
    daemon, hidden = _daemon(settings)
    return Node(settings, links, rules, routes, daemon, hidden)


def link_towards(address: str) -> int:
    """The number of the link by which the node would send to an address; 0 when nothing leads there."""
    with IPRoute() as kernel:
        try:
            found = kernel.route("get", dst=address, family=_family(address))
        except Refusal:
            return 0
        return next((int(message.get("oif") or 0) for message in found), 0)


def _family(address: str) -> int:
    return socket.AF_INET if ip_address(address).version == 4 else socket.AF_INET6


def _link(message: object) -> NodeLink:
    get = message.get  # type: ignore[attr-defined]  # pyroute2 is not typed
    info = get("linkinfo")
    return NodeLink(message["index"], get("ifname"), (info and info.get("kind")) or "", get("master") or 0)  # type: ignore[index]


def _changes(kernel: IPRoute, what: str, **chosen: int) -> Iterator[object]:
    for family in FAMILIES:
        for message in getattr(kernel, what)(family=family, **chosen):
            if (change := read(message)) is not None:
                yield change.what


def _daemon(settings: Settings) -> tuple[Status | None, str]:
    try:
        found: Status = ControlClient(settings.paths.runtime).call("status")
    except NotRunningError:
        return None, ""
    except CallError as error:
        return None, str(error)
    return found, ""
