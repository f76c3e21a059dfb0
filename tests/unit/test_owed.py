"""The file of what is owed: whole at every moment, believed when it is what was written, told of when it is not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dnsguard.core.model import LinkIndex
from dnsguard.daemon.owed import FILE, OwedFile
from dnsguard.engine.contracts import NOTHING, EventKind, Owed
from tests.replay.stage import Told, address

A, B, B6 = address("10.244.0.5"), address("10.244.0.6"), address("fd00:10:244::6")
SEEN = {LinkIndex(3): ("veth-a", frozenset({A})), LinkIndex(4): ("veth-b", frozenset({B, B6})), LinkIndex(5): None}


def written(folder: Path, owed: Owed) -> OwedFile:
    file = OwedFile(folder, Told())
    file.keep(owed)
    return file


def read(folder: Path, told: Told | None = None, **how: Any) -> Owed:
    return OwedFile(folder, told or Told()).read(SEEN, **{"everything": False, **how})


def test_what_was_kept_is_read(tmp_path: Path) -> None:
    owed = Owed(frozenset({A, B6}), frozenset({B}))

    written(tmp_path, owed)

    assert read(tmp_path) == owed


def test_what_was_done_leaves_no_file(tmp_path: Path) -> None:
    written(tmp_path, Owed(frozenset({A}))).keep(NOTHING)

    assert list(tmp_path.iterdir()) == []
    assert read(tmp_path) == NOTHING


def test_after_a_process_that_let_everything_through_all_pods_are_judged(tmp_path: Path) -> None:
    written(tmp_path, Owed(frozenset({A}), frozenset({A})))

    assert read(tmp_path, everything=True) == Owed(frozenset({A, B, B6}), frozenset({A}))


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"\xff", b'{"judge": ["x"], "forget": []}', b'{"judge": 1}', b"[" * 100_000]
)
def test_a_file_that_nobody_wrote_is_set_aside_and_all_pods_are_judged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    told = Told()

    assert read(tmp_path, told) == Owed(frozenset({A, B, B6}))

    assert told.kinds() == [EventKind.STATE_FILE_SET_ASIDE]
    assert (tmp_path / f"{FILE}.corrupt-1").read_bytes() == content


@pytest.mark.parametrize("put", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_set_aside_unread(tmp_path: Path, put: Callable[[Path], object]) -> None:
    put(tmp_path / FILE)
    told = Told()

    assert read(tmp_path, told) == Owed(frozenset({A, B, B6}))

    assert told.kinds() == [EventKind.STATE_FILE_SET_ASIDE]
    written(tmp_path, Owed(frozenset({A})))
    assert read(tmp_path) == Owed(frozenset({A}))


def test_a_link_in_the_place_of_the_new_content_leads_nowhere(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("kept")
    (tmp_path / f"{FILE}.new").symlink_to(other)

    written(tmp_path, Owed(frozenset({A})))

    assert other.read_text() == "kept"
    assert read(tmp_path) == Owed(frozenset({A}))


def test_while_there_is_no_room_the_end_of_a_change_tells_nothing_of_room(tmp_path: Path) -> None:
    told = Told()
    file = OwedFile(tmp_path / "run", told)

    file.keep(Owed(frozenset({A})))
    file.keep(NOTHING)

    assert told.kinds() == [EventKind.STATE_FILE_UNWRITABLE]


def test_a_folder_that_is_gone_is_told_once_and_so_is_its_return(tmp_path: Path) -> None:
    folder, told = tmp_path / "run", Told()
    file = OwedFile(folder, told)

    file.keep(Owed(frozenset({A})))
    file.keep(Owed(frozenset({B})))
    folder.mkdir()
    file.keep(Owed(frozenset({B})))

    assert told.kinds() == [EventKind.STATE_FILE_UNWRITABLE, EventKind.STATE_FILE_WRITTEN]
    assert read(folder) == Owed(frozenset({B}))
