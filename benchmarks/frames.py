"""Frames from pods whose ends of their links have no address: DNS questions and TCP segments, sums included."""

from __future__ import annotations

import struct

from benchmarks.names import Kind, query

NODE_MAC = bytes.fromhex("eeeeeeeeeeee")
FIRST_POD = 0x0A640000
RESOLVER = bytes((10, 99, 1, 1))
CLIENT_PORT = 30_000
FIN, SYN, RST, ACK = 1, 2, 4, 16
IP4 = 0x0800
DENIED = 10_000_000
"""From this number on a name is one that no policy allows."""
_TCP, _UDP = 6, 17


def link_name(pod: int) -> str:
    """The pod's end."""
    return f"pod-{pod}"


def address(pod: int) -> bytes:
    """10.100.0.0 and on."""
    return (FIRST_POD + pod).to_bytes(4)


def mac(pod: int) -> bytes:
    return b"\x02\0" + pod.to_bytes(4)


def question(pod: int, number: int, identity: int) -> bytes:
    """Asks for the A of a name. Its UDP sum is 0: none."""
    asked = query(number - DENIED, Kind.DENIED) if number >= DENIED else query(number, Kind.ONE_A)
    message = identity.to_bytes(2) + asked[2:]
    return _frame(pod, RESOLVER, _UDP, struct.pack("!4H", CLIENT_PORT, 53, 8 + len(message), 0) + message)


def segment(pod: int, port: int, peer: tuple[bytes, int], flags: int, numbers: tuple[int, int]) -> bytes:
    """Without data, from the pod's `port`; `numbers` are those of sequence and acknowledgement."""
    there, its_port = peer
    begin, end = struct.pack("!2H2IBBH", port, its_port, *numbers, 5 << 4, flags, 65535), b"\0\0"
    pseudo = address(pod) + there + struct.pack("!2H", _TCP, len(begin) + 4)
    return _frame(pod, there, _TCP, begin + _sum(pseudo + begin + b"\0\0" + end) + end)


def _frame(pod: int, to: bytes, protocol: int, payload: bytes) -> bytes:
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0, address(pod), to)
    return NODE_MAC + mac(pod) + IP4.to_bytes(2) + head[:10] + _sum(head) + head[12:] + payload


def _sum(octets: bytes) -> bytes:
    """Of an even number of octets (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return (0xFFFF ^ total).to_bytes(2)
