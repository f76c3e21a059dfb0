"""Every line of a sandbox does something: with all of them a thing is refused, without the line it is let.

What cannot be tried is explained by a comment right above the line in the unit. The early unit's sandbox is the
service's: what it has instead or besides is tried, too, and what it leaves out says why.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.host.host import hosting
from tests.host.machine import TOP, Machine

pytestmark = pytest.mark.node

UNIT, EARLY = TOP / "systemd/dnsguard.service", TOP / "systemd/dnsguard-early.service"
BEGIN, END = "# -- sandbox", "[Install]"
CAPABILITIES = "CAP_NET_ADMIN CAP_BPF CAP_PERFMON"
SERVICE = "Type=oneshot\nUser=dnsguard\nGroup=dnsguard\nRuntimeDirectory=dnsguard\nRuntimeDirectoryPreserve=yes\n"
BAITS = """
mkdir -p -m 777 /srv/open; mkdir -p /home/somebody /usr/lib/modules/bait
touch /home/somebody/file /tmp/bait /dev/bait
mkdir -p -m 777 /sys/fs/cgroup/bait; chmod 777 /sys/fs/cgroup/bait
readlink /proc/1/ns/uts > /run/uts
chgrp dnsguard /sys/fs/bpf; chmod g+x /sys/fs/bpf; install -d -m 700 -o dnsguard -g dnsguard /sys/fs/bpf/dnsguard
"""


@dataclass(frozen=True)
class Trial:
    """A line of the sandbox, and the probe that shows what it is for. `needed`: the line is what lets it. `beside`
    are lines that would refuse it, too, and are left out in both runs."""

    line: str
    probe: str
    needed: bool = False
    beside: tuple[str, ...] = ()
    unit: Path = UNIT


FILTERS = ("SystemCallFilter=@system-service", "SystemCallFilter=~@privileged @resources")
TRIALS = (
    Trial(f"AmbientCapabilities={CAPABILITIES}", "marks_packets", needed=True),
    Trial(f"CapabilityBoundingSet={CAPABILITIES}", "gets_capabilities"),
    Trial("UMask=0077", "makes_files_for_all"),
    Trial("ProtectSystem=strict", "writes_outside"),
    Trial("ProtectHome=yes", "reads_homes"),
    Trial("PrivateTmp=yes", "reads_tmp"),
    Trial("PrivateDevices=yes", "sees_devices"),
    Trial("ProtectKernelTunables=yes", "sets_sysctls"),
    Trial("ProtectKernelModules=yes", "reads_modules"),
    Trial("ProtectControlGroups=yes", "makes_groups"),
    Trial("ProtectHostname=yes", "has_the_node_s_hostname"),
    Trial("ProtectProc=invisible", "sees_processes"),
    Trial("ReadWritePaths=-/sys/fs/bpf/dnsguard", "writes_pins", needed=True),
    Trial("RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK", "opens_packet_sockets"),
    Trial("RestrictNamespaces=yes", "makes_namespaces"),
    Trial("RestrictSUIDSGID=yes", "makes_setuid_files"),
    Trial("LockPersonality=yes", "changes_personality"),
    Trial("MemoryDenyWriteExecute=yes", "makes_code"),
    Trial("SystemCallFilter=@system-service", "is_traced", beside=(*FILTERS[1:], "SystemCallFilter=bpf setpriority")),
    Trial("SystemCallFilter=~@privileged @resources", "changes_owners"),
    Trial("SystemCallFilter=bpf setpriority", "makes_maps", needed=True),
    Trial("SystemCallErrorNumber=EPERM", "is_killed_for_a_call"),
    Trial("AmbientCapabilities=CAP_NET_ADMIN", "marks_packets", needed=True, unit=EARLY),
    Trial("CapabilityBoundingSet=CAP_NET_ADMIN", "gets_capabilities", unit=EARLY),
    Trial("ProcSubset=pid", "sees_the_kernel_s_files", unit=EARLY),
    Trial("RestrictAddressFamilies=AF_UNIX AF_NETLINK", "opens_ip_sockets", unit=EARLY),
    Trial("IPAddressDeny=any", "sends_packets", beside=("RestrictAddressFamilies=AF_UNIX AF_NETLINK",), unit=EARLY),
)


def sandbox(unit: Path) -> list[str]:
    """The lines of the sandbox section, comments included."""
    lines = unit.read_text().splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith(BEGIN))
    return [line for line in lines[begin + 1 : lines.index(END)] if line]


def settings(unit: Path) -> list[str]:
    return [line for line in sandbox(unit) if not line.startswith("#")]


def explained(unit: Path) -> set[str]:
    """The lines with a comment right above."""
    return {line for above, line in itertools.pairwise(sandbox(unit)) if above.startswith("#")}


def tried(unit: Path) -> set[str]:
    return {trial.line for trial in TRIALS if trial.unit == unit}


def without(trial: Trial, *more: str) -> list[str]:
    return [line for line in settings(trial.unit) if line not in (*trial.beside, *more)]


def keys(lines: Iterable[str]) -> set[str]:
    return {line.split("=")[0] for line in lines}


@pytest.fixture(scope="module")
def found(image: Path) -> Iterator[dict[str, dict[str, bool]]]:
    """What each trial's probe was let do: with the line, and without."""
    with Machine(layers=[image]) as machine:
        machine.shell("systemd-sysusers dnsguard.conf && systemd-tmpfiles --create dnsguard.conf")
        machine.shell(BAITS)
        machine.write("/opt/probes.py", (TOP / "tests/host/probes.py").read_text())
        units: dict[str, list[str]] = {}
        for number, trial in enumerate(TRIALS):
            units |= {f"{number}-with": without(trial), f"{number}-without": without(trial, trial.line)}
        for name, lines in units.items():
            probe = TRIALS[int(name.split("-")[0])].probe
            run = f"ExecStart=/opt/dnsguard/bin/python /opt/probes.py {probe}\nStandardOutput=file:/run/probe-{name}\n"
            text = "\n".join(lines)
            machine.write(f"/run/systemd/system/probe-{name}.service", f"[Service]\n{SERVICE}{run}{text}\n")
        machine.systemctl("daemon-reload")
        machine.systemctl("start", *(f"probe-{name}.service" for name in units), check=False)
        yield {name: json.loads(machine.read(f"/run/probe-{name}") or "{}") for name in units}


@pytest.mark.parametrize("number", range(len(TRIALS)), ids=[f"{trial.unit.stem}: {trial.line}" for trial in TRIALS])
def test_a_line_of_the_sandbox_decides_what_is_let(found: dict[str, dict[str, bool]], number: int) -> None:
    trial = TRIALS[number]

    assert found[f"{number}-with"] == {trial.probe: trial.needed}
    assert found[f"{number}-without"] == {trial.probe: not trial.needed}


def test_every_line_of_the_sandbox_is_tried_or_explained() -> None:
    assert set(settings(UNIT)) - tried(UNIT) - explained(UNIT) == set()


@pytest.mark.parametrize("unit", [UNIT, EARLY], ids=["dnsguard", "dnsguard-early"])
def test_every_trial_is_of_a_line_that_is_there(unit: Path) -> None:
    assert tried(unit) <= set(settings(unit))


def test_every_line_that_only_the_early_unit_has_is_tried_and_explained() -> None:
    assert set(settings(EARLY)) - set(settings(UNIT)) == tried(EARLY) & explained(EARLY)


def test_every_line_of_the_service_is_in_the_early_unit_or_that_says_why_not() -> None:
    ours, its = set(settings(UNIT)), set(settings(EARLY))
    instead = {line for line in ours - its if line.split("=")[0] in keys(its - ours)}
    left_out = {line for line in ours if any(above.startswith(f"# No {line}: ") for above in sandbox(EARLY))}

    assert ours - its == instead | left_out


def test_the_ebpf_line_needs_each_of_its_capabilities(image: Path) -> None:
    with hosting([image]) as host:
        assert host.daemon.ask("status")["enforcers"] == ["nftables", "ebpf"]
        for missing in ("CAP_BPF", "CAP_PERFMON"):
            left = " ".join(name for name in CAPABILITIES.split() if name != missing)
            text = f"[Service]\nAmbientCapabilities=\nAmbientCapabilities={left}\n"
            host.machine.write("/run/systemd/system/dnsguard.service.d/less.conf", text)
            host.machine.systemctl("daemon-reload")
            host.machine.systemctl("restart", "dnsguard.service")

            assert host.daemon.ask("status")["enforcers"] == ["nftables"]
