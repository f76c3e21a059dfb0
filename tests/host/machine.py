"""A real systemd and journald, as PID 1 of namespaces of their own, on a throw-away copy of this machine's root.

Needs root and the package systemd-container; boots in less than a second. The underlying machine is seen but never
changed: all that is written goes to a tmpfs that ends with the machine. What SIGKILL leaves, the next machine sweeps.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self

from dnsguard.core.errors import MissingFeatureError
from tests.host import boot, groups

TOP = Path(__file__).resolve().parent.parent.parent
BOOT_SECONDS = 30.0
POWER_OFF_SECONDS = 5.0
POWER_OFF = signal.SIGRTMIN + 4
"""systemd(1): start poweroff.target."""
LEADER = "X_NSPAWN_LEADER_PID="
"""What systemd-nspawn tells of the machine's first process, as its notices begin."""
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "SYSTEMD_PAGER": ""}


class Notices:
    """What arrives by sd_notify(3), read as it comes: systemd waits for a reader, with everything it has to do."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._messages: SimpleQueue[str] = SimpleQueue()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._thread = threading.Thread(target=self._read, name="notices", daemon=True)

    def _read(self) -> None:
        while message := self._socket.recv(4096).decode():
            if "READY=1" in message or "X_NSPAWN" in message or "ERRNO" in message:
                self._messages.put(message)

    def next(self, seconds: float) -> list[str]:
        """The lines of the next message that counts; none when there is none so soon."""
        try:
            return self._messages.get(timeout=seconds).splitlines()
        except Empty:
            return []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", str(self._path))
        self._thread.join()
        self._socket.close()


class Machine:
    """`with Machine(network="name of a namespace") as machine:`

    `layers` are trees that are laid over the root (the first uppermost), `binds` folders of this machine that it sees
    at the same place, read-only. Without a network it has only `lo`; unless `limited`, a systemd that cannot limit
    memory, CPU and tasks where these are hierarchies of their own (cgroup v1).
    """

    def __init__(
        self,
        *,
        network: str | None = None,
        layers: Sequence[Path] = (),
        binds: Sequence[Path] = (),
        limited: bool = False,
    ) -> None:
        self.name = f"{groups.PREFIX}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        net = f"network-namespace-path=/run/netns/{network}" if network else "private-network"
        self._options = [net, *(f"bind-ro={path}" for path in binds)]
        self._layers = layers
        self._limited = limited
        self._leader = 0
        self._ending = contextlib.ExitStack()

    # -- its life ---------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if shutil.which("systemd-nspawn") is None:
            raise MissingFeatureError("systemd-nspawn is missing: apt-get install -y systemd-container")
        groups.sweep()
        with self._ending:
            self._power_on()
            self._ending = self._ending.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._power_off()
        self._ending.close()

    def _power_on(self) -> None:
        folder = Path(self._ending.enter_context(tempfile.TemporaryDirectory(prefix=f"{groups.PREFIX}-")))
        self._ending.callback(groups.remove, self.name)
        (folder / "disk").mkdir()
        self._console = folder / "console"
        self._notices = self._ending.enter_context(Notices(folder / "notify"))
        self._process = self._boot(folder)
        self._ending.callback(self._kill)
        self.until_up()

    def _boot(self, folder: Path) -> subprocess.Popen[bytes]:
        # A namespace of the network that goes while the machine is down goes here, too: slave, not private.
        private = ("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "slave")
        told = [f"--name={self.name}", f"--uuid={uuid.uuid4()}", f"--disk={folder / 'disk'}"]
        layers = [*(["--limited"] if self._limited else []), "--layers", *map(str, self._layers)]
        # A machine with limits has its control groups as this one has them.
        hierarchy = {} if self._limited else {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
        with self._console.open("wb") as console:
            return subprocess.Popen(
                [*private, sys.executable, "-m", "tests.host.boot", *told, *layers, "--boot", *self._options],
                cwd=TOP,
                env={
                    **ENVIRONMENT,
                    "PYTHONPATH": str(TOP),
                    **hierarchy,
                    "NOTIFY_SOCKET": str(folder / "notify"),
                },
                stdin=subprocess.PIPE,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def until_up(self) -> None:
        """Wait until a boot has started all that it is to start."""
        self._until("READY=1")

    def _until(self, wanted: str) -> None:
        deadline = time.monotonic() + BOOT_SECONDS
        lines: list[str] = []
        while not any(line.startswith(wanted) for line in lines):
            lines = self._next_notice(deadline)
            for line in lines:
                if line.startswith(LEADER):
                    self._leader = int(line.removeprefix(LEADER))

    def _next_notice(self, deadline: float) -> list[str]:
        """The lines of one message of sd_notify(3). Raises RuntimeError with the console when none comes."""
        while True:
            lines = self._notices.next(0.2)
            failed = any(line.startswith("ERRNO=") for line in lines) or self._process.poll() is not None
            if failed or time.monotonic() > deadline:
                raise RuntimeError(f"systemd did not come up: {lines}\n{self.console()}")
            if lines:
                return lines

    def reboot(self, meanwhile: Callable[[], object]) -> None:
        """Boot again, from the same disk; /run, the bpffs and the boot's id are new. The namespace of the network is
        as it was: `meanwhile`, which is called while nothing of the machine runs, makes it anew if that matters.
        Returns when there is a first process again; `until_up` waits for the rest."""
        self.run("systemctl", "reboot", check=False)
        self._until(boot.DOWN)
        meanwhile()
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        self._until(LEADER)

    def _power_off(self) -> None:
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.kill(self._leader, POWER_OFF)
            self._process.wait(POWER_OFF_SECONDS)

    def _kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()

    def console(self) -> str:
        return self._console.read_text(errors="replace")

    # -- what is done in it -----------------------------------------------------------------------------------------

    @property
    def root(self) -> Path:
        """Its root, as seen from here."""
        return Path(f"/proc/{self._leader}/root")

    def popen(self, *argv: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(self._entering(argv), **{"env": ENVIRONMENT, "text": True, **options})

    def run(self, *argv: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program to its end. Raises AssertionError with what it said when it fails, unless told not to check."""
        given = {
            "capture_output": True,
            "env": ENVIRONMENT,
            "stdin": subprocess.DEVNULL,
            "text": True,
            "timeout": 60,
            **options,
        }
        done = subprocess.run(self._entering(argv), check=False, **given)
        if check and done.returncode:
            raise AssertionError(f"{shlex.join(argv)} ended with {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def shell(self, script: str) -> str:
        """What a shell script printed."""
        return self.run("sh", "-ec", script).stdout

    def systemctl(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run("systemctl", *argv, check=check)

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Properties of a unit."""
        wanted = (f"--property={name}" for name in properties)
        return dict(line.split("=", 1) for line in self.systemctl("show", unit, *wanted).stdout.splitlines())

    def main_pid(self, unit: str) -> int:
        """Of a service, as its machine counts; 0 when it does not run."""
        return int(self.show(unit, "MainPID")["MainPID"])

    def journal(self, *matches: str) -> list[dict[str, Any]]:
        """The entries that match, all fields, after journald has taken what was sent before."""
        self.run("journalctl", "--sync")
        printed = self.run("journalctl", "--all", "--output=json", *matches).stdout
        return [json.loads(line) for line in printed.splitlines()]

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """A file of the machine, with its folders."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def read(self, path: str) -> str:
        return (self.root / path.lstrip("/")).read_text()

    def _entering(self, argv: Sequence[str]) -> list[str]:
        return ["nsenter", f"--target={self._leader}", "--all", "--", *argv]
