"""What the real program tells of the packets it drops: kinds, budgets, a full ring, and the reader of it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from dnsguard.core.model import Address, LinkIndex
from dnsguard.enforce.bpf import events, layout
from dnsguard.enforce.bpf.events import AT_ONCE, DropReader, answered, denial, dropped
from dnsguard.enforce.bpf.layout import What
from dnsguard.enforce.bpf.ring import Ring
from dnsguard.enforce.denials import Answered, Denial, Dropped
from tests.node.ebpf.rig import LINK, OTHER, OTHER6, POD, POD6, SECOND, Rig, Verdict, address
from tests.node.nftables_lab import ACK, SYN, inside, ip, tcp, udp

HOUR = 3600 * SECOND
ROUTERS = address("ff02::16")
RING = 262144 // (8 + layout.REPORT.size)
"""Reports that fit in the ring, each behind a header of eight octets."""


class Reported:
    """A rig, and what its programs have reported."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.ring = Ring(rig.maps["reports"].fd)
        self.budget(every_ns=1, burst_ns=HOUR)

    def budget(self, *, every_ns: int, burst_ns: int = 0) -> None:
        settings, key = self.rig.maps["settings"], layout.U32.pack(0)
        *idle, query_ns, query_burst_ns, _, _, flows, intercept, audit = layout.SETTINGS.unpack(
            settings.lookup(key) or b""
        )
        packed = layout.SETTINGS.pack(*idle, query_ns, query_burst_ns, every_ns, burst_ns, flows, intercept, audit)
        settings.update(key, packed)

    def new(self) -> list[Denial]:
        return [denial(report) for report in self.ring.read(RING + 1)]

    def drop(self, port: int = 80, times: int = 1, peer: Address = OTHER, link: int = LINK) -> None:
        packet = ip(POD if len(peer) == 4 else POD6, peer, 6, tcp(40000, port, SYN))
        for _ in range(times):
            assert self.rig.from_pod(packet, link=link) is Verdict.DROP

    def pass_a_second(self) -> None:
        """Since the last report of every kind."""
        drops = self.rig.maps["drops"]
        for key, value in list(drops.items()):
            packets, reported_ns = layout.DROP.unpack(value)
            drops.update(key, layout.DROP.pack(packets, reported_ns - SECOND))

    def earn(self) -> None:
        """All of the budget again."""
        self.rig.forget_rates()

    def kinds(self) -> list[int]:
        """The packets that each kind has still to report."""
        return [layout.DROP.unpack(value)[0] for _, value in self.rig.maps["drops"].items()]


@pytest.fixture
def reported(rig: Rig) -> Iterator[Reported]:
    made = Reported(rig)
    yield made
    made.ring.close()


# ---- kinds


def test_the_first_packet_of_a_kind_is_reported_at_once(reported: Reported) -> None:
    reported.drop(80)
    reported.drop(443, peer=OTHER6)
    assert reported.new() == [
        Denial(LinkIndex(LINK), POD, OTHER, 6, 80, "default"),
        Denial(LinkIndex(LINK), POD6, OTHER6, 6, 443, "default"),
    ]


def test_more_of_a_kind_are_one_report_a_second_later_and_all_are_counted(reported: Reported) -> None:
    reported.drop(80, times=5)
    assert [one.packets for one in reported.new()] == [1]
    reported.pass_a_second()
    reported.drop(80, times=3)
    assert [one.packets for one in reported.new()] == [5]
    assert reported.kinds() == [2]
    assert reported.rig.counted(What.DROP_DEFAULT) == 8


@pytest.mark.parametrize(
    "another",
    [
        ip(POD, OTHER, 6, tcp(1, 81, SYN)),
        ip(POD, address("192.0.2.82"), 6, tcp(1, 80, SYN)),
        ip(POD, OTHER, 17, udp(1, 80)),
        ip(address("10.9.9.9"), OTHER, 6, tcp(1, 80, SYN)),
    ],
    ids=["port", "peer", "protocol", "reason"],
)
def test_another_peer_port_protocol_or_reason_is_another_kind(another: bytes, reported: Reported) -> None:
    reported.drop(80)
    reported.rig.from_pod(another)
    assert [one.packets for one in reported.new()] == [1, 1]


def test_another_port_of_the_pod_is_the_same_kind(reported: Reported) -> None:
    reported.drop(80)
    reported.rig.from_pod(ip(POD, OTHER, 6, tcp(2, 80, SYN)))
    assert [one.packets for one in reported.new()] == [1]


def test_a_packet_towards_the_pod_is_told_as_the_pod_sees_it(reported: Reported) -> None:
    assert reported.rig.to_pod(ip(OTHER, POD, 6, tcp(443, 40000, ACK))) is Verdict.DROP
    assert reported.new() == [Denial(LinkIndex(LINK), POD, OTHER, 6, 443, "inbound")]


def test_a_packet_that_cannot_be_read_has_no_addresses(reported: Reported) -> None:
    reported.rig.from_pod(ip(POD, OTHER, 6, tcp(1, 80, SYN))[:30])
    assert reported.new() == [Denial(LinkIndex(LINK), None, None, 0, 0, "malformed")]


def test_what_every_pod_sends_unasked_is_only_counted(reported: Reported) -> None:
    listener_report = b"\x8f\0\0\0\0\0\0\1" + bytes(20)
    reported.rig.from_pod(ip(address("fe80::5"), ROUTERS, 58, listener_report, hop_limit=1))
    assert reported.rig.counted(What.DROP_MULTICAST) == 1
    assert reported.new() == []


# ---- budgets


def test_a_link_beyond_its_budget_reports_nothing_and_counts_all(reported: Reported) -> None:
    reported.budget(every_ns=HOUR, burst_ns=2 * HOUR)
    for port in range(100, 150):
        reported.drop(port)
    assert [one.port for one in reported.new()] == [100, 101, 102]
    assert reported.rig.counted(What.DROP_DEFAULT) == 50


def test_a_scan_beyond_the_budget_takes_no_kinds_place(reported: Reported) -> None:
    reported.budget(every_ns=HOUR)
    for port in range(100, 150):
        reported.drop(port)
    assert len(reported.kinds()) == 1


def test_a_kind_beyond_the_budget_stays_summed_up_for_its_next_report(reported: Reported) -> None:
    reported.budget(every_ns=HOUR)
    reported.drop(80)
    reported.pass_a_second()
    reported.drop(80, times=6)
    assert [one.packets for one in reported.new()] == [1]
    reported.earn()
    reported.drop(80)
    assert [one.packets for one in reported.new()] == [7]


def test_without_a_rate_nothing_is_reported(reported: Reported) -> None:
    reported.budget(every_ns=0, burst_ns=HOUR)
    reported.drop(80, times=3)
    assert (reported.new(), reported.kinds(), reported.rig.counted(What.DROP_DEFAULT)) == ([], [], 3)


def test_a_link_that_uses_up_its_budget_costs_no_other_link_a_report(
    reported: Reported, two_links: tuple[str, int, int]
) -> None:
    namespace, loud, quiet = two_links
    for link in (loud, quiet):
        reported.rig.pair(POD, link, link=link)
    reported.budget(every_ns=HOUR)
    with inside(namespace):
        for port in range(100, 150):
            reported.drop(port, link=loud)
        reported.drop(80, link=quiet)
    assert [(one.link, one.port) for one in reported.new()] == [(loud, 100), (quiet, 80)]


@pytest.fixture
def two_links() -> Iterator[tuple[str, int, int]]:
    """A namespace, and two links in it."""
    namespace = f"dgreports{os.getpid()}"
    subprocess.run(["ip", "netns", "add", namespace], check=True)
    try:
        command = f"ip -n {namespace} link add index 5 name loud type veth peer index 6 name quiet"
        subprocess.run(command.split(), check=True)
        yield namespace, 5, 6
    finally:
        subprocess.run(["ip", "netns", "del", namespace], check=True)


def test_what_two_cpus_told_twice_is_taken_off_the_next_report(reported: Reported) -> None:
    reported.drop(80)
    ((key, _),) = reported.rig.maps["drops"].items()
    reported.rig.maps["drops"].update(key, layout.DROP.pack(2**64 - 2, 0))
    reported.new()
    for expected in ([], [], [1]):
        reported.drop(80)
        assert [one.packets for one in reported.new()] == expected
        reported.pass_a_second()


# ---- the ring


def test_what_finds_the_ring_full_is_told_when_there_is_room(reported: Reported) -> None:
    for port in range(RING):
        reported.drop(1000 + port)
    reported.drop(80, times=4)
    assert len(reported.new()) == RING
    reported.pass_a_second()
    reported.drop(80)
    assert [(one.port, one.packets) for one in reported.new()] == [(80, 5)]


async def test_a_reader_is_given_every_report_a_bounded_number_at_a_time(rig: Rig) -> None:
    found: list[Denial] = []
    turns: list[int] = []
    reported = Reported(rig)
    reported.ring.close()
    reader = DropReader(rig.maps["reports"], found.append)
    loop = asyncio.get_running_loop()

    def turn() -> None:
        turns.append(len(found))
        loop.call_soon(turn)

    for port in range(3 * AT_ONCE):
        reported.drop(1000 + port)
    turn()
    await until(lambda: len(found) >= 3 * AT_ONCE)
    reported.drop(80)
    await until(lambda: len(found) > 3 * AT_ONCE)
    reader.close()
    assert loop.remove_reader(rig.maps["reports"].fd) is False
    assert [one.port for one in found] == [*range(1000, 1000 + 3 * AT_ONCE), 80]
    assert {AT_ONCE, 2 * AT_ONCE} <= set(turns)


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not what():
            await asyncio.sleep(0)


# ---- what was left


def test_what_a_kind_that_fell_quiet_did_not_report_is_told_once(reported: Reported) -> None:
    drops = reported.rig.maps["drops"]
    reported.drop(80, times=5)
    reported.drop(81)
    soon = time.monotonic_ns()
    assert events.left_over(drops, soon) == []
    assert events.left_over(drops, soon + 4 * SECOND) == [
        Denial(LinkIndex(LINK), None, OTHER, 6, 80, "default", packets=4)
    ]
    assert events.left_over(drops, soon + 8 * SECOND) == []
    reported.drop(80)
    assert [(one.port, one.packets) for one in reported.new()] == [(80, 1), (81, 1), (80, 1)]


# ---- the counters


def test_counters_are_read_by_link_reason_and_rule(reported: Reported) -> None:
    reported.drop(80, times=3)
    reported.rig.to_pod(ip(OTHER, POD, 6, tcp(443, 40000, ACK)))
    counts = reported.rig.maps["counts"]
    counts.update(layout.COUNT_KEY.pack(9, What.DROP_RULE, 12), layout.U64.pack(7))
    for what, number in ((What.ANSWERED, 5), (What.ANSWERED_DENIED, 2), (What.ASKED, 4)):
        counts.update(layout.COUNT_KEY.pack(9, what, layout.NO_RULE), layout.U64.pack(number))
    assert sorted(dropped(counts)) == [
        Dropped("default", None, None, LinkIndex(LINK), 3),
        Dropped("inbound", None, None, LinkIndex(LINK), 1),
        Dropped("rule", 12, None, LinkIndex(9), 7),
    ]
    assert answered(counts) == [Answered(LinkIndex(9), 5, 2, 4)]


def test_every_reason_has_its_word() -> None:
    assert set(events.REASONS.values()) == {
        *("source", "unknown", "listener", "queries", "default", "rule", "cut"),
        *("inbound", "malformed", "vlan", "fragment", "multicast"),
    }
