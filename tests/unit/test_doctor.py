"""`check --system`, where no node can be broken like that: settings of another kernel, traces, exit codes."""

from __future__ import annotations

import ctypes
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dnsguard.cli import system
from dnsguard.config.groups import Pods
from dnsguard.config.settings import Settings
from dnsguard.control.calls import Status
from dnsguard.core.errors import KernelError
from dnsguard.doctor import clock, process, sysctls, systemd, units
from dnsguard.doctor.checks import Check, examine
from dnsguard.doctor.findings import Level, exit_code
from dnsguard.doctor.host_network import check_host_network
from dnsguard.doctor.node import Node, NodeLink
from dnsguard.doctor.podlink import asked_addresses, link_name
from dnsguard.doctor.trace import Dropping, read
from dnsguard.enforce.nftables import netlink

VETH = NodeLink(7, "veth1", "veth", 0)
PORT = NodeLink(8, "veth2", "veth", 3)


def settings(**keys: object) -> Settings:
    return Settings.model_validate({"upstreams": ["10.96.0.10"], **keys})


def proc(folder: Path, **values: object) -> Path:
    for name, value in values.items():
        path = folder / "sys/net" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    return folder


@pytest.mark.parametrize(
    ("values", "level"),
    [
        ({}, Level.WARNING),
        ({"netfilter__nf_conntrack_max": 262144, "netfilter__nf_conntrack_count": 7}, Level.OK),
        ({"netfilter__nf_conntrack_max": 65536, "netfilter__nf_conntrack_count": 7}, Level.WARNING),
        ({"netfilter__nf_conntrack_max": 262144, "netfilter__nf_conntrack_count": 260000}, Level.PROBLEM),
    ],
)
def test_the_table_of_connections_must_be_there_large_and_not_full(
    values: dict[str, int], level: Level, tmp_path: Path
) -> None:
    (finding,) = sysctls.check_conntrack(Node(settings(), proc=proc(tmp_path, **values)))

    assert finding.level is level


@pytest.mark.parametrize(
    ("on", "links", "level"),
    [(1, [VETH, PORT], Level.PROBLEM), (1, [VETH], Level.OK), (0, [VETH, PORT], Level.OK)],
)
def test_bridged_packets_in_the_ip_hooks_are_a_problem_of_bridge_ports_only(
    on: int, links: list[NodeLink], level: Level, tmp_path: Path
) -> None:
    folder = proc(tmp_path, **{"bridge__bridge-nf-call-iptables": on})
    (finding,) = sysctls.check_bridges(Node(settings(), links, proc=folder))

    assert finding.level is level


@pytest.mark.parametrize(
    ("levels", "code"),
    [
        ([], 0),
        ([Level.OK, Level.WARNING], 0),
        ([Level.UNSEEN, Level.OK], 77),
        ([Level.UNSEEN, Level.PROBLEM], 1),
    ],
)
def test_the_exit_code_is_that_of_the_worst(levels: list[Level], code: int) -> None:
    assert exit_code(levels) == code


def test_a_check_that_fails_is_told_and_the_next_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def check_broken(node: Node) -> list[object]:
        raise KernelError("no")

    monkeypatch.setattr("dnsguard.doctor.checks.CHECKS", (check_broken, sysctls.check_reverse_path))
    found = list(examine(Node(settings())))

    assert [(one.level, one.subject) for one in found] == [(Level.UNSEEN, "broken"), (Level.OK, "rp_filter")]


# ---- the configuration


WELL = "pods: {interfaces: [tap*]}"


@pytest.mark.parametrize(
    ("content", "interfaces", "asked"),
    [
        (f"upstreams: [192.0.2.53]\n{WELL}\nmdoe: Audit\n", ("tap*",), ["192.0.2.53:53"]),
        (f"upstreams: [here]\n{WELL}\n", ("tap*",), []),
        (f"{WELL}\n", ("tap*",), []),
        ("pods: [", Pods().interfaces, []),
        (None, Pods().interfaces, []),
    ],
)
def test_a_configuration_with_errors_is_a_problem_and_the_node_is_looked_at_by_what_is_right_in_it(
    content: str | None, interfaces: tuple[str, ...], asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Settings] = []
    monkeypatch.setattr(system, "look", given.append)
    monkeypatch.setattr(system, "examine", lambda node: [])
    if content is not None:
        (tmp_path / "config.yaml").write_text(content)

    assert system.check_system(tmp_path / "config.yaml", json_lines=True) == 1

    (used,) = given
    assert used.pods.interfaces == interfaces
    assert [str(upstream) for upstream in used.upstreams] == asked


# ---- units


LOADED = {"LoadState": "loaded", "ActiveState": "active", "UnitFileState": "enabled"}


@pytest.mark.parametrize(
    ("shown", "level"),
    [
        (LOADED, Level.OK),
        ({**LOADED, "UnitFileState": "disabled"}, Level.PROBLEM),
        ({**LOADED, "ActiveState": "failed"}, Level.PROBLEM),
        ({**LOADED, "ActiveState": "activating", "SubState": "auto-restart"}, Level.PROBLEM),
        ({**LOADED, "ActiveState": "activating", "SubState": "start", "NRestarts": "7"}, Level.PROBLEM),
        ({**LOADED, "ActiveState": "activating", "SubState": "start", "NRestarts": "0"}, Level.WARNING),
        ({"LoadState": "not-found"}, Level.WARNING),
    ],
)
def test_a_unit_is_there_enabled_and_well(shown: dict[str, str], level: Level) -> None:
    assert units.unit("dnsguard.service", shown).level is level


def test_a_service_that_is_started_again_and_again_says_why() -> None:
    shown = {**LOADED, "ActiveState": "activating", "SubState": "auto-restart", "StatusText": "a.yaml:1:1: error: x"}

    assert units.unit("dnsguard.service", shown).found.endswith(": a.yaml:1:1: error: x")


LISTEN = "".join(f"Listen={place}:15353 ({kind})\n" for kind in ("Datagram", "Stream") for place in ("0.0.0.0", "[::]"))
HOLDING = {**LOADED, **systemd.properties(LISTEN)}


@pytest.mark.parametrize(
    ("service", "socket", "port", "remedy"),
    [
        ("active", "active", 15353, None),
        ("inactive", "inactive", 15353, None),
        ("active", "inactive", 15353, "systemctl start dnsguard.socket dnsguard.service"),
        ("active", "active", 15399, "systemctl edit dnsguard.socket"),
    ],
)
def test_a_socket_that_a_running_daemon_does_not_use_is_told(
    service: str, socket: str, port: int, remedy: str | None
) -> None:
    shown = {
        "dnsguard.service": {**LOADED, "ActiveState": service},
        "dnsguard.socket": {**HOLDING, "ActiveState": socket},
    }

    found = units.unused(shown, port)

    assert (remedy is None) == (found is None)
    assert found is None or (found.level is Level.WARNING and remedy is not None and remedy in found.remedy)


@pytest.mark.parametrize(
    ("state", "port", "level"),
    [("active", 15353, Level.OK), ("inactive", 15353, Level.PROBLEM), ("active", 7, Level.PROBLEM)],
)
def test_a_port_that_the_socket_unit_holds_for_the_daemon_is_no_other_programs(
    state: str, port: int, level: Level, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "systemd/system").mkdir(parents=True)
    monkeypatch.setattr(process, "show", lambda unit: {**HOLDING, "ActiveState": state})
    monkeypatch.setattr(process, "_taken", lambda *_: True)

    (found,) = process.check_listen_port(Node(settings(dns={"listenPort": port}), run=tmp_path))

    assert found.level is level


@pytest.mark.parametrize(
    ("before", "after", "level"),
    [("kubelet.service", "", Level.OK), ("", "dnsguard.service", Level.OK), ("", "", Level.PROBLEM)],
)
def test_the_service_is_before_the_pods(before: str, after: str, level: Level) -> None:
    shown = {"dnsguard.service": {**LOADED, "Before": before}, "kubelet.service": {**LOADED, "After": after}}

    assert [finding.level for finding in units.order(shown)] == [level]


@pytest.mark.parametrize(
    ("user", "given", "levels"),
    [
        ("dnsguard", "cap_net_admin cap_perfmon cap_bpf", [Level.OK]),
        ("dnsguard", "cap_net_admin", [Level.PROBLEM]),
        ("", "", []),
    ],
)
def test_a_service_of_another_user_than_root_is_given_its_capabilities(
    user: str, given: str, levels: list[Level]
) -> None:
    found = units.privileges({**LOADED, "User": user, "AmbientCapabilities": given})

    assert [finding.level for finding in found] == levels


# ---- the daemon


READY = {"version": "1", "mode": "Enforce", "pid": 1, "ready": True, "missing": "", "absent": {}, "gaps": []}
GAP = {"enforcer": "ebpf", "link": "veth1", "reason": "program 7 stands before"}


@pytest.mark.parametrize(
    ("told", "levels"),
    [
        (None, [Level.WARNING]),
        (READY, [Level.OK]),
        ({**READY, "ready": False, "missing": "the table"}, [Level.PROBLEM]),
        ({**READY, "gaps": [GAP]}, [Level.OK, Level.WARNING]),
    ],
)
def test_a_daemon_is_running_ready_and_without_gaps(told: Any, levels: list[Level]) -> None:
    assert [finding.level for finding in process.check_daemon(Node(settings(), daemon=told))] == levels


LIMITS = "Limit                     Soft Limit           Hard Limit           Units\n"


@pytest.mark.parametrize(("hard", "level"), [("65536", Level.OK), ("531", Level.WARNING), ("unlimited", Level.OK)])
def test_the_daemons_descriptors_are_read_where_everybody_may(hard: str, level: Level, tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1/limits").write_text(f"{LIMITS}Max open files            500                  {hard:<21}files\n")

    (found,) = process.check_descriptors(Node(settings(), daemon=cast(Status, READY), proc=tmp_path))

    assert found.level is level


def test_a_daemon_that_does_not_run_is_not_started_before_its_files_are_right() -> None:
    (found,) = process.check_daemon(Node(settings()))

    assert found.remedy.index("dnsguard check") < found.remedy.index("systemctl start")


@pytest.mark.parametrize("check", [process.check_daemon, process.check_listen_port, process.check_metrics_port])
def test_a_daemon_that_cannot_be_asked_leaves_open_whose_the_ports_are(check: Check) -> None:
    (finding,) = check(Node(settings(), hidden="permission denied"))

    assert finding.level is Level.UNSEEN


# ---- a pod's query


def traced(kind: int, *, verdict: int | None = None, policy: int | None = None, family: int = 2) -> bytes:
    body = netlink.generic(family) + netlink.text(1, "filter") + netlink.text(2, "INPUT")
    body += netlink.attribute(4, struct.pack(">I", kind))
    if verdict is not None:
        body += netlink.nested(5, netlink.attribute(1, struct.pack(">i", verdict)))
    if policy is not None:
        body += netlink.attribute(16, struct.pack(">I", policy))
    return netlink.message(10 << 8 | 17, 0, 0, body)


@pytest.mark.parametrize(
    ("message", "found"),
    [
        (traced(3, verdict=0), [Dropping("ip", "filter", "INPUT", False)]),
        (traced(3, verdict=0, family=10), [Dropping("ip6", "filter", "INPUT", False)]),
        (traced(3, verdict=1), []),
        (traced(3, verdict=-3), []),
        (traced(1, policy=0), [Dropping("ip", "filter", "INPUT", True)]),
        (traced(1, policy=1), []),
        (traced(2), []),
        (b"\0" * 7, []),
    ],
)
def test_of_a_trace_the_chains_that_drop_are_read(message: bytes, found: list[Dropping]) -> None:
    assert list(read(message)) == found


@pytest.mark.parametrize(("patterns", "begins"), [(["eth9", "cali*"], "calidg"), (["*"], "dg")])
def test_the_link_to_ask_through_has_a_name_that_is_governed(patterns: list[str], begins: str) -> None:
    assert link_name(patterns).startswith(begins)
    assert len(link_name(patterns)) <= 15


@pytest.mark.parametrize("patterns", [["eth9"], ["averylongname*"]])
def test_without_a_pattern_that_leaves_room_nothing_can_be_asked(patterns: list[str]) -> None:
    with pytest.raises(KernelError):
        link_name(patterns)


def test_the_probe_asks_whom_a_pod_would_ask() -> None:
    assert asked_addresses(Node(settings())) == {4: "10.96.0.10", 6: "2001:db8:646f:63::53"}
    intercepted = settings(dns={"intercept": ["169.254.20.10"]})
    assert asked_addresses(Node(intercepted))[4] == "169.254.20.10"


# ---- hostNetwork


NODES, OTHERS = "net:[4026531840]", "net:[4026532441]"
BURSTABLE = "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{}.slice/cri-containerd-1.scope"
UID = "3f1c2d54_8d1b_4a9e_b0a2_7f0c5a3d9e11"
STATIC = "0b1946df8ab8dbbd3ac2bcab3ed1b50d"


def process_of(folder: Path, number: int, name: str, network: str, group: str) -> None:
    place = folder / str(number)
    (place / "ns").mkdir(parents=True)
    (place / "ns/net").symlink_to(network)
    (place / "comm").write_text(f"{name}\n")
    (place / "cgroup").write_text(f"{group}\n")


@pytest.fixture
def busy_node(tmp_path: Path) -> Path:
    """With a shell, and a pod that has a network of its own."""
    (tmp_path / "self/ns").mkdir(parents=True)
    (tmp_path / "self/ns/net").symlink_to(NODES)
    process_of(tmp_path, 7, "bash", NODES, "0::/user.slice/user-0.slice")
    process_of(tmp_path, 8, "nginx", OTHERS, BURSTABLE.format(UID))
    return tmp_path


def host_network(folder: Path) -> tuple[Level, str]:
    (finding,) = check_host_network(Node(settings(), proc=folder))
    return finding.level, finding.found


def test_a_node_whose_pods_have_networks_of_their_own_is_in_order(busy_node: Path) -> None:
    assert host_network(busy_node) == (Level.OK, "no pod of this node runs in the host's network")


@pytest.mark.parametrize("group", [BURSTABLE.format(UID), f"11:memory:/kubepods/besteffort/pod{STATIC}/1f2e"])
def test_a_pod_in_the_hosts_network_is_told_with_what_runs_in_it(group: str, busy_node: Path) -> None:
    process_of(busy_node, 9, "pause", NODES, group)
    process_of(busy_node, 10, "kube-proxy", NODES, group)

    found = "1 pod runs in the host's network and cannot be governed: kube-proxy"
    assert host_network(busy_node) == (Level.WARNING, found)
    (busy_node / "10/ns/net").unlink()  # it ends while it is looked at
    assert host_network(busy_node)[1].endswith(": idle")


# ---- clocks


class Timex(ctypes.Structure):
    """The first fields of struct timex (linux/timex.h)."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        *((name, ctypes.c_long) for name in ("offset", "freq", "maxerror", "esterror")),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 256),
    )


@pytest.mark.parametrize(
    ("good", "level", "found"), [(True, Level.OK, "synchronised"), (False, Level.WARNING, "not synchronised")]
)
def test_a_wall_clock_that_nobody_sets_is_told(
    good: bool, level: Level, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "synchronised", lambda: good)
    (finding,) = clock.check_synchronised(Node(settings()))

    assert (finding.subject, finding.level) == ("wall clock", level)
    assert finding.found == found


def test_whether_the_clock_is_set_is_read_from_its_place_in_what_the_kernel_tells(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """This machine's is as it is; the kernel's answer stands in for one that is otherwise."""
    told = Timex()
    kernel = SimpleNamespace(adjtimex=lambda buffer: ctypes.memmove(buffer, ctypes.byref(told), 64) and 0)
    monkeypatch.setattr(clock.ctypes, "CDLL", lambda *_, **__: kernel)
    set_one = clock.synchronised()
    told.status = 0x40

    assert (set_one, clock.synchronised()) == (True, False)
