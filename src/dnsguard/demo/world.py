"""The demo's outside world: a DNS server that knows every name, and at every name pages and an echo.

Needs a lab. Its sockets belong to the world's namespace and its threads to this process; both end with the block.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator, Mapping
from typing import Final

from dnsguard.demo.lab import WORLD_ADDRESSES, Lab
from dnsguard.demo.server import Speak, Zone, in_a_thread, open_sockets, serve_streams, served

DNS_SERVER: Final = WORLD_ADDRESSES[0]
PAGE_PORTS: Final = (80, 8080)
ECHO_PORT: Final = 7


@contextlib.contextmanager
def outside_world(lab: Lab, sites: Mapping[str, str], ttl: int) -> Iterator[Zone]:
    """`sites` (name -> address) answer on PAGE_PORTS and ECHO_PORT; the zone remembers which names were asked."""
    lab.add_world_address(*sites.values())
    zone = Zone()
    for name, address in sites.items():
        zone.put(name, "A", address, ttl=ttl)
    ports: dict[int, Speak] = {ECHO_PORT: echo, **dict.fromkeys(PAGE_PORTS, page)}
    with contextlib.ExitStack() as closing:
        listening = {_listening(lab, port): speak for port, speak in ports.items()}
        for each in listening:
            closing.callback(each.close)
        closing.enter_context(in_a_thread(_serve(listening), "sites"))
        sockets = lab.inside(lab.world, lambda: open_sockets([DNS_SERVER]))
        closing.enter_context(served(zone, sockets))
        yield zone


def _listening(lab: Lab, port: int) -> socket.socket:
    return lab.inside(lab.world, lambda: socket.create_server(("0.0.0.0", port)))


async def _serve(listening: Mapping[socket.socket, Speak]) -> None:
    async with asyncio.TaskGroup() as tasks:
        for each, speak in listening.items():
            tasks.create_task(serve_streams(each, speak))


async def page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An HTTP server that says which address and port it was asked on."""
    await reader.readuntil(b"\r\n\r\n")
    address, port = writer.get_extra_info("sockname")
    body = f"hello from {address} port {port}\n".encode()
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    await writer.drain()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """RFC 862."""
    while data := await reader.read(4096):
        writer.write(data)
        await writer.drain()
