"""bpf(2) by ctypes: maps read and written, programs run on a made-up packet, links of tcx, pins.

Every call raises OSError with the kernel's errno.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from struct import Struct, pack
from typing import NamedTuple

from dnsguard.enforce.bpf.call import attribute, bytes_of, call, room

_MAP_CREATE, _LOOKUP, _UPDATE, _DELETE, _NEXT_KEY, _PIN, _GET = 0, 1, 2, 3, 4, 6, 7
_PROG_LOAD, _TEST_RUN, _PROG_BY_ID, _INFO, _PROG_QUERY = 5, 10, 13, 15, 16
_LOOKUP_BATCH, _UPDATE_BATCH, _DELETE_BATCH, _LINK_CREATE, _LINK_UPDATE, _LINK_DETACH = 24, 26, 27, 28, 29, 34

HASH, ARRAY, PROG_ARRAY, PERCPU_HASH, PERCPU_ARRAY, LRU_HASH, LPM_TRIE, RINGBUF = 1, 2, 3, 5, 6, 9, 11, 27
"""Types of maps."""
_SCHED_CLS = 3
TCX_INGRESS, TCX_EGRESS = 46, 47
"""Attach types."""
BEFORE, AFTER = 8, 16
NOEXIST = 1
"""Of an update: only a key that is not there."""

_ENOTSUPP = 524
"""Not an errno of user space: what a map type without batches answers."""
_NO_BATCH = (_ENOTSUPP, errno.EOPNOTSUPP, errno.EINVAL)
_BATCH = 1024
_ROOM_TO_GROW = 4096
"""Octets that a program may add to a packet in a test run."""
_SKB = Struct("=40xI132xI12x")
"""`ifindex` and `gso_size` in struct __sk_buff."""
_MOST_PROGRAMS = 64
"""On one hook of a link: the kernel allows no more."""
_ELEMENT = Struct("=IxxxxQQQ")
_KEY_ALONE = 16
"""Octets of an element's attribute up to its key."""
_BATCH_ATTRIBUTE = Struct("=QQQQIIQQ")
_COUNT = 32
"""Offset of a batch's count in its attribute."""


class BatchError(OSError):
    """A batch that ended early: `written` of its elements, its first ones, are in the map."""

    def __init__(self, number: int, written: int) -> None:
        super().__init__(number, f"{os.strerror(number)} ({written} elements were written)")
        self.written = written


class MapInfo(NamedTuple):
    type: int
    number: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: str
    """At most 15 octets: the kernel keeps no more."""


class ProgInfo(NamedTuple):
    type: int
    number: int
    tag: str
    name: str


class LinkInfo(NamedTuple):
    """`link` is 0 when the network link is gone."""

    type: int
    number: int
    program: int
    link: int
    attach_type: int


class TestRun(NamedTuple):
    """What a program made of a packet; `duration_ns` is the mean of the repeats."""

    verdict: int
    packet: bytes
    duration_ns: int


def _info(fd: int, size: int) -> bytes:
    found = room(size)
    call(_INFO, attribute("IIQ", fd, size, ctypes.addressof(found)))
    return found.raw


def map_info(fd: int) -> MapInfo:
    octets = _info(fd, 40)
    kind, number, key_size, value_size, max_entries, flags = Struct("=6I").unpack_from(octets)
    return MapInfo(kind, number, key_size, value_size, max_entries, flags, _text(octets[24:]))


def prog_info(fd: int) -> ProgInfo:
    octets = _info(fd, 80)
    kind, number, tag = Struct("=II8s").unpack_from(octets)
    return ProgInfo(kind, number, tag.hex(), _text(octets[64:]))


def link_info(fd: int) -> LinkInfo:
    """Of a bpf link that holds a program on a network link by tcx."""
    octets = _info(fd, 24)
    kind, number, program, link, attach_type = Struct("=IIIxxxxII").unpack_from(octets)
    return LinkInfo(kind, number, program, link, attach_type)


def _text(octets: bytes) -> str:
    return octets.split(b"\0", 1)[0].decode("ascii", "replace")


def create_map(kind: int, name: str, key_size: int, value_size: int, max_entries: int = 1, flags: int = 0) -> int:
    """A new map; returns its file descriptor."""
    title = name.encode()[:15]
    return call(_MAP_CREATE, attribute("IIIIIII16sI", kind, key_size, value_size, max_entries, flags, 0, 0, title, 0))


def pin(fd: int, path: Path) -> None:
    """Have a map, program or link stay in the kernel while `path` (on a bpffs) is there."""
    name = room(bytes(path) + b"\0")
    call(_PIN, attribute("QII", ctypes.addressof(name), fd, 0))


def get_pinned(path: Path) -> int:
    """A new file descriptor of what is pinned at `path`."""
    name = room(bytes(path) + b"\0")
    return call(_GET, attribute("QII", ctypes.addressof(name), 0, 0))


def prog_by_id(number: int) -> int:
    """A new file descriptor of a loaded program."""
    return call(_PROG_BY_ID, attribute("II", number, 0))


def load_program(name: str, instructions: bytes) -> int:
    """A tc program from its instructions; returns its file descriptor."""
    code, licence = room(instructions), room(b"GPL\0")
    where = ctypes.addressof(code), ctypes.addressof(licence)
    values = (_SCHED_CLS, len(instructions) // 8, *where, 0, 0, 0, 0, 0, name.encode())
    return call(_PROG_LOAD, attribute("IIQQIIQII16s", *values))


def test_run(prog_fd: int, packet: bytes, *, link: int = 0, segment: int = 0, repeat: int = 1) -> TestRun:
    """Run a tc program on a frame as if it had come by `link` (0: the loopback), to be cut into segments of so many
    octets (0: not)."""
    came, went = room(packet), room(len(packet) + _ROOM_TO_GROW)
    context = room(_SKB.pack(link, segment))
    size, where = (_SKB.size, ctypes.addressof(context)) if link else (0, 0)
    run = attribute(
        "IIIIQQIIIIQQIIII",
        *(prog_fd, 0, len(packet), len(went), ctypes.addressof(came), ctypes.addressof(went)),
        *(repeat, 0, size, 0, where, 0, 0, 0, 0, 0),
    )
    call(_TEST_RUN, run)
    _, verdict, _, length, _, _, _, duration = Struct("=IIIIQQII").unpack_from(run)
    return TestRun(verdict if verdict < 1 << 31 else verdict - (1 << 32), bytes_of(went, length), duration)


# pytest would take both for its own
test_run.__test__ = False  # type: ignore[attr-defined]
TestRun.__test__ = False  # type: ignore[attr-defined]


class Attached(NamedTuple):
    """One program on a link, and the number of the bpf link that holds it there (0: none)."""

    program: int
    link: int


def prog_query(link: int, attach_type: int) -> list[Attached]:
    """The programs on a link by tcx, in the order that packets meet them."""
    most = _MOST_PROGRAMS
    programs, links = room(4 * most), room(4 * most)
    where = ctypes.addressof(programs), ctypes.addressof(links)
    query = attribute("IIIIQIIQQQQ", link, attach_type, 0, 0, where[0], most, 0, 0, where[1], 0, 0)
    try:
        call(_PROG_QUERY, query)
    except FileNotFoundError:  # 6.6 says so where there was never one
        return []
    (count,) = Struct("=I").unpack_from(query, 24)
    numbers = Struct(f"={count}I")
    return [*map(Attached, numbers.unpack_from(programs), numbers.unpack_from(links))]


def link_create(prog_fd: int, link: int, attach_type: int, first: bool = True) -> int:
    """Attach a program before (or behind) all others by tcx; returns the file descriptor that holds it there."""
    flags = BEFORE if first else AFTER
    return call(_LINK_CREATE, attribute("IIIIIIQ32x", prog_fd, link, attach_type, flags, 0, 0, 0))


def link_update(link_fd: int, prog_fd: int) -> None:
    """Replace the program of a bpf link at once. EEXIST: it is that one already."""
    call(_LINK_UPDATE, attribute("IIIIQ", link_fd, prog_fd, 0, 0, 0))


def link_detach(link_fd: int) -> None:
    """Take a bpf link's program off at once; when it is closed or unpinned the kernel does so some time later."""
    call(_LINK_DETACH, attribute("II", link_fd, 0))


class Map:
    """A map by its file descriptor, which it owns. Keys and values are bytes of the map's sizes.

    May be used from several threads: a lock guards the one key and value that single calls share.
    """

    def __init__(self, fd: int, name: str | None = None) -> None:
        info = map_info(fd)
        self.fd = fd
        self.type = info.type
        self.key_size = info.key_size
        self.value_size = info.value_size
        self.max_entries = info.max_entries
        self.name = name or info.name
        self._key, self._value = room(info.key_size), room(info.value_size)
        where = ctypes.addressof(self._key), ctypes.addressof(self._value)
        self._attribute = ctypes.create_string_buffer(_ELEMENT.pack(fd, *where, 0), _ELEMENT.size)
        self._flags = ctypes.addressof(self._attribute) + _ELEMENT.size - 8
        self._lock = threading.Lock()

    def lookup(self, key: bytes) -> bytes | None:
        with self._lock:
            return bytes_of(self._value, self.value_size) if self._single(_LOOKUP, key) else None

    def update(self, key: bytes, value: bytes, flags: int = 0) -> None:
        if len(value) != self.value_size:
            raise ValueError(f"a value of {self.name} is {self.value_size} octets, not {len(value)}")
        with self._lock:
            ctypes.memmove(self._value, value, self.value_size)
            if not self._single(_UPDATE, key, flags):
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))

    def delete(self, key: bytes) -> bool:
        """False: it was not there."""
        with self._lock:
            return self._single(_DELETE, key)

    def _single(self, command: int, key: bytes, flags: int = 0) -> bool:
        """False: ENOENT."""
        if len(key) != self.key_size:
            raise ValueError(f"a key of {self.name} is {self.key_size} octets, not {len(key)}")
        ctypes.memmove(self._key, key, self.key_size)
        ctypes.memmove(self._flags, pack("=Q", flags), 8)
        try:
            # a delete is refused when it comes with a value
            call(command, self._attribute, _KEY_ALONE if command == _DELETE else None)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            return False
        return True

    def update_many(self, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        """Write elements in order. Raises BatchError, which tells how many were written before the one refused."""
        done = 0
        while done < len(keys):
            chunk = slice(done, done + _BATCH)
            try:
                done += self._batch(_UPDATE_BATCH, keys[chunk], values[chunk])
            except BatchError as error:
                if error.errno in _NO_BATCH and error.written == 0:
                    self._update_each(keys, values, done)
                    return
                raise BatchError(error.errno or 0, done + error.written) from error

    def _update_each(self, keys: Sequence[bytes], values: Sequence[bytes], start: int) -> None:
        for index in range(start, len(keys)):
            try:
                self.update(keys[index], values[index])
            except OSError as error:
                raise BatchError(error.errno or 0, index) from error

    def delete_many(self, keys: Collection[bytes]) -> int:
        """Delete those that are there; returns how many they were."""
        left, deleted = list(keys), 0
        while left:
            try:
                done = self._batch(_DELETE_BATCH, left[:_BATCH], ())
                left, deleted = left[done:], deleted + done
            except BatchError as error:
                if error.errno != errno.ENOENT:
                    if error.errno in _NO_BATCH:
                        return deleted + sum(map(self.delete, left))
                    raise
                # the batch ends at the first that is not there
                left, deleted = left[error.written + 1 :], deleted + error.written
        return deleted

    def _batch(self, command: int, keys: Sequence[bytes], values: Sequence[bytes]) -> int:
        packed, contents = room(b"".join(keys)), room(b"".join(values))
        if len(packed) != len(keys) * self.key_size or (values and len(contents) != len(keys) * self.value_size):
            raise ValueError(f"{self.name} has keys of {self.key_size} and values of {self.value_size} octets")
        where = ctypes.addressof(packed), ctypes.addressof(contents) if values else 0
        attribute = ctypes.create_string_buffer(
            _BATCH_ATTRIBUTE.pack(0, 0, *where, len(keys), self.fd, 0, 0), _BATCH_ATTRIBUTE.size
        )
        try:
            call(command, attribute)
        except OSError as error:
            # EFAULT alone leaves the count as it was given
            (count,) = Struct("=I").unpack_from(attribute, _COUNT)
            raise BatchError(error.errno or 0, count if count < len(keys) else 0) from error
        return len(keys)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Every element, each once while nobody writes; one that comes or goes meanwhile may be missed."""
        if self.type in (HASH, LRU_HASH):
            yield from self._items_in_batches()
            return
        for key in self._keys_one_by_one():
            value = self.lookup(key)
            if value is not None:
                yield key, value

    def keys(self) -> Iterator[bytes]:
        return (key for key, _ in self.items())

    def _items_in_batches(self) -> Iterator[tuple[bytes, bytes]]:
        most, place, more = _BATCH, b"", True
        while more:
            try:
                keys, values, place, more = self._lookup_batch(place, most)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                most *= 2  # a bucket of the hash comes whole or not at all
                continue
            yield from zip(keys, values, strict=True)

    def _lookup_batch(self, place: bytes, most: int) -> tuple[list[bytes], list[bytes], bytes, bool]:
        """Keys, values, where the next batch begins, and whether there is one. `place` empty: from the start."""
        keys, values = room(most * self.key_size), room(most * self.value_size)
        begin, behind = room(place), room(max(4, self.key_size))
        where = [ctypes.addressof(each) for each in (behind, keys, values)]
        packed = _BATCH_ATTRIBUTE.pack(ctypes.addressof(begin) if place else 0, *where, most, self.fd, 0, 0)
        attribute = ctypes.create_string_buffer(packed, len(packed))
        more = True
        try:
            call(_LOOKUP_BATCH, attribute)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            more = False  # these are the last
        (count,) = Struct("=I").unpack_from(attribute, _COUNT)
        return _pieces(keys, count, self.key_size), _pieces(values, count, self.value_size), behind.raw, more

    def _keys_one_by_one(self) -> Iterator[bytes]:
        key: bytes | None = None
        while (following := self._next_key(key)) is not None:
            yield following
            key = following

    def _next_key(self, key: bytes | None) -> bytes | None:
        before, after = room(key or self.key_size), room(self.key_size)
        where = ctypes.addressof(before) if key is not None else 0
        packed = _ELEMENT.pack(self.fd, where, ctypes.addressof(after), 0)
        try:
            call(_NEXT_KEY, ctypes.create_string_buffer(packed, len(packed)))
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            return None
        return bytes_of(after, self.key_size)

    def close(self) -> None:
        os.close(self.fd)


def _pieces(buffer: ctypes.Array[ctypes.c_char], count: int, size: int) -> list[bytes]:
    octets = bytes_of(buffer, count * size)
    return [octets[start : start + size] for start in range(0, len(octets), size)]
