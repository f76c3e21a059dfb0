"""Every check, in the order in which they are told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from dnsguard.core.errors import DnsguardError
from dnsguard.doctor import (
    clock,
    ebpf,
    host_network,
    journal,
    kernel,
    links,
    process,
    query,
    routing,
    sysctls,
    units,
    upstreams,
)  # fmt: skip
from dnsguard.doctor.findings import Finding, unseen
from dnsguard.doctor.node import Node, Refusal

Check = Callable[[Node], Iterator[Finding]]

CHECKS: Final[tuple[Check, ...]] = (
    kernel.check_version,
    kernel.check_nftables,
    kernel.check_nflog,
    ebpf.check_wanted,
    ebpf.check_bpffs,
    ebpf.check_programs,
    sysctls.check_needed,
    sysctls.check_harmful,
    sysctls.check_reverse_path,
    sysctls.check_conntrack,
    sysctls.check_bridges,
    links.check_matched,
    links.check_bridged,
    links.check_branches,
    links.check_ethernet,
    host_network.check_host_network,
    links.check_upstream_is_no_pod,
    routing.check_rules,
    routing.check_present,
    routing.check_table,
    routing.check_marks,
    upstreams.check_reachable,
    process.check_daemon,
    query.check_query,
    process.check_capabilities,
    process.check_descriptors,
    process.check_listen_port,
    process.check_metrics_port,
    process.check_folders,
    journal.check_socket,
    clock.check_sleep,
    clock.check_synchronised,
    units.check_units,
)


def examine(node: Node) -> Iterator[Finding]:
    """Every finding, as soon as it is there. A check that cannot look says so, and the next goes on."""
    for check in CHECKS:
        try:
            yield from check(node)
        except (*Refusal, DnsguardError) as error:
            yield unseen(check.__name__.removeprefix("check_").replace("_", " "), str(error), "look at the error")
