"""Where a resolver listens, in the kernel's form."""

from __future__ import annotations

import socket
from typing import Any, NamedTuple, Protocol


class Endpoint(Protocol):
    """An IP address (text, or an object whose text it is) and a port: what the configuration holds."""

    @property
    def address(self) -> object: ...

    @property
    def port(self) -> int: ...


class Place(NamedTuple):
    """What connect(2) takes."""

    family: socket.AddressFamily
    sockaddr: tuple[Any, ...]


def place(server: Endpoint) -> Place:
    """The kernel's form of an endpoint. Raises OSError when its address is not an IP address."""
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    found = socket.getaddrinfo(str(server.address), server.port, type=socket.SOCK_DGRAM, flags=flags)
    return Place(found[0][0], found[0][4])
