"""What the daemon's process needs: privilege, descriptors, ports, folders and room."""

from __future__ import annotations

import errno
import os
import pwd
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from dnsguard.config.groups import Ebpf
from dnsguard.control.gaps import gap_texts
from dnsguard.doctor.findings import Finding, ok, problem, unseen, warning
from dnsguard.doctor.node import Node
from dnsguard.doctor.readable import USER
from dnsguard.doctor.systemd import SOCKET, Refused, ports, runs_the_node, show
from dnsguard.enforce.privilege import EBPF_ONLY, holds

CAPABILITIES: Final = ("CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON")
FREE: Final = 64 << 20
"""Octets that state and runtime folders should have left."""


def check_daemon(node: Node) -> Iterator[Finding]:
    """Whether it runs, is ready, and enforces on every link as configured."""
    if node.hidden:
        yield unseen("daemon", node.hidden)
    elif node.daemon is None:
        remedy = "when both files are right and `dnsguard check` passes: systemctl start dnsguard"
        yield warning("daemon", "does not run: what follows is how it would find the node", remedy)
    elif not node.daemon["ready"]:
        yield problem("daemon", f"is not ready: it waits for {node.daemon['missing']}", "look at its log")
    else:
        yield ok("daemon", f"runs (version {node.daemon['version']}, mode {node.daemon['mode']}), and is ready")
    for text in gap_texts(node.daemon) if node.daemon is not None else ():
        yield warning("daemon", text, "put that right, and restart it where the line is on no link")


def check_capabilities(node: Node) -> Iterator[Finding]:
    """Of the daemon while it runs, else of whoever asks."""
    pid = str(node.daemon["pid"]) if node.daemon is not None else "self"
    who = f"daemon (pid {pid})" if node.daemon is not None else "this process"
    off = node.settings.enforcement.ebpf is Ebpf.OFF
    needed = [name for name in CAPABILITIES if not (off and name in EBPF_ONLY)]
    try:
        missing = [name for name in needed if not holds(name, pid, node.proc)]
    except OSError as error:
        yield unseen("capabilities", f"of the {who}: {error.strerror}")
        return
    if not missing:
        yield ok("capabilities", f"{who} has {', '.join(needed)}")
    elif node.daemon is None:
        yield unseen("capabilities", f"{who} lacks {', '.join(missing)}")
    else:
        remedy = "name them in AmbientCapabilities and CapabilityBoundingSet of the unit, and restart"
        yield problem("capabilities", f"the {who} lacks {', '.join(missing)}", remedy)


def check_descriptors(node: Node) -> Iterator[Finding]:
    """Each pod may hold `limits.tcpConnections`; sockets to upstreams and the daemon's own come on top."""
    pods = max(len(node.pod_links), 1)
    wanted = pods * node.settings.limits.tcp_connections + 512
    pid = str(node.daemon["pid"]) if node.daemon is not None else "self"
    try:
        most = _most_descriptors(node.proc / pid / "limits")
    except OSError as error:
        yield unseen("file descriptors", f"the daemon's limit cannot be read: {error.strerror}")
        return
    if most is not None and most < wanted:
        found = f"at most {most}; {pods} pods may need {wanted}"
        yield warning("file descriptors", found, f"LimitNOFILE={wanted} in the unit, or a lower limits.tcpConnections")
    else:
        yield ok("file descriptors", f"at most {'any number' if most is None else most}")


def _most_descriptors(limits: Path) -> int | None:
    """The hard limit of a process, None when it has none. By proc(5): prlimit(2) of another user's process needs
    CAP_SYS_RESOURCE, which root lacks in many containers."""
    line = next(line for line in limits.read_text().splitlines() if line.startswith("Max open files"))
    hard = line.split()[4]
    return None if hard == "unlimited" else int(hard)


def check_listen_port(node: Node) -> Iterator[Finding]:
    port = node.settings.dns.listen_port
    if node.hidden:
        yield unseen("dns.listenPort", "whether the daemon has it is not known")
        return
    places = [("0.0.0.0", socket.AF_INET), ("::", socket.AF_INET6)]
    taken = [kind for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM) for place in places if _taken(*place, kind, port)]
    if node.daemon is not None:
        if taken:
            yield ok("dns.listenPort", f"{port} is the daemon's")
        else:
            yield problem("dns.listenPort", f"a daemon runs, and nobody listens on {port}", "restart it")
    elif taken and _systemd_holds(node, port):
        yield ok("dns.listenPort", f"{port} is held by {SOCKET}: queries wait there for the daemon")
    elif taken:
        what = "TCP" if taken[0] == socket.SOCK_STREAM else "UDP"
        remedy = "stop that program, or set dns.listenPort to a free port"
        yield problem("dns.listenPort", f"{what} port {port} is taken", remedy)
    else:
        yield ok("dns.listenPort", f"{port} is free")


def check_metrics_port(node: Node) -> Iterator[Finding]:
    listen = node.settings.metrics.listen
    if listen is None:
        yield ok("metrics.listen", "not used")
        return
    if node.hidden:
        yield unseen("metrics.listen", "whether the daemon has it is not known")
        return
    family = socket.AF_INET if listen.address.version == 4 else socket.AF_INET6
    taken = _taken(str(listen.address), family, socket.SOCK_STREAM, listen.port)
    if taken and node.daemon is None:
        yield problem("metrics.listen", f"{listen} is taken", "stop that program, or set metrics.listen to a free port")
    elif node.daemon is not None and not taken:
        yield problem("metrics.listen", f"a daemon runs, and nobody listens on {listen}", "look at its log")
    else:
        yield ok("metrics.listen", f"{listen} is {'the daemon' + chr(39) + 's' if taken else 'free'}")


def _taken(address: str, family: int, kind: int, port: int) -> bool:
    with socket.socket(family, kind) as trial:
        if family == socket.AF_INET6:
            trial.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_STREAM:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that are ending do not count
        try:
            trial.bind((address, port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def _systemd_holds(node: Node, port: int) -> bool:
    if not runs_the_node(node):
        return False
    try:
        shown = show(SOCKET)
    except Refused:
        return False
    return shown.get("ActiveState") == "active" and port in ports(shown)


def check_folders(node: Node) -> Iterator[Finding]:
    """There or to be made, the daemon's own, and with room."""
    user = _user(node)
    for key, folder in (("paths.state", node.settings.paths.state), ("paths.runtime", node.settings.paths.runtime)):
        yield _folder(key, folder, user)


def _user(node: Node) -> int:
    """Whose folders they should be: those of who runs the daemon, or would."""
    if node.daemon is not None:
        return (node.proc / str(node.daemon["pid"])).stat().st_uid
    try:
        return pwd.getpwnam(USER).pw_uid
    except KeyError:
        return 0


def _folder(key: str, folder: Path, user: int) -> Finding:
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        mode = there.stat()
        free = shutil.disk_usage(there).free
    except PermissionError:
        return unseen(key, f"{folder} cannot be looked at")
    if not there.is_dir():
        return problem(key, f"{there} is no folder", "remove it, or choose another place")
    if there == folder and mode.st_mode & 0o002:
        return problem(key, f"{folder} is writable by everybody", f"chmod 0750 {folder}")
    if there == folder and user and mode.st_uid != user:
        return problem(
            key, f"{folder} belongs to user {mode.st_uid}, the daemon is {user}", f"chown -R {user} {folder}"
        )
    if free < FREE:
        found = f"{free >> 20} MB are left for {folder}"
        return problem(key, found, "make room: what is not written is lost at a restart")
    if os.statvfs(there).f_flag & os.ST_RDONLY:
        return problem(key, f"{there} is read-only", "mount it read-write, or choose another place")
    return ok(key, f"{folder} {'is there' if there == folder else 'is made at the start'}, {free >> 20} MB free")
