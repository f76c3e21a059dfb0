"""The service as systemd knows it: there, enabled, and before the pods."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from typing import Final

from dnsguard.doctor.findings import Finding, ok, problem, unseen, warning
from dnsguard.doctor.node import Node
from dnsguard.doctor.process import CAPABILITIES

UNITS: Final = ("dnsguard.service", "dnsguard-early.service", "dnsguard.socket")
_KUBELET: Final = "kubelet.service"


def check_units(node: Node) -> Iterator[Finding]:
    if not (node.run / "systemd/system").is_dir():
        yield ok("systemd", "not used on this node: start dnsguard before the pods by other means")
        return
    try:
        units = {name: _show(name) for name in (*UNITS, _KUBELET)}
    except (OSError, subprocess.SubprocessError) as error:
        yield unseen("systemd", str(error), "start it, or run it where systemd is")
        return
    for name in UNITS:
        yield unit(name, units[name])
    yield from privileges(units[UNITS[0]])
    yield from order(units)


def unit(name: str, shown: Mapping[str, str]) -> Finding:
    """What `systemctl show` says of a unit that should be there."""
    if shown.get("LoadState") != "loaded":
        return warning(name, "is not installed", "install it: `make install`, or the package")
    if shown.get("ActiveState") == "failed":
        return problem(name, "has failed", f"systemctl status {name}")
    if shown.get("UnitFileState") not in ("enabled", "static", "linked", "indirect", "alias"):
        return problem(name, "is not enabled: after a reboot pods run without it", f"systemctl enable {name}")
    return ok(name, f"{shown.get('UnitFileState')}, {shown.get('ActiveState')}")


def privileges(shown: Mapping[str, str]) -> Iterator[Finding]:
    """That a service which does not run as root is given what it needs."""
    if shown.get("LoadState") != "loaded" or shown.get("User", "") in ("", "root"):
        return
    given = shown.get("AmbientCapabilities", "").upper().split()
    if missing := [name for name in CAPABILITIES if name not in given]:
        found = f"runs as {shown['User']} without {', '.join(missing)}"
        yield problem(f"{UNITS[0]} capabilities", found, f"AmbientCapabilities={' '.join(CAPABILITIES)} in the unit")
    else:
        yield ok(f"{UNITS[0]} capabilities", f"runs as {shown['User']} with {', '.join(CAPABILITIES)}")


def order(units: Mapping[str, Mapping[str, str]]) -> Iterator[Finding]:
    """No pod may start before enforcement."""
    if units[_KUBELET].get("LoadState") != "loaded" or units[UNITS[0]].get("LoadState") != "loaded":
        return
    before = _KUBELET in units[UNITS[0]].get("Before", "").split()
    after = UNITS[0] in units[_KUBELET].get("After", "").split()
    if before or after:
        yield ok("boot order", f"{UNITS[0]} is before {_KUBELET}")
    else:
        remedy = f"Before={_KUBELET} in {UNITS[0]}"
        yield problem("boot order", f"{UNITS[0]} is not before {_KUBELET}: pods may run before enforcement", remedy)


def _show(unit: str) -> dict[str, str]:
    properties = "LoadState,ActiveState,UnitFileState,Before,After,User,AmbientCapabilities"
    done = subprocess.run(
        ["systemctl", "show", "--no-pager", f"--property={properties}", unit],
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    return dict(line.partition("=")[::2] for line in done.stdout.splitlines())
