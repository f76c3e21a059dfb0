"""The Debian package on a node: installed, upgraded, removed, purged; and what it does to pods meanwhile."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.busy import Busy, busy_host, nothing_is_lost_for_good
from tests.host.host import UNIT, UNITS, Host, hosting
from tests.host.machine import Machine
from tests.host.package import BROUGHT, NEXT_VERSION, built, dpkg, installing, next_version
from tests.host.traces import leftovers
from tests.node.scene import DB, OTHER, rcode

pytestmark = [pytest.mark.node, pytest.mark.timeout(900)]


@pytest.fixture(scope="session")
def package() -> Path:
    return built()


@pytest.fixture(scope="session")
def later(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return next_version(package, tmp_path_factory.mktemp("later"))


@pytest.fixture
def machine(package: Path) -> Iterator[Machine]:
    """A machine without a network, and the package on it."""
    with Machine() as booted:
        dpkg(booted, "--install", package=package)
        yield booted


@pytest.fixture(scope="module")
def untouched(package: Path) -> Iterator[Machine]:
    """The same, for those that only look at it."""
    with Machine() as booted:
        dpkg(booted, "--install", package=package)
        yield booted


@pytest.fixture
def host(package: Path) -> Iterator[Host]:
    """A node with two pods and the package installed, set up and enabled."""
    with hosting([], install=installing(package)) as running:
        running.machine.systemctl("enable", *UNITS)
        yield running


def traces(host: Host) -> str:
    """What of dnsguard is in the kernel."""
    node, machine = host.lab.node, host.machine
    listed = [
        host.lab.run(node, *command.split(), check=False).stdout
        for command in (
            "nft list tables",
            *(f"ip {family} rule list" for family in ("-4", "-6")),
            *(f"ip {family} route list table all proto 153" for family in ("-4", "-6")),
        )
    ]
    rules = [line for line in "".join(listed).splitlines() if "dnsguard" in line or "153" in line]
    pins = machine.shell("find /sys/fs/bpf -mindepth 1 ! -name '*.debug'").splitlines()  # those are the kernel's
    return "\n".join([*rules, *pins, *(attached(host))])


def attached(host: Host) -> list[str]:
    told = host.lab.run(host.lab.node, "bpftool", "net", "show", check=False).stdout
    return [line for line in told.splitlines() if "veth-" in line]


def test_lintian_has_nothing_to_say(package: Path) -> None:
    looked = subprocess.run(
        ["lintian", "--allow-root", "--fail-on", "error,warning", package], capture_output=True, text=True
    )

    assert (looked.stdout, looked.returncode) == ("", 0)


def test_installed_without_a_network_it_is_all_there_and_does_not_run(untouched: Machine) -> None:
    assert untouched.run("dnsguard", "version").stdout.startswith("dnsguard 0.1.0 ")
    assert "usable" in untouched.run("dnsguard", "check").stdout
    assert untouched.run("id", "--name", "--user", "dnsguard").stdout == "dnsguard\n"
    assert untouched.shell("stat --format %U:%a /var/lib/dnsguard /run/dnsguard").split() == ["dnsguard:750"] * 2
    for page in ("8 dnsguard", "5 dnsguard-config", "5 dnsguard-allowlist"):
        assert untouched.run("man", "--where", *page.split()).stdout.startswith("/usr/share/man/")
    assert untouched.show(UNIT, "ActiveState", "UnitFileState") == {
        "ActiveState": "inactive",
        "UnitFileState": "disabled",
    }
    assert untouched.run("nft", "list", "tables").stdout == ""


def test_its_modules_are_compiled_and_its_interpreter_is_debians(untouched: Machine) -> None:
    script = "import sys, dnsguard.service as one; print(sys.base_prefix, one.__cached__, one.__file__)"
    prefix, compiled, source = untouched.run("/opt/dnsguard/bin/python", "-Ic", script).stdout.split()

    assert prefix == "/usr"
    assert source.startswith("/opt/dnsguard/lib/")
    assert (untouched.root / compiled.lstrip("/")).exists()


def test_its_catalog_explains_its_events(untouched: Machine) -> None:
    assert "dnsguard" in untouched.run("journalctl", "--list-catalog").stdout


def test_once_enabled_it_governs_the_pods(host: Host) -> None:
    playing = host.scene

    assert host.machine.show(UNIT, "ActiveState", "SubState") == {"ActiveState": "active", "SubState": "running"}
    assert playing.resolve(playing.a, "db.example.com") == [DB]
    assert playing.opens(playing.a, DB)
    assert not playing.opens(playing.a, OTHER)


def test_an_upgrade_loses_nothing_cuts_no_flow_and_opens_nothing(package: Path, later: Path) -> None:
    with busy_host(install=installing(package)) as node:
        before = node.daemon.pid
        with Busy(node) as traffic:
            dpkg(node.machine, "--install", "--force-confold", package=later)
            node.until(node.daemon.ready)

        assert node.daemon.pid not in (0, before)
        assert node.daemon.ask("status")["version"] == NEXT_VERSION
        nothing_is_lost_for_good(traffic.result)
        assert "retry" not in traffic.result["udp"], traffic.result


def test_an_upgrade_keeps_what_was_edited_and_renews_what_was_not(machine: Machine, later: Path) -> None:
    edited = machine.read("/etc/dnsguard/config.yaml") + "# edited\n"
    machine.write("/etc/dnsguard/config.yaml", edited)

    dpkg(machine, "--install", package=later)

    assert machine.read("/etc/dnsguard/config.yaml") == edited
    assert machine.read("/etc/dnsguard/allowlist.yaml").endswith(f"# as of {NEXT_VERSION}\n")


def test_an_upgrade_starts_nothing_that_does_not_run(machine: Machine, later: Path) -> None:
    machine.systemctl("enable", *UNITS)

    dpkg(machine, "--install", package=later)

    assert machine.show(UNIT, "ActiveState", "UnitFileState") == {
        "ActiveState": "inactive",
        "UnitFileState": "enabled",
    }


def test_removed_it_leaves_the_kernel_closed_and_says_so(host: Host) -> None:
    playing = host.scene
    assert playing.resolve(playing.a, "db.example.com") == [DB]

    told = dpkg(host.machine, "--remove", "dnsguard")

    assert "The kernel goes on enforcing" in told
    assert not host.machine.main_pid(UNIT)
    assert not (host.machine.root / "opt/dnsguard").exists()
    assert (host.machine.root / "etc/dnsguard/config.yaml").exists()
    assert playing.silent(playing.a, "db.example.com")
    assert not playing.opens(playing.a, OTHER)


def test_installed_again_after_removal_it_takes_over(host: Host, package: Path) -> None:
    dpkg(host.machine, "--remove", "dnsguard")

    dpkg(host.machine, "--install", package=package)
    host.machine.systemctl("start", *UNITS)

    assert host.scene.resolve(host.scene.a, "db.example.com") == [DB]
    assert rcode(host.scene.ask(host.scene.a, "other.example.com")) == "NXDOMAIN"


@pytest.mark.parametrize("first", [[], ["--remove"]])
def test_purged_at_once_or_later_it_leaves_nothing(host: Host, first: list[str]) -> None:
    playing = host.scene
    assert playing.resolve(playing.a, "db.example.com") == [DB]
    assert traces(host)
    for action in [*first, "--purge"]:
        dpkg(host.machine, action, "dnsguard")

    assert traces(host) == ""
    assert leftovers(host.machine) == {BROUGHT}
    assert playing.opens(playing.a, OTHER)


def test_purged_it_finds_what_a_configuration_had_put_elsewhere(host: Host) -> None:
    host.machine.systemctl("stop", *UNITS)
    host.machine.run("dnsguard", "cleanup")
    host.machine.run("install", "-d", "-o", "dnsguard", "-g", "dnsguard", "-m", "0700", "/sys/fs/bpf/elsewhere")
    host.machine.write(f"/etc/systemd/system/{UNIT}.d/pins.conf", "[Service]\nReadWritePaths=/sys/fs/bpf/elsewhere\n")
    host.machine.systemctl("daemon-reload")
    host.daemon.settings(paths={"bpffs": "/sys/fs/bpf/elsewhere"}, interception={"rulePriority": 77, "table": 777})
    host.daemon.start()
    assert "777" in traces(host)
    assert "/sys/fs/bpf/elsewhere/maps" in traces(host)

    dpkg(host.machine, "--purge", "dnsguard")

    assert traces(host) == ""


def test_an_installation_without_a_package_is_not_overwritten(package: Path) -> None:
    with Machine() as machine:
        machine.write("/opt/dnsguard/bin/python", "", 0o755)

        with pytest.raises(AssertionError, match="make uninstall"):
            dpkg(machine, "--install", package=package)
