"""Pod links and their addresses, followed on the real kernel."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address

import pytest

from dnsguard.core.errors import KernelError
from dnsguard.core.model import Address, LinkIndex
from dnsguard.demo.lab import Lab
from dnsguard.node.links import Links
from dnsguard.node.watch import Watch, open_socket
from tests.node.intercepted import link_index, on_uvloop, until

pytestmark = pytest.mark.node


def packed(*addresses: str) -> frozenset[Address]:
    return frozenset(Address(ip_address(address).packed) for address in addresses)


class Node:
    """What was told of the links, and the watch that tells it."""

    def __init__(self, lab: Lab, patterns: tuple[str, ...] = ("veth*",)) -> None:
        self.calls: list[tuple[LinkIndex, str, frozenset[Address] | None]] = []
        self.problems: list[str] = []
        self.own: frozenset[Address] = frozenset()
        self.sockets: list[socket.socket] = []
        self._lab = lab
        self.links = Links(patterns, self._on_link, self.problems.append, self._on_own)
        self.missed = 0
        self.watch = Watch([self.links], self.problems.append, on_missed=self._on_missed, opener=self._open)

    @property
    def pods(self) -> dict[str, frozenset[Address]]:
        """The latest word on each link, by name."""
        latest = {link: (name, addresses) for link, name, addresses in self.calls}
        return {name: addresses for name, addresses in latest.values() if addresses is not None}

    def _on_missed(self) -> None:
        self.missed += 1

    def _on_link(self, link: LinkIndex, name: str, addresses: frozenset[Address] | None) -> None:
        self.calls.append((link, name, addresses))

    def _on_own(self, own: frozenset[Address]) -> None:
        self.own = own

    def _open(self, groups: int) -> socket.socket:
        opened = self._lab.inside(self._lab.node, lambda: open_socket(groups))
        self.sockets.append(opened)
        return opened


@asynccontextmanager
async def following(lab: Lab, *patterns: str) -> AsyncIterator[Node]:
    node = Node(lab, patterns or ("veth*",))
    await node.watch.start()
    try:
        yield node
    finally:
        node.watch.stop()


@on_uvloop
async def test_what_is_there_is_told_before_start_returns(lab: Lab) -> None:
    pod = lab.pod("a", "10.244.0.5", "fd00:10:244::5")
    async with following(lab) as node:
        assert node.calls == [(link_index(lab, pod), "veth-a", packed("10.244.0.5", "fd00:10:244::5"))]


@on_uvloop
async def test_a_pod_that_comes_changes_and_goes_is_followed(lab: Lab) -> None:
    async with following(lab) as node:
        pod = lab.pod("a", "10.244.0.5")
        await until(lambda: node.pods == {"veth-a": packed("10.244.0.5")})
        lab.add_address(pod, "fd00:10:244::5")
        await until(lambda: node.pods == {"veth-a": packed("10.244.0.5", "fd00:10:244::5")})
        lab.remove_address(pod, "10.244.0.5")
        await until(lambda: node.pods == {"veth-a": packed("fd00:10:244::5")})
        lab.remove_pod(pod)
        await until(lambda: node.pods == {})
        assert node.calls[-1][1:] == ("veth-a", None)


@on_uvloop
async def test_only_links_that_match_are_told(lab: Lab) -> None:
    for name, link in (("a", "veth-a"), ("b", "eni123"), ("c", "calibre"), ("d", "cali")):
        lab.pod(name, link=link)
    async with following(lab, "eni*", "cali") as node:
        assert set(node.pods) == {"eni123", "cali"}


@on_uvloop
async def test_a_link_that_is_renamed_to_match_brings_its_routes_and_leaves_with_its_name(lab: Lab) -> None:
    pod = lab.pod("a", "10.244.0.5", link="tmp0")
    async with following(lab) as node:
        assert node.pods == {}
        lab.ip(
            lab.node,
            "link set tmp0 down",
            "link set tmp0 name veth0",
            "link set veth0 up",
            "route add 10.244.0.5/32 dev veth0",
        )
        await until(lambda: node.pods == {"veth0": packed("10.244.0.5")})
        lab.ip(lab.node, "link set veth0 down", "link set veth0 name tmp0")
        await until(lambda: node.pods == {})
    assert pod.name == "a"


@on_uvloop
async def test_a_renamed_link_that_kept_its_routes_brings_them(lab: Lab) -> None:
    lab.pod("a", "10.244.0.5", link="tmp0")
    async with following(lab) as node:
        try:
            lab.ip(lab.node, "link set tmp0 name veth0")
        except Exception:  # before 6.2 a link must be down for that
            pytest.skip("this kernel renames no link that is up")
        await until(lambda: node.pods == {"veth0": packed("10.244.0.5")})


@on_uvloop
async def test_routes_of_every_table_count_and_the_last_of_an_address_ends_it(lab: Lab) -> None:
    pod = lab.pod("a", "10.244.0.5")
    lab.ip(
        lab.node,
        f"route add 10.244.0.5/32 dev {pod.link} table 1234",
        f"route add 10.244.0.6/32 dev {pod.link} table 99",
    )
    async with following(lab) as node:
        assert node.pods == {"veth-a": packed("10.244.0.5", "10.244.0.6")}
        lab.ip(lab.node, f"route del 10.244.0.5/32 dev {pod.link}", f"route del 10.244.0.6/32 dev {pod.link} table 99")
        await until(lambda: node.pods == {"veth-a": packed("10.244.0.5")})


@on_uvloop
async def test_a_route_that_is_replaced_moves_its_address_to_the_other_link(lab: Lab) -> None:
    lab.pod("a", "10.244.0.5", "fd00:10:244::5")
    lab.pod("b")
    async with following(lab) as node:
        lab.ip(lab.node, "route replace 10.244.0.5/32 dev veth-b", "route replace fd00:10:244::5/128 dev veth-b")
        await until(lambda: node.pods == {"veth-a": packed(), "veth-b": packed("10.244.0.5", "fd00:10:244::5")})


@on_uvloop
async def test_one_of_two_routes_of_an_address_replaced_leaves_what_the_kernel_has(lab: Lab) -> None:
    for name in "abc":
        lab.pod(name)
    lab.ip(lab.node, "route add 10.244.0.5/32 dev veth-a", "route append 10.244.0.5/32 dev veth-b")
    async with following(lab) as node:
        lab.ip(lab.node, "route replace 10.244.0.5/32 dev veth-c")
        await until(lambda: node.pods.get("veth-c") == packed("10.244.0.5"))
        left = lab.run(lab.node, "ip", "-4", "route", "show", "10.244.0.5/32").stdout
        assert {name for name, addresses in node.pods.items() if addresses} == {w for w in left.split() if "veth" in w}


@on_uvloop
async def test_a_link_set_down_has_no_addresses_until_they_are_routed_again(lab: Lab) -> None:
    pod = lab.pod("a", "10.244.0.5", "fd00:10:244::5")
    async with following(lab) as node:
        lab.ip(lab.node, f"link set {pod.link} down")
        await until(lambda: node.pods == {"veth-a": packed()})
        lab.ip(lab.node, f"link set {pod.link} up", f"route add 10.244.0.5/32 dev {pod.link}")
        await until(lambda: node.pods == {"veth-a": packed("10.244.0.5")})


@on_uvloop
async def test_a_route_that_ends_with_its_preferred_source_is_forgotten_and_one_that_stays_is_not(lab: Lab) -> None:
    pod = lab.pod("a")
    # nodad: also on lo an IPv6 address is tentative, and no route's source, until a kernel worker ran
    for own, routed in (("10.244.0.1", "10.244.0.5"), ("fd00:10:244::1 nodad", "fd00:10:244::5")):
        lab.ip(lab.node, f"addr add {own} dev lo", f"route add {routed} dev {pod.link} src {own.split()[0]}")
    async with following(lab) as node:
        assert node.pods == {"veth-a": packed("10.244.0.5", "fd00:10:244::5")}
        lab.ip(lab.node, "addr del 10.244.0.1/32 dev lo", "addr del fd00:10:244::1/128 dev lo")
        await until(lambda: not packed("10.244.0.1", "fd00:10:244::1") & node.own)
        assert node.pods == {"veth-a": packed("fd00:10:244::5")}


@on_uvloop
async def test_a_wider_route_is_reported_once_and_makes_no_pod(lab: Lab) -> None:
    pod = lab.pod("a", "10.244.0.5")
    async with following(lab) as node:
        for prefix in ("10.244.7.0/24", "fd00:7::/64"):
            lab.ip(lab.node, f"route add {prefix} dev {pod.link}", f"route add {prefix} dev {pod.link} table 99")
        lab.add_address(pod, "10.244.0.9")
        await until(lambda: "veth-a" in node.pods and len(node.pods["veth-a"]) == 2)
    assert [text.split(" is routed")[0] for text in node.problems] == ["10.244.7.0/24", "fd00:7::/64"]


@on_uvloop
async def test_unreachable_local_and_multicast_routes_make_no_pod(lab: Lab) -> None:
    pod = lab.pod("a")
    lab.ip(
        lab.node,
        "route add unreachable 10.244.0.5/32",
        f"addr add 169.254.1.1/32 dev {pod.link}",
        f"addr add fd00::1/128 dev {pod.link} nodad",
        f"route add 239.1.2.3/32 dev {pod.link}",
        f"route add fe80::5/128 dev {pod.link}",
        f"route add ff05::5/128 dev {pod.link}",
    )
    async with following(lab) as node:
        assert node.pods == {"veth-a": packed()} or node.pods == {"veth-a": packed("fd00::1")}
        assert node.problems == []


@on_uvloop
async def test_the_nodes_own_addresses_are_followed_without_those_of_services(lab: Lab) -> None:
    lab.ip(lab.node, "link add kube-ipvs0 type bridge", "addr add 10.96.0.10/32 dev kube-ipvs0")
    async with following(lab) as node:
        assert packed("127.0.0.1", "::1", "10.99.0.1", "fd00:99::1") <= node.own
        assert packed("10.99.0.255", "fd00:99::") <= node.own
        assert not packed("10.96.0.10") & node.own
        lab.ip(lab.node, "addr add 192.0.2.7/32 dev lo", "addr del 10.99.0.1/24 dev uplink")
        await until(lambda: packed("192.0.2.7") <= node.own and not packed("10.99.0.1") & node.own)


@on_uvloop
async def test_a_call_after_the_end_is_an_error_that_says_so(lab: Lab) -> None:
    async with following(lab) as node:
        pass
    with pytest.raises(KernelError, match="no longer followed"):
        await asyncio.wrap_future(node.watch.call(lambda: asyncio.sleep(0)))


@on_uvloop
async def test_the_end_comes_at_once_closes_every_socket_and_fails_the_calls_that_wait(lab: Lab) -> None:
    async def wait_for_ever() -> None:
        await asyncio.Event().wait()

    async with following(lab) as node:
        begun, waiting = node.watch.call(wait_for_ever), node.watch.call(wait_for_ever)
        started = time.monotonic()
    assert time.monotonic() - started < 1
    assert [one.fileno() for one in node.sockets] == [-1, -1]
    for call in (begun, waiting):
        with pytest.raises(KernelError, match="no longer followed"):
            call.result(0)


@on_uvloop
async def test_a_kernel_that_does_not_answer_fails_the_request_but_not_the_next(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dnsguard.node.watch.TIMEOUT_SECONDS", 0.1)
    async with following(lab) as node:

        async def unanswered() -> None:
            await node.watch.ask(lambda kernel: asyncio.Event().wait())

        async def answered() -> object:
            return await node.watch.ask(lambda kernel: kernel.link("get", index=1))

        with pytest.raises(KernelError, match="does not answer"):
            await asyncio.wrap_future(node.watch.call(unanswered))
        assert await asyncio.wrap_future(node.watch.call(answered))


@on_uvloop
async def test_links_that_come_and_go_leave_nothing_behind(lab: Lab) -> None:
    lab.pod("a", "10.244.0.5")
    async with following(lab) as node:
        for first in range(0, 1000, 100):
            links = [f"veth{number}" for number in range(first, first + 100)]
            lab.ip(lab.node, *(f"link add {link} group 7 up type veth peer name p{link}" for link in links))
            lab.ip(lab.node, *(f"route add 10.250.0.7/32 dev {link} metric {n}" for n, link in enumerate(links)))
            lab.ip(lab.node, *(f"route add fd00:250::/64 dev {link} metric {n + 1}" for n, link in enumerate(links)))
            lab.ip(lab.node, "link del group 7")
        lab.pod("last", "10.244.0.9")
        await until(lambda: node.pods == {"veth-a": packed("10.244.0.5"), "veth-last": packed("10.244.0.9")})
        await until(lambda: not vars(node.links)["_touched"])
        sizes = [len(vars(node.links)[name]) for name in ("_routes", "_places", "_told", "_wide", "_posts")]
        assert sizes == [2, 2, 2, 0, 0]
        assert len(vars(node.links)["_links"]) == 4  # lo, uplink and the two pods'


@on_uvloop
async def test_when_notifications_were_lost_everything_is_read_again(lab: Lab) -> None:
    gone = lab.pod("gone", "10.244.0.4")
    async with following(lab) as node:
        listening = node.sockets[0]
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        lab.remove_pod(gone)
        lab.ip(lab.node, *(f"link add veth{number} type veth peer name p{number}" for number in range(50)))
        lab.pod("a", "10.244.0.5")
        await until(lambda: len(node.pods) == 51)
        assert node.pods["veth-a"] == packed("10.244.0.5")
        assert len([one for one in node.sockets if one.fileno() >= 0]) == 2, "one that hears and one that asks"
    assert len(node.sockets) > 2, "nothing was lost, so nothing was tested"
    assert node.missed >= 1


@on_uvloop
async def test_an_interrupted_reading_is_begun_again_on_a_fresh_socket(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_all, outcomes = Watch._read_all, iter((False, False))

    async def interrupted_twice(self: Watch, kernel: object) -> bool:
        return await read_all(self, kernel) and next(outcomes, True)

    monkeypatch.setattr(Watch, "_read_all", interrupted_twice)
    monkeypatch.setattr("dnsguard.node.watch.GATHER_SECONDS", 0)
    lab.pod("a", "10.244.0.5")
    async with following(lab) as node:
        assert node.pods == {"veth-a": packed("10.244.0.5")}
        lab.pod("b", "10.244.0.6")
        await until(lambda: node.pods == {"veth-a": packed("10.244.0.5"), "veth-b": packed("10.244.0.6")})
        assert len(node.sockets) == 4
        assert len([one for one in node.sockets if one.fileno() >= 0]) == 2
    assert node.problems == []


@on_uvloop
async def test_what_one_program_does_at_once_is_told_at_once(lab: Lab) -> None:
    pod = lab.pod("a")
    routes = [f"route add 10.244.1.{number}/32 dev {pod.link}" for number in range(200)]
    async with following(lab) as node:
        lab.ip(lab.node, *routes)
        await until(lambda: len(node.pods["veth-a"]) == 200)
        assert len(node.calls) <= 201
