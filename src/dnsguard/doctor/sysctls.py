"""Kernel settings under which interception or pods' traffic fails."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from dnsguard.doctor.findings import Finding, ok, problem, warning
from dnsguard.doctor.node import Node
from dnsguard.node.routing import unusable_sysctls

_ROUTED: Final = "packets say themselves by which way they go; dnsguard drops those of pods"
_HARMFUL: Final = {
    "ipv4/conf/{link}/route_localnet": (any, "pods may reach what listens on the node's loopback only"),
    "ipv4/conf/{link}/accept_source_route": (all, _ROUTED),
    "ipv6/conf/{link}/accept_source_route": (all, _ROUTED),
    "ipv6/conf/{link}/seg6_enabled": (all, _ROUTED),
}
"""On when it is so for `all` or for the link (`any`), or only when for both (`all`; linux/inetdevice.h)."""


def check_needed(node: Node) -> Iterator[Finding]:
    """What has to have a certain value."""
    found = unusable_sysctls(node.proc / "sys/net")
    for text in found:
        what, _, remedy = text.partition("; ")
        yield problem("sysctl", what, f"{remedy}: `sysctl -w`, and a file in /etc/sysctl.d")
    if not found:
        yield ok("sysctl", "forwarding and source checks are set as interception needs them")


def check_harmful(node: Node) -> Iterator[Finding]:
    """What should be off where pods are."""
    for pattern, (of_both, otherwise) in _HARMFUL.items():
        everywhere = _is_on(node, pattern.format(link="all"))
        links = [
            link.name for link in node.pod_links if of_both((everywhere, _is_on(node, pattern.format(link=link.name))))
        ]
        if links:
            # A link's name may hold a dot, so the name is given with slashes, which sysctl takes, too.
            name = "net/" + pattern.format(link="all" if everywhere else links[0])
            yield warning("sysctl", f"{name} is on: {otherwise}", f"sysctl -w {name}=0")


def _is_on(node: Node, name: str) -> bool:
    value = node.sysctl(f"net/{name}")
    return value is not None and int(value) > 0


def check_reverse_path(node: Node) -> Iterator[Finding]:
    """dnsguard checks sources itself; strict filtering only drops what it drops, too."""
    values = [node.sysctl(f"net/ipv4/conf/{link}/rp_filter") for link in ("all", *(x.name for x in node.pod_links))]
    strict = any(value == "1" for value in values)
    yield ok(
        "rp_filter", "strict: fine on routed pod links" if strict else "not strict: dnsguard checks sources itself"
    )


def check_conntrack(node: Node) -> Iterator[Finding]:
    """The table of connections: there, and large enough."""
    most, count = (node.sysctl(f"net/netfilter/nf_conntrack_{what}") for what in ("max", "count"))
    if most is None or count is None:
        remedy = "modprobe nf_conntrack; dnsguard loads it with its first rule"
        yield warning("conntrack", "the kernel has not loaded it yet", remedy)
        return
    flows = node.settings.tables.flows
    if int(count) > int(most) * 0.9:
        yield problem(
            "conntrack", f"the table is nearly full: {count} of {most}", "raise net.netfilter.nf_conntrack_max"
        )
    elif int(most) < flows:
        remedy = f"set net.netfilter.nf_conntrack_max to at least {flows}, or tables.flows lower"
        yield warning("conntrack", f"room for {most} connections, tables.flows is {flows}", remedy)
    else:
        yield ok("conntrack", f"{count} of {most} connections")


def check_bridges(node: Node) -> Iterator[Finding]:
    """With this setting a bridged query that TPROXY takes vanishes."""
    on = [name for name in ("iptables", "ip6tables") if node.sysctl(f"net/bridge/bridge-nf-call-{name}") == "1"]
    bridged = [link.name for link in node.pod_links if link.master]
    if on and bridged:
        found = f"bridge-nf-call-{on[0]} is 1 and {bridged[0]} is a bridge port: its queries vanish"
        yield problem("bridge", found, "use a CNI that routes pod links, or set net.bridge.bridge-nf-call-* to 0")
    else:
        yield ok("bridge", "no bridged packet comes to the IP hooks of a pod link")
