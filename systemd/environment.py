"""The virtual environment that dnsguard runs from: built aside, with locked dependencies, and put in place whole.

Standard library only: it runs before any of dnsguard's dependencies are there. Needs python3-venv, and an index or a
folder of wheels that pip is set up for. What is built knows no other place than the one it will stand in, and has
neither pip nor a compiler's leavings.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent
LOCK, BUILD_LOCK = SOURCE / "requirements-run.lock", SOURCE / "requirements-build.lock"
STAMPS = "share/dnsguard/built-from"
"""Below the environment: what it was built from, so that the next installation builds only what is new."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where it stands once all is done (`final`), and where that is for us: the same below a DESTDIR."""

    root: Path
    final: Path

    @property
    def here(self) -> Path:
        return below(self.root, self.final)


def below(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


def build(place: Place, python: str) -> bool:
    """Bring it up to this source; False when it was so already. Raises CalledProcessError with pip's words."""
    stamps = {"dependencies": _stamp([LOCK], python), "source": _stamp(_source_files(), python)}
    if _stamps_of(place.here) == stamps:
        return False
    new, old = (place.here.with_name(f".{place.here.name}.{which}") for which in ("new", "old"))
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="dnsguard-build-") as folder:
        pip = _pip(Path(folder), python)
        _fill(new, place, pip, fresh=_stamps_of(place.here).get("dependencies") != stamps["dependencies"])
        _install_package(new, pip, Path(folder))
    _settle(new, place.final)
    for name, stamp in stamps.items():
        (new / STAMPS / name).write_text(stamp)
    if place.here.exists():
        place.here.rename(old)  # the interpreter of a running daemon goes on with the files it has open
    new.rename(place.here)
    shutil.rmtree(old, ignore_errors=True)
    return True


def _pip(folder: Path, python: str) -> Sequence[str]:
    """A pip of our own, with what builds the package beside it: none of it is left in the environment."""
    subprocess.run([python, "-m", "venv", str(folder / "tools")], check=True)
    pip = [str(folder / "tools/bin/python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--require-hashes", "--requirement", str(BUILD_LOCK)], check=True)
    return [*pip]


def _fill(new: Path, place: Place, pip: Sequence[str], *, fresh: bool) -> None:
    """The dependencies: those of the environment that is there when they are the same."""
    if not fresh:
        shutil.copytree(place.here, new, symlinks=True)
        return
    python = str(Path(pip[0]).resolve())
    new.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([python, "-m", "venv", "--without-pip", str(new)], check=True)
    (new / STAMPS).mkdir(parents=True)
    locked = ["--require-hashes", "--only-binary=:all:", "--requirement", str(LOCK)]
    subprocess.run([*_into(new, pip), "install", "--no-compile", *locked], check=True)


def _install_package(new: Path, pip: Sequence[str], folder: Path) -> None:
    """Out of a wheel, by name: pip would note the folder of the source otherwise."""
    wheels = str(folder / "wheels")
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, str(SOURCE)], check=True)
    alone = ["--no-deps", "--no-compile", "--force-reinstall", "--no-index", "--find-links", wheels]
    subprocess.run([*_into(new, pip), "install", *alone, "dnsguard"], check=True)


def _into(new: Path, pip: Sequence[str]) -> list[str]:
    return [*pip, "--python", str(new / "bin/python")]


def _settle(new: Path, final: Path) -> None:
    """Every path in it becomes that of the place where it will stand."""
    for file in (new / "pyvenv.cfg", *(new / "bin").iterdir()):
        if file.is_file() and not file.is_symlink():
            file.write_bytes(file.read_bytes().replace(bytes(new), bytes(final)))
    # A running daemon may not write here: without this each start would compile everything anew.
    compiling = ["-m", "compileall", "-q", "-f", "-s", str(new), "-p", str(final), str(new / "lib")]
    subprocess.run([str(new / "bin/python"), *compiling], check=True)


def _stamps_of(environment: Path) -> dict[str, str]:
    folder = environment / STAMPS
    return {file.name: file.read_text() for file in folder.iterdir()} if folder.is_dir() else {}


def _source_files() -> list[Path]:
    files = (path for top in ("src", "config") for path in (SOURCE / top).rglob("*"))
    return [SOURCE / "pyproject.toml", *sorted(path for path in files if path.is_file() and path.suffix != ".pyc")]


def _stamp(files: Sequence[Path], python: str) -> str:
    version = subprocess.run([python, "--version"], capture_output=True, text=True, check=True).stdout
    digest = hashlib.sha256(version.encode())
    for file in files:
        digest.update(str(file.relative_to(SOURCE)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()
