"""A node that boots anew with dnsguard enabled, and what else a node starts: a firewall that flushes, what starts pods.

Each of those, and the early unit, notes what it finds when it starts: `found` reads it. Nothing is a matter of who is
quicker: a firewall and the early unit are as slow as a unit can be, they go on when only what waits for them is left of
the boot (so there may be one firewall at a time); and `GATE` holds the daemon back, from when the early unit is done
until it is opened.
"""

from __future__ import annotations

import os
import shutil

from tests.host.host import UNIT, UNITS, Host
from tests.host.machine import Machine

FIREWALL = "nftables"
"""Of a whole boot."""
FIREWALLS = (FIREWALL, "firewalld")
RUNTIMES = ("containerd", "crio", "docker", "kubelet")
NETWORK = "networking"
EARLY = "dnsguard-early"
TARGETS = ("together.target", "network-pre.target")
"""What stays active when all that it was for has stopped."""
CLOSED, OPEN = "links closed", "no table of dnsguard"
READY = f"{CLOSED}, ready: "
FOUND = "/run/found"
GATE = "gate"
BARRIER = "/srv/barrier"

NOTE = f"""#!/bin/sh -eu
# note.sh UNIT: what is in force when it starts
mkdir -p {FOUND}
if nft list table inet dnsguard >/dev/null 2>&1; then found='{CLOSED}'; else found='{OPEN}'; fi
said=$(systemctl show --property=StatusText --value dnsguard.service)
echo "$found${{said:+, $said}}" >{FOUND}/.$1
mv {FOUND}/.$1 {FOUND}/$1
"""
SLOW = """#!/bin/sh -eu
# slow.sh UNIT...: returns when nothing is left but these and what waits for them, seen several times in a row, for
# between two jobs there may be none that runs
these=$(printf ' -e %s.service' "$@")
quiet=0
while [ $quiet -lt 5 ]; do
    sleep 0.05
    jobs=$(systemctl list-jobs --full) || continue
    if echo "$jobs" | grep -v $these | grep -q ' running *$'; then
        quiet=0
    else
        quiet=$((quiet + 1))
    fi
done
"""
NOTING = "/bin/sh /srv/note.sh %N"
# No two of them wait for each other: the gate is opened when a firewall is done, and the early unit is to be too early
# where nothing has it wait for one.
LATE, LATE_AS_WELL = f"/bin/sh /srv/slow.sh %N {GATE}", f"/bin/sh /srv/slow.sh %N {' '.join(FIREWALLS)}"
STARTING = f"ExecStart={NOTING}\n"
WAITING = f"ExecStart=cat {BARRIER}\n"
FLUSHING = f"ExecStart={LATE}\n{STARTING}ExecStart=nft flush ruleset\n"
ONCE = "[Service]\nType=oneshot\nRemainAfterExit=yes\nTimeoutStartSec=60\n"
AT_BOOT = "[Install]\nWantedBy=multi-user.target\n"
AS_DEBIAN_HAS_IT = """[Unit]
Wants=network-pre.target
Before=network-pre.target shutdown.target
Conflicts=shutdown.target
DefaultDependencies=no
"""
TEXTS = {
    "nftables.service": f"{AS_DEBIAN_HAS_IT}{ONCE}{FLUSHING}[Install]\nWantedBy=sysinit.target\n",
    "firewalld.service": f"[Unit]\nBefore=network-pre.target\nWants=network-pre.target\n{ONCE}{FLUSHING}{AT_BOOT}",
    **{f"{name}.service": f"{ONCE}{STARTING}{AT_BOOT}" for name in RUNTIMES},
    f"{NETWORK}.service": f"[Unit]\nAfter=network-pre.target\nBefore=network.target\n{ONCE}{STARTING}{AT_BOOT}",
    f"{EARLY}.service.d/late.conf": f"[Service]\nExecStartPre=+{LATE_AS_WELL}\nExecStartPre=+{NOTING}\n",
    f"{GATE}.service": f"[Unit]\nAfter={EARLY}.service\nBefore={UNIT}\n{ONCE}{STARTING}{WAITING}{AT_BOOT}",
}


def furnish(machine: Machine) -> None:
    """Put these units on the machine's disk."""
    machine.write("/srv/note.sh", NOTE)
    machine.write("/srv/slow.sh", SLOW)
    os.mkfifo(machine.root / BARRIER.lstrip("/"))
    for name, text in TEXTS.items():
        machine.write(f"/etc/systemd/system/{name}", text)
    machine.systemctl("daemon-reload")


def start_at_once(host: Host, *units: str) -> None:
    """Start units as a boot does: in one transaction, where none of them nor of dnsguard runs. Returns when all are."""
    machine = host.machine
    machine.write(f"/run/systemd/system/{TARGETS[0]}", f"[Unit]\nWants={' '.join(units)}\n")
    machine.systemctl("daemon-reload")
    machine.systemctl("stop", *TARGETS, *UNITS, *services(EARLY, *FIREWALLS, *RUNTIMES, NETWORK))
    machine.run("dnsguard", "cleanup")
    shutil.rmtree(machine.root / FOUND.lstrip("/"), ignore_errors=True)
    machine.systemctl("start", TARGETS[0])


def boot_anew(host: Host) -> None:
    """Boot with all of it enabled, and with nothing of before but the disk. Returns when the daemon is all that is
    missing: it waits before the gate, and kubelet for it."""
    machine = host.machine
    machine.systemctl("set-default", "multi-user.target")
    machine.systemctl("enable", *UNITS, *services(FIREWALL, *RUNTIMES, NETWORK, GATE))
    machine.reboot(host.lab.renew_node)
    started = {GATE, NETWORK, *RUNTIMES} - {"kubelet"}
    host.until(lambda: started <= found(machine).keys())


def open_the_gate(host: Host) -> None:
    """Returns when the boot is over."""
    os.close(os.open(host.machine.root / BARRIER.lstrip("/"), os.O_WRONLY))
    host.machine.until_up()


def services(*names: str) -> list[str]:
    return [f"{name}.service" for name in names]


def found(machine: Machine) -> dict[str, str]:
    """What each unit that has started noted, by its name."""
    folder = machine.root / FOUND.lstrip("/")
    return {file.name: file.read_text().strip() for file in folder.glob("[!.]*")}
