"""What a frame of the rig's pod may be let for, read by somebody else: no line of this is made from bpf/packet.h.

Written from the RFCs alone: 791 and 3128 (IPv4 and its fragments), 8200 (IPv6 and its extension headers), 9293, 768,
9260, 792, 4443. A frame that is not sure to be one of those that may pass may not.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from tests.node.ebpf.rig import BLOCKED_IN, BLOCKED_IN6, OWN, OWN6, PEER, PEER6, POD, POD6

IP = IPv4Address | IPv6Address
_OWN = {ip_address(OWN), ip_address(OWN6)}
_PODS = {ip_address(POD), ip_address(POD6)}
_LEASED = {(ip_address(POD), ip_address(PEER)), (ip_address(POD6), ip_address(PEER6))}
_BLOCKS = (ip_network("203.0.113.0/24"), ip_network("2001:db8:b::/48"))
_LINK_LOCAL, _LINK_MULTICAST = ip_network("fe80::/10"), ip_network("ff02::/16")
_TCP, _UDP, _SCTP, _ICMP, _ICMP6 = 6, 17, 132, 1, 58
_SHORTEST = {_TCP: 20, _UDP: 8, 136: 8, 33: 12, _SCTP: 13, _ICMP: 8, _ICMP6: 8}
assert ip_address(BLOCKED_IN) in _BLOCKS[0] and ip_address(BLOCKED_IN6) in _BLOCKS[1]


class MalformedError(Exception):
    """A frame that nobody can be sure of."""


class Reader:
    """Remembers which packets in fragments it has allowed the first of. No flow is ever open: nobody answers."""

    def __init__(self) -> None:
        self._begun: set[tuple[IP, IP, int]] = set()
        self.was_later = False
        """Whether the last frame was a fragment behind the first."""

    def allows(self, frame: bytes) -> bool:
        try:
            kind = int.from_bytes(frame[12:14], "big")
            if kind == 0x0806:
                return True
            if kind == 0x0800:
                return self._packet(*_read4(frame[14:]))
            if kind == 0x86DD:
                return self._packet(*_read6(frame[14:]))
        except MalformedError:
            return False
        return False

    def _packet(self, ends: tuple[IP, IP, int], protocol: int, data: bytes, part: tuple[int, int, bool]) -> bool:
        """`ends` are source, target and hop limit; `part` the number of a packet in fragments, the offset, and whether
        more follow."""
        source, target, hop_limit = ends
        number, offset, more = part
        self.was_later = offset > 0
        if offset:
            return source in _PODS and (source, target, number) in self._begun
        if len(data) < _SHORTEST.get(protocol, 0):
            return False
        if protocol == _TCP and not 20 <= 4 * (data[12] >> 4) <= len(data):
            return False
        allowed = _allowed(source, target, hop_limit, protocol, data)
        if allowed and more and source in _PODS:
            self._begun.add((source, target, number))
        return allowed


def _read4(packet: bytes) -> tuple[tuple[IP, IP, int], int, bytes, tuple[int, int, bool]]:
    if len(packet) < 20 or packet[0] >> 4 != 4:
        raise MalformedError
    header, length = 4 * (packet[0] & 15), int.from_bytes(packet[2:4], "big")
    if not 20 <= header <= length <= len(packet):
        raise MalformedError
    _read_options(packet[20:header])
    word, protocol = int.from_bytes(packet[6:8], "big"), packet[9]
    offset, more = 8 * (word & 0x1FFF), bool(word & 0x2000)
    if protocol in (_TCP, _SCTP) and 0 < offset < 20:
        raise MalformedError
    ends = IPv4Address(packet[12:16]), IPv4Address(packet[16:20]), packet[8]
    # An identification is one of a protocol's (RFC 791): 16 bits and 8 make the number.
    number = int.from_bytes(packet[4:6], "big") << 8 | protocol
    return ends, protocol, packet[header:length], (number, offset, more)


def _read_options(options: bytes) -> None:
    while options and options[0] != 0:
        if options[0] == 1:
            options = options[1:]
            continue
        if options[0] in (131, 137) or len(options) < 2 or options[1] < 2:
            raise MalformedError
        options = options[options[1] :]


def _read6(packet: bytes) -> tuple[tuple[IP, IP, int], int, bytes, tuple[int, int, bool]]:
    if len(packet) < 40 or packet[0] >> 4 != 6:
        raise MalformedError
    length = int.from_bytes(packet[4:6], "big") or len(packet) - 40
    data = packet[40 : 40 + length]
    if len(data) < length:
        raise MalformedError
    ends = IPv6Address(packet[8:24]), IPv6Address(packet[24:40]), packet[7]
    kind, part = packet[6], (0, 0, False)
    fragmented = False
    while kind in (0, 43, 44, 51, 60):
        if len(data) < 8:
            raise MalformedError
        if kind == 43 and data[3]:
            raise MalformedError
        size = 8 if kind == 44 else 4 * (data[1] + 2) if kind == 51 else 8 * (data[1] + 1)
        if kind == 44:
            if fragmented:
                raise MalformedError
            fragmented = True
            word = int.from_bytes(data[2:4], "big")
            part = (int.from_bytes(data[4:8], "big"), word & 0xFFF8, bool(word & 1))
            if 0 < part[1] < 20:
                raise MalformedError
            if part[1]:
                return ends, data[0], data[8:], part
        if size > len(data):
            raise MalformedError
        kind, data = data[0], data[size:]
    return ends, kind, data, part


def _allowed(source: IP, target: IP, hop_limit: int, protocol: int, data: bytes) -> bool:
    ports = (int.from_bytes(data[:2], "big"), int.from_bytes(data[2:4], "big"))
    if source.version == 6 and protocol == _ICMP6 and data[0] in (133, 135, 136) and hop_limit == 255:
        known = source in _PODS or source == IPv6Address("::") or source in _LINK_LOCAL
        if known and (target in _LINK_LOCAL or target in _LINK_MULTICAST or target in _OWN):
            return True
    if protocol == _UDP and _is_dhcp(source, target, ports):
        return True
    if protocol in (_TCP, _UDP) and ports[1] == 53:
        return source not in _LINK_LOCAL
    if source not in _PODS:
        return False
    if protocol == _ICMP6 and source.version == 6 and data[0] in (131, 132, 143):
        return False
    if any(target in block for block in _BLOCKS):
        return True
    return protocol == _TCP and ports[1] == 443 and (source, target) in _LEASED


def _is_dhcp(source: IP, target: IP, ports: tuple[int, int]) -> bool:
    if source.version == 4:
        return ports == (68, 67) and (target == IPv4Address("255.255.255.255") or (source in _PODS and target in _OWN))
    return ports == (546, 547) and source in _LINK_LOCAL and (target in _LINK_LOCAL or target in _LINK_MULTICAST)
