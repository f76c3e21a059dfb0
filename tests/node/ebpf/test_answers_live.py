"""A pod's own socket is answered by the kernel, whoever makes the checksums on the way."""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from dnsguard.core.answers import reply
from dnsguard.core.model import LinkIndex
from dnsguard.demo.lab import Lab, Pod
from dnsguard.enforce.bpf.attach import Attachments
from dnsguard.enforce.bpf.tcx import has_tcx
from tests.node.ebpf.questions import LONG, SERVER, SERVER6, Asking, question_of, vetted
from tests.node.ebpf.rig import POD, POD6, SOURCE, SOURCE6, Rig
from tests.node.ebpf.stage import bpffs
from tests.node.nftables_lab import inside
from tests.unit.messages import query

NAME, LONGER = "www.example.com", "wwww.example.com"
_SIOCETHTOOL = 0x8946
_ETHTOOL_STXCSUM = 0x17


@pytest.fixture
def pod(lab: Lab) -> Pod:
    return lab.pod("a", str(ip_address(POD)), str(ip_address(POD6)))


@pytest.fixture(params=[True, False], ids=["tcx", "clsact"])
def asking(lab: Lab, pod: Pod, rig: Rig, request: pytest.FixtureRequest) -> Iterator[Asking]:
    """The programs at the host's end of the pod's link. Nobody listens on the node."""
    if request.param and not has_tcx():
        pytest.skip("this kernel has no tcx")
    with bpffs() as folder, inside(lab.node):
        folder.mkdir()
        link = LinkIndex(socket.if_nametoindex(pod.link))
        for own, source in ((POD, SOURCE), (POD6, SOURCE6)):
            rig.pair(own, source, link=link)
        attachments = Attachments(rig.programs, folder, request.param)
        try:
            attachments.attach(link, pod.link)
            yield Asking(rig)
        finally:
            attachments.close()


def offload_checksums(lab: Lab, place: str, link: str, on: bool) -> None:
    """Whether what leaves by the link may do so with its checksum still to be made."""
    value = ctypes.create_string_buffer(struct.pack("=II", _ETHTOOL_STXCSUM, on), 8)
    request = struct.pack("=16sQ16x", link.encode(), ctypes.addressof(value))
    with lab.socket(place, socket.AF_INET) as any_socket:
        fcntl.ioctl(any_socket, _SIOCETHTOOL, request)


@pytest.mark.parametrize("server", [SERVER, SERVER6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("by_pod", [True, False], ids=["pod-leaves-sum", "pod-makes-sum"])
@pytest.mark.parametrize("by_node", [True, False], ids=["node-leaves-sum", "node-makes-sum"])
def test_a_connected_socket_of_the_pod_is_answered(
    lab: Lab, pod: Pod, asking: Asking, server: bytes, *, by_pod: bool, by_node: bool
) -> None:
    offload_checksums(lab, pod.namespace, "eth0", by_pod)
    offload_checksums(lab, lab.node, pod.link, by_node)
    with lab.socket(pod.namespace, socket.AF_INET if len(server) == 4 else socket.AF_INET6) as client:
        client.connect((str(ip_address(server)), 53))
        for name in (NAME, LONGER):
            for edns in (None, 1232):
                message = query(name, edns=edns)
                question = question_of(message)
                answer = vetted(f"{name}. 300 A 192.0.2.1\n{name}. 300 A 192.0.2.2", question)
                assert asking.put(answer, message)
                client.send(message)
                assert client.recv(4096) == reply(answer, question, int(LONG), stream=False)


def test_a_socket_that_wants_no_checksum_gets_none(lab: Lab, pod: Pod, asking: Asking) -> None:
    asking.deny(query())
    with lab.socket(pod.namespace, socket.AF_INET) as client:
        client.setsockopt(socket.SOL_SOCKET, 11, 1)  # SO_NO_CHECK
        client.connect((str(ip_address(SERVER)), 53))
        client.send(query())
        assert client.recv(4096)[3] & 15 == 3
