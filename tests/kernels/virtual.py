"""One virtual machine: Debian's kernel over the host's own file system, by virtme-ng and qemu's software emulation.

It writes into one folder and nowhere else. One that does not end in time is killed, by its process id; so are, at the
start of the next run, those of a run that was killed itself.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import venv
from contextlib import suppress
from pathlib import Path

from tests.kernels import enter
from tests.kernels.archive import CACHE, Kernel
from tests.kernels.suites import TOP

VIRTME = TOP / ".cache/virtme"
VIRTME_FROM_PYPI = "virtme-ng==1.42"
RUNS = CACHE / "runs"
MEMORY = "3G"
BOOT_SECONDS = 180
KERNEL_OPTIONS = (
    "mitigations=off",  # an emulated processor has nothing to hide from itself, and pays 7 times for trying
    "rcupdate.rcu_expedited=1",  # namespaces come and go without waiting for the other processor
    "tsc=reliable",  # a clock that is read without leaving the emulated code
    "no5lvl",
)


def virtme_run() -> Path:
    """Where the program is; installs it first if need be."""
    program = VIRTME / "bin/virtme-run"
    if not program.exists():
        venv.create(VIRTME, with_pip=True, clear=True)
        subprocess.run([VIRTME / "bin/pip", "install", "--quiet", VIRTME_FROM_PYPI], check=True, timeout=600)
    return program


def own_folder(kernel: str) -> Path:
    """An empty folder for the results of one kernel in this run."""
    folder = RUNS / str(os.getpid()) / kernel
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def sweep(runs: Path = RUNS) -> None:
    """End the virtual machines of runs that are no more, and remove what all earlier runs have written."""
    for run in runs.glob("*"):
        if "tests.kernels" in _command(run.name) and run.name != str(os.getpid()):
            continue  # somebody's who is still at it
        for folder in run.iterdir():
            _kill(folder)
        shutil.rmtree(run, ignore_errors=True)


def _command(pid: str) -> str:
    with suppress(OSError):
        return Path("/proc", pid, "cmdline").read_bytes().decode(errors="replace")
    return ""


def _kill(folder: Path) -> None:
    """The virtual machine that wrote its process id there, if it is that one still."""
    with suppress(OSError, ValueError):
        pid = (folder / "qemu.pid").read_text().strip()
        if str(folder / "qemu.pid") in _command(pid):
            os.kill(int(pid), signal.SIGKILL)


def boot(kernel: Kernel, folder: Path, module: list[str], seconds: float) -> bool:
    """Run `python -m <module>` as root inside, from this repository. Whether the machine ended by itself in time;
    what it said on its console is in `console.log`."""
    shutil.copy(enter.__file__, folder / "enter.py")
    program = [sys.executable, "-m", *module]
    inside = ["/usr/bin/python3", str(folder / "enter.py"), str(kernel.folder), str(folder), str(TOP), *program]
    with (folder / "console.log").open("wb") as console:
        process = subprocess.Popen(
            _command_line(kernel, folder, f"PYTHONPATH={TOP}/src exec {shlex.join(inside)}"),
            cwd=TOP,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
        )
        try:
            return _ended(process, BOOT_SECONDS + seconds)
        finally:
            _kill(folder)
            process.kill()
            process.wait()


def _ended(process: subprocess.Popen[bytes], seconds: float) -> bool:
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
        return True
    return False


def _command_line(kernel: Kernel, folder: Path, script: str) -> list[str]:
    share = f"local,path=/,mount_tag={enter.TAG},readonly=on,security_model=none,multidevs=remap"
    return [
        *(str(virtme_run()), "--kimg", str(kernel.image), "--mods", "auto", "--disable-kvm", "--force-9p"),
        *("--cpus", "2", "--memory", MEMORY, "--user", "root", "--rwdir", str(folder), "--show-boot-console"),
        *(word for option in KERNEL_OPTIONS for word in ("--kopt", option)),
        *("--script-sh", script),
        *("--qemu-opts", "-pidfile", str(folder / "qemu.pid"), "-virtfs", share),
    ]


def elapsed(since: float) -> str:
    return f"{time.monotonic() - since:.0f} s"
