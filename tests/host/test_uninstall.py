"""`make uninstall` where something stands in the way: what it says, and how the node is opened all the same."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.host import CONFIG, TOP, UNITS, Host, hosting
from tests.node.scene import DB

pytestmark = pytest.mark.node

INSTALLER = ("/usr/bin/python3", "-B", str(TOP / "systemd/install.py"))
PAGE = "/usr/share/man/man8/dnsguard.8"
PINS = "/sys/fs/bpf/elsewhere"


@pytest.fixture
def governed(image: Path) -> Iterator[Host]:
    """A node with a daemon that enforces, whose pins are not where they usually are, and the source."""
    room = f"[Service]\nExecStartPre=+install -d -o dnsguard {PINS}\nReadWritePaths=-{PINS}\n"
    with hosting([image], binds=[TOP], start=False, paths={"bpffs": PINS}) as host:
        host.machine.write("/etc/systemd/system/dnsguard.service.d/pins.conf", room)
        host.machine.systemctl("daemon-reload")
        host.daemon.start()
        yield host


def uninstall(host: Host, *options: str) -> subprocess.CompletedProcess[str]:
    return host.machine.run(*INSTALLER, "uninstall", *options, check=False)


def pins(host: Host) -> str:
    return host.machine.shell(f"find {PINS} -type f ! -name '*.debug' 2>/dev/null || true")


def test_a_cleaning_that_is_refused_says_how_to_go_on_and_needs_no_command(governed: Host) -> None:
    machine, scene = governed.machine, governed.scene
    machine.write(CONFIG, f"paths: {{bpffs: {PINS}}}\nmdoe: Enforce\n")
    machine.systemctl("stop", *UNITS)
    assert pins(governed)

    with machine.popen("flock", "/run/dnsguard/lock", "cat", stdin=subprocess.PIPE) as other:
        governed.until(lambda: machine.run("flock", "-n", "/run/dnsguard/lock", "true", check=False).returncode == 1)
        refused = uninstall(governed, "--clean")
        other.communicate()

    assert refused.returncode == 1
    assert "a daemon is running" in refused.stderr
    assert "make uninstall CLEAN=1 goes on" in refused.stderr
    assert machine.run("/usr/bin/dnsguard", "version").returncode == 0

    machine.run("mandb", "--quiet", "--filename", PAGE)
    left = uninstall(governed)

    assert "make uninstall CLEAN=1" in left.stdout
    assert "nothing appropriate" in machine.run("man", "-k", "dnsguard", check=False).stderr
    assert not scene.opens(scene.b, DB)

    cleaned = uninstall(governed, "--clean")

    assert (cleaned.returncode, cleaned.stdout) == (0, "nothing of dnsguard is in the kernel now\n")
    assert scene.opens(scene.b, DB)
    assert pins(governed) == ""
