"""`make install` and `make uninstall` on a node: what they put there, leave alone, and take away."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.host import UNITS, Host, hosting
from tests.host.machine import TOP, Machine
from tests.host.traces import leftovers
from tests.node.scene import DB

pytestmark = pytest.mark.node

INSTALLER = ("/usr/bin/python3", "-B", str(TOP / "systemd/install.py"))
CONFIG, ENVIRONMENT, STATE, RUNTIME = "/etc/dnsguard", "/opt/dnsguard", "/var/lib/dnsguard", "/run/dnsguard"
SCHEMAS = ("config.schema.json", "allowlist.schema.json")
PROMISED = {
    "command": {"/usr/bin/dnsguard"},
    "units": {
        f"/usr/lib/systemd/system/dnsguard{kind}" for kind in (".service", ".socket", ".slice", "-early.service")
    },
    "user and folders": {"/usr/lib/sysusers.d/dnsguard.conf", "/usr/lib/tmpfiles.d/dnsguard.conf"},
    "catalog": {"/usr/lib/systemd/catalog/dnsguard.catalog"},
    "man pages": {
        f"/usr/share/man/man{section}/{page}.{section}"
        for page, section in (("dnsguard", 8), ("dnsguard-config", 5), ("dnsguard-allowlist", 5))
    },
    # where bash-completion looks, and Debian's zsh and fish
    "completions": {
        "/usr/share/bash-completion/completions/dnsguard",
        "/usr/share/zsh/vendor-completions/_dnsguard",
        "/usr/share/fish/vendor_completions.d/dnsguard.fish",
    },
}
"""What the documents promise beside the environment, the configuration and the folders of a running daemon."""
READERS = {
    "man --where 8 dnsguard": "/usr/share/man/man8/dnsguard.8",
    "man --where 5 dnsguard-config": "/usr/share/man/man5/dnsguard-config.5",
    "man --where 5 dnsguard-allowlist": "/usr/share/man/man5/dnsguard-allowlist.5",
    # as bash-completion does, which need not be there
    "bash -c '. /usr/share/bash-completion/completions/dnsguard; complete -p dnsguard'": "dnsguard",
    "zsh -fc 'autoload -Uz compinit; compinit -D; print $_comps[dnsguard]'": "_dnsguard",
    "fish -c 'complete --do-complete \"dnsguard stat\"'": "status",
    "man -k dnsguard": "dnsguard (8)",
    "systemd-analyze cat-config sysusers.d/dnsguard.conf": "u dnsguard",
    "systemd-analyze cat-config tmpfiles.d/dnsguard.conf": "d /run/dnsguard",
    "journalctl --list-catalog": "1166f648a0894437bd0271984a02fe38",
    "systemctl cat dnsguard.service dnsguard.socket dnsguard-early.service dnsguard.slice": "ExecStart=",
}
"""Who looks for what is installed, and what tells that it was found."""
TREES = ("etc/dnsguard", "opt/dnsguard", "usr/lib/systemd/system", "usr/lib/sysusers.d", "usr/lib/tmpfiles.d")


@pytest.fixture
def node(image: Path) -> Iterator[Machine]:
    """A node with dnsguard's files, which sees the source."""
    with Machine(layers=[image], binds=[TOP]) as machine:
        yield machine


@pytest.fixture(scope="module")
def fresh(image: Path) -> Iterator[Machine]:
    """A node that had nothing of it but the environment, which takes long to build, and has it installed."""
    with Machine(layers=[image], binds=[TOP]) as machine:
        machine.run("rm", "--recursive", *(leftovers(machine) - {ENVIRONMENT}))
        machine.run(*INSTALLER, "install")
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


def promised_by_the_installer() -> set[str]:
    """Where the installer says that it puts files."""
    script = "import install; print(*(file.destination for file in install.files()))"
    told = subprocess.run(["/usr/bin/python3", "-Bc", script], cwd=TOP / "systemd", capture_output=True, check=True)
    return set(told.stdout.decode().split())


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


def test_an_installation_puts_there_all_that_is_promised_and_nothing_else(fresh: Machine) -> None:
    promised = set().union(*PROMISED.values())

    assert leftovers(fresh) == promised | {CONFIG, ENVIRONMENT, STATE, RUNTIME}
    assert promised_by_the_installer() == promised - PROMISED["command"]
    assert {path.name for path in (fresh.root / CONFIG[1:]).iterdir()} == {"config.yaml", "allowlist.yaml", *SCHEMAS}


@pytest.mark.parametrize("reader", READERS)
def test_what_is_installed_is_found_by_whoever_looks_for_it(fresh: Machine, reader: str) -> None:
    assert READERS[reader] in fresh.shell(reader)


def test_an_installation_says_what_to_do_next_and_starts_nothing(fresh: Machine) -> None:
    said = fresh.run(*INSTALLER, "install").stdout

    assert "systemctl enable --now dnsguard.socket dnsguard.service" in said
    assert fresh.systemctl("is-enabled", "dnsguard.service", check=False).stdout == "disabled\n"
    assert fresh.show("dnsguard.service", "ActiveState") == {"ActiveState": "inactive"}
    assert fresh.run("/usr/bin/dnsguard", "check").returncode == 0
    assert fresh.shell("id -un dnsguard; stat -c %U /run/dnsguard /var/lib/dnsguard") == "dnsguard\n" * 3


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
    machine.systemctl("enable", *UNITS)

    said = machine.run(*INSTALLER, "uninstall").stdout

    assert "stays in force" in said
    assert leftovers(machine) == {CONFIG, STATE, RUNTIME}
    assert (machine.root / "etc/dnsguard/config.yaml").exists()
    assert "dnsguard" not in machine.shell("journalctl --list-catalog")
    assert machine.show("dnsguard.service", "LoadState") == {"LoadState": "not-found"}
    assert table(machine)
    assert not scene.opens(scene.b, DB)


def test_uninstalling_takes_enforcement_along_when_told_to(governed: Host) -> None:
    machine, scene = governed.machine, governed.scene

    machine.run(*INSTALLER, "uninstall", "--clean")

    assert not table(machine)
    assert scene.opens(scene.b, DB)
    machine.run(*INSTALLER, "uninstall")  # once more does no harm
