"""Sixty-four datagrams a system call: recvmmsg and sendmmsg over fixed buffers, through ctypes.

Load and upstream share one core, and must leave the server under test the slower of the two.
"""

from __future__ import annotations

import ctypes
import socket
import struct

SLOTS = 64
SIZE = 512
"""Octets a slot; every message of the benchmark is shorter."""
DONTWAIT, WAITFORONE = 0x40, 0x10000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.recvmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)
_libc.sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)


def _address(buffer: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def _headers(buffer: bytearray, names: bytearray | None, lengths: bytearray) -> bytearray:
    """An array of `struct mmsghdr` (64 octets each on 64-bit Linux) over one iovec each."""
    headers = bytearray(SLOTS * 64)
    for slot in range(SLOTS):
        struct.pack_into("=QQ", lengths, 16 * slot, _address(buffer) + slot * SIZE, SIZE)
        peer, size = (_address(names) + 16 * slot, 16) if names else (0, 0)
        struct.pack_into("=QIxxxxQQQQQ", headers, 64 * slot, peer, size, _address(lengths) + 16 * slot, 1, 0, 0, 0)
    return headers


class Batch:
    """Slots that are received into and sent from. `buffer` holds slot k at `k * SIZE`; `lengths[k]` is what is sent.

    With `peers`, replies go back to where slot k came from (an unconnected socket, IPv4).
    """

    def __init__(self, *, peers: bool) -> None:
        self.buffer = bytearray(SLOTS * SIZE)
        self._names = bytearray(SLOTS * 16) if peers else None
        self._in_vectors, self._out_vectors = bytearray(SLOTS * 16), bytearray(SLOTS * 16)
        self._in = _headers(self.buffer, self._names, self._in_vectors)
        self._out = _headers(self.buffer, self._names, self._out_vectors)
        self._in_address, self._out_address = _address(self._in), _address(self._out)
        self.lengths = memoryview(self._out_vectors).cast("Q")[1::2]
        self.received = memoryview(self._in).cast("I")[14::16]

    def receive(self, descriptor: int, flags: int) -> int:
        """How many slots were filled; 0 when there was nothing. An earlier ICMP error counts as nothing."""
        return max(0, int(_libc.recvmmsg(descriptor, self._in_address, SLOTS, flags, None)))

    def send(self, descriptor: int, count: int) -> int:
        """How many of the first `count` slots the kernel took."""
        return max(0, int(_libc.sendmmsg(descriptor, self._out_address, count, 0)))


def datagram_socket(octets: int = 8 << 20) -> socket.socket:
    """An IPv4 UDP socket with receive and send buffers of that size, whatever the machine's limits (root)."""
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for option in (32, 33):  # SO_SNDBUFFORCE, SO_RCVBUFFORCE: not in Python's socket module
        opened.setsockopt(socket.SOL_SOCKET, option, octets)
    return opened
