"""The stored corpus is replayed, and the readers stand what a fuzzer hardly finds: the largest and the deepest."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.hostile.fuzz import CORPUS, finding, fuzz, smallest, stored
from tests.hostile.readers import READERS, Reader

STORED = [(reader, path) for reader in READERS for path in stored(reader)]
PATIENCE = 20
"""Under coverage, and beside other tests, everything is much slower; what is endless or quadratic still shows."""
HEADER = b"\x99\x99\x81\x80\0\1"
SECTION = b"\3www\7example\3com\0\0\1\0\1"
START = 12 + len(SECTION)


def message(records: bytes, answers: int, authority: int = 0, section: bytes = SECTION) -> bytes:
    return (HEADER + pack(">HHH", answers & 0xFFFF, authority & 0xFFFF, 0) + section + records)[:65_535]


def a(owner: bytes, address: bytes = b"\xc0\0\2\1") -> bytes:
    return owner + b"\0\1\0\1\0\0\0\x3c\0\4" + address


def pointers(count: int, first: int = 12) -> bytes:
    """Compression pointers, each to the one before."""
    start = START + 11
    return b"".join(pack(">H", 0xC000 | (start + 2 * (i - 1) if i else first)) for i in range(count))


LONG_LABELS = b"\1a" * 120
LARGEST = {
    "thousands of addresses": message(b"".join(a(b"\xc0\x0c", pack(">I", 0xC0000000 + i)) for i in range(4090)), 4090),
    "thousands of the same address": message(a(b"\xc0\x0c") * 4090, 4090),
    "thousands of protected addresses": message(a(b"\xc0\x0c", b"\x7f\0\0\1") * 4090, 4090),
    "thousands of foreign owners": message(a(b"\1x\xc0\x0c") * 3600, 3600),
    "thousands of links": message(
        b"".join(b"\2" + pack(">H", i) + b"\0\0\5\0\1\0\0\0\1\0\4\2" + pack(">H", i + 1) + b"\0" for i in range(3000)),
        3000,
    ),
    "thousands of empty records": message(b"\0\0\x10\0\1\0\0\0\1\0\0" * 5900, 5900),
    "counts that lie": message(a(b"\xc0\x0c"), 0xFFFF, 0xFFFF),
    "thousands of long names": message(
        b"\0\0\x10\0\1\0\0\0\1"
        + pack(">H", 242)
        + LONG_LABELS
        + b"\0\0"
        + a(b"\1b" + pack(">H", 0xC000 | START + 11)) * 3500,
        3501,
    ),
    "a name at every offset": message(
        b"\0\0\x10\0\1\0\0\0\1"
        + pack(">H", 14000)
        + b"\1a" * 7000
        + b"".join(a(pack(">H", 0xC000 | START + 11 + i)) for i in range(3200)),
        3201,
    ),
    "a chain of pointers": message(
        b"\0\0\x10\0\1\0\0\0\1"
        + pack(">H", 16000)
        + pointers(8000)
        + a(pack(">H", 0xC000 | START + 11 + 15998)) * 3000,
        3001,
    ),
    "a pointer to itself": message(a(pack(">H", 0xC000 | START)), 1),
    "pointers forward": message(a(pack(">H", 0xC000 | START + 100)) * 100, 100),
    "signatures": message((b"\xc0\x0c\0\x2e\0\1\0\0\0\1\0\x13\0\1" + bytes(17)) * 2100, 2100),
    "a denial of thousands": message(b"\xc0\x10\0\6\0\1\0\0\0\1\0\x16\0\0" + bytes(20), 0, 1) + bytes(60_000),
}


@pytest.mark.parametrize(("reader", "path"), STORED, ids=[f"{reader}/{path.stem}" for reader, path in STORED])
def test_every_stored_input_is_read_without_a_finding(reader: str, path: Path) -> None:
    assert finding(READERS[reader], path.read_bytes(), PATIENCE) is None


def test_every_reader_has_seeds_and_every_seed_a_reader() -> None:
    assert {reader for reader, _ in STORED} == set(READERS)
    assert {folder.name for folder in CORPUS.iterdir()} <= set(READERS)


@pytest.mark.parametrize("flags", [b"\x81\x80", b"\x81\x83", b"\x81\x81"])
@pytest.mark.parametrize("ident", [b"\0\0", b"\xff\xff"], ids=["plain", "do"])
@pytest.mark.parametrize("name", LARGEST)
def test_the_largest_messages_are_read_in_bounded_time(name: str, ident: bytes, flags: bytes) -> None:
    packet = ident + flags + LARGEST[name][4:]

    assert finding(READERS["answer"], packet, PATIENCE) is None
    assert finding(READERS["question"], packet, PATIENCE) is None


@pytest.mark.parametrize("name", READERS)
def test_a_short_run_of_the_fuzzer_finds_nothing(name: str) -> None:
    assert fuzz(name, seconds=0.5, seed=1) == 0


def raises(data: bytes) -> None:
    assert b"x" not in data


def is_slow(data: bytes) -> None:
    end = time.process_time() + (0.02 if data else 0)
    while time.process_time() < end:
        pass


def never_ends(data: bytes) -> None:
    while data:
        pass


def test_what_raises_is_slow_or_does_not_end_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.hostile.fuzz.ENDLESS", 0.05)
    told = [finding(Reader(run, limit=0.01), b"x") or "" for run in (raises, is_slow, never_ends)]

    assert [reason.splitlines()[-1].split()[0] for reason in told] == ["AssertionError:", "slow:", "TimeoutError:"]
    assert [finding(Reader(run), b"") for run in (raises, is_slow, never_ends)] == [None] * 3


@given(st.lists(st.sampled_from([b"a", b"b", b"c", b"dd"]), max_size=40), st.sampled_from([b"", b"-"]))
def test_a_smaller_input_does_the_same_and_is_no_larger(parts: list[bytes], separator: bytes) -> None:
    data = separator.join(parts)
    holds = partial(contains_in_order, b"ac")
    small = smallest(Reader(raises, separator=separator), data, holds)

    assert len(small) <= len(data)
    assert holds(small) == holds(data)
    assert not (holds(data) and not separator) or small == b"ac"


def contains_in_order(wanted: bytes, data: bytes) -> bool:
    rest = iter(data)
    return all(octet in rest for octet in wanted)


def test_the_fuzzer_finds_what_is_seldom_and_stores_it_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def reader(data: bytes) -> None:
        if data[:1] > b"\xf0":
            raise ValueError(data)

    monkeypatch.setattr("tests.hostile.fuzz.CORPUS", tmp_path)
    monkeypatch.setitem(READERS, "seldom", Reader(reader))

    assert fuzz("seldom", seconds=0.3, seed=1) == 1
    (saved,) = (tmp_path / "seldom").iterdir()
    assert saved.read_bytes()[:1] > b"\xf0"
