"""The whole daemon with both lines: what the kernel answers by itself, and what keeps the programs in force.

a name asked again is answered by the kernel .............. a_name_asked_for_..., a_denied_name_...
a hot set is answered while the daemon is away ............ what_is_hot_..., (and after it is back)
after a change nothing of the old policy is answered ...... after_a_reload_...
an unchanged pod keeps its answers ........................ (in after_a_reload_...)
popular names are refreshed before they end ............... a_hot_name_never_waits
the programs are put back ................................. a_program_that_is_taken_off_...
what cannot be put back is told, once ..................... a_bpffs_that_is_unmounted_...
Auto falls back and says why, On refuses .................. without_a_bpffs_...
queries go up only while somebody vouches ................. a_daemon_that_is_gone_...
a forged source is dropped and reported ................... a_forged_source_...
a pod that has gone leaves nothing to whoever comes ....... whoever_gets_a_pods_address_...
flows older than the line, or its maps, stay open .......... flows_that_are_older_..., a_flow_that_begins_while_...
cleanup takes all of it away, and nothing else ............ cleanup_...

That the programs are put first again, and others' keep running behind them, is in `ebpf/test_bpf_attach.py`.
"""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dnsguard.daemon.beside import VERIFY
from dnsguard.enforce.bpf import layout
from dnsguard.enforce.bpf.layout import What
from dnsguard.enforce.bpf.syscall import TCX_INGRESS, Map, get_pinned, prog_by_id, prog_info, prog_query
from tests.node.daemon import BPFFS, connects, wait_for
from tests.node.picture import METRICS, of_metrics, of_status, samples
from tests.node.scene import ALLOWLIST, DB, DB6, OTHER, PORT, A, B, Scene, playing, rcode

pytestmark = pytest.mark.node


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with playing(tmp_path) as scene:
        yield scene


def answered(scene: Scene) -> int:
    """Questions that the kernel has answered, of all pods."""
    pinned = Map(get_pinned(scene.daemon.folder / "bpf" / "maps" / "counts"))
    try:
        counts = [(layout.COUNT_KEY.unpack(key)[1], layout.U64.unpack(value)[0]) for key, value in pinned.items()]
    finally:
        pinned.close()
    return sum(number for what, number in counts if what in (What.ANSWERED, What.ANSWERED_DENIED))


def is_answered_by_the_kernel(scene: Scene, name: str, kind: str = "A") -> bool:
    before = answered(scene)
    scene.ask(scene.a, name, kind)
    return answered(scene) == before + 1


def programs(scene: Scene) -> list[str]:
    """The programs at the ingress of shop/a's link, in order, by tcx or clsact."""
    return scene.lab.inside(scene.lab.node, lambda: ingress_programs(socket.if_nametoindex(scene.a.link)))


def ingress_programs(link: int) -> list[str]:
    return [prog_info(fd).name for each in prog_query(link, TCX_INGRESS) for fd in [prog_by_id(each.program)]]


# ---- answers


@pytest.mark.parametrize(("kind", "expected"), [("A", DB), ("AAAA", DB6)])
def test_a_name_asked_for_again_is_answered_by_the_kernel_as_by_the_daemon(
    scene: Scene, kind: str, expected: str
) -> None:
    first, second = scene.ask(scene.a, "db.example.com", kind), scene.ask(scene.a, "db.example.com", kind)
    assert answered(scene) == 0
    third = scene.ask(scene.a, "DB.example.COM", kind)
    assert answered(scene) == 1
    assert [str(record.rdata) for record in third.rr] == [expected] == [str(record.rdata) for record in first.rr]
    assert second.rr[0].ttl - 1 <= third.rr[0].ttl <= second.rr[0].ttl
    assert str(third.questions[0].qname) == "DB.example.COM."
    assert third.ar[0].rtype == 41
    assert scene.opens(scene.a, third.rr[0].rdata.__str__())


def test_a_denied_name_asked_for_again_is_denied_by_the_kernel_with_its_reason(scene: Scene) -> None:
    replies = [scene.ask(scene.a, "other.example.com") for _ in range(3)]
    assert answered(scene) == 1
    assert {rcode(reply) for reply in replies} == {"NXDOMAIN"}
    assert len({bytes(reply.pack())[2:] for reply in replies}) == 1
    assert scene.zone.asked("other.example.com") == 0


def test_the_kernels_answers_are_counted_for_the_pod(scene: Scene) -> None:
    for _ in range(7):
        scene.ask(scene.a, "db.example.com")
    wait_for(lambda: [row["answered_in_kernel"] for row in scene.daemon.ask("pods", pod="shop/a")] == [5], 10)


def test_another_pod_is_not_told_what_this_one_was(scene: Scene) -> None:
    for _ in range(3):
        scene.ask(scene.a, "db.example.com")
    assert rcode(scene.ask(scene.b, "db.example.com")) == "NXDOMAIN"


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_what_is_hot_is_answered_while_the_daemon_is_away_and_when_it_is_back(
    scene: Scene, end: signal.Signals
) -> None:
    for _ in range(2):
        scene.ask(scene.a, "db.example.com")
    scene.daemon.stop(end)
    assert is_answered_by_the_kernel(scene, "db.example.com")
    assert scene.opens(scene.a, DB)
    assert scene.silent(scene.a, "new.fresh.example.com")
    scene.daemon.start()
    assert is_answered_by_the_kernel(scene, "db.example.com")


def test_after_a_reload_nothing_of_the_old_policy_is_answered_and_an_unchanged_pod_keeps_its_answers(
    scene: Scene,
) -> None:
    for _ in range(3):
        scene.ask(scene.a, "db.example.com")
        scene.ask(scene.b, "mail.example.com")
    before = answered(scene)
    scene.daemon.reload({**ALLOWLIST, "pods": {A: [], B: ALLOWLIST["pods"][B]}})
    assert rcode(scene.ask(scene.a, "db.example.com")) == "NXDOMAIN"
    assert answered(scene) == before
    scene.ask(scene.b, "mail.example.com")
    assert answered(scene) == before + 1


def test_a_policy_that_changed_while_the_daemon_was_away_leaves_none_of_its_answers(scene: Scene) -> None:
    for _ in range(2):
        scene.ask(scene.a, "db.example.com")
    scene.daemon.stop()
    scene.daemon.write("allowlist.yaml", "Allowlist", {**ALLOWLIST, "pods": {A: []}})
    scene.daemon.start()
    assert rcode(scene.ask(scene.a, "db.example.com")) == "NXDOMAIN"


def test_answers_of_another_configuration_are_not_told_on(scene: Scene) -> None:
    for _ in range(2):
        scene.ask(scene.a, "db.example.com")
    scene.daemon.stop()
    configure(scene, answers={"protected": ["default", f"{DB}/32"]})
    scene.daemon.start()
    assert scene.resolve(scene.a, "db.example.com") == []


def test_a_hot_name_never_waits(scene: Scene) -> None:
    scene.zone.put("hot.fresh.example.com", "A", "198.18.4.1", ttl=5)
    scene.resolve(scene.a, "hot.fresh.example.com")
    scene.zone.put("hot.fresh.example.com", "A", "198.18.4.1", ttl=5, delay=0.9)
    slowest, end = 0.0, time.monotonic() + 12
    while time.monotonic() < end:
        begun = time.monotonic()
        assert scene.resolve(scene.a, "hot.fresh.example.com") == ["198.18.4.1"]
        slowest = max(slowest, time.monotonic() - begun)
        time.sleep(0.05)
    assert slowest < 0.8
    assert scene.zone.asked("hot.fresh.example.com") >= 3


def test_with_prefetch_off_nobody_asks_for_a_name_but_pods(tmp_path: Path) -> None:
    with playing(tmp_path, dns={"prefetch": False}) as scene:
        scene.zone.put("hot.fresh.example.com", "A", "198.18.4.1", ttl=4)
        end = time.monotonic() + 3.5
        while time.monotonic() < end:
            scene.resolve(scene.a, "hot.fresh.example.com")
            time.sleep(0.05)
        assert scene.zone.asked("hot.fresh.example.com") == 1


# ---- the programs


def test_a_program_that_is_taken_off_a_link_is_put_back_and_told_of(scene: Scene) -> None:
    pin = next((scene.daemon.folder / "bpf" / "links").glob("*ingress*"))
    assert programs(scene) == ["from_pod"]
    pin.unlink()  # a link that nobody holds detaches
    wait_for(lambda: bool(scene.daemon.events("kernel_state_repaired")), 10)
    wait_for(lambda: programs(scene) == ["from_pod"], 5)
    assert not scene.opens(scene.a, OTHER)


def test_a_flow_that_began_while_the_programs_were_away_is_known_to_them(scene: Scene) -> None:
    place = "198.18.4.2"
    scene.zone.put("short.fresh.example.com", "A", place, ttl=3)
    scene.resolve(scene.a, "short.fresh.example.com")
    scene.daemon.signal(signal.SIGSTOP)
    for pin in (scene.daemon.folder / "bpf" / "links").glob("*gress"):
        pin.unlink()
    wait_for(lambda: programs(scene) == [], 5)
    with scene.connect(scene.a, place) or pytest.fail("closed") as flow:
        scene.daemon.signal(signal.SIGCONT)
        wait_for(lambda: programs(scene) == ["from_pod"], 10)
        wait_for(lambda: not scene.opens(scene.a, place), 10)
        assert flow.alive()


def test_a_bpffs_that_is_unmounted_is_told_once_and_used_again_when_it_is_back(scene: Scene) -> None:
    bpffs = scene.daemon.folder / "bpf"
    subprocess.run(["umount", bpffs], check=True)
    told = scene.daemon.told("link_without_ebpf")
    time.sleep(2 * VERIFY)
    assert "_pod cannot be put on veth-" in told["reason"]
    # one event, or two: the kernel lets go of the programs one after the other
    told_of = " ".join(event["links"] for event in scene.daemon.events("link_without_ebpf"))
    assert (told_of.count("veth-a"), told_of.count("veth-b")) == (1, 1)
    assert scene.daemon.events("kernel_state_repaired") == []
    assert [gap["link"] for gap in scene.daemon.ask("status")["gaps"]] == ["veth-a", "veth-b"]
    assert not scene.opens(scene.a, OTHER)
    subprocess.run(["mount", "-t", "bpf", BPFFS, bpffs], check=True)
    wait_for(lambda: programs(scene) == ["from_pod"], 5)
    scene.daemon.told("kernel_state_repaired")
    wait_for(lambda: scene.daemon.ask("status")["gaps"] == [], 5)


def test_the_status_names_both_enforcers(scene: Scene) -> None:
    assert scene.daemon.ask("status")["enforcers"] == ["nftables", "ebpf"]


def test_without_a_bpffs_auto_goes_on_with_nftables_and_on_refuses(scene: Scene) -> None:
    scene.daemon.stop()
    elsewhere = str(scene.daemon.folder / "no-bpffs")
    folder = scene.daemon.folder
    paths = {"runtime": str(folder / "run"), "bpffs": elsewhere, "state": str(folder / "state")}
    configure(scene, paths=paths, metrics={"listen": METRICS})
    scene.daemon.start()
    left_out = scene.daemon.told("ebpf_not_used", level="warning")
    assert elsewhere in left_out["reason"]
    assert scene.resolve(scene.a, "db.example.com") == [DB]
    told = scene.daemon.ask("status")
    assert told["enforcers"] == ["nftables"]
    assert elsewhere in told["absent"]["ebpf"]
    assert of_status(told)["gaps ebpf"] == of_metrics(samples(scene))["gaps ebpf"] == 2
    assert f"ebpf is asked for and decides on no link: {elsewhere}" in scene.daemon.call("status").stdout
    scene.daemon.stop()
    configure(scene, enforcement={"ebpf": "On"})
    assert scene.daemon.spawn().wait(15) == 77
    assert "enforcement.ebpf is On" in scene.daemon.said()
    configure(scene, enforcement={"ebpf": "Off"})
    scene.daemon.start()
    assert (scene.daemon.ask("status")["absent"], scene.daemon.ask("status")["gaps"]) == ({}, [])


def test_a_daemon_that_is_gone_for_longer_than_a_restart_leaves_no_query_up(scene: Scene) -> None:
    scene.daemon.stop(signal.SIGKILL)
    pinned = Map(get_pinned(scene.daemon.folder / "bpf" / "maps" / "dns_open_until_ns"))
    try:
        (until_ns,) = layout.U64.unpack(pinned.lookup(layout.U32.pack(0)) or b"")
    finally:
        pinned.close()
    assert 0 < until_ns - time.monotonic_ns() <= 10_000_000_000


def test_a_forged_source_is_dropped_and_reported(scene: Scene) -> None:
    forged = "10.244.9.9"
    scene.lab.ip(scene.a.namespace, f"addr add {forged}/32 dev eth0")
    with scene.lab.socket(scene.a.namespace, socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind((forged, 0))
        client.sendto(b"out", (DB, PORT))
    told = scene.daemon.told("flow_denied", pod_ip=forged)
    assert (told["address"], told["port"]) == (DB, PORT)
    assert "source" in told["reason"]


def test_whoever_gets_a_pods_address_inherits_nothing_of_it(scene: Scene) -> None:
    for _ in range(3):
        scene.ask(scene.a, "db.example.com")
    before = answered(scene)
    scene.lab.remove_pod(scene.a)
    scene.a = scene.lab.pod("c", A)
    wait_for(lambda: [row["link"] for row in scene.daemon.ask("pods") if A in row["addresses"]] == [scene.a.link], 5)
    assert not scene.opens(scene.a, DB)
    scene.ask(scene.a, "db.example.com")
    assert answered(scene) == before
    assert scene.opens(scene.a, DB)


def test_flows_that_are_older_than_the_line_stay_open(tmp_path: Path) -> None:
    with playing(tmp_path, enforcement={"ebpf": "Off"}) as scene:
        listening = scene.lab.socket(scene.a.namespace, socket.AF_INET, socket.SOCK_STREAM)
        listening.bind((A, 7000))
        listening.listen()
        inbound = scene.lab.socket(scene.lab.world, socket.AF_INET, socket.SOCK_STREAM)
        inbound.settimeout(3)
        scene.resolve(scene.a, "db.example.com")
        with listening, inbound, scene.connect(scene.a, DB) or pytest.fail("closed") as flow:
            inbound.connect((A, 7000))
            accepted, _ = listening.accept()
            scene.daemon.stop()
            configure(scene, enforcement={"ebpf": "On"})
            scene.daemon.start()
            assert flow.alive()
            accepted.send(b"from the pod")
            assert inbound.recv(100) == b"from the pod"
            accepted.close()


def test_a_flow_that_begins_while_maps_of_another_size_are_filled_stays_open(scene: Scene) -> None:
    """The programs on the links write to the old map of flows until those of the new process take their place."""
    scene.daemon.stop()
    configure(scene, tables={"flows": 100_000})
    pin = scene.daemon.folder / "bpf" / "maps" / "flows"
    old = pin.stat().st_ino
    listening = scene.lab.socket(scene.a.namespace, socket.AF_INET, socket.SOCK_STREAM)
    inbound = scene.lab.socket(scene.lab.world, socket.AF_INET, socket.SOCK_STREAM)
    with listening, inbound:
        listening.bind((A, 7000))
        listening.listen()
        inbound.settimeout(3)
        scene.daemon.spawn()
        wait_for(lambda: pin.stat().st_ino != old, 10)
        inbound.connect((A, 7000))
        accepted, _ = listening.accept()
        with accepted:
            wait_for(scene.daemon.ready, 10)
            accepted.send(b"from the pod")
            assert inbound.recv(100) == b"from the pod"


def test_switched_off_the_line_is_gone_and_nftables_goes_on_alone(scene: Scene) -> None:
    scene.ask(scene.a, "db.example.com")
    scene.daemon.stop()
    configure(scene, enforcement={"ebpf": "Off"})
    scene.daemon.start()
    assert programs(scene) == []
    assert scene.resolve(scene.a, "db.example.com") == [DB]
    assert scene.opens(scene.a, DB)
    assert not scene.opens(scene.a, OTHER)


def test_a_link_that_is_no_pods_any_longer_loses_its_programs_at_the_next_start(scene: Scene) -> None:
    assert programs(scene) == ["from_pod"]
    scene.daemon.stop()
    configure(scene, pods={"interfaces": [scene.b.link]})
    scene.daemon.start()
    assert programs(scene) == []


def test_cleanup_takes_programs_and_maps_away_and_leaves_others_alone(scene: Scene) -> None:
    scene.daemon.stop()
    done = scene.daemon.call("cleanup")
    assert done.returncode == 0, done.stderr
    assert re.match(r"removed: table inet dnsguard, 4 programs, \d+ maps, 2 rules, 2 routes; ", done.stdout)
    assert programs(scene) == []
    assert {path.name for path in (scene.daemon.folder / "bpf").iterdir()} <= {
        "maps.debug",
        "progs.debug",
    }  # bpffs's own
    assert connects(scene.lab, scene.a.namespace, OTHER, PORT)
    scene.daemon.start()


def configure(scene: Scene, **changed: Any) -> None:
    """Other keys in the daemon's configuration, for its next start."""
    content = yaml.safe_load(scene.daemon.config.read_text())
    scene.daemon.config.write_text(yaml.safe_dump({**content, **changed}))
