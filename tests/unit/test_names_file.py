"""The file of names: what is written is read back, what is damaged is set aside, what fails is told and mended."""

from __future__ import annotations

import asyncio
import os
import resource
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnsguard.core.book import Capacity
from dnsguard.core.compile import compile_program
from dnsguard.core.leases import Leases
from dnsguard.core.limits import Limits, Share
from dnsguard.core.model import Action, Address, LinkIndex, Name, Scope
from dnsguard.core.names import parse_name
from dnsguard.core.pods import Assignment, PodTable
from dnsguard.core.policy import effective
from dnsguard.engine.contracts import EventKind
from dnsguard.names_file import record
from dnsguard.names_file.content import (
    APPLICATION,
    FILE,
    MOST_BYTES,
    VERSION,
    boot_id,
    pack_addresses,
    read_names,
    set_aside,
)
from dnsguard.names_file.keeping import KeptNames
from dnsguard.names_file.record import Record
from dnsguard.names_file.store import Batch, NameRow, NamesStore
from dnsguard.names_file.writer import NamesWriter

BOOT = "this"
LINK, ME, PEER = LinkIndex(7), Address(b"\x0a\xf4\0\5"), Address(b"\xc0\0\2\1")
DB = parse_name("db.example.com")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / FILE


def written(path: Path, *batches: Batch, boot: str = BOOT) -> None:
    with closing(NamesStore(path, boot)) as store:
        store.apply(batches)


def one_name(until: float = 50.0) -> Batch:
    return Batch(anew=True, pods=[(LINK, pack_addresses([ME]), "p")], names=[(LINK, "tcp_443", PEER, DB, until)])


def many(count: int) -> list[NameRow]:
    return [(LINK, "any", PEER, parse_name(f"n{number}.test"), 1.0) for number in range(count)]


def sql(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        for statement in statements:
            file.execute(statement)


# -- what is written is read back -------------------------------------------------------------------------------------

addresses = st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)
links = st.sampled_from([1, 2, 3])
scopes = st.sampled_from(["any", "tcp_443", "udp_53_after_1f3a9c2e"])
peers = st.sampled_from([b"\1\2\3\4", b"\1\2\3\5", bytes(16)])
wire = st.sampled_from([b"", b"\0", b"\1a\0", b"\1b\2c\xff\0", DB])
ends = st.floats(allow_nan=False, allow_infinity=False)
keys = st.tuples(links, scopes, peers)
batches = st.builds(
    Batch,
    gone=st.lists(st.tuples(links), max_size=2),
    over=st.lists(keys, max_size=3),
    forgotten=st.lists(st.tuples(links, scopes, peers, wire), max_size=3),
    names=st.lists(st.tuples(links, scopes, peers, wire, ends), max_size=80),
)


@given(st.lists(batches, max_size=4), st.lists(addresses, max_size=3, unique=True))
@settings(max_examples=150, deadline=None)
def test_what_is_written_is_read_back(path_factory: object, made: list[Batch], own: list[bytes]) -> None:
    pods = [(LinkIndex(link), pack_addresses(map(Address, own)), "p") for link in (1, 2, 3)]
    so: dict[tuple[int, str, bytes, bytes], float] = {}
    for batch in made:
        batch.pods = pods
        so = {k: v for k, v in so.items() if (k[0],) not in batch.gone and k[:3] not in batch.over}
        so = {k: v for k, v in so.items() if k not in batch.forgotten}
        so |= {(link, scope, peer, name): until for link, scope, peer, name, until in batch.names}
    path = path_factory() / FILE  # type: ignore[operator]

    written(path, Batch(anew=True, pods=pods), *made)

    found = read_names(path, BOOT)
    assert {
        (link, scope, peer, name): until
        for link, pod in found.items()
        for (scope, peer), names in pod.leases.items()
        for name, until in names.items()
    } == so
    assert {link: pod.addresses for link, pod in found.items()} == dict.fromkeys((1, 2, 3), frozenset(own))


@pytest.fixture(scope="module")
def path_factory(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    return lambda: tmp_path_factory.mktemp("names")


def test_a_thousand_rows_take_every_size_of_statement(path: Path) -> None:
    names = [(LINK, "any", PEER, parse_name(f"n{number}.test"), 1.0 + number) for number in range(999)]
    written(path, Batch(anew=True, pods=[(LINK, pack_addresses([ME]), "p")], names=names))

    written(path, Batch(forgotten=[row[:4] for row in names[:500]]))

    assert read_names(path, BOOT)[LINK].leases == {("any", PEER): {row[3]: row[4] for row in names[500:]}}


def test_a_process_that_is_killed_inside_a_transaction_leaves_what_was_before(path: Path) -> None:
    written(path, one_name())
    child = os.fork()
    if not child:
        store = NamesStore(path, BOOT)
        store._file.execute("PRAGMA cache_size = 10")
        store._file.execute("BEGIN")
        store._apply(Batch(anew=True, names=many(20_000)))
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    journal = path.with_name(path.name + "-journal")
    assert journal.stat().st_size > 0

    assert read_names(path, BOOT)[LINK].leases == {("tcp_443", PEER): {DB: 50.0}}


def test_what_another_boot_wrote_is_nothing(path: Path) -> None:
    written(path, one_name(), boot="before")

    assert read_names(path, BOOT) == {}
    assert read_names(path, "before") != {}


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.touch()], ids=["missing", "just begun"])
def test_a_file_that_is_missing_or_empty_is_nothing(path: Path, make: Callable[[Path], None]) -> None:
    make(path)

    assert read_names(path, BOOT) == {}


# -- what is damaged --------------------------------------------------------------------------------------------------


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 + 100)


def overwritten(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(path.stat().st_size - 4096))


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").touch()


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def enormous(path: Path) -> None:
    os.truncate(path, MOST_BYTES + 1)


def by(statement: str) -> Callable[[Path], None]:
    return lambda path: sql(path, statement)


def loosely(values: str) -> Callable[[Path], None]:
    """A row with other types than the table asks for."""

    def damage(path: Path) -> None:
        columns = "link, scope, peer, name, until"
        sql(path, "DROP TABLE names", f"CREATE TABLE names ({columns})", f"INSERT INTO names VALUES ({values})")

    return damage


DAMAGES = {
    "text": lambda path: path.write_text("names: []\n" * 500),
    "zeros": lambda path: path.write_bytes(bytes(20_000)),
    "cut off": cut_off,
    "overwritten": overwritten,
    "a folder": a_folder,
    "a pipe": a_pipe,
    "a link to itself": a_loop,
    "enormous": enormous,
    "older": by(f"PRAGMA user_version = {VERSION - 1}"),
    "newer": by(f"PRAGMA user_version = {VERSION + 1}"),
    "another program's": by(f"PRAGMA application_id = {APPLICATION + 1}"),
    "a table is missing": by("DROP TABLE names"),
    "no boot table": by("DROP TABLE boot"),
    "a name without its end": by("UPDATE names SET name = x'0364622e'"),
    "a name in capitals": by("UPDATE names SET name = x'014100'"),
    "a name that goes on": by("UPDATE names SET name = x'0141000161'"),
    "a label of 64 octets": by("UPDATE names SET name = CAST(x'40' || zeroblob(64) || x'00' AS BLOB)"),
    "a name of 256 octets": by("UPDATE names SET name = CAST(zeroblob(256) AS BLOB)"),
    "a peer that is none": by("UPDATE names SET peer = x'0102'"),
    "an end that never comes": by("UPDATE names SET until = 9e999"),
    "names of no pod": by("DELETE FROM pods"),
    "a pod's address that is none": by("UPDATE pods SET addresses = x'040102'"),
    "a name that is text": loosely("7, 'any', x'c0000201', 'db.example.com', 1.0"),
    "a peer that is a number": loosely("7, 'any', 5, x'00', 1.0"),
    "an end that is text": loosely("7, 'any', x'c0000201', x'00', 'soon'"),
    "an end that is missing": loosely("7, 'any', x'c0000201', x'00', NULL"),
    "a scope that is missing": loosely("7, NULL, x'c0000201', x'00', 1.0"),
    "a link that is missing": loosely("NULL, 'any', x'c0000201', x'00', 1.0"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_file_is_told_of_moved_aside_and_begun_anew(path: Path, damage: Callable[[Path], None]) -> None:
    written(path, one_name(), boot=boot_id())
    damage(path)
    told = Told()

    async def life() -> None:
        names = KeptNames(path.parent, told, time.monotonic)
        assert await names.read() == {}
        names.begin(*one_pod())
        await names.close()

    asyncio.run(life())

    ((kind, fields),) = told.events
    assert kind is EventKind.STATE_FILE_SET_ASIDE
    assert os.path.lexists(str(fields["aside"]))
    assert fields["reason"]
    assert read_names(path, boot_id())[LINK].addresses == {ME}


def test_only_so_many_files_are_kept_aside(path: Path) -> None:
    for number in range(6):
        path.write_text(str(number))
        set_aside(path)

    assert {file.name[-1]: file.read_text() for file in path.parent.iterdir()} == {"1": "0", "2": "1", "3": "5"}


def test_a_file_that_cannot_be_moved_is_told_of_and_nothing_is_read(path: Path) -> None:
    path.mkdir()
    for number in (1, 2, 3):
        (path.with_name(f"{FILE}.corrupt-{number}") / "full").mkdir(parents=True)
    told = Told()

    async def life() -> None:
        names = KeptNames(path.parent, told, time.monotonic)
        assert await names.read() == {}

    asyncio.run(life())

    assert told.kinds() == [EventKind.STATE_FILE_UNWRITABLE]


# -- following the leases ---------------------------------------------------------------------------------------------

HTTPS = Scope("tcp_443", ())


class Told:
    all_queries = all_leases = False

    def __init__(self) -> None:
        self.events: list[tuple[EventKind, dict[str, object]]] = []

    def emit(self, kind: EventKind, /, **fields: object) -> None:
        self.events.append((kind, fields))

    def kinds(self) -> list[EventKind]:
        return [kind for kind, _ in self.events]


def one_pod() -> tuple[PodTable, Leases]:
    pods, leases = PodTable(), Leases(Capacity())
    policy = effective((), Action.DENY)
    assignment, share = Assignment(None, policy), Share(Limits(), 0.0)
    pod = pods.came(LINK, "veth", [ME], assignment=assignment, program=compile_program(policy), share=share)
    leases.add_pod(pod.id, [ME])
    return pods, leases


def arm(pods: PodTable, leases: Leases, name: Name, *peers: Address, until: float = 50.0) -> None:
    pod = pods.by_link[LINK].id
    leases.arm(pod, name, [HTTPS], peers, now=0.0, need=until, until=until, ticket=1)


def test_only_what_changed_is_handed_over() -> None:
    pods, leases = one_pod()
    following = Record(pods, leases)
    following.everything(0.0)
    arm(pods, leases, DB, PEER)

    assert following.changes(1.0).names == [(LINK, "tcp_443", PEER, DB, 50.0)]
    assert not following.changes(1.0)


def test_everything_is_handed_over_in_pieces_while_changes_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "SLICE", 10)
    pods, leases = one_pod()
    following = Record(pods, leases)
    places = [Address(bytes((192, 0, 2, number))) for number in range(35)]
    arm(pods, leases, DB, *places[:34])

    made = [following.everything(0.0)]
    arm(pods, leases, DB, places[34])
    made += [following.changes(0.0) for _ in range(4)]

    assert [len(batch.names) for batch in made] == [10, 11, 10, 4, 0]
    assert {row[2] for batch in made for row in batch.names} == set(places)


def test_of_a_pod_with_too_many_names_none_is_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "MOST_OF_A_POD", 100)
    pods, leases = one_pod()
    following = Record(pods, leases)
    made = [following.everything(0.0)]
    for number in range(300):
        arm(pods, leases, Name(b"\4%04d\0" % number), PEER)
        made.append(following.changes(1.0))
    store = NamesStore(path, BOOT)
    store.apply(made)
    store.close()

    (kept,) = read_names(path, BOOT).values()

    assert (kept.leases, kept.program) == ({}, pods.by_link[LINK].program.name)
    assert not any(batch.names for batch in made[250:])


def test_names_that_change_often_are_not_taken_for_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "MOST_OF_A_POD", 10)
    pods, leases = one_pod()
    following = Record(pods, leases)
    following.everything(0.0)
    for number in range(100):
        arm(pods, leases, DB, PEER, until=50.0 + number)

        assert following.changes(1.0).names == [(LINK, "tcp_443", PEER, DB, 50.0 + number)]


def test_more_changes_than_are_remembered_become_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "MOST_TOUCHED", 5)
    pods, leases = one_pod()
    following = Record(pods, leases)
    following.everything(0.0)
    arm(pods, leases, DB, *[Address(bytes((192, 0, 2, number))) for number in range(9)])

    batch = following.changes(0.0)

    assert batch.anew
    assert len(batch.names) == 9


# -- the thread -------------------------------------------------------------------------------------------------------


class Heard:
    """What the thread said, in order; `wanted` is answered at once, as the loop would."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.writer: NamesWriter | None = None
        self.batch = one_name()

    def lost(self, reason: str) -> None:
        self.said.append(f"lost: {reason}")

    def damaged(self, reason: str, aside: Path) -> None:
        self.said.append(f"damaged: {aside.name}")

    def wanted(self) -> None:
        self.said.append("wanted")
        assert self.writer is not None
        self.writer.put([self.batch])

    def back(self) -> None:
        self.said.append("back")

    def until(self, *said: str) -> None:
        end = time.monotonic() + 15
        while [line.partition(":")[0] for line in self.said] != list(said):
            assert time.monotonic() < end, self.said
            time.sleep(0.01)


@pytest.fixture
def heard(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Heard]:
    monkeypatch.setattr("dnsguard.names_file.writer.AGAIN", 0.05)
    monkeypatch.setattr("dnsguard.names_file.writer.INTERVAL", 0.02)
    heard = Heard()
    heard.writer = NamesWriter(path, BOOT, heard)
    heard.writer.put([heard.batch])
    heard.writer.start()
    wait_for(lambda: names_in(path) == {DB})
    yield heard
    heard.writer.close(5)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def names_in(path: Path) -> set[Name]:
    """Read beside the thread that holds the file: what is committed in the file itself."""
    data = path.read_bytes() if path.exists() else b""
    return {name for name in (DB, OTHER) if name in data}


OTHER = parse_name("other.example.com")


def put_other(heard: Heard) -> None:
    assert heard.writer is not None
    heard.writer.put([Batch(names=[(LINK, "any", PEER, OTHER, 5.0)])])


def test_a_close_writes_what_waits(path: Path, heard: Heard) -> None:
    put_other(heard)
    assert heard.writer is not None
    heard.writer.close(5)

    assert read_names(path, BOOT)[LINK].leases == {("any", PEER): {OTHER: 5.0}, ("tcp_443", PEER): {DB: 50.0}}


def test_a_file_that_is_gone_is_made_again_from_everything(path: Path, heard: Heard) -> None:
    path.unlink()
    put_other(heard)

    heard.until("lost", "wanted", "back")
    wait_for(lambda: names_in(path) == {DB})


def test_a_file_that_is_damaged_while_it_is_written_is_set_aside(path: Path, heard: Heard) -> None:
    """A file larger than what SQLite remembers of it."""
    assert heard.writer is not None
    heard.writer.put([Batch(names=many(100_000))])
    wait_for(lambda: path.stat().st_size > 2_500_000)
    with path.open("r+b") as file:
        file.write(bytes(2_500_000))
    heard.writer.put([Batch(forgotten=[row[:4] for row in many(100_000)])])

    heard.until("damaged", "wanted")
    wait_for(lambda: names_in(path) == {DB})
    assert path.with_name(f"{FILE}.corrupt-1").exists()


def test_a_folder_that_cannot_be_written_is_told_once_and_used_again_when_it_can(path: Path, heard: Heard) -> None:
    moved = path.parent.with_name("moved")
    path.parent.rename(moved)
    put_other(heard)
    heard.until("lost")
    moved.rename(path.parent)

    heard.until("lost", "wanted", "back")
    wait_for(lambda: names_in(path) == {DB})


def test_more_batches_than_may_wait_are_asked_for_again(
    path: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dnsguard.names_file.writer.MOST_WAITING", 0)
    put_other(heard)
    monkeypatch.undo()

    heard.until("wanted")


def test_a_limit_of_the_process_on_files_is_told_too(path: Path, heard: Heard) -> None:
    """EFBIG, where a disk would be full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    try:
        assert heard.writer is not None
        heard.writer.put([Batch(names=many(2000))])
        heard.until("lost")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    heard.until("lost", "wanted", "back")
