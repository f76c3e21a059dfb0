"""The object is made the same wherever it is made, and goes with the package."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from dnsguard.enforce.bpf.load import OBJECT, load, shipped

TOP = Path(__file__).parents[3]
BUILD = runpy.run_path(str(TOP / "bpf/build.py"))

needs_clang = pytest.mark.skipif(BUILD["tool"]("clang") is None, reason="no clang here")


def build(folder: Path) -> bytes:
    folder.parent.mkdir()
    shutil.copytree(TOP / "bpf", folder)
    subprocess.run([sys.executable, folder / "build.py", folder / OBJECT], check=True, capture_output=True)
    return (folder / OBJECT).read_bytes()


@needs_clang
def test_two_folders_give_the_same_object(tmp_path: Path) -> None:
    assert build(tmp_path / "a" / "bpf") == build(tmp_path / "a-longer-name" / "sources")


@needs_clang
def test_an_object_that_was_just_built_is_loaded(tmp_path: Path) -> None:
    loaded = load(None, {}, build(tmp_path / "a" / "bpf"))
    assert set(loaded.programs) == {"from_pod", "to_pod"}
    loaded.close()


@needs_clang
def test_the_digest_changes_with_any_header(tmp_path: Path) -> None:
    folder = tmp_path / "bpf"
    shutil.copytree(TOP / "bpf", folder)
    before = BUILD["sources_digest"](folder)
    with (folder / "packet.h").open("a") as header:
        header.write("\n")
    assert BUILD["sources_digest"](folder) != before


def test_without_a_compiler_the_build_says_what_to_install(tmp_path: Path) -> None:
    run = [sys.executable, TOP / "bpf/build.py", tmp_path / OBJECT]
    done = subprocess.run(run, env={"PATH": ""}, capture_output=True, text=True, check=False)
    assert done.returncode == 77
    assert "apt-get install clang llvm" in done.stderr


def test_the_wheel_has_the_object(tmp_path: Path) -> None:
    words = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-w", tmp_path, TOP]
    subprocess.run([sys.executable, *words], check=True, timeout=100)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        assert opened.read(f"dnsguard/enforce/bpf/{OBJECT}") == shipped()
