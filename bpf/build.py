"""Compile the eBPF program into the Python package: `python3 bpf/build.py [OUTPUT]`, or `make bpf`.

Needs clang and llvm-objcopy; standard library only. The same sources, headers and clang give the same octets wherever
the folder lies. The object carries a digest of the sources in a section of its own, so that it is seen without a
compiler when it is older than they are. Exit code 77: no clang here.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

MISSING = 77
HERE = Path(__file__).resolve().parent
OBJECT = HERE.parent / "src/dnsguard/enforce/bpf/dnsguard.bpf.o"
SECTION = ".dnsguard.sources"
"""The loader skips a section that it does not know."""


def sources_digest(folder: Path = HERE) -> str:
    """SHA-256 over names and contents of every source and header in `folder`."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.c"), *folder.glob("*.h")]):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def tool(name: str) -> str | None:
    """Path of an LLVM tool; Debian also has it with its version in the name."""
    versions = ["", *(f"-{number}" for number in range(30, 13, -1))]
    return next((path for version in versions if (path := shutil.which(name + version))), None)


def build(output: Path, folder: Path = HERE) -> None:
    """Compile `folder` to `output`. Raises CalledProcessError, the compiler's own words are on stderr."""
    clang, objcopy = tool("clang"), tool("llvm-objcopy")
    if clang is None or objcopy is None:
        raise FileNotFoundError("clang and llvm-objcopy: apt-get install clang llvm libbpf-dev linux-libc-dev")
    # <asm/types.h> lies in the machine's own folder; what it says is the same on every machine of 64 bits
    headers = ["-idirafter", f"/usr/include/{platform.machine()}-linux-gnu"]
    flags = ["-O2", "-g", "-Wall", "--target=bpf", "-fdebug-compilation-dir=.", *headers]
    with tempfile.TemporaryDirectory() as temporary:
        compiled, digest = Path(temporary) / "dnsguard.bpf.o", Path(temporary) / "sources"
        digest.write_text(sources_digest(folder))
        subprocess.run([clang, *flags, "-c", "dnsguard.bpf.c", "-o", compiled], cwd=folder, check=True)
        section = f"--add-section={SECTION}={digest}"
        subprocess.run([objcopy, "--strip-debug", section, compiled], check=True)
        shutil.copyfile(compiled, output)


def main(output: Path = OBJECT) -> int:
    try:
        build(output)
    except FileNotFoundError as error:
        print(f"missing: {error}", file=sys.stderr)
        return MISSING
    except subprocess.CalledProcessError as error:
        return error.returncode
    print(f"{output.name} {hashlib.sha256(output.read_bytes()).hexdigest()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:2])))
