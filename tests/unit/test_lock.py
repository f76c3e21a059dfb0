"""The lock of a runtime directory that two users share: root, who cleans up, and the user of the service."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dnsguard.control.calls import CallError
from dnsguard.daemon.lock import Lock, only_one

NOBODY = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives a directory to another user")


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o750)
    return folder


@as_root
def test_a_lock_that_root_made_is_the_services_own(runtime: Path) -> None:
    os.chown(runtime, NOBODY, NOBODY)

    with only_one(runtime) as lock:
        made = lock.path.stat()

    assert (made.st_uid, made.st_gid, made.st_mode & 0o777) == (NOBODY, NOBODY, 0o600)


def test_a_lock_that_leads_elsewhere_is_not_followed(runtime: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("")
    (runtime / "lock").symlink_to(tmp_path / "precious")

    with pytest.raises(CallError, match="symbolic links"):
        Lock(runtime)

    assert (tmp_path / "precious").stat().st_uid == os.geteuid()


def test_a_second_process_does_not_get_the_lock(runtime: Path) -> None:
    with only_one(runtime), pytest.raises(CallError, match="a daemon is running"):
        Lock(runtime)
