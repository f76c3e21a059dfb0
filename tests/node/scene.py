"""A node with a running dnsguard, an outside world that answers everywhere, and the questions and connections of pods.

The world has a name server (`zone`, changeable while it serves) and answers with an echo on TCP 8080 and 9090 of
every address in 198.18.0.0/15 and 2001:db8:80::/48.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnslib import EDNS0, QTYPE, RCODE, DNSRecord

from dnsguard.demo import server
from dnsguard.demo.lab import WORLD_ADDRESSES, Lab, Pod
from tests.node.daemon import ANY_RESOLVER, PROGRAM, Dnsguard, running_dnsguard

DB, DB6, MAIL, OTHER = "198.18.0.1", "2001:db8:80::1", "198.18.0.2", "198.18.0.3"
"""Where db.example.com (shop/a may), mail.example.com (shop/b may) and other.example.com (nobody may) are."""
PORT, WRONG_PORT = 8080, 9090
A, A6, B, B6 = "10.244.0.5", "fd00:10:244::5", "10.244.0.6", "fd00:10:244::6"
ALLOWLIST: dict[str, Any] = {
    "policies": {
        "web": {
            "egress": [
                {
                    "to": [{"domainNames": ["db.example.com", "*.fresh.example.com"]}],
                    "ports": [{"protocol": "TCP", "port": PORT}],
                }
            ]
        },
        "mail": {"egress": [{"to": [{"domainNames": ["mail.example.com"]}]}]},
    },
    "pods": {
        A: {"name": "shop/a", "policies": ["web"]},
        B: {"name": "shop/b", "policies": ["mail"]},
    },
}
PATIENCE = 0.8
"""Seconds after which a SYN without a reply counts as dropped: before it is sent again."""


@dataclass
class Scene:
    lab: Lab
    zone: server.Zone
    a: Pod
    b: Pod
    daemon: Dnsguard

    def ask(
        self, pod: Pod, name: str, kind: str = "A", *, to: str = ANY_RESOLVER, stream: bool = False, source: str = ""
    ) -> DNSRecord:
        """The reply to one question, taken only from the address that was asked. Raises TimeoutError without one."""
        query = DNSRecord.question(name, kind)
        query.add_ar(EDNS0(udp_len=1232))
        with self.client(pod, to, stream=stream, source=source) as client:
            return exchange(client, bytes(query.pack()), stream)

    def client(self, pod: Pod, to: str, *, stream: bool = False, source: str = "") -> socket.socket:
        """A socket of the pod that is connected to port 53 of `to`."""
        family = socket.AF_INET6 if ":" in to else socket.AF_INET
        client = self.lab.socket(pod.namespace, family, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM)
        client.settimeout(1.2)
        try:
            if source:
                client.bind(self.place(pod, source, 0))
            client.connect(self.place(pod, to, 53))
        except BaseException:
            client.close()
            raise
        return client

    def place(self, pod: Pod, address: str, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
        """A socket's address; a link-local one is on the pod's own link."""
        if not address.startswith("fe80:"):
            return address, port
        return address, port, 0, self.lab.inside(pod.namespace, lambda: socket.if_nametoindex("eth0"))

    def silent(self, pod: Pod, name: str, **how: Any) -> bool:
        """Whether a question gets no reply at all."""
        try:
            self.ask(pod, name, **how)
        except TimeoutError:
            return True
        return False

    def resolve(self, pod: Pod, name: str, kind: str = "A", **how: Any) -> list[str]:
        """The addresses of the answer."""
        return addresses(self.ask(pod, name, kind, **how))

    def connect(
        self, pod: Pod, address: str, port: int = PORT, *, source: tuple[str, int] | None = None
    ) -> Flow | None:
        """An open connection, or None when the first SYN stayed without a reply."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        client = self.lab.socket(pod.namespace, family, socket.SOCK_STREAM)
        client.settimeout(PATIENCE)
        try:
            if source:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                client.bind(source)
            client.connect(self.place(pod, address, port))
        except TimeoutError:
            client.close()
            return None
        return Flow(client)

    def opens(self, pod: Pod, address: str, port: int = PORT, **how: Any) -> bool:
        """Whether a new connection opens; it is closed again."""
        flow = self.connect(pod, address, port, **how)
        if flow is not None:
            flow.socket.close()
        return flow is not None

    def elements(self, pod_address: str) -> dict[str, float]:
        """The lease elements of a pod's address in the kernel, as `nft list` shows them: peer -> seconds left."""
        listing = self.lab.run(self.lab.node, "nft", "list", "table", "inet", "dnsguard", check=False).stdout
        pattern = rf"(?<![\w.:]){re.escape(pod_address)} \. (\S+) timeout \S+ expires (\w+)"
        return {peer: seconds(expires) for peer, expires in re.findall(pattern, listing)}

    def lease_left(self, peer: str) -> float:
        """Seconds until the last lease on `peer` ends, as the daemon tells; 0.0 without one."""
        return max(
            (float(row["remaining"]) for row in self.daemon.ask("leases") if row["address"] == peer), default=0.0
        )


@dataclass
class Flow:
    """An open connection to an echo."""

    socket: socket.socket

    def alive(self) -> bool:
        """Whether what is sent comes back."""
        return self._echoes(3.0)

    def dead(self) -> bool:
        """Whether what is sent does not come back."""
        return not self._echoes(0.6)

    def _echoes(self, patience: float) -> bool:
        self.socket.settimeout(patience)
        try:
            self.socket.sendall(b"x")
            return self.socket.recv(1) == b"x"
        except OSError:
            return False

    def retransmitted(self) -> int:
        """Segments sent again so far, SYNs included (tcpi_total_retrans, linux/tcp.h)."""
        return int(struct.unpack_from("I", self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 100)[0])

    def reset(self) -> None:
        """End it with a RST, so that its ports may be used again at once."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def __enter__(self) -> Flow:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def exchange(client: socket.socket, query: bytes, stream: bool) -> DNSRecord:
    if not stream:
        client.send(query)
        return DNSRecord.parse(client.recv(4096))
    client.sendall(len(query).to_bytes(2) + query)
    with client.makefile("rb") as replies:
        return DNSRecord.parse(replies.read(int.from_bytes(replies.read(2))))


def addresses(reply: DNSRecord) -> list[str]:
    return [str(record.rdata) for record in reply.rr if record.rtype in (QTYPE.A, QTYPE.AAAA)]


def rcode(reply: DNSRecord) -> str:
    return str(RCODE[reply.header.rcode])


def seconds(text: str) -> float:
    """`1m5s40ms`, as nft writes times."""
    units = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    return sum(int(count) * units[unit] for count, unit in re.findall(r"(\d+)(ms|[dhms])", text))


# -- setting up -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def playing(
    folder: Path,
    *,
    allowlist: object = ALLOWLIST,
    upstreams: Sequence[str] = WORLD_ADDRESSES[:1],
    program: Sequence[str] = PROGRAM,
    **config: object,
) -> Iterator[Scene]:
    """A lab with pods `a` (shop/a: IPv4, and IPv6 that the allowlist does not list) and `b`, and dnsguard ready."""
    with Lab("dgtest") as lab, world(lab) as zone:
        a, b = lab.pod("a", A, A6), lab.pod("b", B)
        settings = {"log": {"format": "json"}, **config}
        with running_dnsguard(
            lab, folder, upstreams=upstreams, allowlist=allowlist, program=program, **settings
        ) as daemon:
            yield Scene(lab, zone, a, b, daemon)


@contextlib.contextmanager
def world(lab: Lab) -> Iterator[server.Zone]:
    lab.ip(lab.world, "route add local 198.18.0.0/15 dev lo")
    lab.ip(lab.world, "route add local 2001:db8:80::/48 dev lo")
    zone = server.Zone()
    zone.put("db.example.com", "A", DB)
    zone.put("db.example.com", "AAAA", DB6)
    zone.put("mail.example.com", "A", MAIL)
    zone.put("other.example.com", "A", OTHER)
    with server.served(zone, lab.inside(lab.world, lambda: server.open_sockets(WORLD_ADDRESSES))), echoing(lab):
        yield zone


@contextlib.contextmanager
def echoing(lab: Lab) -> Iterator[None]:
    """Give back what is sent on both ports, on every address of the world."""
    places = list(itertools.product((socket.AF_INET, socket.AF_INET6), (PORT, WRONG_PORT)))
    listening = [lab.inside(lab.world, lambda: _listening(family, port)) for family, port in places]  # noqa: B023
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="echo", daemon=True)
    thread.start()
    servers = [
        asyncio.run_coroutine_threadsafe(asyncio.start_server(_echo, sock=each), loop).result() for each in listening
    ]
    try:
        yield
    finally:
        asyncio.run_coroutine_threadsafe(_end(servers), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _listening(family: socket.AddressFamily, port: int) -> socket.socket:
    return socket.create_server(("", port), family=family, backlog=1024)


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, asyncio.CancelledError):
        while data := await reader.read(4096):
            writer.write(data)
    writer.close()


async def _end(servers: Sequence[asyncio.Server]) -> None:
    for each in servers:
        each.close()
    echoes = asyncio.all_tasks() - {asyncio.current_task()}
    for task in echoes:
        task.cancel()
    await asyncio.gather(*echoes, return_exceptions=True)
