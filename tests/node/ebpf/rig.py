"""The real programs on the real kernel without a network: packets made by hand go through BPF_PROG_TEST_RUN.

One pod, at one address of each family, may reach PEER and PEER6 on TCP 443 by a lease, and all of BLOCK on every port.
Everything is set in the maps octet by octet, so that these tests stand on `bpf/layout.h` and on nothing else.
"""

from __future__ import annotations

import math
import struct
import time
from enum import Enum
from ipaddress import ip_address

from dnsguard.core.model import Address
from dnsguard.enforce.bpf import layout
from dnsguard.enforce.bpf.layout import FlowKey, Idle, LeaseKey, What
from dnsguard.enforce.bpf.load import load
from dnsguard.enforce.bpf.syscall import test_run as run_once
from tests.node.nftables_lab import NODE_MAC, POD_MAC

LINK = 1
"""The loopback's: the link of a test run has to be there, and nothing is sent on it."""
PROGRAM, SCOPE = 0x123456789ABC, 0xFEDCBA9876543210
SOURCE, SOURCE6 = 7, 8
SECOND = 10**9
FAR = 1 << 62
"""A time that does not come."""


def address(text: str) -> Address:
    return Address(ip_address(text).packed)


POD, POD6 = address("10.244.0.5"), address("fd00:10:244::5")
PEER, PEER6 = address("192.0.2.80"), address("2001:db8::80")
OTHER, OTHER6 = address("192.0.2.81"), address("2001:db8::81")
BLOCKED_IN, BLOCKED_IN6 = address("203.0.113.9"), address("2001:db8:b::9")
OWN, OWN6 = address("198.51.100.1"), address("2001:db8:f::1")


class Verdict(Enum):
    """What tc is told. PASS is TC_ACT_UNSPEC: other filters go on deciding."""

    PASS = -1
    DROP = 2
    SENT_BACK = 7


class Rig:
    """`close` when done. `sent` is what the last packet had become."""

    def __init__(self) -> None:
        self._loaded = load(None, {})
        self.maps = self._loaded.maps
        self.programs = self._loaded.programs
        self.sent = b""
        self._settings: dict[str, int] = {
            "query_ns": SECOND // 1000,
            "query_burst_ns": SECOND,
            "report_ns": SECOND // 1000,
            "report_burst_ns": SECOND,
            "flows_per_pod": 1000,
            "intercept_any": 1,
            "audit": 0,
        }
        self._set()
        self.vouch(FAR)
        self._pods()
        self._program()

    def close(self) -> None:
        self._loaded.close()

    # ---- what a test may set

    def _set(self, **changed: int) -> None:
        self._settings.update(changed)
        packed = layout.SETTINGS.pack(*[(600 + idle) * SECOND for idle in Idle], *self._settings.values())
        self.maps["settings"].update(layout.U32.pack(0), packed)

    def vouch(self, until_ns: int) -> None:
        self.maps["dns_open_until_ns"].update(layout.U32.pack(0), layout.U64.pack(until_ns))

    def intercept_only(self, server: Address) -> None:
        self._set(intercept_any=0)
        self.maps["intercepted"].update(layout.address(server), layout.U32.pack(1))

    def query_rate(self, *, per_second: int, burst: int) -> None:
        self._set(query_ns=SECOND // per_second, query_burst_ns=burst * SECOND // per_second)

    def forget_rates(self) -> None:
        self.maps["links"].delete(layout.U32.pack(LINK))

    def flows_per_pod(self, most: int) -> None:
        self._set(flows_per_pod=most)

    def audit(self, on: bool = True) -> None:
        self._set(audit=on)

    def close_blocks(self) -> None:
        self.maps["blocks"].delete_many(list(self.maps["blocks"].keys()))

    def flows(self) -> int:
        return len(list(self.maps["flows"].keys()))

    def idle(self) -> Idle:
        """By which of the idle times the only flow ends."""
        ((_, value),) = self.maps["flows"].items()
        left = (layout.FLOW.unpack(value)[0] - time.monotonic_ns()) / SECOND
        return Idle(math.ceil(left) - 600)

    def end_flows(self) -> None:
        for key, value in list(self.maps["flows"].items()):
            _, state, link = layout.FLOW.unpack(value)
            self.maps["flows"].update(key, layout.FLOW.pack(time.monotonic_ns() - 1, state, link))

    def cut(self, source: int, protocol: int, pod_port: int, peer_port: int, peer: Address) -> None:
        key = FlowKey(source, protocol, pod_port, peer_port, peer).pack()
        self.maps["flows"].update(key, layout.FLOW.pack(FAR, layout.FLOW_CUT, LINK))

    # ---- the rest

    def _pods(self) -> None:
        for own, source in ((POD, SOURCE), (POD6, SOURCE6)):
            self.pair(own, source)
        for own in (OWN, OWN6):
            self.maps["own"].update(layout.address(own), layout.U32.pack(1))

    def pair(self, own: Address, source: int, *, link: int = LINK, flags: int = 0, program: int = PROGRAM) -> None:
        self.maps["pairs"].update(layout.pair_key(link, own), layout.PAIR.pack(program, source, flags))

    def _program(self) -> None:
        scopes = [SCOPE] + [0] * (layout.MOST_RULES - 1)
        program = layout.PROGRAM.pack(0b11, 0, 0b10, 0b01, 0, 0b11, 0, *scopes, 0)
        self.maps["programs"].update(layout.U64.pack(PROGRAM), program)
        self.maps["ports"].update(layout.port_key(PROGRAM, 6, 443), layout.U64.pack(0b01))
        for network, bits in ((address("203.0.113.0"), 24), (address("2001:db8:b::"), 48)):
            self.maps["blocks"].update(layout.block_key(PROGRAM, network, bits), layout.U64.pack(0b10))
        for source, peer in ((SOURCE, PEER), (SOURCE6, PEER6)):
            self.lease(source, peer)

    def lease(self, source: int, peer: Address, *, ends_ns: int = FAR, scope: int = SCOPE) -> None:
        self.maps["leases"].update(LeaseKey(scope, source, peer).pack(), layout.U64.pack(ends_ns))

    def end_lease(self, source: int, peer: Address) -> None:
        self.lease(source, peer, ends_ns=time.monotonic_ns() - 1)

    def from_pod(self, packet: bytes, *, link: int = LINK, kind: int | None = None, segment: int = 0) -> Verdict:
        """An IP packet (or any payload, of the ethertype `kind`) enters by the pod's link, one for several when it is
        to be cut into segments of so many octets."""
        return self._run("from_pod", NODE_MAC + POD_MAC + _kind(packet, kind) + packet, link, segment)

    def to_pod(self, packet: bytes, *, link: int = LINK) -> Verdict:
        """An IP packet leaves by the pod's link."""
        return self._run("to_pod", POD_MAC + NODE_MAC + _kind(packet, None) + packet, link)

    def _run(self, program: str, frame: bytes, link: int, segment: int = 0) -> Verdict:
        found = run_once(self._loaded.programs[program], frame, link=link, segment=segment)
        self.sent = found.packet
        if Verdict(found.verdict) is not Verdict.SENT_BACK:
            assert found.packet[: len(frame)] == frame, "a packet that is not answered stays as it was"
        return Verdict(found.verdict)

    def counted(self, what: What, rule: int = layout.NO_RULE) -> int:
        found = self.maps["counts"].lookup(layout.COUNT_KEY.pack(LINK, what, rule))
        return int.from_bytes(found, "little") if found else 0


def _kind(packet: bytes, kind: int | None) -> bytes:
    if kind is None:
        kind = 0x86DD if packet and packet[0] >> 4 == 6 else 0x0800
    return struct.pack(">H", kind)
