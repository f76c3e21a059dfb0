"""Install dnsguard on a node, or take it off again: `install.py install|uninstall [--root DESTDIR]`.

Standard library only; needs root, and python3-venv to install. Both may be run again at any time: what is up to date
stays, a file in /etc/dnsguard that was edited is never overwritten, and a daemon that runs is restarted with what is
new while the kernel goes on enforcing. With `--root` files are put below that folder and nothing else is done: for
packages and images.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from environment import SOURCE, Place, below, build

PREFIX = Path("/opt/dnsguard")
COMMAND = Path("/usr/bin/dnsguard")
CONFIG = Path("/etc/dnsguard")
PACKAGE = Path("/var/lib/dpkg/info/dnsguard.list")
NOTE = Path("/var/lib/dnsguard.bpffs")
"""Where the eBPF pins are, for whoever cleans when nothing is left that could read the configuration."""
PINS = "/sys/fs/bpf/dnsguard"
CLEANING = SOURCE / "packaging/debian/dnsguard.postrm"
"""Has `clean_kernel`, which needs nothing of dnsguard."""
MISSING = 77
UNITS = ("dnsguard.service", "dnsguard.socket", "dnsguard-early.service", "dnsguard.slice")
DESTINATIONS = {
    ".service": Path("/usr/lib/systemd/system"),
    ".socket": Path("/usr/lib/systemd/system"),
    ".slice": Path("/usr/lib/systemd/system"),
    ".sysusers": Path("/usr/lib/sysusers.d"),
    ".tmpfiles": Path("/usr/lib/tmpfiles.d"),
    ".catalog": Path("/usr/lib/systemd/catalog"),
}
"""Where a file of this folder goes, by its suffix."""
RENAMED = {".sysusers": ".conf", ".tmpfiles": ".conf"}
COMPLETIONS = {
    "bash": (Path("/usr/share/bash-completion/completions"), "dnsguard"),
    "zsh": (Path("/usr/share/zsh/vendor-completions"), "_dnsguard"),
    "fish": (Path("/usr/share/fish/vendor_completions.d"), "dnsguard.fish"),
}
NEXT = f"""\
dnsguard is installed, and does not run yet. Set upstreams and pods.interfaces in {CONFIG}/config.yaml, and write what
pods may resolve and reach into allowlist.yaml beside it: a pod without an entry there is closed in, unless mode is
Audit. Then
  dnsguard check
  systemctl enable --now dnsguard.socket dnsguard.service"""

CLOSED = """\
what the kernel enforces stays in force: pods resolve nothing until dnsguard is back. To open the node instead:
  make uninstall CLEAN=1"""
NOT_CLEANED = """\
the kernel is not cleaned: it goes on enforcing, and pods resolve nothing new. No unit runs, and no file is removed.
When that is mended, make uninstall CLEAN=1 goes on; make uninstall alone removes the files, and leaves the kernel as
it is."""


@dataclass(frozen=True, slots=True)
class File:
    """One file of this source, and where it stands on a node."""

    source: Path
    destination: Path


def files() -> Iterator[File]:
    """All that is installed as it is, besides the configuration."""
    for source in sorted((SOURCE / "systemd").iterdir()):
        if source.suffix in DESTINATIONS:
            name = source.with_suffix(RENAMED.get(source.suffix, source.suffix)).name
            yield File(source, DESTINATIONS[source.suffix] / name)
    for source in sorted(SOURCE.glob("packaging/man/*.[1-9]")):
        yield File(source, Path(f"/usr/share/man/man{source.suffix[1:]}") / source.name)
    for source in sorted(SOURCE.glob("packaging/completions/*")):
        for shell, (folder, name) in COMPLETIONS.items():
            if shell in source.name:
                yield File(source, folder / name)


def install(root: Path, python: str) -> None:
    shipped = below(root, PREFIX) / "share/dnsguard/config"
    unedited = [source for source in sorted((SOURCE / "config").iterdir()) if _unedited(source.name, root, shipped)]
    build(Place(root, PREFIX), python)
    for file in files():
        _copy(file.source, below(root, file.destination))
    for source in unedited:
        _copy(source, below(root, CONFIG) / source.name)
    for source in (SOURCE / "config").iterdir():
        _copy(source, shipped / source.name)
    command = below(root, COMMAND)
    command.parent.mkdir(parents=True, exist_ok=True)
    command.unlink(missing_ok=True)
    command.symlink_to(PREFIX / "bin/dnsguard")
    if root == Path("/"):
        _take_effect()


def _unedited(name: str, root: Path, shipped: Path) -> bool:
    """Whether a file of the configuration is missing, or as an earlier installation has put it there."""
    there = below(root, CONFIG) / name
    return not there.exists() or ((shipped / name).exists() and filecmp.cmp(there, shipped / name, shallow=False))


def _copy(source: Path, destination: Path) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    new = destination.with_name(f".{destination.name}.new")
    shutil.copyfile(source, new)
    new.chmod(0o644)
    new.rename(destination)


def _take_effect() -> None:
    NOTE.unlink(missing_ok=True)
    _run("systemd-sysusers", "dnsguard.conf")
    _run("systemd-tmpfiles", "--create", "dnsguard.conf")
    _run("journalctl", "--update-catalog")
    _index_pages()
    if not Path("/run/systemd/system").is_dir():
        return
    _run("systemctl", "daemon-reload")
    if _active("dnsguard.service"):
        _run("systemctl", "try-restart", "dnsguard.service")
    else:
        print(NEXT)


def uninstall(root: Path, *, clean: bool) -> None:
    """All but the configuration, the state and the user. What the kernel enforces stays unless `clean`."""
    here = root == Path("/")
    booted = here and Path("/run/systemd/system").is_dir()
    if booted:
        _run("systemctl", "disable", "--now", *(unit for unit in UNITS if not unit.endswith(".slice")), check=False)
    if here:
        _clean() if clean else _note_pins()
    for file in files():
        below(root, file.destination).unlink(missing_ok=True)
    below(root, COMMAND).unlink(missing_ok=True)
    shutil.rmtree(below(root, PREFIX), ignore_errors=True)
    if here:
        _index_pages()
    if booted:
        _run("systemctl", "daemon-reload")
        _run("journalctl", "--update-catalog")
        if not clean:
            print(CLOSED)


def _clean() -> None:
    """Every trace out of the kernel, also when the command is gone. Raises CalledProcessError."""
    try:
        if COMMAND.exists():
            _run(str(COMMAND), "cleanup")
        else:
            pins = NOTE.read_text().strip() if NOTE.exists() else PINS
            _run("sh", "-ec", '. "$0"; clean_kernel "$1"', str(CLEANING), pins)
            print("nothing of dnsguard is in the kernel now")
    except subprocess.CalledProcessError:
        print(NOT_CLEANED, file=sys.stderr)
        raise
    NOTE.unlink(missing_ok=True)


def _note_pins() -> None:
    """Where they are, unless that is where they usually are."""
    script = "import sys, pathlib, dnsguard.config.settings as settings\n"
    script += "print(settings.usable_settings(pathlib.Path(sys.argv[1]))[0].paths.bpffs)"
    python = PREFIX / "bin/python"
    if python.exists():
        argv = [str(python), "-Ic", script, str(CONFIG / "config.yaml")]
        pins = subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()
        if pins not in ("", PINS):
            NOTE.write_text(f"{pins}\n")


def _index_pages() -> None:
    """For `man -k`: the pages that are there now, and no others."""
    if shutil.which("mandb"):
        for page in (file.destination for file in files() if "/man/" in str(file.destination)):
            _run("mandb", "--quiet", "--filename", str(page), check=False)


def _active(unit: str) -> bool:
    return subprocess.run(["systemctl", "--quiet", "is-active", unit], check=False).returncode == 0


def _run(*argv: str, check: bool = True) -> None:
    subprocess.run(argv, check=check)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="install.py", description="Install dnsguard on this node, or remove it.")
    parser.add_argument("action", choices=("install", "uninstall"))
    parser.add_argument("--root", type=Path, default=Path("/"), metavar="DESTDIR", help="put files below this folder")
    parser.add_argument("--python", default="/usr/bin/python3", help="the interpreter that the daemon will run on")
    parser.add_argument("--clean", action="store_true", help="uninstall: take every trace out of the kernel first")
    given = parser.parse_args(argv)
    root = given.root.resolve()
    if root == Path("/") and os.geteuid() != 0:
        print("installing on this node needs root (or --root DESTDIR)", file=sys.stderr)
        return MISSING
    if root == Path("/") and PACKAGE.exists():
        print("the Debian package dnsguard is installed: use apt, or remove it first", file=sys.stderr)
        return 1
    try:
        uninstall(root, clean=given.clean) if given.action == "uninstall" else install(root, given.python)
    except subprocess.CalledProcessError as error:
        print(f"{' '.join(map(str, error.cmd))} ended with {error.returncode}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main(sys.argv[1:]))
