"""What stands between a test and its machine: makes the throw-away disk and runs systemd-nspawn on it.

Run as `python -m tests.host.boot`, by Machine, in a mount namespace of its own, which is where the disk is: it is gone
with this process. A machine that asks for a reboot is booted again, on the same disk, as soon as a line comes in.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.host import groups

REBOOT = 133
"""How systemd-nspawn ends when the machine wants to be booted again."""
DOWN = "X_NSPAWN_DOWN=1"
"""Told by sd_notify(3) when nothing of the machine runs and it is to be booted again."""
DISK_SIZE = "1g"
CAPABILITIES = "CAP_NET_ADMIN,CAP_NET_RAW,CAP_BPF,CAP_PERFMON"
"""Beyond what nspawn gives anyway."""
JOURNAL = "[Journal]\nStorage=volatile\nRateLimitIntervalSec=0\n"
STARTED = ("systemd.mask=timers.target", "systemd.mask=systemd-modules-load.service", "systemd.mask=getty.target")
TARGET = "/usr/lib/systemd/system/basic.target"
"""What a boot leads to, unless a test says `systemctl set-default`."""
BPFFS = """[Unit]
Description=The bpffs, which systemd mounts itself where it is not in a container
DefaultDependencies=no
Before=local-fs.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/mount -o remount,rw /sys
ExecStart=/bin/mkdir -p /sys/fs/bpf
ExecStart=/bin/mount -t bpf -o nosuid,nodev,noexec,mode=700 bpf /sys/fs/bpf
ExecStart=/bin/mount -o remount,ro /sys

[Install]
WantedBy=local-fs.target
"""


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", required=True)
    parser.add_argument("--uuid", required=True)
    parser.add_argument("--disk", type=Path, required=True, help="a folder, empty")
    parser.add_argument("--layers", nargs="*", type=Path, default=[], help="trees laid over this machine's root")
    parser.add_argument("--limited", action="store_true", help="with the controllers of control groups")
    parser.add_argument("--boot", nargs="*", default=[], help="more options of systemd-nspawn, without their dashes")
    given = parser.parse_args(argv)
    groups.enter(given.name, limited=given.limited)
    root = make_disk(given.disk, given.layers, given.uuid)
    options = [f"--{option}" for option in given.boot]
    command = nspawn(given.name, given.uuid, root, [*options, *(limited_start() if given.limited else ["--boot"])])
    if given.limited:
        command = [*groups.entering(given.name), *command]
    while (code := subprocess.run(command, check=False, stdin=subprocess.DEVNULL).returncode) == REBOOT:
        _tell(DOWN)
        if not sys.stdin.readline():
            break
    return code


def _tell(message: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.sendto(message.encode(), os.environ["NOTIFY_SOCKET"])


def make_disk(disk: Path, layers: Sequence[Path], uuid: str) -> Path:
    """Mount an overlay that writes to a tmpfs; returns its root, with an identity and an empty journal of its own."""
    _mount("tmpfs", disk, "tmpfs", f"size={DISK_SIZE},mode=755")
    upper, work, root = (disk / part for part in ("upper", "work", "root"))
    for folder in (upper, work, root):
        folder.mkdir()
    for layer in reversed(layers):
        # Copied: a folder of the root cannot be a layer above it (ELOOP).
        subprocess.run(["cp", "--archive", "--no-target-directory", str(layer), str(upper)], check=True)
    _mount("overlay", root, "overlay", f"lowerdir=/,upperdir={upper},workdir={work}")
    (root / "var/lib/dbus/machine-id").unlink(missing_ok=True)
    _write(root / "etc/machine-id", uuid.replace("-", "") + "\n")
    _write(root / "etc/systemd/journald.conf.d/machine.conf", JOURNAL)
    _boots_bare(root / "etc/systemd")
    return root


def _boots_bare(systemd: Path) -> None:
    """Whatever its target, a boot starts nothing of what the underlying machine has installed."""
    shutil.rmtree(systemd / "system/multi-user.target.wants", ignore_errors=True)
    _link(systemd / "system-generators/systemd-sysv-generator", "/dev/null")
    _link(systemd / "system/default.target", TARGET)
    _write(systemd / "system/bpffs.service", BPFFS)
    _link(systemd / "system/local-fs.target.wants/bpffs.service", "../bpffs.service")


def nspawn(name: str, uuid: str, root: Path, options: Sequence[str]) -> list[str]:
    """Its command line; the last of the options says what is started."""
    return [
        *("setpriv", "--pdeathsig", "KILL", "systemd-nspawn", "--quiet", f"--directory={root}"),
        *(f"--machine={name}", f"--uuid={uuid}", "--register=no", "--keep-unit", "--link-journal=no"),
        *("--resolv-conf=off", "--timezone=off", "--console=pipe", "--notify-ready=yes"),
        *(f"--capability={CAPABILITIES}", "--system-call-filter=bpf", *options, *STARTED),
    ]


def limited_start() -> list[str]:
    """Instead of `--boot`: systemd looks once, when it starts, for the controllers that it may write to, and nspawn
    makes those of cgroup v1 read-only. The machine sees nothing of them but its own group."""
    folders = " ".join(str(hierarchy) for hierarchy in groups.controllers())
    writable = f"for folder in {folders}; do mount -o remount,bind,rw $folder; done"
    return ["sh", "-ec", f'{writable}; exec /lib/systemd/systemd "$@"', "init"]


def _mount(source: str, target: Path, kind: str, options: str) -> None:
    subprocess.run(["mount", "-t", kind, "-o", options, source, str(target)], check=True)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(text)


def _link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
