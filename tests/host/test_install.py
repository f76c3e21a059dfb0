"""`make install` and `make uninstall` on a node: what they put there, leave alone, and take away."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.host import Host, hosting
from tests.host.machine import TOP, Machine
from tests.node.scene import DB

pytestmark = pytest.mark.node

INSTALLER = ("/usr/bin/python3", "-B", str(TOP / "systemd/install.py"))
TREES = ("etc/dnsguard", "opt/dnsguard", "usr/lib/systemd/system", "usr/lib/sysusers.d", "usr/lib/tmpfiles.d")


@pytest.fixture
def node(image: Path) -> Iterator[Machine]:
    """A node with dnsguard's files, which sees the source."""
    with Machine(layers=[image], binds=[TOP]) as machine:
        yield machine


@pytest.fixture
def governed(image: Path) -> Iterator[Host]:
    """The same with a daemon that enforces."""
    with hosting([image], binds=[TOP]) as host:
        yield host


def contents(root: Path) -> dict[str, str]:
    """Every file of what is installed, by its path: where a link leads, or what is in it."""
    found = {}
    for top in TREES:
        for folder, _, names in os.walk(root / top):
            for path in (Path(folder, name) for name in names if "dnsguard" in folder or "dnsguard" in name):
                inside = str(path.readlink()) if path.is_symlink() else hashlib.sha256(path.read_bytes()).hexdigest()
                found[str(path.relative_to(root))] = inside
    return found


def table(machine: Machine) -> str:
    return machine.run("nft", "list", "table", "inet", "dnsguard", check=False).stdout


def test_what_is_installed_knows_no_other_place_and_brings_no_installer(image: Path) -> None:
    environment = image / "opt/dnsguard"
    built = [path for path in environment.rglob("*") if path.is_file() and str(image).encode() in path.read_bytes()]

    assert built == []
    assert (environment / "bin/dnsguard").read_text().startswith("#!/opt/dnsguard/bin/python\n")
    assert not list(environment.rglob("site-packages/pip"))
    assert not list(environment.rglob("site-packages/hatchling"))
    assert list(environment.rglob("site-packages/dnsguard/__pycache__/service.*.pyc"))
    assert str((image / "usr/bin/dnsguard").readlink()) == "/opt/dnsguard/bin/dnsguard"


def test_an_installation_says_what_to_do_next_and_starts_nothing(node: Machine) -> None:
    said = node.run(*INSTALLER, "install").stdout

    assert "systemctl enable --now dnsguard.socket dnsguard.service" in said
    assert node.systemctl("is-enabled", "dnsguard.service", check=False).stdout == "disabled\n"
    assert node.show("dnsguard.service", "ActiveState") == {"ActiveState": "inactive"}
    assert node.run("/usr/bin/dnsguard", "check").returncode == 0
    assert node.shell("id -un dnsguard; stat -c %U /run/dnsguard /var/lib/dnsguard") == "dnsguard\n" * 3
    assert "1166f648a0894437bd0271984a02fe38" in node.shell("journalctl --list-catalog")
    assert "dnsguard (8)" in node.shell("man -k dnsguard")


def test_installing_again_changes_nothing(node: Machine) -> None:
    node.run(*INSTALLER, "install")
    before = contents(node.root)

    node.run(*INSTALLER, "install")

    assert contents(node.root) == before


def test_a_configuration_that_was_edited_is_left_and_one_that_was_not_is_renewed(node: Machine) -> None:
    node.write("/etc/dnsguard/config.yaml", "upstreams: [192.0.2.53]\n")
    for place in ("/etc/dnsguard", "/opt/dnsguard/share/dnsguard/config"):
        node.write(f"{place}/allowlist.yaml", "# as an earlier version shipped it\n")

    node.run(*INSTALLER, "install")

    assert node.read("/etc/dnsguard/config.yaml") == "upstreams: [192.0.2.53]\n"
    assert node.read("/etc/dnsguard/allowlist.yaml") == (TOP / "config/allowlist.yaml").read_text()


def test_beside_the_debian_package_it_refuses(node: Machine) -> None:
    node.write("/var/lib/dpkg/info/dnsguard.list", "/usr/bin/dnsguard\n")

    refused = node.run(*INSTALLER, "install", check=False)

    assert refused.returncode == 1
    assert "use apt" in refused.stderr


def test_an_installation_over_a_running_daemon_restarts_it_and_its_pods_stay_as_they_are(governed: Host) -> None:
    scene, before = governed.scene, governed.daemon.pid
    scene.resolve(scene.a, "db.example.com")

    governed.machine.run(*INSTALLER, "install")

    assert governed.daemon.pid not in (0, before)
    assert scene.resolve(scene.a, "db.example.com") == [DB]
    assert scene.opens(scene.a, DB)


def test_uninstalling_leaves_the_configuration_and_what_the_kernel_enforces(governed: Host) -> None:
    machine, scene = governed.machine, governed.scene

    said = machine.run(*INSTALLER, "uninstall").stdout

    assert "stays in force" in said
    assert [path for path in contents(machine.root) if not path.startswith("etc/dnsguard/")] == []
    assert (machine.root / "etc/dnsguard/config.yaml").exists()
    assert not (machine.root / "usr/bin/dnsguard").is_symlink()
    assert machine.show("dnsguard.service", "LoadState") == {"LoadState": "not-found"}
    assert table(machine)
    assert not scene.opens(scene.b, DB)


def test_uninstalling_takes_enforcement_along_when_told_to(governed: Host) -> None:
    machine, scene = governed.machine, governed.scene

    machine.run(*INSTALLER, "uninstall", "--clean")

    assert not table(machine)
    assert scene.opens(scene.b, DB)
    machine.run(*INSTALLER, "uninstall")  # once more does no harm
