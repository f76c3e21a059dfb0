"""The lab itself: what the other node tests stand on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from dnsguard.core.errors import MissingFeatureError
from dnsguard.demo import lab as lab_module
from dnsguard.demo.lab import NAMESPACES, Lab, sweep

pytestmark = pytest.mark.node


def namespaces(prefix: str) -> list[str]:
    return sorted(path.name for path in NAMESPACES.glob(f"{prefix}-*"))


def echo_once(lab: Lab, server: tuple[str, str], client: str) -> str:
    """The source under which a datagram of `client` arrives at `server` (place, address); checks the way back too."""
    place, address = server
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with lab.socket(place, family) as answering, lab.socket(client, family) as asking:
        answering.bind((address, 5000))
        asking.connect((address, 5000))
        asking.send(b"ping")
        data, peer = answering.recvfrom(16)
        answering.sendto(data, peer)
        assert asking.recv(16) == b"ping"
        return str(peer[0])


@pytest.mark.parametrize(("own", "remote"), [("10.244.0.5", "8.8.8.8"), ("fd00:10:244::5", "2001:db8::8")])
def test_a_pod_reaches_the_outside_world_under_its_own_address(lab: Lab, own: str, remote: str) -> None:
    pod = lab.pod("a", own)
    lab.add_world_address(remote)
    assert echo_once(lab, (lab.world, remote), pod.namespace) == own


@pytest.mark.parametrize("addresses", [("10.244.0.5", "10.244.0.6"), ("fd00:10:244::5", "fd00:10:244::6")])
def test_a_pod_reaches_another_pod(lab: Lab, addresses: tuple[str, str]) -> None:
    one, other = lab.pod("a", addresses[0]), lab.pod("b", addresses[1])
    assert echo_once(lab, (other.namespace, addresses[1]), one.namespace) == addresses[0]


def test_an_address_added_later_is_reachable_and_one_removed_is_not(lab: Lab) -> None:
    pod = lab.pod("a", "10.244.0.5")
    lab.add_address(pod, "10.244.0.9")
    lab.remove_address(pod, "10.244.0.5")
    assert echo_once(lab, (pod.namespace, "10.244.0.9"), lab.world) == "10.99.0.2"
    with pytest.raises(OSError, match="Cannot assign"):
        echo_once(lab, (pod.namespace, "10.244.0.5"), lab.world)


def test_a_removed_pod_takes_its_link_and_namespace_along(lab: Lab) -> None:
    pod = lab.pod("a", "10.244.0.5")
    lab.remove_pod(pod)
    assert "veth-a" not in lab.run(lab.node, "ip", "link").stdout
    assert pod.namespace not in namespaces("dgtest")


def test_a_node_that_is_renewed_has_its_uplink_alone_until_a_pod_is_linked_again(lab: Lab) -> None:
    pod = lab.pod("a", "10.244.0.5")
    lab.add_world_address("8.8.8.8")
    lab.ip(lab.node, "rule add from 10.244.0.5 table 99")

    lab.renew_node()

    assert lab.inside(lab.node, socket.if_nameindex) == [(1, "lo"), (2, "uplink")]
    assert "10.244.0.5" not in lab.run(lab.node, "ip", "rule").stdout
    lab.link(pod, "10.244.0.5")
    assert echo_once(lab, (lab.world, "8.8.8.8"), pod.namespace) == "10.244.0.5"


def test_nothing_is_left_when_the_body_fails_even_with_a_program_running() -> None:
    with pytest.raises(ZeroDivisionError), Lab("dgfail") as lab:
        process = lab.popen(lab.pod("a", "10.244.0.5").namespace, "sleep", "60")
        raise ZeroDivisionError
    assert process.poll() is not None
    assert namespaces("dgfail") == []


def test_children_of_programs_started_in_the_lab_end_with_it() -> None:
    with Lab("dgchild") as lab:
        out = lab.run(lab.node, "sh", "-c", "sleep 60 >/dev/null 2>&1 & echo $!").stdout
    assert not Path("/proc", out.strip(), "ns/net").exists()


def test_two_labs_of_one_prefix_stand_side_by_side() -> None:
    with Lab("dgtwo") as one, Lab("dgtwo") as other:
        assert len({one.node, one.world, other.node, other.world}) == 4
    assert namespaces("dgtwo") == []


def test_an_error_inside_a_place_is_raised_to_the_caller(lab: Lab) -> None:
    with pytest.raises(ZeroDivisionError):
        lab.inside(lab.node, lambda: 1 // 0)


def child(body: str) -> subprocess.Popen[str]:
    """A process of its own that handles no signal: not even for a coverage measurement, which takes SIGTERM."""
    head = "import os, signal, time\nfrom dnsguard.demo.lab import Lab\nsignal.signal(signal.SIGTERM, signal.SIG_DFL)\n"
    program = head + textwrap.dedent(body)
    env = {**os.environ, "PYTHONPATH": str(Path(lab_module.__file__).parents[2])}
    started = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=env)
    assert started.stdout is not None
    assert started.stdout.readline() == "up\n"
    return started


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_removes_the_lab(ending: signal.Signals) -> None:
    process = child('with Lab("dgsignal") as lab:\n  lab.pod("a")\n  print("up", flush=True)\n  time.sleep(60)')
    process.send_signal(ending)
    assert process.wait(10) == -ending
    assert namespaces("dgsignal") == []


def test_what_a_killed_process_left_is_swept_and_a_living_lab_is_not() -> None:
    process = child(
        'lab = Lab("dgsweep").__enter__()\nlab.popen(lab.node, "sleep", "60")\nprint("up", flush=True)\ntime.sleep(60)'
    )
    process.kill()
    process.wait()
    with Lab("dgother") as other:
        deadline = time.monotonic() + 5
        assert len(namespaces("dgsweep")) == 2
        assert len(sweep("dgsweep")) == 2
        assert sweep("dgother") == []
        assert Path(NAMESPACES, other.node).exists()
    assert namespaces("dgsweep") == [] and time.monotonic() < deadline


def test_without_root_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(MissingFeatureError, match="sudo"), Lab("dgroot"):
        pass


def test_without_a_tool_its_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(MissingFeatureError, match="apt-get install -y iproute2"), Lab("dgtool"):
        pass
