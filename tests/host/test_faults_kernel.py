"""Somebody breaks what dnsguard has in the kernel: the pods stay closed, it is whole again soon, and is told once.

the table, its sets, elements and rules .................... ..._table...
eBPF's links, filters, qdiscs, pins, and their bpffs ....... ..._program..., ..._pin..., ..._bpffs...
a capability that the unit does not have ................... ..._capability...
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from dnsguard.enforce.bpf.clsact import filters_of
from dnsguard.enforce.bpf.hooks import HOOKS, Hook
from dnsguard.enforce.bpf.syscall import prog_query
from tests.host import tries
from tests.host.faults import Journal, drop_in, in_time, older, standing_still, whole
from tests.host.host import UNIT, Host
from tests.host.troubles import WHOLE
from tests.host.watch import FLOWS, QUERIES, Way, closed
from tests.node.scene import DB, OTHER, A

pytestmark = pytest.mark.node

OVERFLOW = 30_000
"""Elements that somebody else adds at once: more than the notifications hold that `older.py` has the kernel keep."""
UNNOTICED = int(0.1 / tries.QUESTIONS_EVERY)
"""Queries of a pod that may go up before the change is noticed: those of 0.1 s."""
PINS = "/sys/fs/bpf/dnsguard"
BPFFS = (
    "mount -o remount,rw /sys; mount -t bpf -o nosuid,nodev,noexec,mode=700 bpf /sys/fs/bpf; mount -o remount,ro /sys"
)
CAPABILITIES = ("CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON")
WARNING = "4"
"""PRIORITY in the journal."""


@pytest.fixture(scope="module")
def old(image: Path) -> Iterator[Host]:
    with older(image) as host:
        yield host


def table(host: Host) -> list[str]:
    """Chains, rules, pairs and pod `a`'s leases, without what counts or runs out; sets are in no order."""
    listed = host.machine.shell("nft -s -t list table inet dnsguard && nft list map inet dnsguard pods4 || true")
    lines = (line.partition(" # progname")[0] for line in listed.splitlines())
    parts = {part.strip() for line in lines for part in re.split("[,{}]|elements =", line)}
    # the early unit makes it with the flags of a table that is owned
    return sorted([*(parts - {"flags"}), *host.scene.elements(A)])


def pinned(host: Host) -> list[str]:
    return host.machine.shell(f"cd {PINS} && find . -type f | sort").split()


def programs(host: Host) -> int:
    """How many programs are on the links of the two pods."""

    def count() -> int:
        links = [socket.if_nametoindex(pod.link) for pod in (host.scene.a, host.scene.b)]
        return sum(on_hook(link, hook) for link in links for hook in HOOKS)

    return host.lab.inside(host.lab.node, count)


def on_hook(link: int, hook: Hook) -> int:
    with contextlib.suppress(OSError):  # no such qdisc
        return len(prog_query(link, hook.tcx)) + len(filters_of(link, hook))
    return len(prog_query(link, hook.tcx))


# ---- the table


@pytest.mark.parametrize("command", ["flush ruleset", "delete table inet dnsguard", "flush chain inet dnsguard pod"])
def test_a_table_that_is_owned_is_not_broken_by_others_and_nothing_is_told(standing: Host, command: str) -> None:
    whole(standing)
    before, journal = table(standing), Journal(standing)

    with closed(standing):
        standing.machine.run("nft", *command.split(), check=False)

        whole(standing)
    assert table(standing) == before
    assert journal.told == []


@pytest.mark.parametrize(
    "command",
    [
        "flush ruleset",
        "delete table inet dnsguard",
        "flush set inet dnsguard tcp_8080_v4",
        f"delete element inet dnsguard tcp_8080_v4 {{ {A} . {DB} }}",
        f"add element inet dnsguard tcp_8080_v4 {{ {A} . {OTHER} timeout 1h }}",
        "flush chain inet dnsguard pod",
    ],
)
def test_a_table_that_anybody_may_change_is_put_right_and_told_once(old: Host, command: str) -> None:
    whole(old)
    before, journal = table(old), Journal(old)
    with closed(old) as watch:
        old.machine.run("nft", *command.split())

        assert in_time(lambda: table(old), before) == before
        assert " by nft[" in journal.once("kernel_state_repaired")
        unnoticed = watch.heard()
        assert unnoticed.keys() <= {*QUERIES}
        assert max(unnoticed.values(), default=0) <= UNNOTICED
        whole(old)
    assert len(journal.told) == 1


def test_a_set_that_is_deleted_with_the_rule_that_names_it_comes_back(old: Host) -> None:
    whole(old)
    before, journal = table(old), Journal(old)
    chain = old.machine.shell("nft -a list table inet dnsguard | grep -B9 '@tcp_8080_v4' | grep -o 'chain [a-z0-9_]*'")
    name = chain.split()[-1]
    with closed(old):
        handle = old.machine.shell(f"nft -a list chain inet dnsguard {name} | grep @tcp_8080_v4").split()[-1]

        script = f"delete rule inet dnsguard {name} handle {handle}; delete set inet dnsguard tcp_8080_v4"
        old.machine.run("nft", script)

        assert in_time(lambda: table(old), before) == before
        whole(old)
    journal.once("kernel_state_repaired")


def test_changes_that_are_lost_while_the_daemon_stands_still_are_undone_afterwards_and_told_once(old: Host) -> None:
    whole(old)
    before, journal = table(old), Journal(old)
    old.machine.run("nft", "add table inet somebody; add set inet somebody s { type ipv4_addr; }")
    with closed(old):
        elements = ",".join(f"10.0.{one >> 8}.{one & 0xFF}" for one in range(OVERFLOW))
        with standing_still(old):
            old.machine.run("nft", "-f", "-", stdin=None, input=f"add element inet somebody s {{ {elements} }}")
            old.machine.run("nft", f"add element inet dnsguard tcp_8080_v4 {{ {A} . {OTHER} timeout 1h }}")

        assert in_time(lambda: table(old), before) == before
        assert "notifications were lost (ENOBUFS)" in journal.once("kernel_state_repaired")
        whole(old)
    old.machine.run("nft", "delete table inet somebody")
    assert len(journal.told) == 1


def test_what_is_taken_away_while_no_daemon_runs_is_open_until_the_next_has_put_it_back(old: Host) -> None:
    """Also shows that all that is watched is open then."""
    scene, came_out = old.scene, Counter[Way]()
    old.machine.systemctl("stop", UNIT, "dnsguard.socket")
    links = (scene.a.link, scene.b.link)
    with closed(old) as watch:
        old.machine.shell("; ".join(("nft flush ruleset", *(f"tc qdisc del dev {link} clsact" for link in links))))
        old.until(lambda: bool(came_out.update(watch.heard())) or came_out.keys() == {*FLOWS, *QUERIES})

        old.daemon.start()

        assert watch.heard()  # until now
        whole(old)
        assert programs(old) == 4


# ---- eBPF


def test_programs_that_are_detached_are_put_back_and_told_once(standing: Host) -> None:
    journal = Journal(standing)
    with closed(standing):
        with standing_still(standing):
            standing.machine.shell(f"for pin in {PINS}/links/*; do bpftool link detach pinned $pin; done")
            assert programs(standing) == 0

        assert in_time(lambda: programs(standing), 4) == 4
        told = journal.once("kernel_state_repaired")
        whole(standing)
    assert "veth-a: from_pod was gone, veth-a: to_pod was gone, veth-b: from_pod was gone" in told


def test_pins_that_are_removed_are_put_back_so_that_all_outlives_the_daemon_and_told_once(standing: Host) -> None:
    before, journal = pinned(standing), Journal(standing)
    with closed(standing):
        with standing_still(standing):
            standing.machine.shell(f"rm {PINS}/links/* {PINS}/maps/* {PINS}/layout")
            assert in_time(lambda: programs(standing), 0) == 0  # the kernel lets go of them a little later

        assert in_time(lambda: (pinned(standing), programs(standing)), (before, 4)) == (before, 4)
        assert "pins of 19 maps were gone" in journal.once("kernel_state_repaired")
        whole(standing)
        standing.machine.systemctl("stop", UNIT, "dnsguard.socket")
        assert programs(standing) == 4
        standing.daemon.start()
        whole(standing)


def test_a_map_whose_pin_was_removed_is_the_next_daemons_too(standing: Host) -> None:
    scene = standing.scene
    standing.machine.shell(f"rm {PINS}/maps/flows")
    standing.until(lambda: "./maps/flows" in pinned(standing), WHOLE)
    whole(standing)
    with scene.connect(scene.a, DB) or pytest.fail("closed") as flow:
        standing.machine.systemctl("restart", UNIT)
        assert flow.alive()


def test_filters_and_qdiscs_that_are_removed_are_put_back_and_told_once(old: Host) -> None:
    whole(old)
    journal = Journal(old)
    with closed(old):
        with standing_still(old):
            old.machine.shell(
                f"tc filter del dev {old.scene.a.link} ingress; tc qdisc del dev {old.scene.b.link} clsact"
            )
            assert programs(old) == 1

        assert in_time(lambda: programs(old), 4) == 4
        told = journal.once("kernel_state_repaired")
        whole(old)
    assert told.endswith("veth-a: from_pod was gone, veth-b: from_pod was gone, veth-b: to_pod was gone")


def test_a_bpffs_that_is_unmounted_changes_nothing_until_the_restart_which_makes_all_anew(standing: Host) -> None:
    before, journal = pinned(standing), Journal(standing)
    with closed(standing):
        standing.machine.run("umount", "/sys/fs/bpf")

        assert "until dnsguard stops" in journal.once("bpffs_unmounted")
        assert programs(standing) == 4
        whole(standing)
        standing.machine.shell(BPFFS)
        standing.machine.systemctl("restart", UNIT)
        whole(standing)
    assert (pinned(standing), programs(standing)) == (before, 4)
    assert standing.daemon.ask("status")["enforcers"] == ["nftables", "ebpf"]
    assert len(journal.told) == 1


# ---- capabilities


def without(capability: str) -> str:
    left = " ".join(one for one in CAPABILITIES if one != capability)
    return f"AmbientCapabilities=\nAmbientCapabilities={left}"


@pytest.mark.parametrize("capability", ["CAP_BPF", "CAP_PERFMON"])
def test_without_a_capability_of_ebpf_nftables_enforces_alone_and_the_event_names_it(
    standing: Host, capability: str
) -> None:
    with closed(standing):
        with drop_in(standing, "less", without(capability)):
            standing.machine.systemctl("restart", UNIT)
            whole(standing)
            assert standing.daemon.ask("status")["enforcers"] == ["nftables"]
            (told,) = standing.machine.journal(f"_PID={standing.daemon.pid}", "DNSGUARD_EVENT=ebpf_not_used")
            assert told["PRIORITY"] == WARNING
            assert f"the eBPF program needs {capability}: " in told["MESSAGE"]
            assert f"the eBPF program needs {capability}: " in standing.daemon.ask("status")["absent"]["ebpf"]
            assert programs(standing) == 0
        standing.machine.systemctl("restart", UNIT)
        whole(standing)
    assert standing.daemon.ask("status")["enforcers"] == ["nftables", "ebpf"]
    assert programs(standing) == 4


def test_without_bpf_at_all_what_an_earlier_daemon_put_on_the_links_is_taken_off(standing: Host) -> None:
    with closed(standing):
        with drop_in(standing, "less", "SystemCallFilter=~bpf"):
            standing.machine.systemctl("restart", UNIT)
            whole(standing)
            assert standing.daemon.ask("status")["enforcers"] == ["nftables"]
            assert programs(standing) == 0
        standing.machine.systemctl("restart", UNIT)
        whole(standing)
    assert programs(standing) == 4


def test_without_the_capability_for_the_network_it_does_not_start_and_the_node_stays_as_it_was(standing: Host) -> None:
    whole(standing)
    before = table(standing)
    with closed(standing):
        with drop_in(standing, "less", without("CAP_NET_ADMIN")):
            standing.machine.systemctl("restart", UNIT, check=False)
            standing.until(lambda: standing.machine.show(UNIT, "ExecMainStatus") == {"ExecMainStatus": "77"})
            assert "CAP_NET_ADMIN is missing" in standing.machine.shell(f"journalctl -u {UNIT} -n 20 -o cat")
            assert table(standing) == before
            assert programs(standing) == 4
            assert standing.scene.opens(standing.scene.a, DB)
        standing.until(standing.daemon.ready)
        whole(standing)
