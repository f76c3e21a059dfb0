"""Every event's level, message and advice, as one table.

A template's fields are the event's own; `{who}` is the pod's name, else its address. A MESSAGE_ID never changes once
released: journal catalogs and alert rules refer to it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from dnsguard.engine.contracts import EventKind

DEBUG, INFO, WARNING, ERROR = logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR


@dataclass(frozen=True, slots=True)
class Description:
    """What an operator is told about one kind of event. `limited`: pods can provoke it, so it has a rate limit."""

    level: int
    template: str
    message_id: UUID
    advice: str
    limited: bool = False


CATALOG: Final[dict[EventKind, Description]] = {
    EventKind.STARTED: Description(
        INFO,
        "dnsguard {version} starts",
        UUID("1166f648a0894437bd0271984a02fe38"),
        "Nothing to do.",
    ),
    EventKind.READY: Description(
        INFO,
        "ready: DNS is intercepted and enforcement is in place",
        UUID("2794f5bfe78f426fa9e93e1ac19d74a0"),
        "Nothing to do.",
    ),
    EventKind.STOPPING: Description(
        INFO,
        "stopping: queries in flight are answered first",
        UUID("290ef0046a804e8c9e0b72c430ca9ad5"),
        "Nothing to do.",
    ),
    EventKind.STOPPED: Description(
        INFO,
        "stopped; enforcement stays in place",
        UUID("be0b00591a2549d0821460b0037a5f53"),
        "Start dnsguard again, or run `dnsguard cleanup` to take every rule out of the kernel.",
    ),
    EventKind.FEATURE_LEFT_OUT: Description(
        INFO,
        "{feature} is left out: {reason}",
        UUID("a6b0e218ec3e43fe819e081b6843bb02"),
        "Set the key explicitly to silence this, or use a version that has the feature.",
    ),
    EventKind.POLICY_LOADED: Description(
        INFO,
        "policy generation {generation} is in force",
        UUID("9f2c3dc6747b450591d9f75bc7eb2999"),
        "Nothing to do.",
    ),
    EventKind.POLICY_REJECTED: Description(
        ERROR,
        "{reason}",
        UUID("fbe581fd20204c8a849a43cab186e10f"),
        "The policy before stays in force. Correct the file at the place named and run `dnsguard reload`.",
    ),
    EventKind.POLICY_WARNING: Description(
        WARNING,
        "{reason}",
        UUID("91aeaae4436f4caaa57ef3eed168302f"),
        "Look at the place named: the file is valid, but probably does not mean what was intended.",
    ),
    EventKind.POD_CAME: Description(
        INFO,
        "{who} came on {link}",
        UUID("ee434c7f412a48c8a4d6b5540078c9a2"),
        "Nothing to do.",
    ),
    EventKind.POD_CHANGED: Description(
        INFO,
        "{who} on {link} changed: {reason}",
        UUID("653bb0e5e6aa43dc9abcfd6c9a0cb559"),
        "Nothing to do.",
    ),
    EventKind.POD_WENT: Description(
        INFO,
        "{who} went from {link}",
        UUID("bdb01abef66041c7aa74a60c12c88ebf"),
        "Nothing to do.",
    ),
    EventKind.POD_CONFLICT: Description(
        ERROR,
        "everything is denied to {who}: {reason}",
        UUID("f077373a53ff4fdbb03168aa0ba5467b"),
        "Give all addresses of the pod the same name and policies where two lines are named; else raise the limit or "
        "give more rules the same ports.",
    ),
    EventKind.NODE_PROBLEM: Description(
        WARNING,
        "{reason}",
        UUID("5c0f4f3e2b1d4f0c9e57a1d2b8c36e04"),
        "Look at the link, route or rule named: something on this node is not as dnsguard needs it.",
    ),
    EventKind.SOCKET_NOT_USED: Description(
        WARNING,
        "a socket of dnsguard.socket is not used: {reason}",
        UUID("44c85c0293f242389a092fbc995ef907"),
        "dnsguard listens on a socket of its own. Set the unit's addresses as dns.listenPort is, with `systemctl edit "
        "dnsguard.socket`, or disable the unit.",
    ),
    EventKind.QUERY_ALLOWED: Description(
        INFO,
        "{who} resolves {name} ({type})",
        UUID("5142958dbce14b00944e008113bca5c2"),
        "Nothing to do. Set log.queries to Denied to write fewer lines.",
        limited=True,
    ),
    EventKind.QUERY_DENIED: Description(
        INFO,
        "{who} may not resolve {name} ({type}): {reason}",
        UUID("7a46d40837fd4be587dd2d463afaf428"),
        "If the pod needs this name, add it to one of the pod's policies; `dnsguard explain` shows what decided.",
        limited=True,
    ),
    EventKind.QUERY_REFUSED: Description(
        WARNING,
        "a packet of {who} was not taken as a query: {reason}",
        UUID("24c8198cf8af46abbf7f2ab0791ffbdf"),
        "Look at what the pod sends to port 53: only ordinary DNS questions are answered.",
        limited=True,
    ),
    EventKind.QUERY_LIMITED: Description(
        WARNING,
        "{who} is over its limit {limit}",
        UUID("08c11733c41b409b9eedc97e8c84358e"),
        "Find out why the pod asks so much, or raise the limit of that name under `limits`.",
        limited=True,
    ),
    EventKind.QUERY_FAILED: Description(
        WARNING,
        "{name} ({type}) of {who} could not be answered: {reason}",
        UUID("455da5bb2e47482ebfe1c757a62e908a"),
        "Check the upstreams (`dnsguard status`) and the kernel's log.",
        limited=True,
    ),
    EventKind.QUERY_UNKNOWN_SOURCE: Description(
        WARNING,
        "a query from {pod_ip} on link {link} was dropped: no pod has that address there",
        UUID("c266135249ff467c8f9b040dbe917920"),
        "The address is not routed to that link: a forged source, or a pod that is just being set up.",
        limited=True,
    ),
    EventKind.FORWARDING_LOOP: Description(
        ERROR,
        "{who} asks from an address that serves an upstream: refused, it would go round in circles",
        UUID("702a313950bf4b23a3531c0c65c986b9"),
        "Add the DNS server's pod to pods.exclude.",
        limited=True,
    ),
    EventKind.ANSWER_WITHHELD: Description(
        WARNING,
        "an answer for {name} ({type}) was withheld from {who}, or a part of it: {reason}",
        UUID("4e8116b48d2b4bbca4032fa4f655a219"),
        "If the address is meant to be reachable by name, change answers.protected or the rule that closes it.",
        limited=True,
    ),
    EventKind.ANSWER_STALE: Description(
        WARNING,
        "{who} got an answer for {name} ({type}) that is past its TTL: {reason}",
        UUID("49f7e1a6cd5647569ce8e4f788e52a10"),
        "Check the upstreams: none answered in time.",
        limited=True,
    ),
    EventKind.LEASE_OPENED: Description(
        DEBUG,
        "{address} opens to {who} for {name}",
        UUID("f0ccb39c0e544d8faa7ffbb4e88e65a5"),
        "Nothing to do.",
        limited=True,
    ),
    EventKind.LEASE_ENDED: Description(
        DEBUG,
        "{address} is closed to {who}: the lease of {name} ended",
        UUID("dd5e0abd2a1c4ee0a787b07d1b7b4b11"),
        "Nothing to do.",
        limited=True,
    ),
    EventKind.LEASE_REFUSED: Description(
        ERROR,
        "addresses could not be opened: {reason}",
        UUID("effa8583c5104ababe3676e1c0f3c6af"),
        "Their addresses are closed, and whoever asked for them got SERVFAIL. Raise the limit or the table size named, "
        "or look at the kernel's log.",
        limited=True,
    ),
    EventKind.LEASES_PURGED: Description(
        INFO,
        "{count} leases that the policy no longer justifies were removed",
        UUID("ba41b1e651cd407f99d195b7d3e3f89e"),
        "Nothing to do.",
    ),
    EventKind.FLOW_DENIED: Description(
        INFO,
        "{who} may not connect to {address} port {port}/{protocol}: {reason}",
        UUID("3937973878234fcaa62b3f130bd99087"),
        "If the pod needs it, allow its name or address block on that port; `dnsguard explain` shows what decided.",
        limited=True,
    ),
    EventKind.FLOWS_CUT: Description(
        INFO,
        "{count} flows that the policy no longer justifies were cut",
        UUID("1f530db563394edd8e526aef60d8aad5"),
        "Nothing to do.",
    ),
    EventKind.UPSTREAM_DOWN: Description(
        WARNING,
        "upstream {upstream} does not answer: {reason}",
        UUID("b11dbb9ca77b47c38015e751d6c5274d"),
        "Check that the server runs and is reachable from this node.",
    ),
    EventKind.UPSTREAM_UP: Description(
        INFO,
        "upstream {upstream} answers again",
        UUID("ae17d0deb8d944508e3e54f70867c15c"),
        "Nothing to do.",
    ),
    EventKind.KERNEL_STATE_REPAIRED: Description(
        WARNING,
        "somebody else's change is undone: {what}",
        UUID("c0aabd943a824de3a73436189ee14ca2"),
        "Find out what edits or flushes the node's rules; dnsguard's own must be left alone.",
    ),
    EventKind.KERNEL_STATE_DAMAGED: Description(
        ERROR,
        "{what} is not as it should be and could not be repaired yet: {reason}",
        UUID("1ec81b391bb3470cbb0c7fb1bac55e86"),
        "Pods may be cut off until it is repaired. Look at `nft list table inet dnsguard` and the kernel's log.",
    ),
    EventKind.EVENTS_SUPPRESSED: Description(
        WARNING,
        "{lines} more lines about {who} were left out: {kinds}",
        UUID("0522d1847b9240419e886aa5190a6049"),
        "Raise limits.logLines to see each of them.",
    ),
    EventKind.INTERNAL_ERROR: Description(
        ERROR,
        "unexpected error in {where}: {reason}",
        UUID("0e15d307ae1940af96db27ac3dc8f437"),
        "A defect in dnsguard: please report it with this line. Only the query concerned failed, with SERVFAIL.",
        limited=True,
    ),
}
