"""A real query through a pod link of our own: does it come to the listener, and the reply back to the pod?

While the daemon runs, it is asked. While it does not, the doctor intercepts on its own link as dnsguard would, with
the configured mark, rule priority and routing table: what another table does to such a query shows before the daemon
is there. Where it fails, the kernel's trace names the chain that dropped the packet.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Final

from dnsguard.core.errors import DnsguardError
from dnsguard.core.model import Seconds
from dnsguard.daemon.assembly import interception_route
from dnsguard.doctor.findings import Finding, ok, problem, unseen, warning
from dnsguard.doctor.node import FAMILIES, Node, Refusal
from dnsguard.doctor.podlink import ADDRESSES, PodLink, asked_addresses, link_name
from dnsguard.doctor.stand_in import StandIn, sweep
from dnsguard.doctor.trace import Dropping, Trace, legacy_tables
from dnsguard.enforce.nftables.session import TABLE, Session
from dnsguard.enforce.privilege import holds

PATIENCE: Final[Seconds] = 2.0
QUESTION: Final = (
    b"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + b"\x06doctor\x08dnsguard\x07invalid\x00" + b"\x00\x01\x00\x01"
)
"""After the ID: recursion desired, one question of type A. `.invalid` is nobody's (RFC 6761)."""
KINDS: Final = ((socket.SOCK_DGRAM, "UDP"), (socket.SOCK_STREAM, "TCP"))


def check_query(node: Node) -> Iterator[Finding]:
    if not (holds("CAP_NET_ADMIN") and holds("CAP_SYS_ADMIN")):
        yield unseen("a pod's query", "no pod link can be made without CAP_NET_ADMIN and CAP_SYS_ADMIN")
        return
    try:
        sweep(node.settings.interception.table)
        with ExitStack() as made:
            if node.daemon is None and _left_behind():
                found = "the daemon does not run, and what it left in the kernel keeps queries from everybody"
                yield warning("a pod's query", found, "start it, or run `dnsguard cleanup`; then look again")
                return
            pod = made.enter_context(PodLink(link_name(node.settings.pods.interfaces)))
            trace = made.enter_context(Trace(pod.name))
            if node.daemon is None:
                made.enter_context(StandIn(pod.name, trace, interception_route(node.settings)))
            yield from _asked(node, pod, trace)
    except (*Refusal, DnsguardError) as error:
        yield unseen("a pod's query", f"no pod link could be made to ask through: {error}", "look at the kernel's log")


def _left_behind() -> bool:
    with closing(Session()) as session:
        return session.table() is not None


def _asked(node: Node, pod: PodLink, trace: Trace) -> Iterator[Finding]:
    who = "the daemon" if node.daemon is not None else "a stand-in for the daemon"
    for version, resolver in asked_addresses(node).items():
        if version == 6 and node.sysctl("net/ipv6/conf/all/disable_ipv6") != "0":
            continue
        for kind, protocol in KINDS:
            subject = f"a pod's query over {protocol} and IPv{version}"
            trace.drops(0.01)  # of what the link said when it came up
            if pod.inside(lambda: replied(resolver, kind)):  # noqa: B023
                yield ok(subject, f"reached {who}, and the reply the pod")
            else:
                yield _lost(subject, trace.drops(), node)


def _lost(subject: str, drops: list[Dropping], node: Node) -> Finding:
    others = [drop for drop in drops if (drop.family, drop.table) != ("inet", TABLE)]
    if others:
        mark = node.settings.interception.mark
        remedy = f"let packets with mark {mark:#x}/{mark:#x} and port 53 pass there before that"
        return problem(subject, f"was dropped by {others[0]}", remedy)
    if drops:
        return problem(subject, f"was dropped by dnsguard's own {drops[0].chain}", "look at the daemon's log")
    if legacy := legacy_tables():
        found = f"got no reply, and no nftables chain dropped it; the old iptables has {', '.join(legacy)}"
        return problem(subject, found, "look at `iptables-legacy -L -v`: no trace shows its rules")
    found = "got no reply, and no nftables chain dropped it"
    return problem(subject, found, "look at eBPF programs on the links, and at policy rules (`ip rule`)")


def replied(resolver: str, kind: socket.SocketKind) -> bool:
    """Whether a question gets any reply from the address that was asked."""
    family = socket.AF_INET6 if ":" in resolver else socket.AF_INET
    query = os.urandom(2) + QUESTION
    with socket.socket(family, kind) as client:
        client.settimeout(PATIENCE)
        try:
            client.bind((ADDRESSES[FAMILIES.index(family)], 0))
            client.connect((resolver, 53))
            if kind == socket.SOCK_DGRAM:
                client.send(query)
                return client.recv(4096)[:2] == query[:2]
            client.sendall(len(query).to_bytes(2) + query)
            return client.recv(4096)[2:4] == query[:2]
        except OSError:
            return False
