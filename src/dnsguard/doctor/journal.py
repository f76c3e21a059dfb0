"""That lines can reach the journal."""

from __future__ import annotations

import socket
from collections.abc import Iterator

from dnsguard.config.groups import LogFormat
from dnsguard.doctor.findings import Finding, ok, problem, warning
from dnsguard.doctor.node import Node


def check_socket(node: Node) -> Iterator[Finding]:
    wanted = node.settings.log.format
    if wanted in (LogFormat.TEXT, LogFormat.JSON):
        yield ok("journald", f"not used: log.format is {wanted.value}")
        return
    place = node.run / "systemd/journal/socket"
    say = problem if wanted is LogFormat.JOURNALD else warning
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        try:
            client.connect(bytes(place))
        except OSError as error:
            remedy = "start systemd-journald, or set log.format to text or json"
            yield say("journald", f"{place}: {error.strerror}", remedy)
        else:
            yield ok("journald", f"{place} takes entries")
