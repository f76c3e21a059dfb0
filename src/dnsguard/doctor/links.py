"""Pod links: that there are some, and that they are of a kind that can be governed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from dnsguard.config.groups import Ebpf
from dnsguard.core.errors import MissingFeatureError
from dnsguard.core.words import some
from dnsguard.doctor.findings import Finding, ok, problem, warning
from dnsguard.doctor.node import Node, link_towards
from dnsguard.enforce.bpf.attach import require_ethernet

MOST_NAMED: Final = 5
_BRANCH: Final = "vlan.eth"
"""How the AWS VPC CNI calls the links of branch network interfaces (security groups for pods)."""
_BRIDGES: Final = frozenset({"bridge", "openvswitch"})


def check_matched(node: Node) -> Iterator[Finding]:
    names = [link.name for link in node.pod_links]
    if names:
        links = f"{len(names)} pod link{'s' if len(names) > 1 else ''}"
        yield ok("pods.interfaces", f"{links}: {some(names, MOST_NAMED)}")
        return
    there = ", ".join(link.name for link in node.links if link.name != "lo")
    found = f"no link is called {' or '.join(node.settings.pods.interfaces)}; there are {there or 'none'}"
    yield warning(
        "pods.interfaces", found, "fine while no pod runs here; else write the beginning of their names there"
    )


def check_bridged(node: Node) -> Iterator[Finding]:
    """A bridge hands packets on before the IP hooks see them."""
    for link in node.pod_links:
        master = node.link(link.master)
        if master is not None and master.kind in _BRIDGES:
            found = (
                f"{link.name} is a port of {master.kind} {master.name}: pods on it are not governed among each other"
            )
            yield problem("bridge port", found, "use a CNI that routes pod links (ptp, Calico, AWS VPC CNI, kindnet)")


def check_branches(node: Node) -> Iterator[Finding]:
    found = [link.name for link in node.links if link.name.startswith(_BRANCH)]
    if found:
        text = f"{found[0]} belongs to AWS security groups for pods: in strict mode such pods are not governed"
        yield problem("security groups", text, "set POD_SECURITY_GROUP_ENFORCING_MODE=standard, or use none for pods")


def check_ethernet(node: Node) -> Iterator[Finding]:
    """The eBPF program reads frames from their Ethernet header on."""
    if node.settings.enforcement.ebpf is Ebpf.OFF:
        return
    for link in node.pod_links:
        try:
            require_ethernet(link.name)
        except MissingFeatureError as error:
            say = problem if node.settings.enforcement.ebpf is Ebpf.ON else warning
            what, _, remedy = str(error).partition("; ")
            yield say("pod link", what, remedy)
        except OSError:  # gone meanwhile
            continue


def check_upstream_is_no_pod(node: Node) -> Iterator[Finding]:
    """A resolver that runs as a governed pod asks itself in a circle."""
    governed = {link.number: link.name for link in node.pod_links}
    excluded = {str(address) for address in node.settings.pods.exclude}
    for upstream in node.settings.upstreams:
        address = str(upstream.address)
        link = governed.get(link_towards(address))
        if link is not None and address not in excluded:
            found = f"upstream {address} is a governed pod on {link}: what it asks itself is refused or goes round"
            yield problem("upstream", found, f"add {address} to pods.exclude")
