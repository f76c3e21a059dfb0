"""The enforcer's promises: acknowledgements, refusals, changes that are atomic, what survives it, what it repairs."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from dnsguard.core.errors import KernelError
from dnsguard.core.model import Action, Flow, Packet, Program, Protocol
from dnsguard.enforce.nftables import remove_table
from dnsguard.engine.contracts import Desired, Write
from tests.node.nftables.test_nftables_decision import ANY, HOUR, WEB, leasing
from tests.node.nftables.test_nftables_interception import until
from tests.node.nftables_lab import (
    LAYOUT,
    NODE_MAC,
    PEER,
    PEER6,
    POD,
    POD6,
    POD_MAC,
    SYN,
    TCP,
    Lab,
    Subject,
    addr,
    inside,
    ip,
    start,
    tcp,
)  # fmt: skip

pytestmark = pytest.mark.node
KEY, KEY6 = POD + PEER, POD6 + PEER6


def key(number: int) -> bytes:
    return POD + struct.pack(">I", 0xC6120000 + number)


def desired(subject: Subject, *programs: Program) -> Desired:
    link = subject.lab.link()
    return Desired(programs, {(link, POD): programs[0].name, (link, POD6): programs[0].name})


async def settled(subject: Subject, ticket: int) -> dict[int, str]:
    """Every refusal, once all tickets up to this one are settled."""
    await until(lambda: bool(subject.acknowledged) and subject.acknowledged[-1][0] >= ticket)
    return {number: why for _, refused in subject.acknowledged for number, why in refused.items()}


async def held(subject: Subject) -> dict[tuple[str, bytes], int]:
    return {(each.scope, each.key): each.remaining_ms for each in await subject.enforcer.read()}


@contextmanager
def writer_held(subject: Subject) -> Iterator[None]:
    """Whatever is armed meanwhile goes into one batch."""
    release = threading.Event()
    subject.enforcer._writer.do(lambda: release.wait(10))
    yield
    release.set()


async def test_an_acknowledged_lease_is_in_the_kernel(subject: Subject) -> None:
    await subject.enforcer.apply(desired(subject, leasing(WEB)))
    subject.enforcer.arm(7, [Write("tcp_443", KEY, HOUR), Write("tcp_443", KEY6, HOUR)])
    assert await settled(subject, 7) == {}
    assert subject.lab.decide(Packet(POD, PEER, Protocol.TCP, 443))
    assert subject.lab.decide(Packet(POD6, PEER6, Protocol.TCP, 443))


async def test_writes_that_gathered_are_acknowledged_together(subject: Subject) -> None:
    await subject.enforcer.apply(desired(subject, leasing(WEB)))
    with writer_held(subject):
        for ticket in range(1, 101):
            subject.enforcer.arm(ticket, [Write("tcp_443", key(ticket), HOUR)])
    await settled(subject, 100)
    assert subject.acknowledged == [(100, {})]
    assert len(await held(subject)) == 100


async def test_a_refused_write_fails_its_own_ticket_only(subject: Subject) -> None:
    await subject.enforcer.apply(desired(subject, leasing(WEB)))
    with writer_held(subject):
        subject.enforcer.arm(1, [Write("tcp_443", key(1), HOUR)])
        subject.enforcer.arm(2, [Write("tcp_443", key(2), HOUR), Write("tcp_99", key(2), HOUR)])
        subject.enforcer.arm(3, [Write("tcp_443", key(3), HOUR)])
    assert await settled(subject, 3) == {2: "ENOENT"}
    assert {("tcp_443", key(1)), ("tcp_443", key(3))} <= (await held(subject)).keys()


@pytest.mark.parametrize("refreshes", [True, False])
async def test_a_full_set_refuses_what_is_new_and_refreshes_what_is_there(lab: Lab, refreshes: bool) -> None:
    subject = await start(lab, replace(LAYOUT, leases=0))
    try:
        subject.enforcer._table._leases._refreshes = refreshes
        await subject.enforcer.apply(desired(subject, leasing(WEB, ANY)))
        size = subject.enforcer._layout.lease_set_size
        subject.enforcer.arm(1, [Write("tcp_443", key(n), HOUR) for n in range(size)])
        with writer_held(subject):
            subject.enforcer.arm(2, [Write("tcp_443", key(size), HOUR)])
            subject.enforcer.arm(3, [Write("tcp_443", key(0), 2 * HOUR)])
            subject.enforcer.arm(4, [Write("any", key(size), HOUR)])
        assert await settled(subject, 4) == {2: "ENFILE"}
        leases = await held(subject)
        assert leases["tcp_443", key(0)] > HOUR
        assert ("any", key(size)) in leases
    finally:
        await subject.close()


@pytest.mark.parametrize("refreshes", [True, False])
async def test_a_lease_armed_again_lives_as_long_as_it_was_last_told(subject: Subject, refreshes: bool) -> None:
    subject.enforcer._table._leases._refreshes = refreshes
    await subject.enforcer.apply(desired(subject, leasing(WEB)))
    for ticket, timeout in enumerate((60_000, 600_000, 30_000, 30_000)):
        subject.enforcer.arm(ticket, [Write("tcp_443", KEY, timeout)])
        left = (await held(subject))["tcp_443", KEY]
        assert timeout - 5_000 < left <= timeout


async def test_of_two_writes_of_one_key_in_one_batch_the_longer_counts(subject: Subject) -> None:
    await subject.enforcer.apply(desired(subject, leasing(WEB)))
    with writer_held(subject):
        subject.enforcer.arm(1, [Write("tcp_443", KEY, 600_000), Write("tcp_443", KEY, 60_000)])
        subject.enforcer.arm(2, [Write("tcp_443", KEY, 90_000)])
    assert await settled(subject, 2) == {}
    assert (await held(subject))["tcp_443", KEY] > 590_000


async def test_a_change_that_is_refused_leaves_everything_as_it_was(subject: Subject) -> None:
    before = desired(subject, leasing(WEB))
    await subject.enforcer.apply(before, [Write("tcp_443", KEY, HOUR)])
    table = subject.lab.nft("list table inet dnsguard").replace("expires", "").split()
    leases = await held(subject)
    after = desired(subject, leasing(ANY, name="p_new"))
    writes = [Write("any", KEY, HOUR), Write("tcp_443", KEY, 2 * HOUR), Write("tcp_443", key(1), HOUR)]
    with pytest.raises(KernelError, match="tcp_1"):
        await subject.enforcer.apply(after, [*writes, Write("tcp_1", KEY, HOUR)])
    assert (await held(subject)).keys() == leases.keys()
    assert (await held(subject))["tcp_443", KEY] <= HOUR
    assert len(subject.lab.nft("list table inet dnsguard").replace("expires", "").split()) == len(table)
    assert await subject.enforcer.verify() == []


async def test_a_first_change_that_is_refused_leaves_no_table(subject: Subject) -> None:
    with pytest.raises(KernelError):
        await subject.enforcer.apply(desired(subject, leasing(WEB)), [Write("tcp_1", KEY, HOUR)])
    assert subject.lab.nft("list tables") == ""


async def test_a_pair_that_runs_no_known_program_is_refused(subject: Subject) -> None:
    with pytest.raises(KernelError, match="p_gone"):
        await subject.enforcer.apply(Desired((), {(subject.lab.link(), POD): "p_gone"}))


async def test_what_a_new_generation_does_not_use_is_deleted(subject: Subject) -> None:
    await subject.enforcer.apply(desired(subject, leasing(WEB)), [Write("tcp_443", KEY, HOUR)])
    await subject.enforcer.apply(desired(subject, leasing(ANY, name="p_new")), [Write("any", KEY, HOUR)])
    text = subject.lab.nft("list table inet dnsguard")
    assert "p_1ea5e5000000" not in text and "tcp_443" not in text
    assert (await held(subject)).keys() == {("any", KEY)}


class Flood(threading.Thread):
    """New flows from the pod to one address, as fast as they go, until `stop` tells how many arrived."""

    def __init__(self, lab: Lab, peer: bytes = PEER) -> None:
        super().__init__()
        self._lab, self._peer = lab, peer
        self._done = threading.Event()
        self.sent = 0
        with inside(lab.pod):
            self._out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._out.bind(("eth0", 0))
        self._in = lab.frames[lab.world]
        self._in.setsockopt(socket.SOL_SOCKET, 33, 256 << 20)
        self.start()

    def run(self) -> None:
        head = NODE_MAC + POD_MAC + b"\x08\x00"
        while not self._done.is_set():
            port = 1024 + self.sent % 60000
            self._out.send(head + ip(POD, self._peer, TCP, tcp(port, 443, SYN)))  # type: ignore[arg-type]
            self.sent += 1

    def stop(self) -> tuple[int, int]:
        """(sent, arrived)"""
        self._done.set()
        self.join()
        self._out.close()
        deadline, arrived = time.monotonic() + 0.3, 0
        while arrived < self.sent and time.monotonic() < deadline:
            try:
                arrived += self._in.recv(2048)[23] == TCP
            except BlockingIOError:
                time.sleep(0.001)
        return self.sent, arrived


async def test_turning_to_a_new_generation_loses_no_packet_and_lets_no_other_through(subject: Subject) -> None:
    generations = [desired(subject, leasing(WEB, name=name)) for name in ("p_one", "p_two")]
    await subject.enforcer.apply(generations[0], [Write("tcp_443", KEY, HOUR)])
    flood = Flood(subject.lab)
    for turn in range(20):
        await subject.enforcer.apply(generations[turn % 2])
    sent, arrived = flood.stop()
    assert arrived == sent > 20
    closed = Flood(subject.lab, addr("192.0.2.81"))
    for turn in range(20):
        await subject.enforcer.apply(generations[turn % 2])
    assert closed.stop()[1] == 0


@pytest.mark.parametrize("own", [None, False])
async def test_a_new_process_finds_the_leases_and_takes_over_without_a_gap(lab: Lab, own: bool | None) -> None:
    old = await start(lab, own=own)
    await old.enforcer.apply(desired(old, leasing(WEB)), [Write("tcp_443", KEY, HOUR)])
    await old.close()
    allowed, closed = Flood(lab), None
    new = await start(lab, own=own)
    try:
        assert (await held(new)).keys() == {("tcp_443", KEY)}
        await new.enforcer.apply(desired(new, leasing(WEB)))
        sent, arrived = allowed.stop()
        assert arrived == sent > 0
        assert (await held(new)).keys() == {("tcp_443", KEY)}
        assert await new.enforcer.verify() == []
        assert new.enforcer.owned is (own is None)
        closed = Flood(lab, addr("192.0.2.81"))
        await new.close()
        new = await start(lab, own=own)
        await new.enforcer.apply(Desired())
        assert closed.stop()[1] == 0
        assert await held(new) == {}
    finally:
        await new.close()


@pytest.mark.parametrize("added", ["10.244.0.5 . 192.0.2.81", "*", "* timeout 1h"])
async def test_what_others_added_without_an_end_or_for_all_is_deleted_at_the_take_over(lab: Lab, added: str) -> None:
    old = await start(lab, own=False)
    await old.enforcer.apply(desired(old, leasing(WEB)), [Write("tcp_443", KEY, HOUR)])
    await old.close()
    lab.nft(f"add element inet dnsguard tcp_443_v4 {{ {added} }}")
    new = await start(lab, own=False)
    try:
        await new.enforcer.apply(desired(new, leasing(WEB)))
        assert not lab.decide(Packet(POD, addr("192.0.2.81"), Protocol.TCP, 443))
        assert (await held(new)).keys() == {("tcp_443", KEY)}
    finally:
        await new.close()


async def test_a_taken_over_table_is_enforced_before_the_first_change(lab: Lab) -> None:
    old = await start(lab)
    await old.enforcer.apply(desired(old, leasing(WEB)), [Write("tcp_443", KEY, HOUR)])
    await old.close()
    new = await start(lab)
    try:
        assert lab.decide(Packet(POD, PEER, Protocol.TCP, 443))
        new.enforcer.arm(1, [Write("tcp_443", key(1), HOUR)])
        assert await settled(new, 1) == {}
        assert not lab.decide(Packet(POD, PEER, Protocol.TCP, 444))
    finally:
        await new.close()


async def test_nobody_else_can_change_an_owned_table(subject: Subject) -> None:
    await subject.enforcer.apply(desired(subject, leasing(WEB)))
    assert subject.enforcer.owned
    subject.lab.nft("flush ruleset")
    subject.lab.nft("flush chain inet dnsguard pod", check=False)
    assert await subject.enforcer.verify() == []


async def test_a_second_process_is_told_that_the_table_is_taken(subject: Subject) -> None:
    await subject.enforcer.apply(Desired())
    with pytest.raises(KernelError, match="another process"):
        await start(subject.lab, replace(LAYOUT, nflog_group=77))
    with inside(subject.lab.node), pytest.raises(KernelError, match="running"):
        remove_table()


async def test_a_log_group_that_is_taken_is_an_error_that_names_it(subject: Subject) -> None:
    with pytest.raises(KernelError, match="NFLOG group 5353"):
        await start(subject.lab)


DAMAGE = {
    "everything flushed": "flush ruleset",
    "the table deleted": "delete table inet dnsguard",
    "a lease deleted": "delete element inet dnsguard tcp_443_v4 { 10.244.0.5 . 192.0.2.80 }",
    "a lease added": "add element inet dnsguard tcp_443_v4 { 10.244.0.5 . 192.0.2.81 timeout 1h }",
    "a lease without an end": "add element inet dnsguard tcp_443_v4 { 10.244.0.5 . 192.0.2.81 }",
    "a rule added": "insert rule inet dnsguard pod accept",
    "a chain emptied": "flush chain inet dnsguard program_p_1ea5e5000000",
    "a hook of another": "add chain inet dnsguard evil { type filter hook prerouting priority -400; policy drop; }",
    "the base chain deleted": "delete chain inet dnsguard intercept",
    "a program without its pair": "flush map inet dnsguard pods4",
    "a pair added": "add element inet dnsguard excluded4 { {LINK} . 10.244.0.5 }",
    "a lease of every pair": "add element inet dnsguard tcp_443_v4 { * timeout 1h }",
    "a lease of every pair without an end": "add element inet dnsguard tcp_443_v4 { * }",
    "an exception of every pair": "add element inet dnsguard excluded4 { * }",
    "a program of every pair": "add element inet dnsguard pods4 { * : goto program_p_1ea5e5000000 }",
    "a set of another type": "flush chain inet dnsguard program_p_1ea5e5000000\ndelete set inet dnsguard tcp_443_v4\n"
    "add set inet dnsguard tcp_443_v4 { type ipv4_addr; }",
    "the cuts flushed": "flush set inet dnsguard cut4",
}


@pytest.mark.parametrize("commands", DAMAGE.values(), ids=DAMAGE.keys())
async def test_foreign_changes_are_heard_and_repaired_with_leases_and_cuts(lab: Lab, commands: str) -> None:
    subject = await start(lab, own=False)
    try:
        writes = [Write("tcp_443", KEY, HOUR), Write("tcp_443", KEY6, HOUR)]
        await subject.enforcer.apply(desired(subject, leasing(WEB)), writes)
        await subject.enforcer.cut([Flow(TCP, POD, 40000, PEER, 443, PEER, 443)])
        lab.nft(commands.replace("{LINK}", str(lab.link())))
        await until(lambda: bool(subject.damage))
        await subject.enforcer.repair()
        assert " by nft[" in subject.damage[0]
        assert await subject.enforcer.verify() == []
        leases = await held(subject)
        assert leases.keys() == {("tcp_443", KEY), ("tcp_443", KEY6)}
        assert all(HOUR - 60_000 < left <= HOUR for left in leases.values())
        assert lab.decide(Packet(POD, PEER, Protocol.TCP, 443))
        assert lab.decide(Packet(POD6, PEER6, Protocol.TCP, 443))
        assert not lab.decide(Packet(POD, addr("192.0.2.81"), Protocol.TCP, 443))
        assert not lab.through(ip(POD, PEER, TCP, tcp(40000, 443, SYN, lab.nonce())))
    finally:
        await subject.close()


async def test_a_repair_needs_nobody_to_ask_for_it(lab: Lab) -> None:
    subject = await start(lab, own=False)
    try:
        await subject.enforcer.apply(desired(subject, leasing(WEB)), [Write("tcp_443", KEY, HOUR)])
        lab.nft("flush ruleset")
        await until(lambda: "dnsguard" in lab.nft("list tables"))
        await until(lambda: not subject.enforcer._writer._jobs and subject.enforcer.busy_since is None)
        assert (await held(subject)).keys() == {("tcp_443", KEY)}
    finally:
        await subject.close()


async def test_an_answer_that_comes_upon_a_flushed_table_is_repaired_first(lab: Lab) -> None:
    subject = await start(lab, own=False)
    try:
        await subject.enforcer.apply(desired(subject, leasing(WEB)))
        lab.nft("flush ruleset")
        subject.enforcer.arm(1, [Write("tcp_443", KEY, HOUR)])
        assert await settled(subject, 1) == {}
        assert lab.decide(Packet(POD, PEER, Protocol.TCP, 443))
    finally:
        await subject.close()


async def test_a_change_that_comes_upon_a_flushed_table_is_made_all_the_same(lab: Lab) -> None:
    subject = await start(lab, own=False)
    try:
        await subject.enforcer.apply(desired(subject, leasing(WEB)))
        with writer_held(subject):
            change = subject.enforcer.apply(desired(subject, leasing(ANY, name="p_new")), [Write("any", KEY, HOUR)])
            cut = subject.enforcer.cut([Flow(TCP, POD, 40000, PEER, 443, PEER, 443)])
            lab.nft("flush ruleset")
        await asyncio.gather(change, cut)
        assert lab.decide(Packet(POD, PEER, Protocol.UDP, 1))
        assert not lab.through(ip(POD, PEER, TCP, tcp(40000, 443, SYN, lab.nonce())))
    finally:
        await subject.close()


async def test_its_own_writes_and_other_tables_are_no_damage(lab: Lab) -> None:
    subject = await start(lab, own=False)
    try:
        await subject.enforcer.apply(desired(subject, leasing(WEB)), [Write("tcp_443", KEY, HOUR)])
        lab.nft("table inet another { set s { type ipv4_addr; elements = { 192.0.2.1 }\n }\n}")
        subject.enforcer.arm(1, [Write("tcp_443", key(1), HOUR)])
        lab.nft("insert rule inet dnsguard pod accept")  # what is heard now came last
        await until(lambda: bool(subject.damage))
        assert len(subject.damage) == 1 and subject.damage[0].startswith("rule added")
    finally:
        await subject.close()


async def test_lost_notifications_count_as_damage(lab: Lab) -> None:
    subject = await start(lab, own=False)
    try:
        await subject.enforcer.apply(desired(subject, leasing(WEB)))
        subject.enforcer._watch._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        many = ", ".join(f"10.{n >> 8}.{n & 255}.0" for n in range(2000))
        lab.nft(f"add table inet another\nadd set inet another s {{ type ipv4_addr; elements = {{ {many} }}; }}")
        await until(lambda: any("lost" in what for what in subject.damage))
        await subject.enforcer.repair()
        assert await subject.enforcer.verify() == []
    finally:
        await subject.close()


async def test_verify_names_what_is_missing(lab: Lab) -> None:
    subject = await start(lab, own=False)
    try:
        await subject.enforcer.apply(desired(subject, leasing(WEB)))
        subject.enforcer._watch.close()
        lab.nft("flush chain inet dnsguard dns")
        assert await subject.enforcer.verify() == ["chain dns has 0 rules, not 7"]
    finally:
        subject.enforcer._close.remove(subject.enforcer._watch.close)
        await subject.close()


async def test_a_program_without_rules_lets_nothing_through(lab: Lab) -> None:
    subject = await start(lab, own=False)
    try:
        await subject.enforcer.apply(desired(subject, Program("p_all", (), Action.ACCEPT)))
        subject.enforcer._close.remove(subject.enforcer._watch.close)
        subject.enforcer._watch.close()
        lab.nft("flush chain inet dnsguard program_p_all\nflush chain inet dnsguard drop_unknown")
        assert not lab.decide(Packet(POD, PEER, Protocol.TCP, 443))
    finally:
        await subject.close()


async def test_close_leaves_enforcement_in_place_and_cleanup_leaves_nothing_but_what_others_made(lab: Lab) -> None:
    lab.nft("add table inet another")
    subject = await start(lab)
    await subject.enforcer.apply(desired(subject, Program("p_none", (), Action.DENY)))
    await subject.close()
    assert not lab.decide(Packet(POD, PEER, Protocol.TCP, 443))
    subject = await start(lab)
    await subject.enforcer.cleanup()
    assert lab.nft("list ruleset").split() == ["table", "inet", "another", "{", "}"]


async def test_the_table_of_a_dead_process_can_be_removed(lab: Lab) -> None:
    subject = await start(lab)
    await subject.enforcer.apply(Desired())
    await subject.close()
    with inside(lab.node):
        assert remove_table()
        assert not remove_table()
    assert lab.nft("list tables") == ""


async def test_calls_are_done_in_their_order(subject: Subject) -> None:
    program = leasing(WEB)
    with writer_held(subject):
        first = subject.enforcer.apply(desired(subject, program))
        subject.enforcer.arm(1, [Write("tcp_443", KEY, HOUR)])
        second = subject.enforcer.read()
        third = subject.enforcer.apply(Desired())
        subject.enforcer.arm(2, [Write("tcp_443", KEY, HOUR)])
    results = await asyncio.gather(first, second, third)
    assert [each.key for each in results[1]] == [KEY]
    assert await settled(subject, 2) == {2: "ENOENT"}
