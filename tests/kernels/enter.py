"""The first program of a virtual machine: `enter.py KERNEL_FOLDER RESULTS TOP PROGRAM...`, standard library only.

Makes the host's file system its root: read through a cache, and whatever is written there is the machine's alone, but
for the folder RESULTS. Then it becomes PROGRAM, in the folder TOP.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

BIND, READ_ONLY, RECURSIVE = 4096, 1, 16384
HOST, ROOM, ROOT = Path("/run/host"), Path("/run/room"), Path("/run/root")
TAG = "host"
MODULES = (
    "veth",
    "sch_ingress",
    "cls_bpf",
    "nf_conntrack_netlink",
    "nfnetlink_log",
    "nf_log_syslog",
    "af_packet",
    "sctp",
)
"""Besides nftables' own."""
_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: Path, kind: str, options: str = "", flags: int = 0) -> None:
    target.mkdir(parents=True, exist_ok=True)
    if _libc.mount(source.encode(), bytes(target), kind.encode(), flags, options.encode()):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"mount of {source} on {target}")


def below(path: Path) -> Path:
    return ROOT / path.relative_to("/")


def enter(kernel: Path, results: Path) -> None:
    # Not the root that is there: it has no cache, and a program that starts reads everything octet by octet again.
    mount(TAG, HOST, "9p", "version=9p2000.L,trans=virtio,cache=loose,msize=512000", READ_ONLY)
    subprocess.run(["modprobe", "-d", f"{HOST}{kernel}", "overlay"], check=True)
    mount("room", ROOM, "tmpfs")
    for folder in ("upper", "work"):
        (ROOM / folder).mkdir()
    mount("root", ROOT, "overlay", f"lowerdir={HOST},upperdir={ROOM}/upper,workdir={ROOM}/work")
    for folder in ("dev", "proc", "sys"):
        mount(f"/{folder}", ROOT / folder, "", flags=BIND | RECURSIVE)
    mount("run", ROOT / "run", "tmpfs")
    mount(str(results), below(results), "", flags=BIND)
    mount("bpf", ROOT / "sys/fs/bpf", "bpf")
    find_modules(kernel)
    os.chroot(ROOT)
    load_modules()


def find_modules(kernel: Path) -> None:
    """Let the kernel load modules of its own package when it misses one."""
    release = os.uname().release
    modules = ROOT / "lib/modules"
    modules.mkdir(parents=True, exist_ok=True)
    (modules / release).symlink_to(kernel / "lib/modules" / release)
    loader = Path("/run/modprobe")  # the kernel runs it in the root that this program began in
    loader.write_text(f'#!/bin/sh\nexec chroot {ROOT} /sbin/modprobe "$@"\n')
    loader.chmod(0o755)
    Path("/proc/sys/kernel/modprobe").write_text(str(loader))


def load_modules() -> None:
    """Those that the suites need, all at once: one by one, as the kernel misses them, takes seconds for each."""
    listed = (Path("/lib/modules") / os.uname().release / "modules.dep").read_text().splitlines()
    names = {line.partition(":")[0].rpartition("/")[2].partition(".ko")[0] for line in listed}
    wanted = sorted(names & set(MODULES) | {name for name in names if name.startswith("nft_")})
    subprocess.run(["modprobe", "--all", "--quiet", *wanted], check=False)


if __name__ == "__main__":
    enter(Path(sys.argv[1]), Path(sys.argv[2]))
    os.chdir(sys.argv[3])
    os.execv(sys.argv[4], sys.argv[4:])
