"""A node under systemd with dnsguard installed and running, its pods, and an outside world: what host tests play on."""

from __future__ import annotations

import contextlib
import fcntl
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dnsguard.control.client import ControlClient, NotRunningError
from dnsguard.core.errors import DnsguardError
from dnsguard.demo.lab import WORLD_ADDRESSES, Lab
from tests.host.machine import Machine
from tests.node import scene
from tests.node.daemon import READY_SECONDS, Dnsguard, wait_for
from tests.node.scene import A6, ALLOWLIST, B6, A, B, Scene

TOP = Path(__file__).resolve().parent.parent.parent
CACHE = TOP / ".cache/host"
PYTHON = "/usr/bin/python3"
UNIT = "dnsguard.service"
UNITS = ("dnsguard.socket", UNIT)
CONFIG = "/etc/dnsguard/config.yaml"
SETTINGS = {
    "pods": {"interfaces": ["veth-*"]},
    "upstreams": list(WORLD_ADDRESSES[:1]),
    "ttl": {"floor": "1s", "cap": "1h", "grace": "1s"},
}


class Service(Dnsguard):
    """dnsguard as a service of a machine: its life is systemd's, what it says is in the journal."""

    def __init__(self, lab: Lab, machine: Machine) -> None:
        super().__init__(lab, machine.root / "etc/dnsguard", ("/usr/bin/dnsguard",))
        self._machine = machine

    def start(self) -> None:
        """Returns when systemd says that it runs, which is when it is ready."""
        started = self._machine.systemctl("start", *UNITS, check=False)
        if started.returncode:
            raise RuntimeError(f"dnsguard does not start: {started.stderr}{self.said()}")

    def spawn(self) -> subprocess.Popen[str]:
        raise NotImplementedError("systemd starts it")

    def stop(self, number: int = 0) -> int:
        return self._machine.systemctl("stop", *UNITS).returncode

    def signal(self, number: int) -> None:
        self._machine.systemctl("kill", "--kill-whom=main", f"--signal={int(number)}", UNIT)

    @property
    def pid(self) -> int:
        """Of the daemon, as the machine counts; 0 when there is none."""
        return self._machine.main_pid(UNIT)

    def settings(self, **config: object) -> None:
        """Write the configuration: SETTINGS, with these keys besides or instead."""
        self.write("config.yaml", "Configuration", {**SETTINGS, **config})

    def write(self, file: str, kind: str, content: Any) -> None:
        head = {"apiVersion": "dnsguard/v1", "kind": kind}
        self._machine.write(f"/etc/dnsguard/{file}", yaml.safe_dump({**head, **content}))

    def call(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return self._machine.run("/usr/bin/dnsguard", *argv, check=False)

    def ask(self, call: str, **arguments: str) -> Any:
        client = ControlClient(self._machine.root / "run/dnsguard")
        return (
            list(client.rows(call, **arguments))
            if call in ("pods", "leases", "learn")
            else client.call(call, **arguments)
        )

    def ready(self) -> bool:
        try:
            return bool(self.ask("status")["ready"])
        except (NotRunningError, DnsguardError, OSError):
            return False

    def said(self) -> str:
        return self._machine.run("journalctl", "--unit=dnsguard*", "--output=cat", "--lines=60").stdout

    def events(self, kind: str, **fields: object) -> list[dict[str, Any]]:
        raise NotImplementedError("look for them in Machine.journal")


@dataclass
class Host:
    """The machine, and the scene of its pods and the world around it; `daemon` is the service."""

    machine: Machine
    scene: Scene
    daemon: Service

    @property
    def lab(self) -> Lab:
        return self.scene.lab

    def until(self, condition: Callable[[], bool], seconds: float = READY_SECONDS) -> None:
        """Raises TimeoutError, with what dnsguard said, when it has not come true by then."""
        try:
            wait_for(condition, seconds)
        except TimeoutError as error:
            error.add_note(f"dnsguard said: {self.daemon.said()}")
            raise

    def until_replaced(self, before: int) -> None:
        """Wait until another daemon than the one with this process number is ready."""
        self.until(lambda: self.daemon.pid not in (0, before) and self.daemon.ready())


def installed() -> Path:
    """A tree with what `make install` puts on a node, to be laid over a machine's root. Kept until the source
    changes. Raises CalledProcessError with what the installer said."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        root = CACHE / "root"
        subprocess.run([PYTHON, TOP / "systemd/install.py", "install", "--root", root], check=True)
    return root


def accounts(machine: Machine) -> None:
    """What an installer does after its files are there."""
    machine.shell("systemd-sysusers && systemd-tmpfiles --create dnsguard.conf")


@contextlib.contextmanager
def hosting(
    layers: Sequence[Path],
    *,
    binds: Sequence[Path] = (),
    install: Callable[[Machine], object] = accounts,
    allowlist: object = ALLOWLIST,
    start: bool = True,
    limited: bool = False,
    **config: object,
) -> Iterator[Host]:
    """A machine with pods `a` (shop/a) and `b` (shop/b), and dnsguard installed: by its layers, unless `install` does
    it; running and ready unless told not to start it. `limited`: see Machine."""
    with (
        Lab("dghost") as lab,
        scene.world(lab) as zone,
        Machine(network=lab.node, layers=layers, binds=binds, limited=limited) as machine,
    ):
        a, b = lab.pod("a", A, A6), lab.pod("b", B, B6)
        install(machine)
        service = Service(lab, machine)
        service.settings(**config)
        service.write("allowlist.yaml", "Allowlist", allowlist)
        if start:
            service.start()
        yield Host(machine, Scene(lab, zone, a, b, service), service)
