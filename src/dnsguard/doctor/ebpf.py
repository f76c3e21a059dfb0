"""The eBPF line: whether the node can have it, and whose programs stand in front of it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Final, NamedTuple

from dnsguard.config.groups import Ebpf
from dnsguard.core.errors import DnsguardError
from dnsguard.doctor.findings import Finding, ok, problem, unseen, warning
from dnsguard.doctor.node import Node, NodeLink
from dnsguard.enforce.bpf import clsact, libbpf, pins, syscall
from dnsguard.enforce.bpf.hooks import HOOKS, Hook
from dnsguard.enforce.bpf.load import load
from dnsguard.enforce.bpf.tcx import has_tcx
from dnsguard.enforce.privilege import holds

_TAKERS: Final = {"cil_": "Cilium", "bpf_lxc": "Cilium", "cali_": "Calico's eBPF data plane", "calico_": "Calico's"}
"""How the programs of those begin that take a packet before any other decides."""


class Foreign(NamedTuple):
    """A program of another's on a pod link; `first`: before ours, or where there is none of ours."""

    number: int
    name: str
    by: str
    first: bool


def check_wanted(node: Node) -> Iterator[Finding]:
    """The library, the privilege, and a trial of the program: into the kernel, on no link, and out again."""
    if node.settings.enforcement.ebpf is Ebpf.OFF:
        yield ok("eBPF", "not used: enforcement.ebpf is Off")
        return
    say = problem if node.settings.enforcement.ebpf is Ebpf.ON else warning
    if missing := [name for name in ("CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN") if not holds(name)]:
        yield unseen("eBPF", f"the program cannot be tried without {missing[0]}")
        return
    try:
        version = libbpf.version()
        load(None, {}).close()
        way = "tcx" if has_tcx() else "clsact filters (before 6.6: no tcx)"
    except DnsguardError as error:
        remedy = "put that right, or set enforcement.ebpf: Off: nftables enforces alone"
        yield say("eBPF", str(error).splitlines()[0], remedy)
    else:
        yield ok("eBPF", f"the kernel takes the program; libbpf {version}; attached by {way}")


def check_bpffs(node: Node) -> Iterator[Finding]:
    """Where maps and programs stay over a restart."""
    if node.settings.enforcement.ebpf is Ebpf.OFF:
        return
    place = node.settings.paths.bpffs
    say = problem if node.settings.enforcement.ebpf is Ebpf.ON else warning
    try:
        mounted = pins.on_bpffs(place)
        there = place.is_dir()
    except PermissionError:
        yield unseen("bpffs", f"{place} cannot be looked at")
        return
    if mounted:
        yield ok("bpffs", f"{place} is {'there' if there else 'made at the start'}, on a bpffs")
    elif place.is_relative_to(pins.MOUNT_POINT) and node.daemon is None:
        yield ok("bpffs", f"none at {pins.MOUNT_POINT}: the service mounts it when it starts")
    else:
        yield say("bpffs", f"{place} is on none", f"mount -t bpf bpf {pins.MOUNT_POINT}, and have paths.bpffs below it")


def check_programs(node: Node) -> Iterator[Finding]:
    """Others' programs that packets of pods meet before ours."""
    try:
        found = [(link, hook, one) for link in node.pod_links for hook in HOOKS for one in foreign(link, hook)]
    except PermissionError as error:
        yield unseen("eBPF programs on pod links", error.strerror or str(error))
        return
    for link, hook, one in found:
        subject = f"{link.name} {hook.name}"
        what = f"program {one.number} ({one.name or 'no name'}, {one.by})"
        taker = next((owner for name, owner in _TAKERS.items() if one.name.startswith(name)), None)
        if taker is not None:
            remedy = "dnsguard cannot govern such a node: use that program's own policies"
            yield problem(subject, f"{what} is of {taker}: it takes packets before nftables", remedy)
        elif one.first:
            remedy = "if it ends with TC_ACT_OK nothing behind it decides; the daemon puts its own first"
            yield warning(subject, f"{what} stands in front", remedy)
    if not found:
        yield ok("eBPF programs on pod links", "none of others")


def foreign(link: NodeLink, hook: Hook) -> list[Foreign]:
    """Others' programs on a hook of a link, in the order of packets. Raises PermissionError."""
    behind = False
    found = []
    for number, by, title in (*_by_tcx(link, hook), *_by_filter(link, hook)):
        name = _name(number)
        if name == hook.program or title.startswith("dnsguard"):
            behind = True
        else:
            found.append(Foreign(number, name or title, by, not behind))
    return found


def _by_tcx(link: NodeLink, hook: Hook) -> Iterator[tuple[int, str, str]]:
    try:
        attached = syscall.prog_query(link.number, hook.tcx)
    except PermissionError:
        raise
    except OSError:  # no tcx, or no such link
        return
    yield from ((one.program, "tcx", "") for one in attached)


def _by_filter(link: NodeLink, hook: Hook) -> Iterator[tuple[int, str, str]]:
    try:
        found = clsact.filters_of(link.number, hook)
    except OSError as error:
        if error.errno == errno.EPERM:
            raise
        return
    yield from ((one.program, f"tc filter, pref {one.preference}", one.name) for one in found if one.kind == "bpf")


def _name(number: int) -> str:
    try:
        fd = syscall.prog_by_id(number)
    except FileNotFoundError:
        return ""
    try:
        return syscall.prog_info(fd).name
    finally:
        os.close(fd)
