"""The service as systemd knows it: there, enabled, and before the pods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from dnsguard.doctor.findings import Finding, Level, ok, problem, unseen, warning
from dnsguard.doctor.node import Node
from dnsguard.doctor.process import CAPABILITIES
from dnsguard.doctor.systemd import SERVICE, SOCKET, Refused, ports, runs_the_node, show

UNITS: Final = (SERVICE, "dnsguard-early.service", SOCKET)
_KUBELET: Final = "kubelet.service"
_BOTH: Final = f"systemctl stop {SOCKET} {SERVICE} && systemctl start {SOCKET} {SERVICE}"
"""A restart of both may begin with the socket, which systemd refuses to open while its service runs."""


def check_units(node: Node) -> Iterator[Finding]:
    if not runs_the_node(node):
        yield ok("systemd", "not used on this node: start dnsguard before the pods by other means")
        return
    try:
        units = {name: show(name) for name in (*UNITS, _KUBELET)}
    except Refused as error:
        yield unseen("systemd", str(error), "start it, or run it where systemd is")
        return
    for name in UNITS:
        found = unit(name, units[name])
        idle = None if name != SOCKET or found.level is not Level.OK else unused(units, node.settings.dns.listen_port)
        yield idle or found
    yield from privileges(units[SERVICE])
    yield from order(units)


def unit(name: str, shown: Mapping[str, str]) -> Finding:
    """What `systemctl show` says of a unit that should be there."""
    if shown.get("LoadState") != "loaded":
        return warning(name, "is not installed", "install it: `make install`, or the package")
    if shown.get("ActiveState") == "failed":
        return problem(name, "has failed", f"systemctl status {name}")
    if shown.get("ActiveState") in ("activating", "deactivating"):
        return _unsettled(name, shown)
    if shown.get("UnitFileState") not in ("enabled", "static", "linked", "indirect", "alias"):
        return problem(name, "is not enabled: after a reboot pods run without it", f"systemctl enable {name}")
    return ok(name, f"{shown.get('UnitFileState')}, {shown.get('ActiveState')}")


def _unsettled(name: str, shown: Mapping[str, str]) -> Finding:
    """On its way to something, or round and round: whoever fails to start is started again."""
    if shown.get("SubState") != "auto-restart" and shown.get("NRestarts", "0") == "0":
        return warning(name, f"is {shown['ActiveState']}", "look again when it is done")
    why = shown.get("StatusText") or "its log says why"
    return problem(name, f"does not get ready, and is started again: {why}", f"journalctl -u {name} -p err")


def unused(units: Mapping[str, Mapping[str, str]], port: int) -> Finding | None:
    """Why the daemon does not take its queries from the socket unit, when there is a reason."""
    state = units[SOCKET].get("ActiveState")
    if units[SERVICE].get("ActiveState") == "active" and state != "active":
        found = f"is {state} beside a running daemon: a restart loses queries"
        return warning(SOCKET, found, _BOTH)
    there = ports(units[SOCKET])
    if there and there != {port}:
        listed = ", ".join(map(str, sorted(there)))
        found = f"listens on port {listed}, dns.listenPort is {port}: it is not used, and a restart loses queries"
        return warning(SOCKET, found, f"say the port there, too: systemctl edit {SOCKET} && {_BOTH}")
    return None


def privileges(shown: Mapping[str, str]) -> Iterator[Finding]:
    """That a service which does not run as root is given what it needs."""
    if shown.get("LoadState") != "loaded" or shown.get("User", "") in ("", "root"):
        return
    given = shown.get("AmbientCapabilities", "").upper().split()
    if missing := [name for name in CAPABILITIES if name not in given]:
        found = f"runs as {shown['User']} without {', '.join(missing)}"
        yield problem(f"{SERVICE} capabilities", found, f"AmbientCapabilities={' '.join(CAPABILITIES)} in the unit")
    else:
        yield ok(f"{SERVICE} capabilities", f"runs as {shown['User']} with {', '.join(CAPABILITIES)}")


def order(units: Mapping[str, Mapping[str, str]]) -> Iterator[Finding]:
    """No pod may start before enforcement."""
    if units[_KUBELET].get("LoadState") != "loaded" or units[SERVICE].get("LoadState") != "loaded":
        return
    before = _KUBELET in units[SERVICE].get("Before", "").split()
    after = SERVICE in units[_KUBELET].get("After", "").split()
    if before or after:
        yield ok("boot order", f"{SERVICE} is before {_KUBELET}")
    else:
        remedy = f"Before={_KUBELET} in {SERVICE}"
        yield problem("boot order", f"{SERVICE} is not before {_KUBELET}: pods may run before enforcement", remedy)
