"""Links, addresses, routes and rules as small values: read from pyroute2's messages, and what it needs to send them.

Pure. pyroute2 decodes and encodes; `Marshal` keeps it from decoding what can matter to nobody here.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from ipaddress import ip_interface
from typing import Any, NamedTuple

from pyroute2.netlink import NLM_F_DUMP_INTR, NLM_F_REPLACE, NLMSG_DONE, NLMSG_NOOP, nlmsg, rtnl
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from dnsguard.core.model import Address, LinkIndex

GROUPS = (
    rtnl.RTMGRP_LINK
    | (rtnl.RTMGRP_IPV4_IFADDR | rtnl.RTMGRP_IPV4_ROUTE | rtnl.RTMGRP_IPV4_RULE)
    | (rtnl.RTMGRP_IPV6_IFADDR | rtnl.RTMGRP_IPV6_ROUTE | rtnl.RTMGRP_IPV6_RULE)
)
UNICAST, LOCAL = 1, 2
"""Route types."""
KERNEL = 2
"""The protocol of routes that come with an address or a link."""
SCOPE_HOST = 254
RTA_DST = 1
LINK_UP = 0x1
ACTION_TO_TABLE = 1
RULE_INVERTED = 0x2
HEADER = 16
"""Octets of a message before its fixed part."""
LINK_HEADER = 16
ROUTE_HEADER = 20
"""With the table, which the kernel puts before the destination."""
LONGEST_NAME = 20
"""Octets of an attribute that holds an interface's name."""

Message = dict[str, Any]
"""What pyroute2 makes of a message: its fixed part and `header` as keys, its attributes through `get`."""


class Link(NamedTuple):
    number: LinkIndex
    name: str
    up: bool


class LinkAddress(NamedTuple):
    """An address of the node itself, the link that it is on, and what else the node takes in because of it."""

    link: LinkIndex
    address: Address
    shared: frozenset[Address] = frozenset()
    """The network's broadcast addresses, or its routers' anycast address."""


class Route(NamedTuple):
    """One route with a single way out, or none that we can name (`link` 0: multipath, unreachable)."""

    family: int
    table: int
    destination: Address
    length: int
    link: LinkIndex
    type: int = UNICAST
    protocol: int = 0
    priority: int = 0
    tos: int = 0
    preferred_source: bytes = b""

    @property
    def place(self) -> tuple[int, int, bytes, int, int, int]:
        """What a replacing route replaces."""
        return self.family, self.table, self.destination, self.length, self.tos, self.priority

    @property
    def fields(self) -> dict[str, Any]:
        """What pyroute2's `route` takes."""
        return {
            "family": self.family,
            "table": self.table,
            "dst": socket.inet_ntop(self.family, self.destination) if self.length else None,
            "dst_len": self.length,
            "oif": self.link,
            "type": self.type,
            "proto": self.protocol,
            "scope": SCOPE_HOST,
            "priority": self.priority or None,
            "tos": self.tos,
        }


class PolicyRule(NamedTuple):
    """One `ip rule`. `selective`: it also looks at something else than the mark (addresses, interfaces, ports ...)."""

    family: int
    priority: int
    table: int
    mark: int = 0
    mask: int = 0
    protocol: int = 0
    action: int = ACTION_TO_TABLE
    selective: bool = False

    @property
    def fields(self) -> dict[str, Any]:
        """What pyroute2's `rule` takes."""
        asked_for = {"family": self.family, "priority": self.priority, "table": self.table, "action": self.action}
        return {**asked_for, "fwmark": self.mark, "fwmask": self.mask, "protocol": self.protocol}


class Change(NamedTuple):
    """`what` is there, perhaps in the place of another, or is gone."""

    what: Link | LinkAddress | Route | PolicyRule
    there: bool
    replaces: bool


class _NamedLink(ifinfmsg):  # type: ignore[misc]
    """A link with the first of its fifty attributes, which is its name: a seventh of the time."""

    length: int

    def decode_nlas(self, offset: int) -> None:
        self.length = min(self.length, HEADER + LINK_HEADER + LONGEST_NAME)
        super().decode_nlas(offset)


class Marshal(MarshalRtnl):  # type: ignore[misc]
    """Decodes what can matter to a follower; of the rest, some two thirds on a node with many pods, it only says that
    there was something, which costs a tenth."""

    msg_map = MarshalRtnl.msg_map | {rtnl.RTM_NEWLINK: _NamedLink, rtnl.RTM_DELLINK: _NamedLink}
    incomplete = False
    """A dump was changed or broken off under our hands. Set here, cleared by the reader."""

    def parse_one_message(
        self, key: int, flags: int, sequence_number: int, data: bytes, offset: int, length: int
    ) -> Message:
        # pyroute2 shows neither the flags nor the error number of the last message of a dump.
        if flags & NLM_F_DUMP_INTR or (key == NLMSG_DONE and any(data[offset + HEADER : offset + HEADER + 4])):
            self.incomplete = True
        if _passed_over(key, flags, data, offset + HEADER):
            # Not None: a datagram without messages ends a dump.
            return {"header": {"type": NLMSG_NOOP, "flags": flags, "error": None}}
        message: Message = super().parse_one_message(key, flags, sequence_number, data, offset, length)
        return message


def _passed_over(key: int, flags: int, data: bytes, fixed: int) -> bool:
    if key not in _READERS:
        return False
    family = data[fixed]
    if key in (rtnl.RTM_NEWLINK, rtnl.RTM_DELLINK):
        return family != socket.AF_UNSPEC  # a bridge tells of its ports in the same messages
    if family not in _EVERYWHERE or key not in (rtnl.RTM_NEWROUTE, rtnl.RTM_DELROUTE):
        return family not in _EVERYWHERE
    protocol, kind = data[fixed + 5], data[fixed + 7]
    made_with_an_address = protocol == KERNEL and kind != UNICAST and not flags & NLM_F_REPLACE
    return made_with_an_address or data.startswith(_TO_LINK_LOCAL, fixed + ROUTE_HEADER)


def read(message: nlmsg) -> Change | None:
    """None for what is not about a link, an address, a route or a rule. Uses the message up."""
    kind, flags = message["header"]["type"], message["header"]["flags"]
    if kind not in _READERS:
        return None
    what = _READERS[kind](message)
    _untie(message)
    return what and Change(what, kind in _THERE, bool(flags & NLM_F_REPLACE))


def _untie(message: nlmsg) -> None:
    """pyroute2's messages and attributes refer to themselves. Left to the garbage collector, which stops all threads,
    every 4,000 of them would cost the daemon a pause of 5 ms."""
    for attribute in message["attrs"]:
        attribute.cell[1].chain.clear()
    message["attrs"].clear()
    message.chain.clear()


def _link(message: Message) -> Link | None:
    name = message.get("ifname")
    return Link(LinkIndex(message["index"]), name, bool(message["flags"] & LINK_UP)) if name else None


def _own_address(message: Message) -> LinkAddress | None:
    address = message.get("local") or message.get("address")  # the latter is the peer's on a point-to-point link
    if not address:
        return None
    family = message["family"]
    return LinkAddress(LinkIndex(message["index"]), _packed(family, address), frozenset(_shared(message)))


def _shared(message: Message) -> Iterator[Address]:
    """Where a router also listens (fib_add_ifaddr; addrconf_join_anycast, RFC 4291 section 2.6.1)."""
    prefix = message.get("address") or message.get("local")
    network = ip_interface(f"{prefix}/{message['prefixlen']}").network
    if message["family"] == socket.AF_INET6:
        if network.prefixlen < 127:
            yield Address(network.network_address.packed)
        return
    if network.prefixlen < 31:
        yield Address(network.broadcast_address.packed)
    if broadcast := message.get("broadcast"):
        yield _packed(socket.AF_INET, broadcast)


def _route(message: Message) -> Route:
    # Once over the attributes: `get` looks through them all each time.
    found: Message = {attribute[0]: attribute[1] for attribute in message["attrs"] if attribute[0] in _OF_ROUTE}
    family = message["family"]
    return Route(
        family=family,
        table=found.get("RTA_TABLE") or message["table"],
        destination=_packed(family, found.get("RTA_DST", _EVERYWHERE[family])),
        length=message["dst_len"],
        link=LinkIndex(found.get("RTA_OIF", 0)),
        type=message["type"],
        protocol=message["proto"],
        priority=found.get("RTA_PRIORITY", 0),
        tos=message["tos"],
        preferred_source=_packed(family, found["RTA_PREFSRC"]) if "RTA_PREFSRC" in found else b"",
    )


def _rule(message: Message) -> PolicyRule:
    mark = message.get("fwmark", 0)
    narrowed = message["dst_len"] or message["src_len"] or message["tos"] or message["flags"] & RULE_INVERTED
    return PolicyRule(
        family=message["family"],
        priority=message.get("priority", 0),
        table=message.get("table", 0),
        mark=mark,
        mask=message.get("fwmask", 0xFFFFFFFF if mark else 0),
        protocol=message.get("protocol", 0),
        action=message["action"],
        selective=bool(narrowed or any(attribute[0] not in _PLAIN_RULE for attribute in message["attrs"])),
    )


def _packed(family: int, text: str) -> Address:
    return Address(socket.inet_pton(family, text))


_TO_LINK_LOCAL = struct.pack("=HH", 20, RTA_DST) + b"\xfe\x80"
"""How IPv6 routes to link-local addresses, of which every link has some, begin."""
_EVERYWHERE = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}
_OF_ROUTE = frozenset({"RTA_TABLE", "RTA_DST", "RTA_OIF", "RTA_PRIORITY", "RTA_PREFSRC"})
_PLAIN_RULE = frozenset(
    "FRA_" + name
    for name in ("PRIORITY", "FWMARK", "FWMASK", "TABLE", "PROTOCOL", "SUPPRESS_IFGROUP", "SUPPRESS_PREFIXLEN")
)
"""None of them selects packets by anything but the mark."""
_READERS: dict[int, Callable[[Message], Link | LinkAddress | Route | PolicyRule | None]] = {
    **dict.fromkeys((rtnl.RTM_NEWLINK, rtnl.RTM_DELLINK), _link),
    **dict.fromkeys((rtnl.RTM_NEWADDR, rtnl.RTM_DELADDR), _own_address),
    **dict.fromkeys((rtnl.RTM_NEWROUTE, rtnl.RTM_DELROUTE), _route),
    **dict.fromkeys((rtnl.RTM_NEWRULE, rtnl.RTM_DELRULE), _rule),
}
_THERE = frozenset({rtnl.RTM_NEWLINK, rtnl.RTM_NEWADDR, rtnl.RTM_NEWROUTE, rtnl.RTM_NEWRULE})
