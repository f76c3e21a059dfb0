"""Somebody else changes what dnsguard has put into the kernel: it cannot, or it is undone at once and told.

a table that can be owned refuses others .................. nobody_else_can_...
one that cannot be owned is repaired, leases included ..... what_others_do_to_the_table_...
the rule and the route of interception .................... a_removed_rule_or_route_...
what is not as it should be, and is not dnsguard's ........ a_problem_of_the_node_...
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.node.daemon import wait_for
from tests.node.scene import DB, OTHER, A, Scene, playing

pytestmark = pytest.mark.node

UNOWNED = (sys.executable, "-m", "tests.node.unowned")
REPAIR_SECONDS = 2.0
"""The promise is 0.1 s, on a node that does nothing else."""


@pytest.fixture(scope="module")
def owned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with playing(tmp_path_factory.mktemp("owned")) as scene:
        if "flags owner" not in nft(scene, "list table inet dnsguard").stdout:
            pytest.skip("this kernel has no tables that can be owned and persist")
        yield scene


@pytest.fixture(scope="module")
def unowned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with playing(tmp_path_factory.mktemp("unowned"), program=UNOWNED) as scene:
        yield scene


def nft(scene: Scene, command: str) -> subprocess.CompletedProcess[str]:
    return scene.lab.run(scene.lab.node, "nft", *command.split(), check=False)


@pytest.mark.parametrize(
    "command",
    ["flush table inet dnsguard", "delete table inet dnsguard", "flush set inet dnsguard tcp_8080_v4", "flush ruleset"],
)
def test_nobody_else_can_change_a_table_that_is_owned(owned: Scene, command: str) -> None:
    owned.resolve(owned.a, "db.example.com")

    nft(owned, command)

    assert owned.opens(owned.a, DB)
    assert not owned.opens(owned.a, OTHER)
    assert owned.resolve(owned.a, "db.example.com") == [DB]


@pytest.mark.parametrize(
    "command",
    [
        "flush ruleset",
        "delete table inet dnsguard",
        "flush chain inet dnsguard pod",
        "flush chain inet dnsguard intercept",
        "flush set inet dnsguard tcp_8080_v4",
        f"delete element inet dnsguard tcp_8080_v4 {{ {A} . {DB} }}",
        "flush map inet dnsguard pods4",
        f"add element inet dnsguard tcp_8080_v4 {{ {A} . {OTHER} timeout 1h }}",
    ],
)
def test_what_others_do_to_the_table_is_undone_and_told(
    unowned: Scene, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    unowned.resolve(unowned.a, "db.example.com")
    told = len(unowned.daemon.events("kernel_state_repaired"))
    before = unowned.elements(A).keys(), chains(unowned)

    done = nft(unowned, command)
    began = time.monotonic()

    assert (done.returncode, done.stderr) == (0, "")
    wait_for(lambda: (unowned.elements(A).keys(), chains(unowned)) == before, REPAIR_SECONDS)
    with capsys.disabled():
        print(f"\n{command}: repaired and seen to be after {1000 * (time.monotonic() - began):.0f} ms")
    assert unowned.daemon.told("kernel_state_repaired", before=told)
    assert unowned.opens(unowned.a, DB)
    assert not unowned.opens(unowned.a, OTHER)
    assert unowned.resolve(unowned.a, "db.example.com") == [DB]


def chains(scene: Scene) -> str:
    """Chains, rules and pairs; counters and elements that come and go by themselves left out."""
    listed = nft(scene, "-s -t list table inet dnsguard").stdout
    return listed + nft(scene, "list map inet dnsguard pods4").stdout


def test_what_is_damaged_again_and_again_is_repaired_again_and_again(unowned: Scene) -> None:
    unowned.resolve(unowned.a, "db.example.com")
    before = chains(unowned)
    for _ in range(5):
        nft(unowned, "flush ruleset")
        wait_for(lambda: chains(unowned) == before, REPAIR_SECONDS)

    assert unowned.opens(unowned.a, DB)


@pytest.mark.parametrize(
    "command",
    [
        "ip -4 rule del priority 5",
        "ip -6 rule del priority 5",
        "ip -4 route flush table 5353",
        "ip -6 route flush table 5353",
    ],
)
def test_a_removed_rule_or_route_is_put_back_and_told(
    owned: Scene, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = len(owned.daemon.events("kernel_state_repaired"))
    resolver = "2001:db8::53" if "-6" in command else "10.96.0.10"

    owned.lab.run(owned.lab.node, *command.split())

    began = time.monotonic()
    assert owned.daemon.told("kernel_state_repaired", before=told)
    with capsys.disabled():
        print(f"\n{command}: told of its repair after {1000 * (time.monotonic() - began):.0f} ms")
    assert owned.resolve(owned.a, "db.example.com", to=resolver) == [DB]
    assert owned.resolve(owned.a, "db.example.com", to=resolver, stream=True) == [DB]


def test_a_problem_of_the_node_is_told_as_one_and_denies_nobody_anything(owned: Scene) -> None:
    wide = f"10.250.0.0/24 dev {owned.a.link}"
    owned.lab.ip(owned.lab.node, f"route add {wide}")

    told = owned.daemon.told("node_problem")

    owned.lab.ip(owned.lab.node, f"route del {wide}")
    assert "10.250.0.0/24" in told["reason"]
    assert not owned.daemon.events("pod_conflict")
    assert owned.resolve(owned.a, "db.example.com") == [DB]
