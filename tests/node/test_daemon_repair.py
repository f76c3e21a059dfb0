"""What somebody else does to the node's rules while the daemon runs is undone, and told.

the table ................................ a_flushed_ruleset_...
the rule and the route of interception ... a_removed_rule_or_route_...
what is not as it should be .............. a_problem_of_the_node_...
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.node.daemon import wait_for
from tests.node.scene import DB, OTHER, Scene, playing

pytestmark = pytest.mark.node


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with playing(tmp_path_factory.mktemp("repair"), ttl={"floor": "1m", "grace": "1s"}) as scene:
        yield scene


def test_a_flushed_ruleset_is_refused_or_undone_with_its_leases(scene: Scene) -> None:
    scene.resolve(scene.a, "db.example.com")

    scene.lab.run(scene.lab.node, "nft", "flush", "ruleset", check=False)

    wait_for(lambda: not scene.opens(scene.a, OTHER), 5)
    assert scene.opens(scene.a, DB)


@pytest.mark.parametrize("what", ["rule del priority 5", "route del local default dev lo table 5353"])
def test_a_removed_rule_or_route_is_put_back_and_told(scene: Scene, what: str) -> None:
    before = len(scene.daemon.events("kernel_state_repaired"))

    scene.lab.ip(scene.lab.node, what)

    told = scene.daemon.told("kernel_state_repaired", before=before)
    assert "put back" in told["what"]
    assert told["message"].startswith("somebody else's change is undone:")
    assert scene.resolve(scene.a, "db.example.com") == [DB]


def test_a_problem_of_the_node_is_told_as_one(scene: Scene) -> None:
    scene.lab.ip(scene.lab.node, f"route add 10.250.0.0/24 dev {scene.a.link}")

    told = scene.daemon.told("node_problem")
    scene.lab.ip(scene.lab.node, f"route del 10.250.0.0/24 dev {scene.a.link}")

    assert told["message"] == told["reason"]
    assert "10.250.0.0/24" in told["reason"]
