"""Pods come, go and change their addresses while the daemon runs.

the first query of a brand-new pod is answered ............ the_first_query_...
what a pod had goes with it; its address inherits nothing . a_pod_that_went_..., ..._inherits_nothing
an address gained, an address lost ........................ an_address_that_a_pod_gains_..., ..._loses_...
entries of one pod that disagree: everything is denied .... a_pod_whose_entries_disagree_...
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dnsguard.demo.lab import Pod
from tests.node.daemon import wait_for
from tests.node.scene import ALLOWLIST, DB, DB6, MAIL, A, Scene, playing, rcode

pytestmark = pytest.mark.node

NEW, REUSED, GAINED, TWO = "10.244.1.1", "10.244.1.2", "10.244.1.3", ("10.244.1.4", "10.244.1.5")
PODS = {
    **ALLOWLIST["pods"],
    NEW: {"name": "shop/new", "policies": ["web"]},
    REUSED: {"name": "shop/reused", "policies": ["web"]},
    GAINED: {"name": "shop/a", "policies": ["web"]},
    TWO[0]: {"name": "shop/two", "policies": ["web"]},
    TWO[1]: {"name": "shop/another", "policies": ["mail"]},
}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with playing(tmp_path_factory.mktemp("pods"), allowlist={**ALLOWLIST, "pods": PODS}) as scene:
        yield scene


def known(scene: Scene, address: str) -> bool:
    return any(address in row["addresses"] for row in scene.daemon.ask("pods"))


@pytest.mark.parametrize("stream", [False, True], ids=["udp", "tcp"])
def test_the_first_query_of_a_pod_that_has_just_come_is_answered(scene: Scene, stream: bool) -> None:
    new = scene.lab.pod("new", NEW)
    try:
        resolved = scene.resolve(new, "db.example.com", stream=stream)

        assert resolved == [DB]
        assert scene.opens(new, DB)
    finally:
        scene.lab.remove_pod(new)


def test_twenty_pods_that_come_at_once_are_all_answered_at_their_first_query(scene: Scene) -> None:
    allowlist = {**ALLOWLIST, "pods": {**PODS, "10.244.2.0/24": {"policies": ["web"]}}}
    scene.daemon.reload(allowlist)
    made: list[Pod] = []
    try:
        for number in range(20):
            made.append(scene.lab.pod(f"p{number}", f"10.244.2.{number + 1}"))

            assert scene.resolve(made[-1], "db.example.com") == [DB]
            assert scene.opens(made[-1], DB)
    finally:
        for pod in made:
            scene.lab.remove_pod(pod)
    wait_for(lambda: len(scene.daemon.ask("pods")) == 2, 5)


def test_an_address_that_another_pod_gets_inherits_nothing(scene: Scene) -> None:
    """Neither the lease nor the open connection of the pod that had it before."""
    first = scene.lab.pod("first", REUSED)
    scene.resolve(first, "db.example.com")
    flow = scene.connect(first, DB, source=(REUSED, 5555))
    assert flow is not None
    entries = conntrack(scene, REUSED)
    scene.lab.remove_pod(first)
    second = scene.lab.pod("second", REUSED)
    try:
        wait_for(
            lambda: ("shop/reused", "veth-second") in [(row["pod"], row["link"]) for row in scene.daemon.ask("pods")], 5
        )

        opened = scene.opens(second, DB)

        assert (opened, scene.elements(REUSED)) == (False, {})
        assert "5555" in entries
        assert "5555" not in conntrack(scene, REUSED)
        assert scene.resolve(second, "db.example.com") == [DB]
        assert scene.opens(second, DB)
    finally:
        flow.socket.close()
        scene.lab.remove_pod(second)


def conntrack(scene: Scene, address: str) -> str:
    return scene.lab.run(scene.lab.node, "conntrack", "-L", "-s", address).stdout


def test_a_pod_that_went_leaves_neither_lease_nor_program_in_the_kernel(scene: Scene) -> None:
    gone = scene.lab.pod("gone", NEW)
    scene.resolve(gone, "db.example.com")
    there = scene.elements(NEW)

    scene.lab.remove_pod(gone)

    wait_for(lambda: not known(scene, NEW), 5)
    assert there
    assert NEW not in scene.lab.run(scene.lab.node, "nft", "list", "table", "inet", "dnsguard").stdout
    assert scene.daemon.told("pod_went", pod="shop/new")


def test_an_address_that_a_pod_gains_is_open_where_its_others_are(scene: Scene) -> None:
    scene.resolve(scene.a, "db.example.com")
    scene.lab.add_address(scene.a, GAINED)
    try:
        wait_for(lambda: known(scene, GAINED), 5)

        opened = scene.opens(scene.a, DB, source=(GAINED, 0))

        assert opened
        assert DB in scene.elements(GAINED)
    finally:
        scene.lab.remove_address(scene.a, GAINED)
        wait_for(lambda: not known(scene, GAINED), 5)


def test_an_address_that_a_pod_loses_is_closed_and_its_others_stay_open(scene: Scene) -> None:
    scene.lab.add_address(scene.a, GAINED)
    wait_for(lambda: known(scene, GAINED), 5)
    scene.resolve(scene.a, "db.example.com")
    flow = scene.connect(scene.a, DB, source=(A, 0))
    assert flow is not None

    scene.lab.remove_address(scene.a, GAINED)

    with flow:
        wait_for(lambda: not known(scene, GAINED), 5)
        assert scene.elements(GAINED) == {}
        assert flow.alive()
        assert scene.opens(scene.a, DB)


def test_an_address_of_another_family_that_comes_later_is_governed_at_once(scene: Scene) -> None:
    scene.lab.add_address(scene.b, "fd00:10:244::6")
    try:
        wait_for(lambda: known(scene, "fd00:10:244::6"), 5)

        denied = rcode(scene.ask(scene.b, "db.example.com", to="2001:db8::53"))

        assert denied == "NXDOMAIN"
        assert not scene.opens(scene.b, DB6)
    finally:
        scene.lab.remove_address(scene.b, "fd00:10:244::6")


def test_a_pod_whose_entries_disagree_is_denied_everything_and_both_lines_are_told(scene: Scene) -> None:
    two = scene.lab.pod("two", *TWO)
    try:
        denied = rcode(scene.ask(two, "db.example.com")), rcode(scene.ask(two, "mail.example.com"))

        assert denied == ("NXDOMAIN", "NXDOMAIN")
        assert not scene.opens(two, MAIL)
        told = scene.daemon.told("pod_conflict")["reason"]
        assert told.count("allowlist.yaml:") == 2
    finally:
        scene.lab.remove_pod(two)
