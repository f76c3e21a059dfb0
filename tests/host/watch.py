"""Closedness, watched: pods try what is never allowed every other millisecond, and what of it comes out is counted.

One way for all tests: packets that begin a flow, by UDP and TCP, IPv4 and IPv6, to an address that no rule opens and to
a name's address outside its ports or its pod, and queries for a name that no rule allows. The world's kernel counts
what arrives there, so that an opening of a few milliseconds is seen, whoever is busy.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from dnsguard.demo.lab import Pod
from tests.host import tries
from tests.host.host import Host
from tests.node.daemon import ANY_RESOLVER
from tests.node.scene import A6, B6, DB, DB6, OTHER, PORT, WRONG_PORT, A, B, Scene

NAME: Final = "other.example.com"
OTHER6: Final = "2001:db8:80::3"
ANY_RESOLVER6: Final = "2001:db8::53"
TABLE: Final = "inet watch"
END_SECONDS: Final = 10.0


class Way(NamedTuple):
    """Where packets of a pod may not go."""

    source: str
    peer: str
    protocol: str
    port: int


FLOWS: Final = tuple(
    Way(source, peer, protocol, port)
    for protocol in ("udp", "tcp")
    for source, peer, port in (
        (A, OTHER, PORT),
        (A6, OTHER6, PORT),
        (A, DB, WRONG_PORT),
        (A6, DB6, WRONG_PORT),
        (B, OTHER, PORT),
        (B, DB, PORT),  # what another pod's answer has named
        (B6, DB6, PORT),
    )
)
QUERIES: Final = (Way(B, ANY_RESOLVER, "udp", 53), Way(B6, ANY_RESOLVER6, "udp", 53))
"""Of pod `b` alone: what `a` may ask for is for the tests."""


class Watch:
    """`with Watch(scene) as watch:` Pods `a` and `b` try all of FLOWS and QUERIES as long as it lasts. `tried` and
    `longest_pause` (seconds between two rounds) are there afterwards."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._before: Counter[Way] = Counter()
        self._rest: Counter[Way] | None = None
        self._ending = contextlib.ExitStack()
        self.told: list[str] = []
        """Replies that said more than no, and whether the upstream got a question; once it has ended."""
        self.tried = 0
        self.longest_pause = 0.0

    def __enter__(self) -> Self:
        with self._ending:
            self._listen()
            self._asked = self._scene.zone.asked(NAME)
            self._process = self._start()
            self._ending = self._ending.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        with self._ending:
            said = json.loads(self._process.communicate(timeout=END_SECONDS)[0])
            self.tried, self.longest_pause = said["rounds"] * len(FLOWS), said["longest_pause"]
            asked = self._scene.zone.asked(NAME) - self._asked
            self.told = [*said["told"], *([f"the upstream was asked for {NAME}"] if asked else [])]
            self._rest = self.heard()

    def heard(self) -> Counter[Way]:
        """Packets that came out since this was last asked."""
        if self._rest is not None:
            found, self._rest = self._rest, Counter()
            return found
        now = self._arrived()
        found, self._before = now - self._before, now
        return found

    # -- in the pods

    def _start(self) -> subprocess.Popen[str]:
        places = {A: self._scene.a, A6: self._scene.a, B: self._scene.b, B6: self._scene.b}
        links = [(self._link(places[source]), source, [way[1:] for way in FLOWS if way.source == source])
                 for source in places]  # fmt: skip
        questions = [(self._asking(places[way.source], way), NAME) for way in QUERIES]
        numbers = [*(one[0] for one in links), *(one[0] for one in questions)]
        plan = json.dumps({"links": links, "questions": questions})
        program = [sys.executable, "-I", "-S", str(Path(tries.__file__)), plan]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        process = subprocess.Popen(program, pass_fds=numbers, **pipes)
        self._ending.enter_context(process)
        self._ending.callback(process.kill)
        assert process.stdout and process.stdout.readline() == "begun\n"
        return process

    def _link(self, pod: Pod) -> int:
        link = self._ending.enter_context(self._scene.lab.socket(pod.namespace, socket.AF_PACKET, socket.SOCK_RAW))
        link.bind(("eth0", 0))
        return link.fileno()

    def _asking(self, pod: Pod, way: Way) -> int:
        return self._ending.enter_context(self._scene.client(pod, way.peer, source=way.source)).fileno()

    # -- in the world

    def _listen(self) -> None:
        """Every packet of these ways that arrives is counted, whatever becomes of it."""
        self._nft(f"add table {TABLE}", f"add chain {TABLE} arriving {{ type filter hook prerouting priority -300; }}")
        self._ending.callback(self._nft, f"delete table {TABLE}")
        for kind, word in (("ipv4_addr", "ip"), ("ipv6_addr", "ip6")):
            ways = [" . ".join(map(str, way)) for way in (*FLOWS, *QUERIES) if (":" in way.peer) == (word == "ip6")]
            types = f"{kind} . {kind} . inet_proto . inet_service"
            self._nft(
                f"add set {TABLE} by_{word} {{ type {types}; counter; elements = {{ {', '.join(ways)} }}; }}",
                f"add rule {TABLE} arriving {word} saddr . {word} daddr . meta l4proto . th dport @by_{word}",
            )

    def _arrived(self) -> Counter[Way]:
        listed = json.loads(self._nft(f"list table {TABLE}"))["nftables"]
        elements = (one["elem"] for each in listed if "set" in each for one in each["set"]["elem"])
        return Counter({Way(*one["val"]["concat"]): one["counter"]["packets"] for one in elements})

    def _nft(self, *commands: str) -> str:
        lab = self._scene.lab
        return lab.run(lab.world, "nft", "-j", "; ".join(commands)).stdout


@contextlib.contextmanager
def closed(host: Host) -> Iterator[Watch]:
    """Inside, pods go on trying what they may not do. Raises AssertionError in the end when anything of it came out or
    was told, but for what was asked of the Watch before."""
    with Watch(host.scene) as watch:
        yield watch
    came_out = watch.heard()
    assert watch.tried
    assert not came_out, f"came out: {came_out}"
    assert not watch.told, watch.told
