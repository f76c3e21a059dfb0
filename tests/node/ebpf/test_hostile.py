"""Frames that nobody sends by accident, random and damaged ones, through the real program: none passes that another
reader would not let."""

from __future__ import annotations

import os
import random
import struct
from collections import Counter
from collections.abc import Callable

from dnsguard.enforce.bpf.syscall import test_run as run_once
from tests.node.ebpf.hostile import Reader
from tests.node.ebpf.rig import (
    BLOCKED_IN,
    BLOCKED_IN6,
    LINK,
    OTHER,
    OTHER6,
    OWN,
    OWN6,
    PEER,
    PEER6,
    POD,
    POD6,
    Rig,
    address,
)
from tests.node.ebpf.test_decision import ip4, ip6
from tests.node.nftables_lab import ACK, NODE_MAC, POD_MAC, SYN, ip, tcp, udp

FRAMES = int(os.environ.get("DNSGUARD_FRAMES", "50000"))
_UNSPEC, _SHOT = -1, 2
_KINDS = (0x0800, 0x0800, 0x86DD, 0x86DD, 0x0806, 0x8100, 0x88A8, 0x8847, 0x8863, 0x8864, 0x88CC, 0x0000, 0xFFFF)
_ENDS4 = (
    *[PEER] * 2,
    *[BLOCKED_IN] * 8,
    POD,
    OTHER,
    OWN,
    address("255.255.255.255"),
    address("0.0.0.0"),
    address("127.0.0.1"),
)
_ENDS6 = (
    *([PEER6] * 2 + [BLOCKED_IN6] * 8),
    *(POD6, OTHER6, OWN6),
    *(
        address("::"),
        address("fe80::5"),
        address("ff02::1"),
        address("::ffff:10.244.0.5"),
        address("::ffff:192.0.2.80"),
    ),
)
_EXTENSIONS = (0, 43, 44, 51, 60, 59, 135)
_PORTS = (443, 443, 53, 67, 68, 546, 547, 80, 0, 65535)


class Maker:
    """Frames: some as they should be, most of them damaged."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)

    def frame(self) -> bytes:
        dice = self._dice
        make = dice.choice([self._packet4, self._packet6, self._packet4, self._packet6, self._noise])
        packet = make()
        for _ in range(dice.choice([0, 0, 0, 1, 1, 2])):
            packet = self._damaged(packet)
        kind = 0x86DD if packet[:1] and packet[0] >> 4 == 6 else 0x0800
        if dice.random() < 0.1:
            kind = dice.choice(_KINDS)
        # Shorter ones the kernel does not run programs on without a link; test_hostile_live.py sends them.
        packet = packet.ljust(40 if kind == 0x86DD else 20, b"\0")
        return NODE_MAC + POD_MAC + struct.pack(">H", kind) + packet

    def _noise(self) -> bytes:
        return self._dice.randbytes(self._dice.randrange(120))

    def _packet4(self) -> bytes:
        dice = self._dice
        protocol, data = self._transport((1, 6, 17, 132, 33, 136, 253, 58))
        options = b""
        if dice.random() < 0.15:
            options = dice.randbytes(4 * dice.randrange(11))
        elif dice.random() < 0.4:
            options = dice.choice([b"\1\1\1\1", b"\x83\7\4" + PEER + b"\0", b"\x44\x08\5\0" + bytes(4), b"\0\0\0\0"])
        fragment = dice.choice([0, 0, 0, 0, 0x2000, 1, 3, 0x2003, dice.randrange(1 << 16)])
        made = ip4(data, protocol=protocol, options=options, fragment=fragment)
        source, target = (POD if dice.random() < 0.8 else dice.choice(_ENDS4)), dice.choice(_ENDS4)
        return made[:12] + source + target + made[20:]

    def _packet6(self) -> bytes:
        dice = self._dice
        protocol, data = self._transport((58, 6, 17, 132, 33, 136, 253, 1))
        headers = [self._extension() for _ in range(dice.choice([0, 0, 0, 1, 1, 2, 3, 9]))]
        made = ip6(data, *headers, protocol=protocol)
        source, target = (POD6 if dice.random() < 0.8 else dice.choice(_ENDS6)), dice.choice(_ENDS6)
        return made[:7] + bytes([dice.choice([64, 255])]) + source + target + made[40:]

    def _extension(self) -> tuple[int, bytes]:
        dice = self._dice
        kind = dice.choice(_EXTENSIONS)
        if kind == 44:
            offset = dice.choice([0, 0, 8, 16, 24, dice.randrange(1 << 13) * 8])
            return kind, b"\0" + struct.pack(">HI", offset | dice.randrange(2), dice.randrange(3))
        more = dice.choice([0, 0, 0, 1, 2])
        size = 4 * (more + 2) if kind == 51 else 8 * (more + 1)
        return kind, bytes([more]) + bytes([0, dice.choice([0, 0, 1])]) + bytes(size - 4)

    def _transport(self, protocols: tuple[int, ...]) -> tuple[int, bytes]:
        dice = self._dice
        protocol = dice.choice(protocols)
        source, target = dice.choice(_PORTS), dice.choice(_PORTS)
        if protocol == 6:
            return protocol, tcp(
                source, target, dice.choice([SYN, SYN, ACK, dice.randrange(256)]), bytes(dice.randrange(40))
            )
        if protocol in (1, 58):
            kind = dice.choice([0, 8, 128, 129, 133, 135, 136, 143, 3, 1, 11])
            inner = (
                ip(PEER, POD, 17, udp(443, 40000, bytes(8))) if protocol == 1 else ip(PEER6, POD6, 17, udp(443, 40000))
            )
            return protocol, bytes([kind, 0, 0, 0]) + dice.randbytes(4) + inner
        return protocol, udp(source, target, dice.randbytes(dice.randrange(40)))

    def _damaged(self, packet: bytes) -> bytes:
        dice = self._dice
        if not packet:
            return packet
        at = dice.randrange(min(len(packet), 80))
        damage: list[Callable[[], bytes]] = [
            lambda: packet[:at],
            lambda: packet[:at] + bytes([packet[at] ^ 1 << dice.randrange(8)]) + packet[at + 1 :],
            lambda: packet[:at] + dice.randbytes(1) + packet[at + 1 :],
            lambda: packet[:at] + dice.randbytes(dice.randrange(9)) + packet[at:],
            lambda: packet + dice.randbytes(dice.randrange(30)),
        ]
        return dice.choice(damage)()


def test_no_frame_passes_that_another_reader_would_not_let(rig: Rig) -> None:
    rig.query_rate(per_second=1_000_000_000, burst=1_000_000_000)
    maker, reader = Maker(7), Reader()
    said: Counter[tuple[bool, bool]] = Counter()
    refused: list[str] = []
    before = _complaints()
    for _ in range(FRAMES):
        frame = maker.frame()
        verdict = run_once(rig.programs["from_pod"], frame, link=LINK).verdict
        assert verdict in (_UNSPEC, _SHOT)
        allowed = reader.allows(frame)
        assert allowed or verdict == _SHOT, frame.hex()
        said[allowed, verdict == _UNSPEC] += 1
        if allowed and verdict == _SHOT and not reader.was_later:
            refused.append(frame.hex())
    assert _complaints() == before
    assert said[True, True] > FRAMES // 10, said
    # The program reads eight extension headers, and remembers one first fragment for each of 64 numbers.
    assert len(refused) < FRAMES // 1000, refused[:5]


def test_no_frame_towards_the_pod_is_answered_or_changed(rig: Rig) -> None:
    maker = Maker(8)
    for _ in range(FRAMES // 5):
        frame = maker.frame()
        found = run_once(rig.programs["to_pod"], frame, link=LINK)
        assert found.verdict in (_UNSPEC, _SHOT)
        assert found.packet[: len(frame)] == frame


def _complaints() -> list[str]:
    """What the kernel has said of BPF; nothing where its log may not be read."""
    try:
        descriptor = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return []
    found = []
    try:
        while True:
            line = os.read(descriptor, 8192).decode("utf-8", "replace")
            if "bpf" in line.lower() or "WARNING:" in line or "BUG:" in line:
                found.append(line)
    except OSError:
        return found
    finally:
        os.close(descriptor)
