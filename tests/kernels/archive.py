"""Debian's kernels: the newest of each series that its archive has, unpacked under `.cache/kernels/<release>`.

apt is given sources, lists and state of its own, so that the machine's stay as they are. The archive's address is the
one that the machine's own apt uses. Without the network, what was unpacked before is used.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cmp_to_key
from pathlib import Path

from tests.kernels.suites import TOP

CACHE = TOP / ".cache/kernels"
APT = TOP / ".cache/apt"
SERIES = ("5.10", "6.1", "6.12")
SUITES = ("bullseye", "bookworm", "bookworm-backports")
SECURITY_SUITES = ("bullseye-security", "bookworm-security")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
FETCH_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Kernel:
    """`release` as `uname -r` says it there; `folder` is the package, unpacked."""

    series: str
    release: str
    folder: Path

    @property
    def image(self) -> Path:
        return self.folder / "boot" / f"vmlinuz-{self.release}"


class ArchiveError(Exception):
    """A kernel cannot be had."""


def kernels(series: Iterable[str]) -> list[Kernel]:
    """One for each series. Raises ArchiveError."""
    try:
        offered = _offered()
    except (subprocess.SubprocessError, ArchiveError) as error:
        print(f"the archive cannot be asked, what is here is used ({error})", file=sys.stderr)
        return [_unpacked(each) for each in series]
    return [_fetched(each, offered) for each in series]


def _unpacked(series: str) -> Kernel:
    here = [path.name for path in CACHE.glob(f"{series}.*") if (path / "boot").is_dir()]
    if not here:
        raise ArchiveError(f"no kernel {series} is under {CACHE}: it has to be fetched once")
    release = max(here, key=lambda name: [int(part) for part in re.findall(r"\d+", name)])
    return Kernel(series, release, CACHE / release)


def _fetched(series: str, offered: list[tuple[str, str]]) -> Kernel:
    version, release = newest(series, offered)
    kernel = Kernel(series, release, CACHE / release)
    if not kernel.image.exists():
        _unpack(f"linux-image-{release}={version}", kernel.folder)
    return kernel


def newest(series: str, offered: Iterable[tuple[str, str]]) -> tuple[str, str]:
    """Version and release of the newest package, of those offered by name and version. Raises ArchiveError."""
    # the generic flavour: the one for clouds has no 9p
    name = re.compile(rf"linux-image-({re.escape(series)}\.[0-9][^_]*-amd64)")
    found = [(version, match[1]) for package, version in offered if (match := name.fullmatch(package))]
    generic = [each for each in found if not re.search("-(cloud|rt|dbg)", each[1])]
    if not generic:
        raise ArchiveError(f"the archive has no kernel {series}")
    return max(generic, key=_by_version)


@cmp_to_key
def _by_version(one: tuple[str, str], other: tuple[str, str]) -> int:
    newer = subprocess.run(["dpkg", "--compare-versions", one[0], "gt", other[0]], check=False).returncode == 0
    return 1 if newer else -1 if one[0] != other[0] else 0


def _unpack(package: str, folder: Path) -> None:
    print(f"fetching {package}", flush=True)
    aside = CACHE / f"{folder.name}.part"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    # root, not apt's own user, writes here: the folder may be one that others cannot enter
    _apt("apt-get", "-o", "APT::Sandbox::User=root", "download", package, folder=aside)
    (archive,) = aside.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", str(archive), str(aside)], check=True, timeout=FETCH_SECONDS)
    archive.unlink()
    for other in ("usr/share", f"boot/System.map-{folder.name}"):
        path = aside / other
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    subprocess.run(["depmod", "-b", str(aside), folder.name], check=True, timeout=FETCH_SECONDS)
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def _offered() -> list[tuple[str, str]]:
    """Names and versions of the archive's kernel packages."""
    main, security = _addresses()
    for folder in ("lists/partial", "state", "cache/archives/partial", "parts"):
        (APT / folder).mkdir(parents=True, exist_ok=True)
    lines = [(main, suite) for suite in SUITES] + [(security, suite) for suite in SECURITY_SUITES]
    text = "".join(f"deb [signed-by={KEYRING}] {address} {suite} main\n" for address, suite in lines)
    (APT / "sources.list").write_text(text)
    _apt("apt-get", "-o", "Acquire::Languages=none", "update")
    listed = _apt("apt-cache", "madison", *_names()).splitlines()
    return [(name.strip(), version.strip()) for name, version, _ in (line.split("|") for line in listed)]


def _names() -> list[str]:
    pattern = rf"^linux-image-({'|'.join(map(re.escape, SERIES))})\..*-amd64$"
    return [line.split()[0] for line in _apt("apt-cache", "search", "--names-only", pattern).splitlines()]


def _addresses() -> tuple[str, str]:
    """Where the machine's own apt has Debian and its security updates from."""
    told = _run(["apt-get", "indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)", "Created-By: Packages"])
    rows = [line.split("|") for line in told.splitlines()]
    found = {label: address for origin, label, address in rows if origin == "Debian"}
    try:
        return found["Debian"], found["Debian-Security"]
    except KeyError as error:
        raise ArchiveError(f"this machine's apt does not know {error}: apt-get update, on Debian") from None


def _apt(program: str, *arguments: str, folder: Path = TOP) -> str:
    own = {
        "Dir::Etc::SourceList": APT / "sources.list",
        "Dir::Etc::SourceParts": APT / "parts",
        "Dir::State": APT / "state",
        "Dir::State::Lists": APT / "lists",
        "Dir::Cache": APT / "cache",
    }
    return _run([program, "-q", *(f"-o{key}={value}" for key, value in own.items()), *arguments], folder)


def _run(argv: list[str], folder: Path = TOP) -> str:
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False, timeout=FETCH_SECONDS)
    if done.returncode:
        raise ArchiveError(f"{' '.join(argv[:1] + argv[-2:])}: {done.stderr.strip()}")
    return done.stdout
