"""Who a runtime directory is for: what root leaves there must not keep the service's user from starting."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dnsguard.control.calls import CallError
from dnsguard.daemon.lock import Lock, leave_to_owner

pytestmark = pytest.mark.node

NOBODY = 65534


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A directory of another user's."""
    folder = tmp_path / "run"
    folder.mkdir()
    os.chown(folder, NOBODY, NOBODY)
    return folder


def test_a_lock_that_root_makes_is_the_directorys_owners(theirs: Path) -> None:
    Lock(theirs).close()

    assert (theirs / "lock").stat().st_uid == NOBODY


def test_what_a_link_leads_to_is_neither_locked_nor_given_away(theirs: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.touch()
    (theirs / "lock").symlink_to(victim)

    with pytest.raises(CallError, match=r"paths\.runtime"):
        Lock(theirs)

    assert victim.stat().st_uid == 0


def test_root_does_not_run_a_daemon_on_another_users_directory(theirs: Path, tmp_path: Path) -> None:
    with pytest.raises(CallError, match="systemctl start dnsguard"):
        leave_to_owner(theirs)
    leave_to_owner(tmp_path)
    leave_to_owner(tmp_path / "absent")
