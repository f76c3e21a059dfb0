"""What a busy pod loses by restarts of the daemon: `python -m benchmarks.restarts` writes docs/restarts.md.

Needs root and systemd-nspawn. A real systemd with dnsguard installed, an allowlist of 1,000 pods; in one pod a question
every 5 ms over UDP and another over TCP, new connections and ten open flows (see `tests/host/traffic.py`), and what is
denied tried every 2 ms (`tests/host/watch.py`). Each kind of restart is played so many times and summed up. What is
counted depends little on the speed of the machine; the longest waits do.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from tests.host.busy import PODS, Busy, busy_host, dying
from tests.host.dying import BEHIND
from tests.host.host import UNIT, Host, installed
from tests.host.package import built, dpkg, installing, next_version
from tests.host.tries import EVERY
from tests.host.watch import FLOWS

from benchmarks.bed import TOP
from benchmarks.report import machine_line

PAGE: Final = TOP / "docs/restarts.md"
SOCKET: Final = "dnsguard.socket"
COLUMNS: Final = (
    "what was done", "times", "queries", "answered", "of them late", "at the first retry: UDP, TCP", "lost",
    "longest wait, s", "connections", "failed", "flows", "cut", "denied tried", "longest pause of it, ms",
    "opened or told",
)  # fmt: skip
console = Console(stderr=True)


def restart(host: Host) -> None:
    host.machine.systemctl("restart", UNIT)


def stop_and_start(host: Host) -> None:
    host.machine.systemctl("stop", UNIT)
    host.machine.systemctl("start", UNIT)


def kill(host: Host) -> None:
    before = host.daemon.pid
    host.daemon.signal(signal.SIGKILL)
    host.until_replaced(before)


def kill_thrice(host: Host) -> None:
    for _ in range(3):
        kill(host)


def reload_units(host: Host) -> None:
    host.machine.systemctl("daemon-reload")


def execute_again(host: Host) -> None:
    host.machine.systemctl("daemon-reexec")


def reload_policy(host: Host) -> None:
    host.machine.systemctl("reload", UNIT)


def without_socket_unit(host: Host) -> None:
    """For comparison. The daemon's own sockets are kept in its descriptor store over a restart."""
    host.machine.systemctl("stop", SOCKET, UNIT)
    host.machine.systemctl("mask", "--runtime", SOCKET)
    host.machine.systemctl("start", UNIT)


SCENARIOS: Final[Sequence[tuple[str, Callable[[Host], None]]]] = (
    ("`systemctl restart`", restart),
    ("`systemctl stop`, `systemctl start`", stop_and_start),
    ("SIGKILL", kill),
    ("SIGKILL, three times in a row", kill_thrice),
    ("`systemctl daemon-reload`", reload_units),
    ("`systemctl daemon-reexec`", execute_again),
    ("`systemctl reload`", reload_policy),
)


class Upgrades:
    """To another version of the package and back, in turns."""

    def __init__(self, package: Path, later: Path) -> None:
        self._next = itertools.cycle((later, package))

    def __call__(self, host: Host) -> None:
        before = host.daemon.pid
        dpkg(host.machine, "--install", "--force-confold", package=next(self._next))
        host.until_replaced(before)


def play(host: Host, do: Callable[[Host], None]) -> dict[str, Any]:
    with Busy(host) as traffic:
        do(host)
    return traffic.result


def row(title: str, results: Sequence[dict[str, Any]]) -> list[str]:
    """Both transports together, but for what was answered at the first retry."""
    each = {transport: _sum(results, transport) for transport in ("udp", "tcp")}
    for about_connections in ("connections", "not_connected"):
        del each["tcp"][about_connections]
    queries = each["udp"] + each["tcp"]
    failed = sum(count for key, count in queries.items() if key.startswith("rcode"))
    opened, flows = _sum(results, "connections"), _sum(results, "flows")
    forbidden = _sum(results, "forbidden")
    figures = (
        len(results),
        queries.total(),
        queries["first"] + queries["late"],
        queries["late"],
        f"{each['udp']['retry']}, {each['tcp']['retry']}",
        queries["lost"] + failed,
        f"{max(result[transport]['slowest'] for result in results for transport in ('udp', 'tcp')):.1f}",
        opened.total(),
        opened["late"] + opened["failed"],
        flows["opened"],
        flows["cut"],
        forbidden["asked"] + forbidden["tried"],
        f"{max(result['forbidden']['longest_pause'] for result in results) * 1000:.0f}",
        forbidden["opened"] + forbidden["told"],
    )
    return [title, *(f"{figure:,}" if isinstance(figure, int) else figure for figure in figures)]


def _sum(results: Sequence[dict[str, Any]], part: str) -> Counter[str]:
    total: Counter[str] = Counter()
    for result in results:
        total.update({key: count for key, count in result[part].items() if isinstance(count, int)})
    return total


def page(rows: Sequence[Sequence[str]], load: float) -> str:
    lines = ["|".join(("", *cells, "")) for cells in (COLUMNS, ["---"] * len(COLUMNS), *rows)]
    return f"""# What a restart costs

<!-- Written by `python -m benchmarks.restarts`. -->

{machine_line(load)}

A real systemd, dnsguard as `make install` leaves it (in the last row, as the Debian package does) with both lines in
the kernel, an allowlist of {PODS:,} pods. One pod asks every 5 ms over UDP and every 5 ms over TCP, one question in ten
for a name that nobody asked before; it connects to every fresh address as soon as it knows it, and keeps ten
connections open with an octet every 50 ms. Its resolver waits 5 s before it asks again, as glibc's does; over TCP it
connects again and repeats what was not answered. Every {EVERY * 1000:.0f} ms that pod and another try {len(FLOWS)} ways
that are closed to them: by UDP and TCP, IPv4 and IPv6, to an address that no rule opens, and to a name's address
outside its ports or its pod. What of it arrives outside is counted there.

{chr(10).join(lines)}

*Late*: answered, but after the client had asked again. *At the first retry*: the query itself was in the hands of the
process that was killed, or on a connection that ended with it, and its repetition was answered. *Lost*: neither, or
answered without an address. *Failed*: not open, or only at the second SYN.
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.restarts", description=__doc__)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--print", action="store_true", help="do not write the page")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("this boots a systemd in namespaces: run it as root", file=sys.stderr)
        return 77
    load = os.getloadavg()[0]
    rows = []

    def add(host: Host, title: str, do: Callable[[Host], None], times: int = options.times) -> None:
        rows.append(row(title, [play(host, do) for _ in range(times)]))
        console.print(" ".join(rows[-1]), highlight=False)

    with busy_host([installed()]) as host:
        for title, do in SCENARIOS:
            add(host, title, do)
        with dying(host) as die:
            add(host, "SIGKILL in the middle of a commit: eBPF has it, nftables not", die)
            add(host, "SIGKILL behind a commit: the kernel has it, no answer left", partial(die, where=BEHIND))
        without_socket_unit(host)
        add(host, "`systemctl restart`, without dnsguard.socket", restart, 1)
        add(host, "stop and start, without dnsguard.socket", stop_and_start, 1)
    package = built()
    with tempfile.TemporaryDirectory() as folder, busy_host(install=installing(package)) as host:
        add(host, "`dpkg --install` of another version", Upgrades(package, next_version(package, Path(folder))))
    text = page(rows, load)
    if options.print:
        print(text)
    else:
        PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
