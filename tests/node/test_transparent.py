"""Making the listeners' sockets, and what is said when they cannot be made."""

from __future__ import annotations

import ctypes
import socket
from pathlib import Path

import pytest

from dnsguard.core.errors import KernelError, MissingFeatureError
from dnsguard.demo.lab import Lab
from dnsguard.listen import transparent
from dnsguard.listen.transparent import open_sockets

pytestmark = pytest.mark.node


def without_net_admin() -> None:
    """Drop every effective capability of the calling thread (capset(2), version 3)."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    nothing = (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(header, nothing) == 0


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_both_kinds_and_families_are_bound_and_marked(lab: Lab) -> None:
    opened = lab.inside(lab.node, lambda: open_sockets(5300, 0x2000))
    for one in (*opened.udp, *opened.tcp):
        assert one.getsockname()[:2] in (("0.0.0.0", 5300), ("::", 5300))
        assert one.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == 0x2000
        assert not one.getblocking()
    assert [one.family for one in opened.udp] == [one.family for one in opened.tcp] == [socket.AF_INET, socket.AF_INET6]
    opened.close()


def test_a_port_in_use_is_said_with_the_key_to_change_and_nothing_stays_open(lab: Lab) -> None:
    with lab.socket(lab.node, socket.AF_INET6, socket.SOCK_STREAM) as other:
        other.bind(("::", 5300))
        other.listen()
        before = descriptors()
        with pytest.raises(KernelError, match=r"TCP port 5300 is in use.*dns\.listenPort"):
            lab.inside(lab.node, lambda: open_sockets(5300, 0x2000))
        assert descriptors() == before


def test_without_the_capability_it_is_named(lab: Lab) -> None:
    def unprivileged() -> None:
        without_net_admin()
        open_sockets(5300, 0x2000)

    with pytest.raises(MissingFeatureError, match="CAP_NET_ADMIN"):
        lab.inside(lab.node, unprivileged)


def test_a_family_that_the_kernel_lacks_is_left_out(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = socket.AF_ROSE  # in no kernel built for servers
    monkeypatch.setattr(transparent, "FAMILIES", (socket.AF_INET, absent))
    opened = lab.inside(lab.node, lambda: open_sockets(5300, 0x2000))
    assert [one.family for one in (*opened.udp, *opened.tcp)] == [socket.AF_INET, socket.AF_INET]
    opened.close()
