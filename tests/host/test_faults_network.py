"""The node's network changes around dnsguard: the pods stay closed, it is whole again soon, and is told once.

the rule and the route of interception ..................... a_rule_or_route_..., a_systemd_networkd_...
more changes than the daemon can hear of ................... changes_that_are_lost_...
connection tracking without room ........................... when_connection_tracking_...
links that come and go ..................................... a_thousand_links_...
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dnsguard.enforce.bpf.syscall import Map, get_pinned
from dnsguard.observe.shares import OFTEN_LINES
from tests.host import conntrack_fill
from tests.host.faults import MORE_PODS, C, F, Journal, in_time, standing_still, whole
from tests.host.host import UNIT, Host, hosting
from tests.host.troubles import WHOLE, is_whole
from tests.host.watch import closed
from tests.node.scene import DB, OTHER, rcode

pytestmark = pytest.mark.node

NETWORKD = "systemd-networkd.service"
NETWORK = "[Match]\nName=nwd\n[Network]\nAddress=192.0.2.9/32\nIPv6AcceptRA=no\n"
PINS = "sys/fs/bpf/dnsguard"
OVERFLOW = 12_000
"""Routes that come and go, each told of twice: more than the 8 MiB of notifications hold that the kernel keeps."""
MAPS = ("pairs", "programs", "ports", "blocks")
MAPS_BY_LINK = ("links", "peers", "flows_made", "flows_freed")
POOL = min(32, (os.cpu_count() or 1) + 4)
"""Threads that asyncio may have for what waits (concurrent.futures.ThreadPoolExecutor)."""
ROUNDS, NAMES = 250, ("veth-f", "veth-g", "veth-h", "veth-i")
SEEN_ONE_IN = 50
"""Rounds."""


@pytest.fixture(scope="module")
def node(image: Path) -> Iterator[Host]:
    with hosting([image], allowlist=MORE_PODS) as host:
        host.scene.zone.put("*.fresh.example.com", "A", "198.18.0.9")
        yield host


def batch(host: Host, lines: list[str]) -> None:
    """Run `ip` commands on the node, as fast as they go."""
    subprocess.run(["ip", "-n", host.lab.node, "-batch", "-"], input="\n".join(lines), text=True, check=True)


def answered(host: Host) -> bool:
    return not host.scene.silent(host.scene.a, "db.example.com", to="2001:db8::53") and not host.scene.silent(
        host.scene.a, "db.example.com"
    )


# ---- rules and routes


@pytest.mark.parametrize(
    "command",
    [
        "ip -4 rule del priority 5",
        "ip -6 rule del priority 5",
        "ip -4 route flush table 5353",
        "ip -6 route flush table 5353",
        "ip -4 rule flush; ip -4 rule add priority 32766 lookup main proto kernel",
    ],
)
def test_a_rule_or_route_that_is_removed_is_put_back_and_told_once(node: Host, command: str) -> None:
    journal = Journal(node)
    with closed(node):
        node.machine.shell(command)

        assert "put back" in journal.once("kernel_state_repaired")
        node.until(lambda: answered(node), WHOLE)
        whole(node)
    assert len(journal.told) == 1


def test_a_systemd_networkd_that_removes_what_is_foreign_to_it_is_undone_and_told_once(node: Host) -> None:
    """It does when it configures a link (networkd.conf(5), ManageForeignRoutingPolicyRules=)."""
    node.lab.ip(node.lab.node, "link add nwd type veth peer name nwd-peer", "link set nwd up", "link set nwd-peer up")
    node.machine.write("/run/systemd/network/nwd.network", NETWORK)
    node.machine.systemctl("start", NETWORKD)
    node.machine.shell("ip rule add priority 77 lookup main")
    journal = Journal(node)
    with closed(node):
        node.machine.run("networkctl", "reconfigure", "nwd")

        node.until(lambda: "77:" not in node.machine.shell("ip rule"), WHOLE)
        assert "rule for mark" in journal.once("kernel_state_repaired")
        node.until(lambda: answered(node), WHOLE)
        whole(node)
    assert len(journal.told) == 1
    node.machine.systemctl("stop", NETWORKD, "systemd-networkd.socket")
    node.lab.ip(node.lab.node, "link del nwd")


# ---- notifications that overflow


def test_changes_that_are_lost_while_the_daemon_stands_still_are_read_afterwards_and_told_once(node: Host) -> None:
    routes = [f"203.0.{one >> 8}.{one & 0xFF}/32 dev lo table 77" for one in range(OVERFLOW)]
    journal = Journal(node)
    with closed(node):
        with standing_still(node):
            batch(node, [f"route {do} {route}" for route in routes for do in ("add", "del")])
            pod = node.lab.pod("c", C)
            node.machine.shell("ip -4 rule del priority 5")
            assert not node.scene.opens(pod, DB)

        node.until(lambda: not node.scene.silent(pod, "db.example.com"), WHOLE)
        assert node.scene.opens(pod, DB)
        assert not node.scene.opens(pod, OTHER)
        assert rcode(node.scene.ask(pod, "mail.example.com")) == "NXDOMAIN"
        whole(node)
    assert sorted(journal.kinds()) == ["changes_missed", "kernel_state_repaired"]
    node.lab.remove_pod(pod)


# ---- connection tracking


def test_when_connection_tracking_is_full_names_are_answered_and_no_flow_begins_until_there_is_room(node: Host) -> None:
    scene, lab = node.scene, node.lab
    if (limit := lab.inside(lab.node, conntrack_fill.limit)) > 2_000_000:
        pytest.skip(f"nf_conntrack_max is {limit}: filling it would take a gigabyte")
    whole(node)
    lab.inside(lab.node, conntrack_fill.empty)  # of flows that end by themselves while it is to be full
    journal = Journal(node)
    with closed(node), scene.connect(scene.a, DB) or pytest.fail("closed") as flow:
        lab.inside(lab.node, conntrack_fill.fill)
        try:
            node.until(lambda: "conntrack_full" in journal.kinds(), WHOLE)
            assert scene.resolve(scene.a, "db.example.com") == [DB]
            assert rcode(scene.ask(scene.a, "mail.example.com")) == "NXDOMAIN"
            lab.inside(lab.node, conntrack_fill.fill)  # one that did end has made room for one
            assert not scene.opens(scene.a, DB)
            assert flow.alive()
        finally:
            lab.inside(lab.node, conntrack_fill.empty)
        node.until(lambda: scene.opens(scene.a, DB), WHOLE)
        node.until(lambda: bool(node.machine.journal("DNSGUARD_EVENT=conntrack_has_room")), WHOLE)
        whole(node)
    # A name that is due to be asked for again meanwhile finds no upstream, and that is told, too.
    assert [kind for kind in journal.kinds() if not kind.startswith("upstream_")] == ["conntrack_full"]


# ---- links that come and go


def held(host: Host) -> dict[str, int]:
    """What the daemon holds that could grow: descriptors, threads, pins, entries of maps, chains and sets. Of maps that
    have an entry for a link, those of links that are not there."""
    process = f"/proc/{host.daemon.pid}"
    found = {
        "descriptors": int(host.machine.shell(f"ls {process}/fd | wc -l")),
        "threads": int(host.machine.shell(f"ls {process}/task | wc -l")),
        "table": len(host.machine.shell("nft -s -t list table inet dnsguard").splitlines()),
        "pairs": len(host.machine.shell("nft list map inet dnsguard pods4").split(":")),
        "pins": len(list((host.machine.root / PINS / "links").iterdir())),
    }
    pods = (host.scene.a, host.scene.b)
    there = host.lab.inside(host.lab.node, lambda: {socket.if_nametoindex(pod.link) for pod in pods})
    for name in (*MAPS, *MAPS_BY_LINK):
        pinned = Map(get_pinned(host.machine.root / PINS / "maps" / name))
        keys = [key for key, _ in pinned.items()]
        pinned.close()
        found[f"map {name}"] = sum(name in MAPS or int.from_bytes(key, sys.byteorder) not in there for key in keys)
    return found


def grown(before: dict[str, int], now: dict[str, int]) -> dict[str, int]:
    """What is more than it was; asyncio's pool of threads may have filled up meanwhile."""
    return {what: number for what, number in now.items() if number > before[what] + (POOL if what == "threads" else 0)}


def told_of_links(lines: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """By link, how often these lines say that a pod came or went, in a line of its own or in a count of those that were
    left out."""
    found = {name: {"pod_came": 0, "pod_went": 0} for name in NAMES}
    for one in lines:
        counted = one.get("DNSGUARD_SUPPRESSED", "") + one.get("DNSGUARD_KINDS", "")
        about = re.search(r"(?:came on|went from|more lines about link) (veth-[fghi])\b", str(one["MESSAGE"]))
        for number, what in [*re.findall(r"(\d+) (pod_came|pod_went)", counted), (1, one.get("DNSGUARD_EVENT"))]:
            if about and what in found[about[1]]:
                found[about[1]][what] += int(number)
    return found


def as_many_came_as_went(host: Host, since: int) -> bool:
    told = told_of_links(host.machine.journal(f"--unit={UNIT}")[since:])
    return all(ROUNDS // SEEN_ONE_IN <= each["pod_came"] == each["pod_went"] <= ROUNDS for each in told.values())


def flap(host: Host) -> None:
    """Four pod links come with an address each and go, again and again. Many are gone before anybody could look; now
    and then they stay until the daemon has seen them."""
    others = len(host.daemon.ask("pods"))
    come = [
        line
        for number, name in enumerate(NAMES)
        for line in (
            f"link add {name} group 7 type veth peer name peer-{number}",
            f"link set {name} up",
            f"route add 10.244.0.{77 + number}/32 dev {name}",
        )
    ]
    for number in range(ROUNDS):  # one `ip` remembers the numbers of links by their names
        if number % SEEN_ONE_IN == 0:
            batch(host, come)
            host.until(lambda: len(host.daemon.ask("pods")) == others + len(NAMES))
            batch(host, ["link del group 7"])
        else:
            batch(host, [*come, "link del group 7"])


def test_a_thousand_links_that_come_and_go_leave_nothing_behind_and_nothing_to_whoever_comes(node: Host) -> None:
    scene, journal = node.scene, Journal(node)
    with closed(node):
        pod = node.lab.pod("f", F)
        node.until(lambda: scene.resolve(pod, "db.example.com") == [DB])
        assert scene.opens(pod, DB)
        node.lab.remove_pod(pod)
        node.until(lambda: len(node.daemon.ask("pods")) == 2)
        whole(node)
        before, lines, begun = held(node), len(node.machine.journal(f"--unit={UNIT}")), time.monotonic()

        flap(node)

        took = time.monotonic() - begun
        node.until(lambda: is_whole(node) and len(node.daemon.ask("pods")) == 2, WHOLE)
        nothing: dict[str, int] = {}
        assert in_time(lambda: grown(before, held(node)), nothing) == {}
        node.until(lambda: as_many_came_as_went(node, lines), WHOLE)
        written = [one["MESSAGE"] for one in node.machine.journal(f"--unit={UNIT}")[lines:]]
        pod = node.lab.pod("f", F)
        node.until(lambda: not scene.silent(pod, "mail.example.com"), WHOLE)
        assert rcode(scene.ask(pod, "mail.example.com")) == "NXDOMAIN"
        assert not scene.opens(pod, DB)
        assert scene.resolve(pod, "db.example.com") == [DB]
        assert scene.opens(pod, DB)
        node.lab.remove_pod(pod)
    rate, at_once = OFTEN_LINES
    about = sum(bool(re.search(r"(came on|went from) veth-[fghi]", line)) for line in written)
    assert about <= len(NAMES) * (at_once + rate * (took + WHOLE))
    assert set(journal.kinds()) <= {"events_suppressed"}  # of these links' lines, counted above
