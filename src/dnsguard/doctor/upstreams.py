"""Every upstream is asked over UDP and over TCP."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from typing import Final

from dnsguard.config.networks import Endpoint
from dnsguard.core.model import Seconds
from dnsguard.doctor.findings import Finding, ok, problem, warning
from dnsguard.doctor.node import Node
from dnsguard.upstream.health import HEADER, ROOT_NS
from dnsguard.upstream.matching import objection

PATIENCE: Final[Seconds] = 2.0
SLOW: Final[Seconds] = 0.5


def check_reachable(node: Node) -> Iterator[Finding]:
    for upstream in node.settings.upstreams:
        for kind, protocol in ((socket.SOCK_DGRAM, "UDP"), (socket.SOCK_STREAM, "TCP")):
            subject = f"upstream {upstream} over {protocol}"
            try:
                took = ask(upstream, kind)
            except OSError as error:
                why = "no reply" if isinstance(error, TimeoutError) else error.strerror or str(error)
                remedy = "start it, open the way from this node to it, or correct `upstreams`"
                yield problem(subject, f"{why} within {PATIENCE:.0f} s", remedy)
                continue
            found = f"replied in {took * 1000:.1f} ms"
            yield warning(subject, found, "every new name waits so long") if took > SLOW else ok(subject, found)


def ask(upstream: Endpoint, kind: socket.SocketKind) -> Seconds:
    """How long it took to reply to `. NS`, whatever it said. Raises OSError."""
    family = socket.AF_INET if upstream.address.version == 4 else socket.AF_INET6
    query = os.urandom(2) + HEADER + ROOT_NS
    begun = time.monotonic()
    with socket.socket(family, kind) as client:
        client.settimeout(PATIENCE)
        client.connect((str(upstream.address), upstream.port))
        if kind == socket.SOCK_DGRAM:
            client.send(query)
            _until(query, lambda: client.recv(65535), begun + PATIENCE)
        else:
            client.sendall(len(query).to_bytes(2) + query)
            with client.makefile("rb") as stream:
                _until(query, lambda: stream.read(int.from_bytes(stream.read(2))), begun + PATIENCE)
    return time.monotonic() - begun


def _until(query: bytes, receive: object, deadline: Seconds) -> None:
    while time.monotonic() < deadline:
        packet = receive()  # type: ignore[operator]
        if not packet:
            raise ConnectionResetError("the connection was closed without a reply")
        if packet[:2] == query[:2] and objection(packet, ROOT_NS) is None:
            return
    raise TimeoutError
