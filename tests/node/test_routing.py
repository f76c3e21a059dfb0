"""The rule and the route that bring intercepted packets to the listeners, kept on the real kernel."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dnsguard.core.errors import KernelError, MissingFeatureError
from dnsguard.demo.lab import Lab
from dnsguard.node.routing import Interception, InterceptionRoute, unusable_sysctls
from dnsguard.node.watch import Watch, open_socket
from tests.node.intercepted import on_uvloop, until
from tests.node.test_transparent import without_net_admin

pytestmark = pytest.mark.node

ROUTE = InterceptionRoute(mark=0x1000, priority=5, table=5353)


class Node:
    """An interception in the lab's node, and what it told."""

    def __init__(self, lab: Lab, route: InterceptionRoute) -> None:
        self.repairs: list[str] = []
        self.problems: list[str] = []
        self.interception = Interception(route, self.repairs.append, self.problems.append)
        self.watch = Watch(
            [self.interception],
            self.problems.append,
            opener=lambda groups: lab.inside(lab.node, lambda: open_socket(groups)),
        )


@asynccontextmanager
async def installed(lab: Lab, route: InterceptionRoute = ROUTE) -> AsyncIterator[Node]:
    node = Node(lab, route)
    await node.watch.start()
    try:
        await node.interception.install()
        yield node
    finally:
        node.watch.stop()


def rules(lab: Lab, family: str) -> list[str]:
    """The rules but the kernel's own three."""
    lines = lab.run(lab.node, "ip", family, "rule").stdout.splitlines()
    return [" ".join(line.split()) for line in lines if line.split(":")[0] not in ("0", "32766", "32767")]


def table(lab: Lab, family: str, number: int = 5353) -> str:
    return " ".join(lab.run(lab.node, "ip", family, "route", "show", "table", str(number), check=False).stdout.split())


def whole(lab: Lab) -> bool:
    return all(
        rules(lab, family) == ["5: from all fwmark 0x1000/0x1000 lookup 5353 proto 153"]
        and table(lab, family).startswith("local default dev lo proto 153")
        for family in ("-4", "-6")
    )


@on_uvloop
async def test_both_families_get_a_rule_and_a_route_and_a_second_time_changes_nothing(lab: Lab) -> None:
    async with installed(lab) as node:
        assert whole(lab)
        await node.interception.install()
        assert whole(lab)
        assert node.repairs == node.problems == []


@on_uvloop
async def test_what_an_earlier_process_left_is_taken_over_or_replaced(lab: Lab) -> None:
    async with installed(lab):
        pass
    async with installed(lab, InterceptionRoute(mark=0x4, priority=7, table=99)):
        assert rules(lab, "-4") == rules(lab, "-6") == ["7: from all fwmark 0x4/0x4 lookup 99 proto 153"]
        assert table(lab, "-4") == table(lab, "-6") == ""


@pytest.mark.parametrize("family", ["-4", "-6"])
@pytest.mark.parametrize(
    "damage", [("rule", "del", "priority", "5"), ("route", "del", "local", "default", "table", "5353")]
)
@on_uvloop
async def test_what_someone_else_removes_is_put_back_at_once_and_told(
    lab: Lab, family: str, damage: tuple[str, ...]
) -> None:
    async with installed(lab) as node:
        lab.run(lab.node, "ip", family, *damage)
        await until(lambda: node.repairs)
        assert whole(lab)
    assert len(node.repairs) == 1
    assert {"-4": "IPv4", "-6": "IPv6"}[family] in node.repairs[0]


@on_uvloop
async def test_a_route_that_someone_replaces_is_replaced_back(lab: Lab) -> None:
    async with installed(lab) as node:
        lab.run(lab.node, "ip", "route", "replace", "blackhole", "default", "table", "5353")
        await until(lambda: node.repairs)
        assert whole(lab)


@on_uvloop
async def test_it_comes_back_with_the_loopback_link(lab: Lab) -> None:
    async with installed(lab) as node:
        lab.ip(lab.node, "link set lo down")
        await until(lambda: node.problems)
        assert "lo is down" in node.problems[0]
        lab.ip(lab.node, "link set lo up")
        await until(lambda: whole(lab))


@on_uvloop
async def test_a_rule_before_ours_that_takes_our_packets_is_told_once_and_others_are_not(lab: Lab) -> None:
    async with installed(lab) as node:
        lab.ip(
            lab.node,
            "rule add fwmark 0x200/0xf00 lookup 100 priority 1",
            "rule add lookup 101 priority 2",
            "rule add lookup 102 priority 9",
        )
        await until(lambda: node.problems)
        lab.ip(lab.node, "rule del priority 9")
    assert len(node.problems) == 1
    assert "priority 2" in node.problems[0] and "table 101" in node.problems[0]


@on_uvloop
async def test_removal_takes_ours_away_and_leaves_the_others(lab: Lab) -> None:
    lab.ip(lab.node, "rule add lookup 101 priority 20", "route add unreachable default table 5353 metric 77")
    async with installed(lab) as node:
        await node.interception.remove()
        assert rules(lab, "-4") == ["20: from all lookup 101"]
        assert rules(lab, "-6") == []
        assert table(lab, "-4") == "unreachable default metric 77"
        assert table(lab, "-6") == ""
        assert node.repairs == []


@on_uvloop
async def test_removal_takes_away_what_an_earlier_process_left_elsewhere(lab: Lab) -> None:
    async with installed(lab, InterceptionRoute(mark=0x4, priority=7, table=99)):
        pass
    node = Node(lab, ROUTE)
    await node.watch.start()
    await node.interception.remove()
    node.watch.stop()
    assert rules(lab, "-4") == rules(lab, "-6") == []
    assert table(lab, "-4", 99) == table(lab, "-6", 99) == ""


@on_uvloop
async def test_a_change_that_the_kernel_refuses_says_why(lab: Lab) -> None:
    with pytest.raises(KernelError, match="cannot add an ip rule or route"):
        lab.ip(lab.node, "link set lo down")
        async with installed(lab):
            pass


@on_uvloop
async def test_without_the_capability_it_is_named(lab: Lab) -> None:
    node = Node(lab, ROUTE)

    async def give_up_rights() -> None:
        without_net_admin()

    await node.watch.start()
    try:
        node.watch.call(give_up_rights).result(3)
        with pytest.raises(MissingFeatureError, match="CAP_NET_ADMIN"):
            await node.interception.install()
    finally:
        node.watch.stop()


def test_settings_that_break_interception_are_named_with_the_remedy(lab: Lab) -> None:
    lab.sysctl(lab.node, ipv4__conf__all__src_valid_mark=1, ipv4__ip_forward=0)
    found = lab.inside(lab.node, unusable_sysctls)
    assert found == [
        "net.ipv4.ip_forward is 0: what pods send over IPv4 is not forwarded; set it to 1",
        "net.ipv4.conf.all.src_valid_mark is 1: intercepted queries over IPv4 are dropped; set it to 0",
    ]


def test_a_usable_node_has_no_unusable_settings_and_absent_ones_do_not_count(lab: Lab, tmp_path: Path) -> None:
    assert lab.inside(lab.node, unusable_sysctls) == []
    assert unusable_sysctls(tmp_path) == []
