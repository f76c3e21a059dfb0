"""A policy change is atomic and prompt: `dnsguard reload` and SIGHUP, leases, open flows, a file of a whole cluster.

in force when the command returns; SIGHUP ................. a_reload_is_in_force_..., sighup_...
a bad file changes nothing ................................ a_file_with_errors_...
leases that are still justified are not touched ........... what_the_new_policy_still_allows_...
unjustified ones are purged, their flows cut .............. what_the_new_policy_forbids_..., a_udp_flow_...
a peer that keeps sending cannot undo a cut ............... a_peer_that_keeps_sending_...
a flow is judged by the lease that opened it .............. a_flow_whose_lease_has_ended_...
Drain ..................................................... when_flows_are_drained_...
a static rule is a justification too ...................... a_flow_of_an_address_block_...
50,000 pods: quick, nobody waits, the kernel is small ..... a_file_of_50_000_pods_...
"""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from benchmarks import cluster_allowlist

from tests.node.daemon import wait_for
from tests.node.scene import ALLOWLIST, DB, MAIL, OTHER, PORT, A, B, Flow, Scene, playing, rcode

pytestmark = pytest.mark.node

OWN_PORT = 7000
"""Where nobody answers but the test itself, over TCP and UDP."""
GAP = 1.0
"""Seconds that an answer may be late while a cluster's file is loaded. The promise is 0.1 on a node of its own; this
is what a machine that does other things as well can be held to."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with playing(tmp_path_factory.mktemp("reload"), allowlist=allowing("db.example.com")) as scene:
        yield scene


@pytest.fixture
def scene(running: Scene) -> Iterator[Scene]:
    """The same daemon for all, as if it had just started: the first policy again, no lease, no answer in the cache."""
    yield running
    running.zone.put("db.example.com", "A", DB)
    for content in ({"policies": {}, "pods": {A: [], B: []}}, allowing("db.example.com")):
        running.daemon.write("allowlist.yaml", "Allowlist", content)
        running.daemon.ask("reload")


def allowing(*names: str, **more: Any) -> dict[str, Any]:
    """The allowlist with these names, and address blocks, for shop/a."""
    ports = [{"protocol": "TCP", "port": PORT}, *({"protocol": p, "port": OWN_PORT} for p in ("TCP", "UDP"))]
    peers: list[dict[str, Any]] = [{"domainNames": list(names)}] if names else []
    peers += [{"ipBlock": {"cidr": block}} for block in more.get("blocks", ())]
    web = {"egress": [{"to": peers, "ports": ports}] if peers else []}
    return {**ALLOWLIST, "policies": {**ALLOWLIST["policies"], "web": web}}


def flow_to(scene: Scene, address: str, port: int = PORT) -> Flow:
    flow = scene.connect(scene.a, address, port)
    assert flow is not None
    return flow


# -- in force ---------------------------------------------------------------------------------------------------------


def test_a_reload_is_in_force_when_the_command_returns(scene: Scene) -> None:
    before = rcode(scene.ask(scene.a, "other.example.com"))
    generation = scene.daemon.ask("status")["generation"]
    scene.daemon.write("allowlist.yaml", "Allowlist", allowing("other.example.com"))

    reloaded = scene.daemon.call("reload")

    after = rcode(scene.ask(scene.a, "other.example.com")), rcode(scene.ask(scene.a, "db.example.com"))
    assert (reloaded.returncode, reloaded.stdout) == (0, f"policy generation {generation + 1} is in force\n")
    assert (before, after) == ("NXDOMAIN", ("NOERROR", "NXDOMAIN"))


def test_sighup_reloads_and_tells(scene: Scene) -> None:
    loaded = len(scene.daemon.events("policy_loaded"))
    scene.daemon.write("allowlist.yaml", "Allowlist", allowing("other.example.com"))

    scene.daemon.signal(signal.SIGHUP)

    assert scene.daemon.told("policy_loaded", before=loaded)["generation"] == loaded + 2
    assert rcode(scene.ask(scene.a, "other.example.com")) == "NOERROR"


def test_a_file_with_errors_changes_nothing_and_every_error_is_told_with_its_place(scene: Scene) -> None:
    scene.resolve(scene.a, "db.example.com")
    flow = flow_to(scene, DB)
    file = scene.daemon.folder / "allowlist.yaml"
    generation = scene.daemon.ask("status")["generation"]
    file.write_text(
        "apiVersion: dnsguard/v1\nkind: Allowlist\npolicies: {}\npods:\n  10.244.0.5: [bad..name]\n  x: []\n"
    )

    reloaded = scene.daemon.call("reload")

    with flow:
        assert reloaded.returncode == 1
        assert f"{file}:5:16: error: " in reloaded.stderr
        assert f"{file}:6:3: error: " in reloaded.stderr
        assert scene.daemon.ask("status")["generation"] == generation
        assert f"{file}:5:16: error: " in scene.daemon.ask("status")["rejected"]
        assert flow.alive()
        assert scene.opens(scene.a, DB)
        assert scene.resolve(scene.a, "db.example.com") == [DB]
        assert scene.daemon.told("policy_rejected")["reason"].startswith(f"{file}:")


def test_a_missing_file_changes_nothing(scene: Scene) -> None:
    file = scene.daemon.folder / "allowlist.yaml"
    rejected = len(scene.daemon.events("policy_not_taken"))
    file.unlink()

    scene.daemon.signal(signal.SIGHUP)

    assert scene.daemon.told("policy_not_taken", before=rejected)["reason"].startswith(f"{file}:1:1: error: ")
    assert scene.resolve(scene.a, "db.example.com") == [DB]


# -- leases and flows -------------------------------------------------------------------------------------------------


def test_what_the_new_policy_still_allows_is_not_touched(scene: Scene) -> None:
    scene.resolve(scene.a, "db.example.com")
    scene.resolve(scene.b, "mail.example.com")
    before = ends(scene)
    with flow_to(scene, DB) as flow:
        scene.daemon.reload(allowing("db.example.com", "other.example.com"))

        after = ends(scene)
        assert before.keys() == after.keys() == {DB, MAIL}
        for peer, (earliest, latest) in after.items():
            assert earliest <= before[peer][1] + 0.1
            assert latest >= before[peer][0] - 0.1
        assert flow.alive()
        assert scene.opens(scene.b, MAIL)


def ends(scene: Scene) -> dict[str, tuple[float, float]]:
    """Between which two moments each lease of both pods ends: listing them takes a while."""
    began = time.monotonic()
    left = scene.elements(A) | scene.elements(B)
    return {peer: (began + seconds, time.monotonic() + seconds) for peer, seconds in left.items()}


def test_what_the_new_policy_forbids_is_closed_and_cut_when_the_reload_returns(scene: Scene) -> None:
    scene.resolve(scene.a, "db.example.com")
    purged, cut = (len(scene.daemon.events(kind)) for kind in ("leases_purged", "flows_cut"))
    with flow_to(scene, DB) as flow:
        assert flow.alive()

        scene.daemon.reload(allowing("other.example.com"))

        assert flow.dead()
        assert not scene.opens(scene.a, DB)
        assert scene.elements(A) == {}
        assert scene.daemon.told("leases_purged", before=purged)["count"] == 1
        assert scene.daemon.told("flows_cut", before=cut)["count"] == 1


def test_a_peer_that_keeps_sending_does_not_undo_a_cut(scene: Scene) -> None:
    """Its packets would make an inbound flow, in whose replies everything passes."""
    scene.resolve(scene.a, "db.example.com")
    with scene.lab.inside(scene.lab.world, lambda: socket.create_server((DB, OWN_PORT))) as listening:
        pod_side = flow_to(scene, DB, OWN_PORT).socket
        peer, _ = listening.accept()
    with pod_side, peer:
        peer.settimeout(0.6)
        peer.sendall(b"before")
        assert pod_side.recv(64) == b"before"

        scene.daemon.reload(allowing("other.example.com"))

        for _ in range(3):
            peer.sendall(b"after")
        pod_side.sendall(b"leak")
        assert nothing_arrives(pod_side)
        assert nothing_arrives(peer)


def test_a_udp_flow_is_cut_too_whoever_sends(scene: Scene) -> None:
    scene.resolve(scene.a, "db.example.com")
    peer, pod_side = udp_flow(scene)
    with peer, pod_side:
        there = pod_side.getsockname()
        peer.settimeout(0.3)
        pod_side.settimeout(0.3)

        scene.daemon.reload(allowing("other.example.com"))

        for _ in range(3):
            peer.sendto(b"after", there)
            pod_side.send(b"leak")
        assert nothing_arrives(pod_side)
        assert nothing_arrives(peer)


def udp_flow(scene: Scene) -> tuple[socket.socket, socket.socket]:
    """The peer's and the pod's socket of an open flow to DB."""
    peer = scene.lab.socket(scene.lab.world, socket.AF_INET)
    peer.bind((DB, OWN_PORT))
    pod_side = scene.lab.socket(scene.a.namespace, socket.AF_INET)
    pod_side.connect((DB, OWN_PORT))
    pod_side.send(b"hello")
    _, there = peer.recvfrom(64)
    peer.sendto(b"welcome", there)
    assert pod_side.recv(64) == b"welcome"
    return peer, pod_side


def nothing_arrives(at: socket.socket) -> bool:
    with suppress(TimeoutError):
        return not at.recv(64)
    return True


def test_what_was_cut_opens_again_on_the_same_ports_when_it_is_allowed_again(scene: Scene) -> None:
    scene.resolve(scene.a, "db.example.com")
    peer, pod_side = udp_flow(scene)
    with peer, pod_side:
        scene.daemon.reload(allowing("other.example.com"))
        pod_side.send(b"cut")
        scene.daemon.reload(allowing("db.example.com"))
        pod_side.send(b"not resolved yet")

        scene.resolve(scene.a, "db.example.com")

        pod_side.send(b"open")
        assert peer.recv(64) == b"open"


@pytest.mark.parametrize("kept", [True, False])
def test_a_flow_whose_lease_has_ended_is_judged_by_the_name_that_opened_it(scene: Scene, kept: bool) -> None:
    name = f"short{kept}.example.com"
    scene.zone.put(name, "A", "198.18.0.9", ttl=1)
    scene.daemon.reload(allowing(name))
    scene.resolve(scene.a, name)
    with flow_to(scene, "198.18.0.9") as flow:
        wait_for(lambda: scene.elements(A) == {} and scene.daemon.ask("leases") == [], 6)
        before = flow.alive()

        scene.daemon.reload(allowing("other.example.com", *([name] if kept else [])))

        assert before
        assert flow.alive() if kept else flow.dead()
        assert not scene.opens(scene.a, "198.18.0.9")


def test_a_flow_of_an_address_block_lives_as_long_as_the_block(scene: Scene) -> None:
    scene.daemon.reload(allowing(blocks=["198.18.0.0/24"]))
    with flow_to(scene, OTHER) as flow:
        scene.daemon.reload(allowing("db.example.com", blocks=["198.18.0.0/28"]))
        kept = flow.alive()

        scene.daemon.reload(allowing("db.example.com"))

        assert (kept, flow.dead()) == (True, True)


def test_when_flows_are_drained_open_ones_stay_and_new_ones_do_not_begin(tmp_path: Path) -> None:
    with playing(tmp_path, allowlist=allowing("db.example.com"), enforcement={"revocation": "Drain"}) as scene:
        scene.resolve(scene.a, "db.example.com")
        with flow_to(scene, DB) as flow:
            scene.daemon.reload(allowing("other.example.com"))

            assert flow.alive()
            assert not scene.opens(scene.a, DB)
            assert scene.elements(A) == {}


def test_while_policies_alternate_each_is_in_force_and_another_pod_notices_nothing(scene: Scene) -> None:
    stop = threading.Event()
    mixed: list[str] = []

    def ask() -> None:
        while not stop.wait(0.005):
            reply = scene.ask(scene.b, "mail.example.com")
            if rcode(reply) != "NOERROR":
                mixed.append(rcode(reply))

    asking = threading.Thread(target=ask)
    asking.start()
    scene.resolve(scene.b, "mail.example.com")
    try:
        with scene.connect(scene.b, MAIL) or pytest.fail("closed") as flow:
            for number in range(4):
                names = ("db.example.com",) if number % 2 else ("other.example.com",)
                scene.daemon.write("allowlist.yaml", "Allowlist", allowing(*names))
                scene.daemon.ask("reload")
                expected = ("NOERROR", "NXDOMAIN") if number % 2 else ("NXDOMAIN", "NOERROR")
                told = tuple(rcode(scene.ask(scene.a, name)) for name in ("db.example.com", "other.example.com"))
                assert told == expected
            assert flow.alive()
    finally:
        stop.set()
        asking.join()
    assert mixed == []


# -- a whole cluster's file -------------------------------------------------------------------------------------------


def test_a_file_of_50_000_pods_loads_while_others_are_answered(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    own = f"  {A}: [db.example.com, cluster.example.com]\n  {B}: [mail.example.com]\n"
    with (scene.daemon.folder / "allowlist.yaml").open("w") as file:
        file.writelines(cluster_allowlist.lines(50_000, 20))
        file.write(own)
    stop = threading.Event()
    gaps: list[float] = []
    asking = threading.Thread(target=lambda: gaps.extend(waits(scene, stop)))
    asking.start()
    began = time.monotonic()

    reloaded = scene.daemon.ask("reload")

    took = time.monotonic() - began
    stop.set()
    asking.join()
    with capsys.disabled():
        print(f"\n50,000 pods x 20 names: {took:.1f} s; slowest of {len(gaps)} answers meanwhile {max(gaps):.3f} s")
    assert scene.daemon.ask("status")["generation"] == reloaded["generation"]
    assert rcode(scene.ask(scene.a, "host-0.service-0.example.com")) == "NXDOMAIN"
    assert took < 60
    assert max(gaps) < GAP
    table = scene.lab.run(scene.lab.node, "nft", "list", "table", "inet", "dnsguard").stdout
    assert table.count("chain program_") == 2


def waits(scene: Scene, stop: threading.Event) -> Iterator[float]:
    """Ask as shop/b, one question after another, and tell how long each answer took; one that is lost took forever."""
    with scene.client(scene.b, "10.96.0.10") as client:
        query = b"\0\1\1\0\0\1\0\0\0\0\0\0\4mail\7example\3com\0\0\1\0\1"
        while not stop.wait(0.005):
            began = time.monotonic()
            try:
                client.send(query)
                client.recv(512)
            except TimeoutError:
                yield float("inf")
            yield time.monotonic() - began
