"""A daemon that stops, dies, starts again and is taken away: what stays in force, what comes back, what is left.

a start that fails says why, in one line a reason ......... a_start_that_..., a_port_that_is_taken_...
SIGTERM answers what is in flight ......................... a_stop_answers_..., a_stop_in_the_middle_of_a_reload_...
enforcement stays after a stop ............................ after_a_stop_...
leases are restored before READY, none is lost ............ after_a_restart_..., a_thousand_leases_...
killed between the kernel's turn and the cut .............. a_flow_that_a_killed_reload_...
a policy changed while it was down ........................ a_policy_that_changed_..., what_a_changed_policy_...
which names justify a lease is known again ................ a_restored_lease_has_its_name, a_flow_whose_lease_...
the file of names is damaged, full, or gone ............... a_file_of_names_...
pods that changed while it was down ....................... a_pod_that_was_replaced_...
a second run is refused ................................... a_second_run_...
cleanup refuses while it runs, then removes everything .... cleanup_...
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks import cluster_allowlist

from dnsguard.core.errors import DnsguardError
from dnsguard.core.names import parse_name
from dnsguard.core.pods import address_text
from dnsguard.enforce.bpf.layout import U64, LeaseKey
from dnsguard.enforce.bpf.syscall import Map, get_pinned
from tests.node.daemon import BPFFS, wait_for
from tests.node.scene import A6, ALLOWLIST, DB, MAIL, OTHER, PORT, WRONG_PORT, A, B, Scene, playing, rcode

pytestmark = pytest.mark.node

ENDS = pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with playing(tmp_path) as scene:
        yield scene


def allowing(name: str, *ports: int) -> dict[str, object]:
    """The allowlist with this name instead of db.example.com for shop/a, on these TCP ports, or all."""
    rule = {"to": [{"domainNames": [name]}], "ports": [{"protocol": "TCP", "port": port} for port in ports]}
    web = {"egress": [rule if ports else {"to": rule["to"]}]}
    return {**ALLOWLIST, "policies": {**ALLOWLIST["policies"], "web": web}}


# -- starting ---------------------------------------------------------------------------------------------------------


def test_a_start_with_a_broken_allowlist_says_where_and_changes_nothing(scene: Scene) -> None:
    scene.daemon.stop()
    (scene.daemon.folder / "allowlist.yaml").write_text("apiVersion: dnsguard/v1\nkind: Allowlist\npods: {x: 1}\n")
    before = scene.daemon.log.stat().st_size

    process = scene.daemon.spawn()

    assert process.wait(10) == 1
    said = scene.daemon.log.read_text()[before:]
    assert f"{scene.daemon.folder}/allowlist.yaml:3:8: error: " in said
    assert "Traceback" not in said


def test_a_port_that_is_taken_is_named_with_its_key(scene: Scene) -> None:
    scene.daemon.stop()
    before = scene.daemon.log.stat().st_size

    with scene.lab.inside(scene.lab.node, lambda: socket.create_server(("", 15353))):
        code = scene.daemon.spawn().wait(10)

    said = scene.daemon.log.read_text()[before:]
    assert code == 1
    assert "dns.listenPort" in said
    assert "Traceback" not in said


def test_a_hang_up_during_the_start_is_a_reload_after_it(scene: Scene) -> None:
    scene.daemon.stop()
    started = len(scene.daemon.events("started"))
    process = scene.daemon.spawn()
    scene.daemon.told("started", before=started)

    scene.daemon.signal(signal.SIGHUP)

    assert scene.daemon.told("policy_loaded")["generation"] == 2
    assert process.poll() is None
    assert scene.resolve(scene.a, "db.example.com") == [DB]


def test_a_stop_in_the_middle_of_a_reload_does_not_wait_for_it_and_leaves_the_kernel_as_it_was(scene: Scene) -> None:
    scene.resolve(scene.a, "db.example.com")
    with (scene.daemon.folder / "allowlist.yaml").open("w") as file:
        file.writelines(cluster_allowlist.lines(20_000, 20))
    with socket.socket(socket.AF_UNIX) as asker:
        asker.connect(str(scene.daemon.folder / "run" / "control.sock"))
        asker.sendall(b"POST /v1/reload HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: scene.daemon.ask("status")["reloading"], 5)

        code = scene.daemon.stop()

        assert b"dnsguard stops" in asker.recv(4096)
    assert code == 0
    assert scene.daemon.events("policy_loaded") == []
    assert scene.opens(scene.a, DB)
    assert not scene.opens(scene.a, OTHER)
    scene.daemon.write("allowlist.yaml", "Allowlist", ALLOWLIST)
    scene.daemon.start()


def test_a_second_run_is_refused_and_does_not_disturb_the_first(scene: Scene) -> None:
    second = scene.daemon.call("run")

    assert second.returncode == 1
    assert "a daemon is running" in second.stderr
    assert "Traceback" not in second.stderr
    assert scene.resolve(scene.a, "db.example.com") == [DB]


# -- stopping ---------------------------------------------------------------------------------------------------------


def test_a_stop_answers_what_is_in_flight(scene: Scene) -> None:
    scene.zone.put("slow.fresh.example.com", "A", "198.18.3.1", delay=0.7)
    told: list[list[str]] = []
    asking = threading.Thread(target=lambda: told.append(scene.resolve(scene.a, "slow.fresh.example.com")))
    asking.start()
    wait_for(lambda: scene.zone.asked("slow.fresh.example.com") == 1, 3)

    code = scene.daemon.stop()

    asking.join()
    assert (code, told) == (0, [["198.18.3.1"]])
    assert scene.opens(scene.a, "198.18.3.1")


def test_after_a_stop_leases_hold_flows_go_on_and_nothing_else_is_open(scene: Scene) -> None:
    scene.resolve(scene.a, "db.example.com")
    flow = scene.connect(scene.a, DB)
    assert flow is not None

    scene.daemon.stop()

    with flow:
        assert flow.alive()
        assert scene.opens(scene.a, DB)
        assert not scene.opens(scene.a, OTHER)
        assert scene.silent(scene.a, "db.example.com")


# -- starting again ---------------------------------------------------------------------------------------------------


@ENDS
def test_after_a_restart_what_was_resolved_before_is_open_and_open_flows_go_on(
    scene: Scene, end: signal.Signals
) -> None:
    scene.resolve(scene.a, "db.example.com")
    scene.resolve(scene.b, "mail.example.com")
    left = scene.elements(A)[DB]
    with scene.connect(scene.a, DB) or pytest.fail("closed") as flow:
        scene.daemon.stop(end)
        asked = scene.zone.asked("db.example.com")

        scene.daemon.start()

        assert scene.opens(scene.a, DB)
        assert scene.opens(scene.b, MAIL)
        assert flow.alive()
        assert scene.zone.asked("db.example.com") == asked
        assert 0 < scene.elements(A)[DB] <= left
        assert scene.daemon.events("ready")[-1]["leases"] == 2
        assert not scene.opens(scene.b, DB)


def test_a_thousand_leases_are_all_there_after_a_crash(scene: Scene) -> None:
    places = [f"198.19.{n // 250}.{n % 250}" for n in range(1000)]
    for number in range(0, 1000, 20):
        scene.zone.put(f"n{number}.fresh.example.com", "A", *places[number : number + 20])
        scene.resolve(scene.a, f"n{number}.fresh.example.com", stream=True)
    held = scene.elements(A)

    scene.daemon.stop(signal.SIGKILL)
    scene.daemon.start()

    assert sorted(held) == sorted(places)
    assert scene.elements(A).keys() == held.keys()
    assert scene.daemon.events("ready")[-1]["leases"] == 1000
    assert {row["address"] for row in scene.daemon.ask("leases")} == set(places)


def test_a_restored_lease_is_extended_by_a_new_answer(scene: Scene) -> None:
    scene.zone.put("db.example.com", "A", DB, ttl=3)
    scene.resolve(scene.a, "db.example.com")
    scene.daemon.stop()
    scene.daemon.start()
    scene.zone.put("db.example.com", "A", DB, ttl=60)

    scene.resolve(scene.a, "db.example.com")

    assert scene.elements(A)[DB] > 50
    assert scene.lease_left(DB) > 50


@pytest.mark.parametrize(
    ("end", "ports"),
    [(signal.SIGTERM, ()), (signal.SIGTERM, (PORT,)), (signal.SIGKILL, (PORT,))],
    ids=["stopped, other ports", "stopped, the same ports", "killed, the same ports"],
)
def test_a_policy_that_changed_while_it_was_down_is_applied_before_it_is_ready(
    scene: Scene, end: signal.Signals, ports: tuple[int, ...]
) -> None:
    scene.resolve(scene.a, "db.example.com")
    scene.resolve(scene.b, "mail.example.com")
    with (
        scene.connect(scene.a, DB) or pytest.fail("closed") as flow,
        scene.connect(scene.b, MAIL) or pytest.fail("closed") as another,
    ):
        scene.daemon.stop(end)
        scene.daemon.write("allowlist.yaml", "Allowlist", allowing("other.example.com", *ports))

        scene.daemon.start()

        assert scene.elements(A) == {}
        assert not scene.opens(scene.a, DB)
        assert flow.dead()
        assert rcode(scene.ask(scene.a, "db.example.com")) == "NXDOMAIN"
        assert scene.opens(scene.b, MAIL)
        assert another.alive()


@ENDS
def test_what_a_changed_policy_still_justifies_stays_in_both_lines_and_is_extended_later(
    scene: Scene, end: signal.Signals
) -> None:
    """The program of shop/a is another; of its two names one is allowed no longer."""
    scene.resolve(scene.a, "db.example.com")
    scene.zone.put("gone.fresh.example.com", "A", "198.18.3.1")
    scene.resolve(scene.a, "gone.fresh.example.com")
    names_written(scene, "gone.fresh.example.com")
    with (
        scene.connect(scene.a, DB) or pytest.fail("closed") as flow,
        scene.connect(scene.a, "198.18.3.1") or pytest.fail("closed") as another,
    ):
        left = scene.elements(A)[DB]
        scene.daemon.stop(end)
        rule = {
            "to": [{"domainNames": ["db.example.com", "other.example.com"]}],
            "ports": [{"protocol": "TCP", "port": PORT}],
        }
        changed = {**ALLOWLIST, "policies": {**ALLOWLIST["policies"], "web": {"egress": [rule]}}}
        scene.daemon.write("allowlist.yaml", "Allowlist", changed)

        scene.daemon.start()

        held = scene.elements(A)
        assert held.keys() == {DB}
        assert held[DB] <= left
        assert leased(scene) == {DB}
        assert flow.alive()
        assert another.dead()
        assert scene.opens(scene.a, DB)
        assert not scene.opens(scene.a, "198.18.3.1")
        assert scene.daemon.told("leases_purged")["count"] == 1
    scene.zone.put("db.example.com", "A", DB, ttl=600)
    scene.resolve(scene.a, "db.example.com")
    assert scene.elements(A)[DB] > 500


@ENDS
def test_a_restored_lease_has_its_name(scene: Scene, end: signal.Signals) -> None:
    scene.resolve(scene.a, "db.example.com")
    names_written(scene, "db.example.com")

    scene.daemon.stop(end)
    scene.daemon.start()

    assert [row["names"] for row in scene.daemon.ask("leases") if row["address"] == DB] == [["db.example.com"]]


def test_a_planned_stop_keeps_the_name_of_the_last_answer(scene: Scene) -> None:
    scene.resolve(scene.a, "db.example.com")

    scene.daemon.stop()

    assert parse_name("db.example.com") in (scene.daemon.folder / "run" / "names.sqlite").read_bytes()


def test_a_flow_whose_lease_ended_before_the_restart_is_judged_by_its_name_after_it(scene: Scene) -> None:
    scene.zone.put("db.example.com", "A", DB, ttl=1)
    scene.resolve(scene.a, "db.example.com")
    with scene.connect(scene.a, DB) or pytest.fail("closed") as flow:
        wait_for(lambda: DB not in scene.elements(A), 10)
        scene.daemon.stop(signal.SIGKILL)
        scene.daemon.start()

        scene.daemon.reload(allowing("db.example.com", PORT, WRONG_PORT))
        kept = flow.alive()
        scene.daemon.reload(allowing("other.example.com"))

        assert kept
        assert flow.dead()


@pytest.mark.parametrize("damage", ["garbage", "a folder", "gone", "newer"])
def test_a_file_of_names_that_is_no_good_is_set_aside_and_the_kernel_is_believed(scene: Scene, damage: str) -> None:
    scene.resolve(scene.a, "db.example.com")
    scene.daemon.stop()
    path = scene.daemon.folder / "run" / "names.sqlite"
    if damage == "newer":
        with contextlib.closing(sqlite3.connect(path)) as file:
            file.execute("PRAGMA user_version = 99")
    else:
        path.unlink()
    if damage == "garbage":
        path.write_bytes(b"names" * 5000)
    if damage == "a folder":
        path.mkdir()

    scene.daemon.start()

    assert scene.opens(scene.a, DB)
    assert len(scene.daemon.events("state_file_set_aside")) == (damage != "gone")
    assert path.with_name("names.sqlite.corrupt-1").exists() == (damage != "gone")
    scene.resolve(scene.b, "mail.example.com")
    names_written(scene, "mail.example.com")
    scene.daemon.reload(allowing("other.example.com"))
    assert not scene.opens(scene.a, DB)


def test_a_full_disk_costs_the_names_and_nothing_else_and_is_told_once(scene: Scene) -> None:
    run = scene.daemon.folder / "run"
    scene.daemon.stop()
    with small_disk(run):
        scene.daemon.start()
        with contextlib.suppress(OSError), (run / "full").open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        for number in range(300):
            scene.zone.put(f"n{number}.fresh.example.com", "A", f"198.18.5.{number % 250}")
            scene.resolve(scene.a, f"n{number}.fresh.example.com")
        scene.daemon.told("state_file_unwritable")
        assert scene.opens(scene.a, "198.18.5.7")

        (run / "full").unlink()

        scene.daemon.told("state_file_written")
        assert len(scene.daemon.events("state_file_unwritable")) == 1
        names_written(scene, "n7.fresh.example.com")
        scene.daemon.stop()


def names_written(scene: Scene, name: str) -> None:
    """Return when the daemon's file has this name."""
    path = scene.daemon.folder / "run" / "names.sqlite"
    wait_for(lambda: path.exists() and parse_name(name) in path.read_bytes(), 10)


def leased(scene: Scene) -> set[str]:
    """The peers of all leases in the eBPF map that have not ended."""
    pinned = Map(get_pinned(scene.daemon.folder / "bpf" / "maps" / "leases"))
    try:
        ends = {LeaseKey.unpack(key).peer: U64.unpack(value)[0] for key, value in pinned.items()}
    finally:
        pinned.close()
    return {address_text(peer) for peer, end in ends.items() if end > time.monotonic_ns()}


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of 4 MB there. What a killed test leaves is unmounted with its bpffs by the next."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", f"{BPFFS}-{os.getpid()}", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("ports", [(), (PORT,)], ids=["other ports", "the same ports"])
def test_a_reload_after_a_restart_closes_what_the_process_before_had_opened(
    scene: Scene, ports: tuple[int, ...]
) -> None:
    scene.resolve(scene.a, "db.example.com")
    with scene.connect(scene.a, DB) or pytest.fail("closed") as flow:
        scene.daemon.stop()
        scene.daemon.start()
        before = scene.opens(scene.a, DB)

        scene.daemon.reload(allowing("other.example.com", *ports))

        assert before
        assert scene.elements(A) == {}
        assert not scene.opens(scene.a, DB)
        assert flow.dead()


@pytest.mark.parametrize("ebpf", ["On", "Off"])
def test_a_flow_that_a_killed_reload_forbids_is_cut_before_ready_and_one_that_outlived_its_lease_goes_on(
    tmp_path: Path, ebpf: str
) -> None:
    dying = sys.executable, str(Path(__file__).with_name("dying.py"))
    allowed = {**ALLOWLIST, "pods": {**ALLOWLIST["pods"], A: ["db.example.com", "mail.example.com"]}}
    with playing(tmp_path, allowlist=allowed, program=dying, enforcement={"ebpf": ebpf}) as scene:
        scene.zone.put("mail.example.com", "A", MAIL, ttl=1)
        scene.resolve(scene.a, "db.example.com")
        scene.resolve(scene.a, "mail.example.com")
        forbidden = scene.connect(scene.a, DB) or pytest.fail("closed")
        outliving = scene.connect(scene.a, MAIL) or pytest.fail("closed")
        unconcerned = (scene.resolve(scene.b, "mail.example.com") and scene.connect(scene.b, MAIL)) or pytest.fail("")
        with forbidden, outliving, unconcerned:
            wait_for(lambda: MAIL not in scene.elements(A) and MAIL not in scene.elements(B), 10)
            scene.daemon.write(
                "allowlist.yaml", "Allowlist", {**allowed, "pods": {**ALLOWLIST["pods"], A: ["mail.example.com"]}}
            )
            with pytest.raises(DnsguardError):
                scene.daemon.ask("reload")
            assert forbidden.alive()
            assert json.loads((scene.daemon.folder / "run" / "owed.json").read_text())["judge"] == [A, A6]

            scene.daemon.start()

            assert [event["count"] for event in scene.daemon.events("flows_cut")] == [1]
            said = scene.daemon.log.read_text()
            assert said.index('"event": "flows_cut"') < said.rindex('"event": "ready"')
            assert forbidden.dead()
            assert outliving.alive()
            assert unconcerned.alive()
            assert not (scene.daemon.folder / "run" / "owed.json").exists()


def test_a_pod_that_was_replaced_while_it_was_down_inherits_nothing(scene: Scene) -> None:
    scene.resolve(scene.b, "mail.example.com")
    scene.daemon.stop()
    scene.lab.remove_pod(scene.b)
    b = scene.lab.pod("b", B)

    scene.daemon.start()

    assert not scene.opens(b, MAIL)
    assert scene.elements(B) == {}
    assert scene.resolve(b, "mail.example.com") == [MAIL]
    assert scene.opens(b, MAIL)


def test_a_flow_that_the_process_before_cut_opens_again_when_it_is_allowed_again(scene: Scene) -> None:
    scene.daemon.reload(allowing("db.example.com"))
    scene.resolve(scene.a, "db.example.com")
    with (
        scene.lab.socket(scene.lab.world, socket.AF_INET) as peer,
        scene.lab.socket(scene.a.namespace, socket.AF_INET) as pod_side,
    ):
        peer.bind((DB, 7000))
        pod_side.connect((DB, 7000))
        pod_side.send(b"hello")
        peer.sendto(b"welcome", peer.recvfrom(64)[1])
        scene.daemon.reload(allowing("other.example.com"))
        scene.daemon.stop()
        scene.daemon.start()
        scene.daemon.reload(allowing("db.example.com"))

        scene.resolve(scene.a, "db.example.com")

        pod_side.send(b"open")
        assert peer.recv(64) == b"open"


def test_queries_of_a_restart_are_answered_by_the_next_process(scene: Scene) -> None:
    """A resolver of a pod asks again after some seconds: by then the next process must answer on the same address."""
    scene.daemon.stop(signal.SIGKILL)
    with scene.client(scene.a, "10.96.0.10") as client:
        client.send(b"\0\1\1\0\0\1\0\0\0\0\0\0\2db\7example\3com\0\0\1\0\1")

        scene.daemon.start()

        client.send(b"\0\2\1\0\0\1\0\0\0\0\0\0\2db\7example\3com\0\0\1\0\1")
        assert client.recv(512)[:2] == b"\0\2"


# -- taking it away ---------------------------------------------------------------------------------------------------


def test_cleanup_refuses_while_it_runs(scene: Scene) -> None:
    refused = scene.daemon.call("cleanup")

    assert refused.returncode == 1
    assert "a daemon is running" in refused.stderr
    assert not scene.opens(scene.a, OTHER)


def test_cleanup_removes_every_trace(scene: Scene) -> None:
    ran = traces(scene)
    scene.daemon.stop(signal.SIGKILL)
    stopped = traces(scene)
    with scene.daemon.config.open("a") as config:
        config.write("mdoe: Audit\n")  # a file that no daemon starts with

    removed = scene.daemon.call("cleanup")

    assert removed.returncode == 0
    assert re.fullmatch(r"removed: table inet dnsguard, .*2 rules, 2 routes; pods are unfiltered now\n", removed.stdout)
    assert "unknown key 'mdoe'" in removed.stderr
    assert ran == stopped
    assert all(word in ran for word in ("table inet dnsguard", "fwmark", "table 5353"))
    assert traces(scene) == ""
    assert scene.opens(scene.a, OTHER)
    assert scene.daemon.call("cleanup").stdout == "nothing of dnsguard is in the kernel\n"


def traces(scene: Scene) -> str:
    """Tables, and the rules and routes that a fresh namespace does not have."""
    commands = ("nft list tables", "ip rule", "ip -6 rule", "ip route show table all", "ip -6 route show table all")
    said = "\n".join(scene.lab.run(scene.lab.node, *command.split()).stdout for command in commands)
    ours = ("dnsguard", "fwmark", "table 5353")
    return "\n".join(line for line in said.splitlines() if any(word in line for word in ours))
