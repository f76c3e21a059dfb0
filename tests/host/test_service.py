"""dnsguard as a service of systemd: what starts, what it may do to pods, what systemd is told."""

from __future__ import annotations

import pytest

from tests.host.host import UNIT, Host
from tests.node.scene import DB, rcode

pytestmark = pytest.mark.node


def test_a_pod_under_the_service_reaches_what_it_may_and_nothing_else(host: Host) -> None:
    scene = host.scene

    assert host.machine.show(UNIT, "ActiveState", "SubState") == {"ActiveState": "active", "SubState": "running"}
    assert host.daemon.ask("status")["enforcers"] == ["nftables", "ebpf"]
    assert not scene.opens(scene.a, DB)
    assert scene.resolve(scene.a, "db.example.com") == [DB]
    assert scene.opens(scene.a, DB)
    assert rcode(scene.ask(scene.a, "other.example.com")) == "NXDOMAIN"
