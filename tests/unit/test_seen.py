"""What was seen is gathered from the engine, connection tracking and the kernel, and outlives whatever happens to its
file."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from dnsguard.core.book import Capacity
from dnsguard.core.compile import compile_program
from dnsguard.core.leases import Leases
from dnsguard.core.limits import Limits, Share
from dnsguard.core.model import Action, Address, Flow, LinkIndex
from dnsguard.core.names import parse_name
from dnsguard.core.pods import Assignment, PodTable
from dnsguard.core.policy import effective
from dnsguard.daemon.seen import Seen, Sources
from dnsguard.enforce.denials import Audited, Denial
from dnsguard.engine.contracts import EventKind
from dnsguard.learning.book import Book
from dnsguard.learning.rows import SeenRow
from dnsguard.learning.state import VERSION, SeenFile
from dnsguard.node.scripted import ScriptedFlows

POD = "shop/a"


def address(text: str) -> Address:
    return Address(ip_address(text).packed)


OWN, PEER, RESOLVER = address("10.244.0.5"), address("192.0.2.1"), address("10.96.0.10")


class Told:
    all_queries = all_leases = False

    def __init__(self) -> None:
        self.events: list[tuple[EventKind, dict[str, Any]]] = []

    def emit(self, kind: EventKind, /, **fields: Any) -> None:
        self.events.append((kind, fields))


class Node:
    """A node with one pod, whose flows and records a test sets."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.told = Told()
        self.flows = ScriptedFlows()
        self.records: list[Audited] = []
        self.pods, self.leases = PodTable(), Leases(Capacity())
        policy = effective((), Action.DENY)
        share = Share(Limits(), 0.0)
        assignment = Assignment(POD, policy)
        self.pods.came(
            LinkIndex(3), "veth-a", [OWN], assignment=assignment, program=compile_program(policy), share=share
        )
        self.leases.add_pod(next(iter(self.pods)).id, [OWN])
        self.book, self.seen = self.process()

    def process(self) -> tuple[Book, Seen]:
        async def audited() -> Sequence[Audited]:
            return self.records

        book = Book()
        return book, Seen(book, Sources(self.pods, self.leases, self.flows, audited), self.folder, self.told)

    def open(self, port: int, pod_port: int = 40_000, peer: Address = PEER, protocol: int = 6) -> None:
        self.flows.flows.add(Flow(protocol, OWN, pod_port, peer, port, peer, port))

    async def row(self) -> SeenRow:
        (row,) = await self.seen.rows()
        return row


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "state")


async def test_open_flows_are_counted_once_each_and_named_by_the_answers(node: Node) -> None:
    class Answer:
        addresses, rcode = (PEER,), 0

    node.book.answered(POD, parse_name("db.example.com"), Answer, "web", 1.0)  # type: ignore[arg-type]
    node.open(5432, 40_000)
    await node.seen.look()
    node.open(5432, 40_001)
    await node.seen.look()

    (flow,) = (await node.row())["flows"]

    assert (flow["address"], flow["port"], flow["count"]) == ("192.0.2.1", 5432, 2)
    assert (flow["names"], flow["denied"]) == (["db.example.com"], False)


async def test_intercepted_questions_are_no_flows(node: Node) -> None:
    node.open(53, peer=RESOLVER, protocol=17)
    node.open(853, peer=RESOLVER)

    assert [flow["port"] for flow in (await node.row())["flows"]] == [853]


async def test_what_the_kernel_recorded_in_audit_is_counted_by_its_growth(node: Node) -> None:
    node.records = [Audited(OWN, PEER, 17, 123, None, 3)]
    await node.seen.look()
    node.records = [Audited(OWN, PEER, 17, 123, None, 5)]
    await node.seen.look()

    (flow,) = (await node.row())["flows"]

    assert (flow["protocol"], flow["port"], flow["count"], flow["denied"]) == (17, 123, 5, True)


async def test_a_flow_that_audit_let_through_is_counted_by_its_record_and_stays_one_that_no_rule_allowed(
    node: Node,
) -> None:
    node.records = [Audited(OWN, PEER, 6, 443, None, 1)]
    node.open(443)
    await node.seen.look()
    await node.seen.look()

    (flow,) = (await node.row())["flows"]

    assert (flow["count"], flow["denied"]) == (1, True)


async def test_records_that_an_earlier_process_has_seen_are_not_counted_again(node: Node) -> None:
    node.records = [Audited(OWN, PEER, 17, 123, None, 3)]
    await node.seen.rows()
    node.book, node.seen = node.process()
    await node.seen.begin()

    assert [flow["count"] for flow in (await node.row())["flows"]] == [3]


async def test_a_dropped_packet_is_a_flow_that_was_denied(node: Node) -> None:
    node.seen.denied(Denial(LinkIndex(3), OWN, PEER, 6, 443, "default", packets=4))
    node.seen.denied(Denial(LinkIndex(3), OWN, PEER, 6, 444, "source"))
    node.seen.denied(Denial(LinkIndex(9), OWN, PEER, 6, 445, "default"))
    node.seen.denied(Denial(LinkIndex(3), OWN, PEER, 6, 446, "default", begins=False))

    (flow,) = (await node.row())["flows"]

    assert (flow["port"], flow["count"], flow["denied"]) == (443, 4, True)


async def test_leases_name_what_the_answers_of_this_process_do_not(node: Node) -> None:
    pod = next(iter(node.pods)).id
    until = time.monotonic() + 60
    node.leases.restore(pod, "tcp_443", PEER, names={parse_name("old.example.com"): until}, until=until)
    node.open(443)

    (flow,) = (await node.row())["flows"]

    assert flow["names"] == ["old.example.com"]


# ---- the file


async def test_what_was_seen_is_there_again_for_the_next_process(node: Node) -> None:
    node.book.unanswered(POD, parse_name("db.example.com"), "", time.monotonic())
    node.open(5432)
    await node.seen.close()
    (before,), _ = SeenFile(node.folder).read()
    node.flows.flows.clear()
    node.book, node.seen = node.process()

    await node.seen.begin()
    after = await node.row()

    assert (after["names"], after["flows"]) == (before["names"], before["flows"])
    assert abs(after["names"][0]["last"] - time.time()) < 5


def corrupt(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0" + bytes(4000))


def foreign(path: Path) -> None:
    path.write_text("this is no database, and long enough to be taken for one at the first look" * 20)


def newer(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute(f"PRAGMA user_version = {VERSION + 1}")


def mangled(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("UPDATE seen SET row = '{\"pod\": 1}'")


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize("damage", [corrupt, foreign, newer, mangled, cut_short])
async def test_a_file_that_cannot_be_used_is_set_aside_and_a_new_one_begun(node: Node, damage: Any) -> None:
    node.book.unanswered(POD, parse_name("db.example.com"), "", 1.0)
    await node.seen.rows()
    path = node.folder / "seen.sqlite"
    damage(path)
    node.book, node.seen = node.process()

    await node.seen.begin()
    node.book.unanswered(POD, parse_name("new.example.com"), "", 1.0)
    await node.seen.flush()

    (told,) = node.told.events
    assert told[0] is EventKind.SEEN_FILE_FAILED and "a new one is begun" in told[1]["reason"]
    assert (node.folder / "seen.unusable").exists()
    rows, problem = SeenFile(node.folder).read()
    assert (problem, [name["name"] for name in rows[0]["names"]]) == ("", ["new.example.com"])


async def test_a_file_that_cannot_be_written_is_told_of_once_and_written_when_it_can_be(node: Node) -> None:
    node.folder.parent.mkdir(exist_ok=True)
    node.folder.write_text("a file where the folder should be")
    node.book.unanswered(POD, parse_name("db.example.com"), "", 1.0)
    await node.seen.flush()
    await node.seen.flush()
    told = len(node.told.events)
    node.folder.unlink()

    await node.seen.flush()

    assert told == 1
    assert [row["pod"] for row in SeenFile(node.folder).read()[0]] == [POD]


async def test_a_full_disk_costs_nothing_but_the_write(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file system is filled for it: SQLite is told that its file may have no more pages."""
    node.book.unanswered(POD, parse_name("db.example.com"), "", 1.0)
    await node.seen.flush()
    connect = sqlite3.connect

    def small(*argv: Any, **options: Any) -> sqlite3.Connection:
        database = connect(*argv, **options)
        database.execute("PRAGMA max_page_count = 1")
        return database

    monkeypatch.setattr(sqlite3, "connect", small)
    for number in range(300):
        node.book.unanswered(POD, parse_name(f"n{number}.d{number}.example.com"), "", 1.0)
    await node.seen.flush()
    monkeypatch.undo()

    assert "full" in node.told.events[-1][1]["reason"]
    await node.seen.flush()
    assert len(SeenFile(node.folder).read()[0][0]["names"]) == 301


async def test_the_loop_goes_on_while_the_disk_is_slow(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    release = asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow(self: SeenFile, rows: Any) -> str:
        asyncio.run_coroutine_threadsafe(release.wait(), loop).result(5)
        return ""

    monkeypatch.setattr(SeenFile, "write", slow)
    node.book.unanswered(POD, parse_name("db.example.com"), "", 1.0)
    flushing = asyncio.create_task(node.seen.flush())
    await asyncio.sleep(0)
    await node.seen.look()
    assert not flushing.done()
    release.set()
    await flushing
