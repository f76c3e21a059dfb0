"""What the machine must have before a make target runs: Debian packages, and root where a target needs it.

Run as `/usr/bin/python3 tests/machine.py base|test|bench|kernels`, before any virtual environment exists: standard
library only. When every package is there it does nothing, quickly and offline. Otherwise it installs them without
questions, without starting a service, and with the services that came with them disabled. Exit code 77: not root where
root is needed, or an interpreter that is too old; one line on stderr says which.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

MISSING = 77
OLDEST = (3, 11)

BASE = (
    *("ca-certificates", "conntrack", "curl", "iproute2", "kmod", "libbpf1", "nftables", "procps", "python3-venv"),
    "util-linux",
)
COMPILER = ("clang", "libbpf-dev", "linux-libc-dev", "llvm")
DEB = ("debhelper", "dpkg-dev", "lintian")
TEST = (
    *("bind9-dnsutils", "bpftool", *COMPILER, *DEB, "faketime", "fish", "man-db", "mandoc", "netcat-openbsd"),
    *("postgresql", "postgresql-client", "prometheus", "systemd-container", "zsh"),
)
BENCH = ("dnsdist", "dnsmasq-base", "iperf3", "unbound")
KERNELS = ("busybox-static", "file", "qemu-system-x86")
PURPOSES = {"base": BASE, "test": BASE + TEST, "bench": BASE + BENCH, "deb": BASE + DEB, "kernels": BASE + KERNELS}
TARGETS = {"kernels": "test-kernels"}
"""Those named otherwise than their purpose."""
NEEDS_ROOT = {"test", "bench", "kernels"}

POLICY = Path("/usr/sbin/policy-rc.d")
POLICY_ASIDE = POLICY.with_suffix(".d.before-dnsguard")
POLICY_TEXT = "#!/bin/sh\n# dnsguard: nothing starts while its packages are installed\nexit 101\n"
CLUSTER_CONF = Path("/etc/postgresql-common/createcluster.d/dnsguard.conf")


def missing(packages: Sequence[str]) -> list[str]:
    """Those of `packages` that dpkg does not hold as installed."""
    query = ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n", *packages]
    listed = subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines()
    installed = {line.split()[0] for line in listed if line.endswith(" installed")}
    return [package for package in packages if package not in installed]


@contextlib.contextmanager
def nothing_starts() -> Iterator[None]:
    """While inside, package scripts start no service and PostgreSQL's makes no cluster; afterwards all is as before."""
    if POLICY.exists() and POLICY.read_text() != POLICY_TEXT:
        POLICY.rename(POLICY_ASIDE)
    POLICY.write_text(POLICY_TEXT)
    POLICY.chmod(0o755)
    CLUSTER_CONF.parent.mkdir(parents=True, exist_ok=True)
    CLUSTER_CONF.write_text("create_main_cluster = false\n")
    try:
        yield
    finally:
        CLUSTER_CONF.unlink(missing_ok=True)
        POLICY.unlink(missing_ok=True)
        if POLICY_ASIDE.exists():
            POLICY_ASIDE.rename(POLICY)


def services_of(packages: Sequence[str]) -> list[str]:
    """The systemd services that the installed `packages` shipped."""
    listed = subprocess.run(["dpkg-query", "--listfiles", *packages], capture_output=True, text=True, check=False)
    paths = (Path(line) for line in listed.stdout.splitlines() if "/systemd/system/" in line)
    return sorted({path.name for path in paths if path.suffix == ".service" and "@" not in path.name})


def install(packages: Sequence[str]) -> None:
    """Install `packages` and what they need; raises CalledProcessError, apt's own words are on the terminal."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that `nothing_starts` is undone
    before = installed_packages()
    apt = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=300"]
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_MODE": "l"}
    with nothing_starts():
        subprocess.run([*apt, "update"], env=environment, check=True)
        subprocess.run([*apt, "install", "-y", "--no-install-recommends", *packages], env=environment, check=True)
    services = services_of(sorted(installed_packages() - before))
    if services and Path("/usr/bin/systemctl").exists():
        # nothing runs now, but without this the next boot would start a resolver and a database
        subprocess.run(["systemctl", "--quiet", "disable", *services], check=False)


def installed_packages() -> set[str]:
    query = ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n"]
    listed = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    return {line.split()[0] for line in listed if line.endswith(" installed")}


def main(purpose: str) -> int:
    if sys.version_info < OLDEST:
        found = ".".join(map(str, sys.version_info[:2]))
        print(f"Python 3.11 or newer is needed, this is {found}: make ... PYTHON=/path/to/python3", file=sys.stderr)
        return MISSING
    root = os.geteuid() == 0
    if purpose in NEEDS_ROOT and not root:
        print(
            f"make {TARGETS.get(purpose, purpose)} makes network namespaces and nftables tables: run it as root",
            file=sys.stderr,
        )
        return MISSING
    wanted = missing(PURPOSES[purpose])
    if wanted and not root:
        print(f"missing packages, install them as root: apt-get install {' '.join(wanted)}", file=sys.stderr)
        return MISSING
    if wanted:
        install(wanted)
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in PURPOSES:
        sys.exit(f"usage: machine.py {'|'.join(PURPOSES)}")
    try:
        sys.exit(main(sys.argv[1]))
    except subprocess.CalledProcessError as error:
        sys.exit(f"could not install: {' '.join(error.cmd)} ended with {error.returncode}")
