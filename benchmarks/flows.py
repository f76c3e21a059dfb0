"""TCP flows of pods whose ends have no address: to what was answered, for a while, and to what is closed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.frames import ACK, FIRST_POD, RST, SYN, segment

PORT = 443
LASTS = 1.0
"""Seconds from the SYN to the end; one that is not answered by then has failed."""
CLOSED = 0x0A810000
"""10.129.0.0 and on: no name leads there."""
PORTS = range(32_768, 60_000)
_TCP = 6


@dataclass(slots=True)
class Flow:
    peer: bytes
    begun: float
    numbers: tuple[int, int] = (0, 0)
    """Of the next segment; an acknowledgement of 0 is none yet."""


class Flows:
    """`send` puts a frame on a pod's link. `stood` counts flows that were answered, `closed` SYNs to what is closed."""

    def __init__(self, send: Callable[[int, bytes], object]) -> None:
        self._send = send
        self._open: dict[tuple[int, int], Flow] = {}
        self._ports = 0
        self.begun = self.stood = self.closed = 0

    def begin(self, pod: int, peer: bytes, now: float) -> None:
        port = self._port()
        self.begun += 1
        self._open[pod, port] = Flow(peer, now)
        self._send(pod, segment(pod, port, (peer, PORT), SYN, (0, 0)))

    def knock(self, pod: int) -> None:
        """At an address that is closed, every time another."""
        peer = (CLOSED + self.closed % 50_000).to_bytes(4)
        self.closed += 1
        self._send(pod, segment(pod, self._port(), (peer, PORT), SYN, (0, 0)))

    def take(self, packet: bytes) -> None:
        """A frame with TCP in it; one that answers a SYN is acknowledged."""
        if packet[47] & (SYN | ACK | RST) != SYN | ACK:
            return
        pod, port = int.from_bytes(packet[30:34]) - FIRST_POD, int.from_bytes(packet[36:38])
        flow = self._open.get((pod, port))
        if flow is None:  # late; its peer would say so again and again
            ours = int.from_bytes(packet[42:46])
            self._send(pod, segment(pod, port, (packet[26:30], PORT), RST, (ours, 0)))
            return
        if flow.numbers[1]:
            return
        flow.numbers = 1, int.from_bytes(packet[38:42]) + 1 & 0xFFFFFFFF
        self.stood += 1
        self._send(pod, segment(pod, port, (flow.peer, PORT), ACK, flow.numbers))

    @property
    def unanswered(self) -> bool:
        return any(not flow.numbers[1] for flow in self._open.values())

    def end(self, before: float) -> None:
        """Those that began before then."""
        while self._open:
            (pod, port), flow = next(iter(self._open.items()))
            if flow.begun >= before:
                return
            del self._open[pod, port]
            if flow.numbers[1]:
                self._send(pod, segment(pod, port, (flow.peer, PORT), RST | ACK, flow.numbers))

    def _port(self) -> int:
        self._ports += 1
        return PORTS[self._ports % len(PORTS)]
