"""The daemon itself, run by its command line in a lab's node namespace, and clients that live in a pod."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from dnsguard.demo.lab import Lab, Pod

READY_SECONDS = 20.0
ANY_RESOLVER = "10.96.0.10"
"""Where pods send their queries. Nothing has this address: only an interception can answer."""


class Dnsguard:
    """A daemon that is ready. `call` is its command line with the same configuration."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self._lab, self._folder = lab, folder

    def call(self, *argv: str) -> subprocess.CompletedProcess[str]:
        command, *rest = argv
        config = str(self._folder / "config.yaml")
        return self._lab.run(self._lab.node, *PROGRAM, command, "--config", config, *rest, check=False)

    def reload(self, allowlist: object) -> None:
        """Put another allowlist in force. Raises CalledProcessError with what was printed when it is refused."""
        self.write("allowlist.yaml", "Allowlist", allowlist)
        self.call("reload").check_returncode()

    def write(self, file: str, kind: str, content: Any) -> None:
        (self._folder / file).write_text(yaml.safe_dump({"apiVersion": "dnsguard/v1", "kind": kind, **content}))

    def ready(self) -> bool:
        told = self.call("status", "--json")
        return told.returncode == 0 and bool(json.loads(told.stdout)["ready"])


PROGRAM = (sys.executable, "-m", "dnsguard")


@contextlib.contextmanager
def running_dnsguard(
    lab: Lab, folder: Path, *, upstreams: Sequence[str], allowlist: object, **config: object
) -> Iterator[Dnsguard]:
    """`dnsguard run` on the lab's node, ready when this is entered, with leases that end soon after their TTL.

    `config` is more keys of config.yaml. Raises RuntimeError with what it printed when it does not become ready.
    """
    daemon = Dnsguard(lab, folder)
    settings = {
        "allowlist": str(folder / "allowlist.yaml"),
        "pods": {"interfaces": ["veth-*"]},
        "upstreams": list(upstreams),
        "ttl": {"floor": "1s", "cap": "1h", "grace": "1s"},
        "metrics": {"listen": None},
        "paths": {"state": str(folder / "state"), "runtime": str(folder / "run"), "bpffs": str(folder / "bpf")},
        **config,
    }
    daemon.write("config.yaml", "Configuration", settings)
    daemon.write("allowlist.yaml", "Allowlist", allowlist)
    with (folder / "log").open("w") as log:
        command = (*PROGRAM, "run", "--config", str(folder / "config.yaml"))
        process = lab.popen(lab.node, *command, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_for(lambda: process.poll() is not None or daemon.ready(), READY_SECONDS)
            if process.poll() is not None:
                raise RuntimeError(f"dnsguard ended with {process.returncode}")
            yield daemon
        except BaseException as error:
            error.add_note(f"dnsguard said: {(folder / 'log').read_text()[-4000:]}")
            raise
        finally:
            process.terminate()
            process.wait(15)


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
