"""What a pod that is wholly in an attacker's hands can make of another pod's learned policy."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.node.scene import DB, A, B, Scene, playing

pytestmark = pytest.mark.node

NAMED: dict[str, Any] = {
    "policies": {},
    "pods": {A: {"name": "shop/a", "policies": []}, B: {"name": "shop/b", "policies": []}},
}
NAMELESS: dict[str, Any] = {"policies": {}, "pods": {}}
SYN_ACK = 0x12


@pytest.fixture
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    with playing(tmp_path, allowlist=NAMED, mode=request.param[0], enforcement={"ebpf": request.param[1]}) as made:
        yield made


def segment(source: str, target: str, ports: tuple[int, int], flags: int) -> bytes:
    """A TCP header without data (RFC 9293, 3.1)."""
    header = struct.pack(">HHIIBBHHH", *ports, 7, 9, 5 << 4, flags, 1024, 0, 0)
    pseudo = ip_address(source).packed + ip_address(target).packed + struct.pack(">BBH", 0, 6, len(header))
    total = sum(struct.unpack(f">{len(pseudo + header) // 2}H", pseudo + header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return header[:16] + struct.pack(">H", ~total & 0xFFFF) + header[18:]


@pytest.mark.parametrize(
    "scene",
    [("Audit", "Auto"), ("Audit", "Off"), ("Enforce", "Off")],
    ids=["audit, both lines", "audit, nftables alone", "enforce, nftables alone"],
    indirect=True,
)
def test_what_a_pod_answers_to_packets_of_no_flow_is_not_learned(scene: Scene) -> None:
    outside = "198.18.0.66"
    for place, source in ((scene.a.namespace, A), (scene.lab.world, outside)):
        with scene.lab.inside(place, lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 6)) as raw:
            if source == outside:
                raw.setsockopt(socket.IPPROTO_IP, socket.IP_TRANSPARENT, 1)
                raw.bind((outside, 0))
            for _ in range(3):
                raw.sendto(segment(source, B, (4444, 9999), SYN_ACK), (B, 0))
    scene.opens(scene.b, DB)

    learned = yaml.safe_load(scene.daemon.call("learn").stdout)

    blocks = [
        peer["ipBlock"]["cidr"]
        for rule in learned["policies"]["shop/b"]["egress"]
        for peer in rule["to"]
        if "ipBlock" in peer
    ]
    assert blocks == [f"{DB}/32"]


def test_who_gets_an_address_is_not_allowed_what_the_one_before_did(tmp_path: Path) -> None:
    with playing(tmp_path, allowlist=NAMELESS, mode="Audit") as scene:
        scene.resolve(scene.b, "other.example.com")
        assert scene.opens(scene.b, DB)
        scene.daemon.call("learn").check_returncode()
        scene.lab.remove_pod(scene.b)
        scene.daemon.told("pod_went", pod=B)
        next_one = scene.lab.pod("c", B)
        assert scene.resolve(next_one, "mail.example.com")

        learned = yaml.safe_load(scene.daemon.call("learn").stdout)
        scene.daemon.stop()
        left = yaml.safe_load(scene.daemon.call("learn").stdout)

    (rule,) = learned["policies"][f"pod-{B}"]["egress"]
    assert rule["to"] == [{"domainNames": ["mail.example.com"]}]
    assert left == learned
