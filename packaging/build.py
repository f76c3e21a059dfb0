"""Build the Debian package: `/usr/bin/python3 packaging/build.py`, standard library only.

The sources are copied to a folder of their own, with packaging/debian as debian/, and built there by debhelper; what
comes out is in dist/, and its path on standard output. A package of the same sources that has been built before is
taken from .cache/deb. Needs debhelper, and an index from which pip gets the locked dependencies.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
CACHE = TOP / ".cache/deb"
SOURCES = ("LICENSE", "README.md", "config", "packaging", "pyproject.toml", "src", "systemd")
LOCKS = "requirements-*.lock"
SCRATCH = ("__pycache__", "*.pyc", ".*_cache")
KEPT = 3
"""Packages of earlier sources that stay in the cache."""


def build() -> Path:
    """The package of these sources, in dist/. Raises CalledProcessError with the tool's own words on the terminal."""
    cached = CACHE / digest()
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _have(cached)
    package = next(cached.glob("*.deb"))
    (TOP / "dist").mkdir(exist_ok=True)
    return Path(shutil.copy2(package, TOP / "dist"))


def _have(cached: Path) -> None:
    if not cached.is_dir():
        with tempfile.TemporaryDirectory(dir=CACHE, prefix="build-") as folder:
            _build(Path(folder)).rename(cached)
        _forget()


def digest() -> str:
    """Of all that the package is made from, this machine's Python among it."""
    sum_ = hashlib.sha256(sys.version.encode())
    for file in _files():
        sum_.update(f"{file.relative_to(TOP)}\0{file.stat().st_mode:o}\0".encode() + file.read_bytes() + b"\0")
    return sum_.hexdigest()[:16]


def _files() -> Iterator[Path]:
    for source in _sources():
        for file in sorted(source.rglob("*")) if source.is_dir() else [source]:
            if file.is_file() and file.suffix != ".pyc":
                yield file


def _sources() -> list[Path]:
    return [*(TOP / name for name in SOURCES), *sorted(TOP.glob(LOCKS))]


def _build(folder: Path) -> Path:
    """A folder with the package alone."""
    tree = folder / "dnsguard"
    tree.mkdir()
    for source in _sources():
        if source.is_dir():
            shutil.copytree(source, tree / source.name, symlinks=True, ignore=shutil.ignore_patterns(*SCRATCH))
        else:
            shutil.copy2(source, tree)
    shutil.copytree(TOP / "packaging/debian", tree / "debian")
    environment = os.environ | {"PIP_CACHE_DIR": str(TOP / ".cache/pip"), "DEB_BUILD_OPTIONS": "nocheck noautodbgsym"}
    command = ["dpkg-buildpackage", "--build=binary", "--no-sign"]
    subprocess.run(command, cwd=tree, env=environment, stdout=sys.stderr, check=True)
    done = folder / "done"
    done.mkdir()
    for package in folder.glob("*.deb"):
        package.rename(done / package.name)
    return done


def _forget() -> None:
    known = sorted((one for one in CACHE.iterdir() if one.is_dir()), key=lambda one: one.stat().st_mtime)
    for old in known[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)


if __name__ == "__main__":
    try:
        print(build().relative_to(TOP))
    except subprocess.CalledProcessError as error:
        sys.exit(f"{error.cmd[0]} ended with {error.returncode}")
