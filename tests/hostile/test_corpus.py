"""The stored corpus is replayed, and the readers stand what a fuzzer hardly finds: the largest and the deepest."""

from __future__ import annotations

from pathlib import Path
from struct import pack

import pytest

from tests.hostile.fuzz import CORPUS, finding, fuzz, stored
from tests.hostile.readers import READERS

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
