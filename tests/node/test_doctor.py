"""`dnsguard check --system` on real nodes: in order, and with one thing wrong at a time.

the whole, with a daemon and without ...................... a_good_node_..., nothing_stays_..., without_privilege_...
a pod's query ............................................. the_chain_that_..., a_killed_run_...
one check at a time ....................................... the rest
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute

from dnsguard.config.settings import Settings
from dnsguard.demo.lab import Lab
from dnsguard.doctor import ebpf, journal, kernel, links, process, query, routing, sysctls, upstreams
from dnsguard.doctor.checks import Check
from dnsguard.doctor.findings import Finding
from dnsguard.doctor.node import look
from dnsguard.enforce.bpf import libbpf, syscall
from dnsguard.enforce.nftables import netlink
from tests.node.daemon import wait_for
from tests.node.scene import A, Scene, playing

pytestmark = pytest.mark.node

STRICT = (
    "add table ip strict; "
    "add chain ip strict {chain} {{ type filter hook {hook} priority {priority}; policy {policy}; }}"
)
CHECK = (sys.executable, "-m", "dnsguard", "check", "--system")


class Examined:
    """A node with a pod and no daemon, and what single checks find there."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.folder = folder
        self.pod = lab.pod("a", A)

    def settings(self, **keys: object) -> Settings:
        paths = {"runtime": str(self.folder / "run"), "state": str(self.folder), "bpffs": "/sys/fs/bpf/dnsguard"}
        content = {"upstreams": ["10.99.0.2"], "pods": {"interfaces": ["veth-*"]}, "paths": paths, **keys}
        return Settings.model_validate(content)

    def find(self, check: Check, **keys: object) -> list[Finding]:
        return self.lab.inside(self.lab.node, lambda: list(check(look(self.settings(**keys)))))

    def worst(self, check: Check, **keys: object) -> Finding:
        """The finding that is worst; of equal ones the first."""
        order = ("problem", "unseen", "warning", "ok")
        return min(self.find(check, **keys), key=lambda finding: order.index(finding.level))

    def inside(self, do: Callable[[], Any]) -> Any:
        return self.lab.inside(self.lab.node, do)

    def nft(self, commands: str) -> None:
        self.lab.run(self.lab.node, "nft", commands)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Examined]:
    with Lab("dgdoctor") as lab:
        yield Examined(lab, tmp_path)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with playing(tmp_path_factory.mktemp("doctor")) as scene:
        yield scene


def rows(done: subprocess.CompletedProcess[str]) -> list[dict[str, str]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def state(lab: Lab) -> list[str]:
    """All that a check could leave in the kernel."""
    commands: Sequence[Sequence[str]] = (
        ("nft", "list", "tables"), ("ip", "-br", "link"), ("ip", "rule"), ("ip", "-6", "rule"),
        ("ip", "route", "show", "table", "all"),
    )  # fmt: skip
    listed = [lab.run(lab.node, *command).stdout for command in commands]
    return sorted(line for text in listed for line in text.splitlines())


# -- the whole --------------------------------------------------------------------------------------------------------


def test_a_good_node_has_no_problem_while_the_daemon_runs(scene: Scene) -> None:
    before = state(scene.lab)
    done = scene.daemon.call("check", "--system", "--json")
    found = rows(done)

    assert [row for row in found if row["level"] in ("problem", "unseen")] == []
    assert done.returncode == 0
    asked = [row["found"] for row in found if row["subject"].startswith("a pod's query")]
    assert asked == ["reached the daemon, and the reply the pod"] * 4
    assert state(scene.lab) == before


def test_people_get_a_line_for_each_thing_and_the_sum(scene: Scene) -> None:
    done = scene.daemon.call("check", "--system")

    assert "ok      pods.interfaces: 2 pod links: veth-a, veth-b\n" in done.stdout
    assert done.stderr.endswith(" ok\n") or " ok, " in done.stderr


def test_a_good_node_has_no_problem_before_the_daemon_is_there_and_nothing_stays(node: Examined) -> None:
    config = node.folder / "config.yaml"
    config.write_text(
        "apiVersion: dnsguard/v1\nkind: Configuration\nupstreams: [10.99.0.2]\npods: {interfaces: ['veth-*']}\n"
        f"paths: {{runtime: {node.folder}/run, state: {node.folder}}}\n"
    )
    before = state(node.lab)
    done = node.lab.run(node.lab.node, *CHECK, "--json", "--config", str(config), check=False)

    problems = [row for row in rows(done) if row["level"] == "problem"]
    assert {row["subject"] for row in problems} <= {"upstream 10.99.0.2:53 over UDP", "upstream 10.99.0.2:53 over TCP"}
    asked = [row["found"] for row in rows(done) if row["subject"].startswith("a pod's query")]
    assert asked == ["reached a stand-in for the daemon, and the reply the pod"] * 4
    assert state(node.lab) == before


def test_without_privilege_it_says_what_it_could_not_look_at_and_ends_with_77(scene: Scene) -> None:
    dropping = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    done = scene.lab.run(scene.lab.node, *dropping, *CHECK, "--json", "--config", str(scene.daemon.config), check=False)

    unseen = {row["subject"] for row in rows(done) if row["level"] == "unseen"}
    assert unseen >= {"nftables", "eBPF", "a pod's query"}
    assert done.returncode == 77, done.stdout


def test_a_configuration_that_cannot_be_used_is_a_problem_and_the_rest_is_looked_at(node: Examined) -> None:
    done = node.lab.run(node.lab.node, *CHECK, "--json", "--config", str(node.folder / "absent.yaml"), check=False)

    assert (rows(done)[0]["subject"], rows(done)[0]["level"]) == ("configuration", "problem")
    assert len(rows(done)) > 20
    assert done.returncode == 1


# -- a pod's query ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("commands", "where"),
    [
        (
            STRICT.format(chain="INPUT", hook="input", priority=0, policy="drop"),
            "the policy of chain INPUT of table ip strict",
        ),
        (
            STRICT.format(chain="OUTPUT", hook="output", priority=0, policy="drop"),
            "the policy of chain OUTPUT of table ip strict",
        ),
        (
            STRICT.format(chain="PREROUTING", hook="prerouting", priority=-300, policy="accept")
            + "; add chain ip strict cali-drop; add rule ip strict cali-drop drop"
            + '; add rule ip strict PREROUTING iifname "veth-*" udp dport 53 jump cali-drop'
            + '; add rule ip strict PREROUTING iifname "veth-*" tcp dport 53 jump cali-drop',
            "a rule in chain cali-drop of table ip strict",
        ),
    ],
)
def test_the_chain_that_drops_a_pods_query_is_named(commands: str, where: str, node: Examined) -> None:
    node.nft(commands)

    found = node.find(query.check_query)

    assert [finding.level for finding in found] == ["problem", "problem", "ok", "ok"]
    assert {finding.found for finding in found[:2]} == {f"was dropped by {where}"}


def test_the_chain_that_drops_a_pods_query_is_named_beside_a_running_daemon(scene: Scene) -> None:
    strict = STRICT.format(chain="INPUT", hook="input", priority=0, policy="drop")
    scene.lab.run(scene.lab.node, "nft", strict)
    try:
        done = scene.daemon.call("check", "--system", "--json")
    finally:
        scene.lab.run(scene.lab.node, "nft", "delete table ip strict")

    problems = [row for row in rows(done) if row["level"] == "problem" and row["subject"].startswith("a pod's query")]
    assert {row["found"] for row in problems} == {"was dropped by the policy of chain INPUT of table ip strict"}
    assert done.returncode == 1


def test_what_a_stopped_daemon_left_is_no_problem_and_is_said(scene: Scene) -> None:
    scene.daemon.stop()
    try:
        done = scene.daemon.call("check", "--system", "--json")
    finally:
        scene.daemon.start()

    (asked,) = [row for row in rows(done) if row["subject"] == "a pod's query"]
    assert (asked["level"], done.returncode) == ("warning", 0)
    assert "start it, or run `dnsguard cleanup`" in asked["remedy"]


def test_a_killed_run_leaves_no_link_and_no_table_and_the_next_takes_its_rule_away(node: Examined) -> None:
    before = state(node.lab)
    node.nft(STRICT.format(chain="INPUT", hook="input", priority=0, policy="drop"))  # so that it waits for replies
    config = node.folder / "config.yaml"
    config.write_text(
        f"upstreams: [10.99.0.2]\npods: {{interfaces: ['veth-*']}}\npaths: {{runtime: {node.folder}/run}}\n"
    )
    program = node.lab.popen(node.lab.node, *CHECK, "--config", str(config), stdout=subprocess.DEVNULL)
    wait_for(lambda: any("proto 154" in line for line in state(node.lab)), 30)
    program.send_signal(signal.SIGKILL)
    program.wait()
    node.nft("delete table ip strict")

    wait_for(lambda: not [line for line in state(node.lab) if "veth-dg" in line and "@" in line], 10)
    assert not [line for line in state(node.lab) if "dnsguard_doctor" in line]
    node.find(query.check_query)
    assert state(node.lab) == before


# -- one thing wrong --------------------------------------------------------------------------------------------------


def test_an_nflog_group_of_another_program_is_a_problem(node: Examined) -> None:
    assert node.worst(kernel.check_nflog).level == "ok"

    with closing(node.inside(netlink.netfilter_socket)) as other:
        other.bind((0, 0))
        body = netlink.generic(0, 5353) + netlink.attribute(1, b"\1")
        other.send(netlink.message(4 << 8 | 1, netlink.REQUEST | netlink.ACK, 1, body))
        other.recv(4096)

        assert node.worst(kernel.check_nflog).found == "group 5353 is another program's"


def test_this_kernel_and_its_nftables_are_in_order(node: Examined) -> None:
    assert {node.worst(check).level for check in (kernel.check_version, kernel.check_nftables)} <= {"ok", "warning"}


@pytest.mark.parametrize(
    ("values", "check", "level"),
    [
        ({}, sysctls.check_needed, "ok"),
        ({"ipv4__ip_forward": 0}, sysctls.check_needed, "problem"),
        ({"ipv4__conf__all__src_valid_mark": 1}, sysctls.check_needed, "problem"),
        ({"ipv4__conf__veth-a__route_localnet": 1}, sysctls.check_harmful, "warning"),
        ({"ipv4__conf__all__accept_source_route": 1}, sysctls.check_harmful, "warning"),
    ],
)
def test_sysctls_that_break_something_are_told(
    values: dict[str, int], check: Check, level: str, node: Examined
) -> None:
    node.lab.sysctl(node.lab.node, **values)

    assert node.worst(check).level == level


def test_a_source_route_setting_that_holds_on_a_link_alone_has_no_effect(node: Examined) -> None:
    node.lab.sysctl(node.lab.node, **{"ipv4__conf__veth-a__accept_source_route": 1})

    assert node.find(sysctls.check_harmful) == []


def test_a_node_without_a_matching_link_is_told_which_there_are(node: Examined) -> None:
    finding = node.worst(links.check_matched, pods={"interfaces": ["cali*"]})

    assert (finding.level, "there are uplink, veth-a" in finding.found) == ("warning", True)


def test_a_pod_link_that_is_a_bridge_port_is_a_problem(node: Examined) -> None:
    assert node.find(links.check_bridged) == []
    node.lab.ip(node.lab.node, "link add cni0 type bridge", "link set veth-a master cni0")

    assert node.worst(links.check_bridged).found.startswith("veth-a is a port of bridge cni0")


def test_links_of_security_groups_for_pods_are_a_problem(node: Examined) -> None:
    assert node.find(links.check_branches) == []
    node.lab.ip(node.lab.node, "link add vlan.eth.1 type veth peer name eth7")

    assert node.worst(links.check_branches).level == "problem"


@pytest.mark.parametrize(("mode", "level"), [("Auto", "warning"), ("On", "problem")])
def test_a_pod_link_without_ethernet_is_told(mode: str, level: str, node: Examined) -> None:
    node.lab.ip(node.lab.node, "tuntap add mode tun name veth-tun")

    assert node.worst(links.check_ethernet, enforcement={"ebpf": mode}).level == level
    assert node.find(links.check_ethernet, enforcement={"ebpf": "Off"}) == []


def test_an_upstream_that_is_a_governed_pod_is_a_problem_until_it_is_excluded(node: Examined) -> None:
    governed = {"interfaces": ["veth-*"]}

    assert node.find(links.check_upstream_is_no_pod) == []
    assert node.worst(links.check_upstream_is_no_pod, upstreams=[A]).remedy == f"add {A} to pods.exclude"
    assert node.find(links.check_upstream_is_no_pod, upstreams=[A], pods={**governed, "exclude": [A]}) == []


@pytest.mark.parametrize(
    ("command", "check", "level"),
    [
        ("rule add priority 3 lookup 77", routing.check_rules, "problem"),
        ("rule add priority 3 fwmark 0x40/0x40 lookup 77", routing.check_rules, "ok"),
        ("rule add priority 5 fwmark 0x40/0x40 lookup 77", routing.check_rules, "warning"),
        ("rule add priority 9 fwmark 0x3000/0xf000 lookup 77", routing.check_marks, "warning"),
        ("rule add priority 9 fwmark 0x80/0x80 lookup 77", routing.check_marks, "ok"),
        ("route add 192.0.2.0/24 dev uplink table 5353", routing.check_table, "problem"),
        ("route add 192.0.2.0/24 dev uplink table 77", routing.check_table, "ok"),
    ],
)
def test_rules_tables_and_marks_of_others_are_told(command: str, check: Check, level: str, node: Examined) -> None:
    node.lab.ip(node.lab.node, command)

    assert node.worst(check).level == level


def test_the_rule_of_a_running_daemon_is_missed(scene: Scene) -> None:
    folder = str(scene.daemon.folder / "run")
    content = {"upstreams": ["10.99.0.2"], "interception": {"mark": 0x4}, "paths": {"runtime": folder}}
    present, other = (
        scene.lab.inside(scene.lab.node, lambda: list(routing.check_present(look(Settings.model_validate(keys)))))  # noqa: B023
        for keys in ({**content, "interception": {}}, content)
    )

    assert (present, [finding.level for finding in other]) == ([], ["problem"])


def test_an_upstream_that_does_not_answer_is_a_problem_for_each_protocol(node: Examined) -> None:
    found = node.find(upstreams.check_reachable, upstreams=["10.99.0.2:5399"])

    assert [finding.level for finding in found] == ["problem", "problem"]
    assert "refused" in found[0].found


# -- eBPF -------------------------------------------------------------------------------------------------------------


LET_ON = struct.pack("=BBhi", 0xB7, 0, 0, -1) + struct.pack("=BBhi", 0x95, 0, 0, 0)
"""A program that lets the next one decide: r0 = TC_ACT_UNSPEC; exit."""


def attach(node: Examined, name: str) -> None:
    """A program of another's on the pod's link."""

    def do() -> int:
        program = syscall.load_program(name, LET_ON)
        link = syscall.link_create(program, socket.if_nametoindex("veth-a"), syscall.TCX_INGRESS)
        os.close(program)
        return link

    node.held = node.inside(do)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "level", "text"),
    [("cil_from_contai", "problem", "is of Cilium"), ("somebody", "warning", "stands in front")],
)
def test_a_program_of_anothers_on_a_pod_link_is_named(name: str, level: str, text: str, node: Examined) -> None:
    assert [finding.level for finding in node.find(ebpf.check_programs)] == ["ok"]
    attach(node, name)
    try:
        (finding,) = node.find(ebpf.check_programs)
    finally:
        os.close(node.held)  # type: ignore[attr-defined]

    assert (finding.level, finding.subject) == (level, "veth-a ingress")
    assert f"({name}, tcx)" in finding.found and text in finding.found


def test_a_filter_of_anothers_on_a_pod_link_is_named_with_its_preference(node: Examined) -> None:
    def attach_filter() -> None:
        program = syscall.load_program("somebody", LET_ON)
        link = socket.if_nametoindex("veth-a")
        with IPRoute() as kernel:
            kernel.tc("add", "clsact", link)
            how = {"fd": program, "name": "theirs", "class_id": 1, "direct_action": True}
            kernel.tc("add-filter", "bpf", link, 1, parent=0xFFFFFFF2, prio=49152, protocol=3, **how)
        os.close(program)

    node.inside(attach_filter)

    (finding,) = node.find(ebpf.check_programs)
    assert "(somebody, tc filter, pref 49152) stands in front" in finding.found


def test_the_daemons_own_programs_are_no_finding(scene: Scene) -> None:
    settings = Settings.model_validate({"upstreams": ["10.99.0.2"], "pods": {"interfaces": ["veth-*"]}})
    found = scene.lab.inside(scene.lab.node, lambda: list(ebpf.check_programs(look(settings))))

    assert [finding.found for finding in found] == ["none of others"]


def test_a_bpffs_that_is_none_is_a_problem_when_ebpf_is_wanted(node: Examined) -> None:
    paths = {"bpffs": str(node.folder / "bpf"), "runtime": str(node.folder / "run")}

    assert node.worst(ebpf.check_bpffs, enforcement={"ebpf": "On"}, paths=paths).level == "problem"
    assert node.worst(ebpf.check_bpffs, paths=paths).level == "warning"
    assert node.find(ebpf.check_bpffs, enforcement={"ebpf": "Off"}, paths=paths) == []


# -- the process ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_a_listening_port_that_is_taken_is_a_problem(kind: socket.SocketKind, node: Examined) -> None:
    assert node.worst(process.check_listen_port).level == "ok"

    with closing(node.inside(lambda: socket.socket(socket.AF_INET, kind))) as other:
        other.bind(("127.0.0.1", 15353))
        if kind == socket.SOCK_STREAM:
            other.listen()

        assert node.worst(process.check_listen_port).level == "problem"


def test_a_metrics_port_that_is_taken_is_a_problem(node: Examined) -> None:
    assert node.worst(process.check_metrics_port).level == "ok"

    with closing(node.inside(lambda: socket.create_server(("127.0.0.1", 9353)))):
        assert node.worst(process.check_metrics_port).level == "problem"


def test_a_folder_that_everybody_may_write_is_a_problem(node: Examined) -> None:
    folder = node.folder / "state"
    folder.mkdir()
    folder.chmod(0o777)
    paths = {"state": str(folder), "runtime": str(node.folder / "run")}

    assert node.worst(process.check_folders, paths=paths).remedy == f"chmod 0750 {folder}"


def test_a_file_in_the_place_of_a_folder_is_a_problem(node: Examined) -> None:
    (node.folder / "state").touch()
    paths = {"state": str(node.folder / "state"), "runtime": str(node.folder / "run")}

    assert node.worst(process.check_folders, paths=paths).level == "problem"


def test_a_running_daemons_capabilities_are_looked_at(scene: Scene) -> None:
    settings = Settings.model_validate(
        {"upstreams": ["10.99.0.2"], "paths": {"runtime": str(scene.daemon.folder / "run")}}
    )
    (finding,) = scene.lab.inside(scene.lab.node, lambda: list(process.check_capabilities(look(settings))))

    assert finding.level == "ok"
    assert finding.found.startswith("daemon (pid ")


@pytest.mark.parametrize(("form", "level"), [("journald", "problem"), ("auto", "warning"), ("json", "ok")])
def test_a_journal_that_nobody_reads_is_told_where_it_is_wanted(form: str, level: str, node: Examined) -> None:
    if Path("/run/systemd/journal/socket").exists() and form != "json":
        level = "ok"

    assert node.worst(journal.check_socket, log={"format": form}).level == level


# -- clocks, libraries ------------------------------------------------------------------------------------------------


def found_by(check: str, *around: str, before: str = "pass", **keys: object) -> list[dict[str, str]]:
    """The findings of one check in a process of its own, which `around` starts and that does `before` first."""
    script = (
        f"import json; from dnsguard.config.settings import Settings; from dnsguard.doctor import clock, ebpf; "
        f"from dnsguard.doctor.node import Node; {before}; "
        f"node = Node(Settings.model_validate({{'upstreams': ['10.99.0.2'], **{keys!r}}})); "
        f"[print(json.dumps(one._asdict())) for one in {check}(node)]"
    )
    return rows(subprocess.run([*around, sys.executable, "-c", script], capture_output=True, text=True, check=True))


def test_a_wall_clock_that_may_not_be_looked_at_is_no_good_one() -> None:
    refuse = "from tests.node.no_bpf import refuse_clock; refuse_clock()"
    (finding,) = found_by("clock.check_synchronised", before=refuse)

    assert (finding["subject"], finding["level"]) == ("wall clock", "unseen")
    assert finding["found"].endswith("Operation not permitted")


@pytest.mark.parametrize(("slept", "level"), [(0, "ok"), (1000, "warning")])
def test_a_node_that_was_suspended_is_told(slept: int, level: str) -> None:
    (finding,) = found_by("clock.check_sleep", "unshare", "--time", f"--boottime={slept}", "--fork")

    assert (finding["subject"], finding["level"]) == ("monotonic clock", level)
    assert slept == 0 or "suspended for 1000 s" in finding["found"]


@pytest.mark.parametrize(("mode", "level"), [("Auto", "warning"), ("On", "problem")])
def test_a_missing_libbpf_is_told_with_the_package(mode: str, level: str) -> None:
    libbpf.version()
    library = next(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libbpf.so" in line)
    hide = ("unshare", "--mount", "sh", "-c", f'mount --bind /dev/null {library} && exec "$@"', "sh")
    (finding,) = found_by("ebpf.check_wanted", *hide, enforcement={"ebpf": mode})

    assert (finding["subject"], finding["level"]) == ("eBPF", level)
    assert "libbpf.so.1 is missing: install the package libbpf1" in finding["found"]
