"""Maps as the kernel keeps them: single calls, batches, and types of maps that have no batches."""

from __future__ import annotations

import errno
import resource
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from dnsguard.enforce.bpf import syscall
from dnsguard.enforce.bpf.syscall import BatchError, Map

pytestmark = pytest.mark.node

HASH, LPM, ARRAY = "hash", "lpm", "array"
_NO_PREALLOC = 1


def make(kind: str, entries: int) -> Map:
    # before 5.11 maps count as locked memory
    with suppress(ValueError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    number = {HASH: syscall.HASH, LPM: syscall.LPM_TRIE, ARRAY: syscall.ARRAY}[kind]
    flags = _NO_PREALLOC if kind == LPM else 0
    size = 4 if kind == ARRAY else 8
    return Map(syscall.create_map(number, "dgtest", size, 8, entries, flags))


def key(kind: str, number: int) -> bytes:
    return struct.pack("=I", number) if kind == ARRAY else struct.pack("=II", 32, number)


def value(number: int) -> bytes:
    return struct.pack("=Q", number)


@pytest.fixture(params=[HASH, LPM])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def small() -> Iterator[Map]:
    made = make(HASH, 10)
    yield made
    made.close()


def test_what_is_written_reads_back(kind: str) -> None:
    made = make(kind, 10)
    made.update(key(kind, 1), value(5))
    assert made.lookup(key(kind, 1)) == value(5)
    assert made.lookup(key(kind, 2)) is None
    assert made.delete(key(kind, 1))
    assert not made.delete(key(kind, 1))
    assert made.lookup(key(kind, 1)) is None


def test_many_are_written_read_and_deleted(kind: str) -> None:
    made = make(kind, 5000)
    elements = {key(kind, number): value(number) for number in range(3000)}
    made.update_many([*elements], [*elements.values()])
    assert dict(made.items()) == elements
    assert set(made.keys()) == set(elements)
    absent = [key(kind, number) for number in range(9000, 9010)]
    gone = [*elements][:2000]
    assert made.delete_many([*absent, *gone, *absent]) == 2000
    assert len([*made.items()]) == 1000


def test_the_elements_of_an_array_are_all_there() -> None:
    made = make(ARRAY, 3)
    made.update(key(ARRAY, 1), value(9))
    assert dict(made.items()) == {key(ARRAY, n): value(9 if n == 1 else 0) for n in range(3)}


def test_a_full_map_says_how_many_were_written(kind: str) -> None:
    made = make(kind, 10)
    made.update(key(kind, 0), value(0))
    with pytest.raises(BatchError) as told:
        made.update_many([key(kind, n) for n in range(1, 20)], [value(n) for n in range(1, 20)])
    assert told.value.errno in (errno.E2BIG, errno.ENOSPC)
    assert told.value.written == 9
    assert dict(made.items()) == {key(kind, n): value(n) for n in range(10)}


def test_a_key_that_must_be_new_is_refused_when_it_is_there(small: Map) -> None:
    small.update(key(HASH, 1), value(1), syscall.NOEXIST)
    with pytest.raises(FileExistsError):
        small.update(key(HASH, 1), value(2), syscall.NOEXIST)
    assert small.lookup(key(HASH, 1)) == value(1)
    small.update(key(HASH, 1), value(3))
    assert small.lookup(key(HASH, 1)) == value(3)


def test_a_key_or_value_of_another_size_is_refused(small: Map) -> None:
    with pytest.raises(ValueError, match="a key of dgtest is 8 octets, not 4"):
        small.lookup(bytes(4))
    with pytest.raises(ValueError, match="a value of dgtest is 8 octets, not 9"):
        small.update(bytes(8), bytes(9))
    with pytest.raises(ValueError, match="keys of 8 and values of 8"):
        small.update_many([bytes(8)], [bytes(7)])


def test_threads_do_not_mix_up_their_keys(small: Map) -> None:
    for number in range(10):
        small.update(key(HASH, number), value(number))
    wrong: list[int] = []

    def look(number: int) -> None:
        wrong.extend(number for _ in range(3000) if small.lookup(key(HASH, number)) != value(number))

    threads = [threading.Thread(target=look, args=(number,)) for number in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong


def test_a_map_tells_what_it_is(small: Map) -> None:
    info = syscall.map_info(small.fd)
    assert (info.type, info.key_size, info.value_size, info.max_entries, info.name) == (
        syscall.HASH,
        8,
        8,
        10,
        "dgtest",
    )
