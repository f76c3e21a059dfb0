"""Many fresh names resolved and connected to at once: does the first SYN always find its address open?

`python -m benchmarks.connections listen PORT` accepts on every address of its namespace until killed;
`... connect SERVER PORT NAMES` asks all names at once, connects the moment an answer comes and prints a JSON object;
`... one-by-one ADDRESS PORT SECONDS` makes and drops one connection after the other and prints how many stood.
"""

from __future__ import annotations

import contextlib
import json
import resource
import select
import socket
import struct
import sys
import time
from pathlib import Path

from benchmarks.batches import SIZE, datagram_socket
from benchmarks.names import Kind, addresses, query

_TOTAL_RETRANS = 100
"""Offset of tcpi_total_retrans in struct tcp_info (linux/tcp.h): segments sent again, SYNs included."""
ASK_AGAIN = 2.0
GIVE_UP = 30.0
FIRST_NAME = 20_000_000


def listen(port: int) -> None:
    # far above the defaults: a full backlog would look like a closed address
    for name in ("core/somaxconn", "ipv4/tcp_max_syn_backlog"):
        Path("/proc/sys/net", name).write_text("65535")
    with socket.create_server(("0.0.0.0", port), backlog=65535) as listener:
        held = []
        while True:
            held.append(listener.accept()[0])
            if len(held) > 1000:  # a connection's end is no part of the measurement
                held.pop(0).close()


class Burst:
    """All names under way at once; `started` and `done` are keyed by the connecting socket's descriptor."""

    def __init__(self, server: str, port: int, names: int) -> None:
        self.port, self.names = port, names
        self.asking = datagram_socket(64 << 20)
        self.asking.connect((server, 53))
        self.poll = select.epoll()
        self.poll.register(self.asking.fileno(), select.EPOLLIN)
        self.unanswered = set(range(names))
        self.started: dict[int, socket.socket] = {}
        self.stood = self.again = self.refused = 0

    def run(self) -> dict[str, int]:
        deadline, again = time.monotonic() + GIVE_UP, 0.0
        while (now := time.monotonic()) < deadline and (self.unanswered or self.started):
            if self.unanswered and now > again:
                again = now + ASK_AGAIN
                for number in sorted(self.unanswered):
                    self.asking.send(number.to_bytes(2, "big") + query(FIRST_NAME + number, Kind.ONE_A)[2:])
                    self.answers()
            for descriptor, events in self.poll.poll(0.1, 1024):
                if descriptor == self.asking.fileno():
                    self.answers()
                else:
                    self.finish(descriptor, events)
        return {
            "connected": self.stood,
            "failed": self.names - self.stood,
            "SYN sent again": self.again,
            "refused": self.refused,
            "no answer": len(self.unanswered),
            "no end": len(self.started),
        }

    def answers(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                reply = self.asking.recv(SIZE, socket.MSG_DONTWAIT)
                number = int.from_bytes(reply[:2], "big")
                if number in self.unanswered and not reply[3] & 15:
                    self.unanswered.discard(number)
                    self.connect(number)

    def connect(self, number: int) -> None:
        address = socket.inet_ntoa(addresses(FIRST_NAME + number, Kind.ONE_A)[0])
        connecting = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        connecting.connect_ex((address, self.port))
        self.started[connecting.fileno()] = connecting
        self.poll.register(connecting.fileno(), select.EPOLLOUT)

    def finish(self, descriptor: int, events: int) -> None:
        connecting = self.started.pop(descriptor)
        if events & (select.EPOLLERR | select.EPOLLHUP):
            self.refused += 1
        elif sent_again(connecting):
            self.again += 1
        else:
            self.stood += 1
        self.poll.unregister(descriptor)
        connecting.close()


def sent_again(connection: socket.socket) -> int:
    """Segments that this connection had to repeat. Not a clock: a busy client sees its connections stand late."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TOTAL_RETRANS + 4)
    return int(struct.unpack_from("I", info, _TOTAL_RETRANS)[0])


def one_by_one(address: str, port: int, seconds: float) -> int:
    """A connection is ended by a RST, so that its port is free at once. OSError: one was refused, or timed out."""
    end, made = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        with socket.socket() as connecting:
            connecting.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connecting.settimeout(5)
            connecting.connect((address, port))
            made += 1
    return made


def main(mode: str, *arguments: str) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if mode == "listen":
        listen(int(arguments[0]))
    if mode == "one-by-one":
        json.dump(one_by_one(arguments[0], int(arguments[1]), float(arguments[2])), sys.stdout)
        return
    server, port, names = arguments
    json.dump(Burst(server, int(port), int(names)).run(), sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
