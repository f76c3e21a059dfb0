"""Hears when someone else changes dnsguard's table, by nftables' notifications.

Needs the netlink port that dnsguard itself writes from: a filter in the socket leaves that one's notifications out
(hearing them would cost a fifth of each commit). Promises to report every foreign change, and every loss of
notifications, in the event loop, with the name of the program that did it where the kernel tells.

The kernel tells of the tables of others too, and cannot be asked for less: a transaction may touch theirs first and
then ours. So what others load goes by quickly (some 4 us for forty elements) and may pile up for a while.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import socket
import struct
from collections.abc import Callable, Iterator

from dnsguard.enforce.nftables import netlink
from dnsguard.enforce.nftables.session import TABLE

OnDamage = Callable[[str], None]

_GROUP = 1 << 6
"""NFNLGRP_NFTABLES is 7."""
_SO_ATTACH_FILTER, _RCVBUFFORCE = 26, 33
_PORT_OFFSET = 12
_READS = 64
_BUFFER = 32 << 20
"""Some 150,000 elements that someone else loads at once. Memory is taken only while they wait to be read."""
_OURS = f"{TABLE}\0".encode()
_GENERATION = struct.pack("=H", netlink.SUBSYSTEM << 8 | netlink.NEWGEN)

_WHAT = {
    0: "table made", 2: "table deleted", 3: "chain made", 5: "chain deleted", 6: "rule added", 8: "rule deleted",
    9: "set made", 11: "set deleted", 12: "element added", 14: "element deleted",
}  # fmt: skip


class Watch:
    """Reads from its making until `close`, of which a second call does nothing."""

    def __init__(self, own_port: int, on_damage: OnDamage) -> None:
        self._on_damage = on_damage
        self._changes = Changes()
        self._loop = asyncio.get_running_loop()
        self._socket = netlink.netfilter_socket()
        self._socket.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, _BUFFER)
        self._socket.setblocking(False)
        _leave_out(self._socket, own_port)
        self._socket.bind((0, _GROUP))
        self._loop.add_reader(self._socket.fileno(), self._readable)

    def close(self) -> None:
        if self._socket.fileno() != -1:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()

    def _readable(self) -> None:
        for _ in range(_READS):
            try:
                data = self._socket.recv(65536)
            except BlockingIOError:
                return
            except OSError as error:
                self._on_damage(f"notifications were lost ({errno.errorcode.get(error.errno or 0, error)})")
                continue
            for damage in self._changes.read(data):
                self._on_damage(damage)


class Changes:
    """Reads notifications. Each transaction ends with one about the new generation, which tells whose it was; a
    transaction that touched our table is then reported, once."""

    def __init__(self) -> None:
        self._what: str | None = None

    def read(self, data: bytes) -> Iterator[str]:
        """What was done to our table, for each transaction that ends in this datagram."""
        if _OURS not in data and data[4:6] != _GENERATION:
            return  # fifty times as quick as reading it
        for message in netlink.messages(data):
            kind = message.kind & 0xFF
            if message.kind >> 8 != netlink.SUBSYSTEM or len(message.payload) < 4:
                continue
            found = netlink.attributes(message.payload, 4)
            if kind == netlink.NEWGEN:
                what, self._what = self._what, None
                if what:
                    yield what + _program(found)
            elif message.payload[0] == netlink.INET and netlink.string(found.get(1, b"")) == TABLE:
                self._what = self._what or _WHAT.get(kind, "changed")


def _program(generation: dict[int, bytes]) -> str:
    """NFTA_GEN_PROC_PID and NFTA_GEN_PROC_NAME."""
    pid = int.from_bytes(generation.get(2, b""), "big")
    return f" by {netlink.string(generation.get(3, b'?'))}[{pid}]"


def _leave_out(port: socket.socket, own_port: int) -> None:
    """A classic BPF program: drop what carries our own port (nlmsg_pid), pass the rest."""
    # BPF loads words in network order, netlink writes them in the host's.
    own = struct.unpack(">I", struct.pack("=I", own_port))[0]
    program = struct.pack(
        "=HBBIHBBIHBBIHBBI",
        *(0x20, 0, 0, _PORT_OFFSET),  # load word
        *(0x15, 0, 1, own),  # equal: next, else skip one
        *(0x06, 0, 0, 0),  # drop
        *(0x06, 0, 0, 0xFFFFFFFF),  # pass
    )
    buffer = ctypes.create_string_buffer(program, len(program))
    port.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HxxxxxxP", 4, ctypes.addressof(buffer)))
