"""The Debian package of these sources, and a later version of it, for the tests that install it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.host.machine import TOP, Machine

NEXT_VERSION = "0.1.0+next"
BROUGHT = "/root/dnsguard.deb"
"""The package, on the machine that is to install it."""
NOTHING_ASKED = {"DEBIAN_FRONTEND": "noninteractive"}


def built() -> Path:
    """Out of .cache when these sources have been built before; otherwise it takes minutes."""
    told = subprocess.run(
        ["/usr/bin/python3", "packaging/build.py"], cwd=TOP, capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, f"the package was not built:\n{told.stdout}{told.stderr}"
    return TOP / told.stdout.strip()


def next_version(package: Path, folder: Path) -> Path:
    """The same package as version NEXT_VERSION, which the program in it says of itself, too, with another default
    allowlist.yaml."""
    tree = folder / "tree"
    subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True)
    _edit(tree / "DEBIAN/control", lambda text: re.sub(r"(?m)^Version: .*$", f"Version: {NEXT_VERSION}", text))
    (program,) = tree.glob("opt/dnsguard/lib/python3*/site-packages/dnsguard/__init__.py")
    _edit(program, lambda text: f'{text}\n__version__ = "{NEXT_VERSION}"\n')
    _edit(tree / "etc/dnsguard/allowlist.yaml", lambda text: f"{text}# as of {NEXT_VERSION}\n")
    made = folder / f"dnsguard_{NEXT_VERSION}.deb"
    subprocess.run(["dpkg-deb", "-Znone", "--root-owner-group", "--build", tree, made], check=True)
    return made


def _edit(file: Path, change: Callable[[str], str]) -> None:
    file.write_text(change(file.read_text()))


def installing(package: Path) -> Callable[[Machine], str]:
    """What installs it on a machine."""
    return lambda machine: dpkg(machine, "--install", package=package)


def dpkg(machine: Machine, *argv: str, package: Path | None = None) -> str:
    """What dpkg said. A question about an edited file of the configuration is answered with its default."""
    given = []
    if package is not None:
        machine.write(BROUGHT, "")
        (machine.root / BROUGHT.lstrip("/")).write_bytes(package.read_bytes())
        given = [BROUGHT]
    # as on a node: a package may start and restart services
    (machine.root / "usr/sbin/policy-rc.d").unlink(missing_ok=True)
    done = machine.run("env", *(f"{key}={value}" for key, value in NOTHING_ASKED.items()), "dpkg", *argv, *given)
    return done.stdout + done.stderr
