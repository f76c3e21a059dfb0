"""The daemon itself, run by its command line in a lab's node namespace, and clients that live in a pod."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from dnsguard.control.client import ControlClient, NotRunningError
from dnsguard.core.errors import DnsguardError
from dnsguard.demo.bpffs import bpffs
from dnsguard.demo.lab import Lab, Pod

READY_SECONDS = 20.0
EVENT_SECONDS = 5.0
ANY_RESOLVER = "10.96.0.10"
"""Where pods send their queries. Nothing has this address: only an interception can answer."""
BPFFS = "dnsguard-test"
"""What the bpffs of tests are called in the table of mounts."""
PROGRAM = (sys.executable, "-m", "dnsguard")


class Dnsguard:
    """A daemon on the lab's node, its files, and its command line with the same configuration. All that it prints
    goes to `log`, over restarts too."""

    def __init__(self, lab: Lab, folder: Path, program: Sequence[str] = PROGRAM) -> None:
        self._lab, self.folder, self._program = lab, folder, program
        self.config = folder / "config.yaml"
        self.log = folder / "log"
        self._process: subprocess.Popen[str] | None = None

    # -- its life -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Returns when it is ready. Raises RuntimeError with what it printed when it ends or takes too long."""
        process = self.spawn()
        try:
            wait_for(lambda: process.poll() is not None or self.ready(), READY_SECONDS)
        except TimeoutError as error:
            raise RuntimeError(f"dnsguard is not ready: {self.said()}") from error
        if process.poll() is not None:
            raise RuntimeError(f"dnsguard ended with {process.returncode}: {self.said()}")

    def spawn(self) -> subprocess.Popen[str]:
        with self.log.open("a") as log:
            command = (*self._program, "run", "--config", str(self.config))
            self._process = self._lab.popen(self._lab.node, *command, stdout=log, stderr=subprocess.STDOUT)
        return self._process

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit code; negative when a signal ended it."""
        self.signal(number)
        assert self._process is not None
        return self._process.wait(15)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    # -- what it is told ------------------------------------------------------------------------------------------

    def call(self, *argv: str) -> subprocess.CompletedProcess[str]:
        command, *rest = argv
        config = str(self.config)
        return self._lab.run(self._lab.node, *self._program, command, "--config", config, *rest, check=False)

    def ask(self, call: str, **arguments: str) -> Any:
        """One call over the control socket, without the start of an interpreter: rows as a list, else one object."""
        client = ControlClient(self.folder / "run")
        return list(client.rows(call, **arguments)) if call in ("pods", "leases") else client.call(call, **arguments)

    def reload(self, allowlist: object) -> None:
        """Put another allowlist in force. Raises CalledProcessError with what was printed when it is refused."""
        self.write("allowlist.yaml", "Allowlist", allowlist)
        self.call("reload").check_returncode()

    def write(self, file: str, kind: str, content: Any) -> None:
        (self.folder / file).write_text(yaml.safe_dump({"apiVersion": "dnsguard/v1", "kind": kind, **content}))

    # -- what it tells --------------------------------------------------------------------------------------------

    def ready(self) -> bool:
        try:
            return bool(self.ask("status")["ready"])
        except (NotRunningError, DnsguardError):
            return False

    def said(self) -> str:
        return self.log.read_text()[-4000:]

    def events(self, kind: str, **fields: object) -> list[dict[str, Any]]:
        """Events of one kind with these fields, from a log in JSON."""
        lines = (json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{"))
        wanted = {"event": kind, **fields}
        return [line for line in lines if wanted.items() <= line.items()]

    def told(self, kind: str, *, before: int = 0, **fields: object) -> dict[str, Any]:
        """The last such event, as soon as there are more than `before`."""
        wait_for(lambda: len(self.events(kind, **fields)) > before, EVENT_SECONDS)
        return self.events(kind, **fields)[-1]


@contextlib.contextmanager
def running_dnsguard(
    lab: Lab,
    folder: Path,
    *,
    upstreams: Sequence[str],
    allowlist: object,
    program: Sequence[str] = PROGRAM,
    **config: object,
) -> Iterator[Dnsguard]:
    """`dnsguard run` on the lab's node, ready when this is entered, with leases that end soon after their TTL.

    `config` is more keys of config.yaml. Raises RuntimeError with what it printed when it does not become ready.
    """
    daemon = Dnsguard(lab, folder, program)
    settings = {
        "allowlist": str(folder / "allowlist.yaml"),
        "pods": {"interfaces": ["veth-*"]},
        "upstreams": list(upstreams),
        "ttl": {"floor": "1s", "cap": "1h", "grace": "1s"},
        "metrics": {"listen": None},
        "paths": {"runtime": str(folder / "run"), "bpffs": str(folder / "bpf"), "state": str(folder / "state")},
        **config,
    }
    daemon.write("config.yaml", "Configuration", settings)
    daemon.write("allowlist.yaml", "Allowlist", allowlist)
    with bpffs(folder / "bpf", BPFFS):
        try:
            daemon.start()
            yield daemon
        except BaseException as error:
            error.add_note(f"dnsguard said: {daemon.said()}")
            raise
        finally:
            daemon.stop()


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    """Raises TimeoutError when it has not come true by then."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so after {seconds:g} s")
        time.sleep(0.05)


# -- in a pod ---------------------------------------------------------------------------------------------------------


BIND = 'mount --bind "$0/resolv.conf" /etc/resolv.conf && mount --bind "$0/nsswitch.conf" /etc/nsswitch.conf'
ENTER = ("unshare", "--mount", "sh", "-c", f'{BIND} && exec "$@"')


def run_in_pod(
    lab: Lab, pod: Pod, *argv: str, resolver: str, folder: Path, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a program as it would run in the pod: in its network namespace, with a resolv.conf of its own."""
    (folder / "resolv.conf").write_text(f"nameserver {resolver}\noptions timeout:2 attempts:2\n")
    (folder / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")
    return lab.run(pod.namespace, *ENTER, str(folder), *argv, check=False, **options)


def connects(lab: Lab, place: str, address: str, port: int, *, seconds: float = 1.0) -> bool:
    """Whether a TCP connection from there is accepted. A dropped SYN is False after `seconds`."""
    with lab.socket(place, socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as client:
        client.settimeout(seconds)
        return client.connect_ex((address, port)) == 0
