"""What watches closedness sees what is open, each way, even for a hundredth of a second. No dnsguard is needed here."""

from __future__ import annotations

from collections.abc import Iterator
from socket import inet_aton

import pytest

from dnsguard.demo.lab import Lab
from dnsguard.demo.server import open_sockets, served
from tests.host.watch import FLOWS, NAME, QUERIES, Watch
from tests.node.daemon import ANY_RESOLVER, EVENT_SECONDS, Dnsguard, wait_for
from tests.node.scene import A6, B6, OTHER, A, B, Scene, world

pytestmark = pytest.mark.node

SHUT = (
    "add table inet shut; add set inet shut open { type ifname; flags timeout; };"
    "add chain inet shut through { type filter hook forward priority 0; };"
    'add rule inet shut through iifname @open accept; add rule inet shut through iifname "veth-*" drop'
)
MOMENT = "add element inet shut open { veth-a timeout 10ms, veth-b timeout 10ms }"
"""The kernel closes it again by itself."""


@pytest.fixture(scope="module")
def shut(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A node that lets nothing of its pods through but where the set `open` says so."""
    with Lab("dghost") as lab, world(lab) as zone:
        a, b = lab.pod("a", A, A6), lab.pod("b", B, B6)
        lab.run(lab.node, "nft", SHUT)
        yield Scene(lab, zone, a, b, Dnsguard(lab, tmp_path_factory.mktemp("none")))


def listed(shut: Scene) -> str:
    return shut.lab.run(shut.lab.node, "nft", "list set inet shut open").stdout


def test_an_opening_of_a_hundredth_of_a_second_is_seen_each_way(shut: Scene) -> None:
    with Watch(shut) as watch:
        assert watch.heard() == {}

        shut.lab.run(shut.lab.node, "nft", MOMENT)

        wait_for(lambda: "veth" not in listed(shut), EVENT_SECONDS)
        assert watch.heard().keys() == {*FLOWS, *QUERIES}
        assert watch.heard() == {}
    assert watch.told == []


def test_a_name_that_is_told_is_seen(shut: Scene) -> None:
    shut.lab.add_world_address(ANY_RESOLVER)
    sockets = shut.lab.inside(shut.lab.world, lambda: open_sockets([ANY_RESOLVER]))
    shut.lab.run(shut.lab.node, "nft", "add element inet shut open { veth-b }")
    with served(shut.zone, sockets), Watch(shut) as watch:
        wait_for(lambda: shut.zone.asked(NAME) > 9, EVENT_SECONDS)  # of the first nine it has had the replies

    assert f"the upstream was asked for {NAME}" in watch.told
    assert inet_aton(OTHER).hex() in "".join(watch.told)
