"""A configuration that is read again: what takes effect at once, and what is named because it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from dnsguard.config.diagnostics import ConfigError
from dnsguard.config.groups import LoggedQueries, Mode, Revocation, Settings
from dnsguard.config.live import read_again
from dnsguard.config.settings import load_settings

BEFORE = "upstreams: [10.96.0.10]\nlog: {level: info}\ncache: {entries: 100}\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text(BEFORE)
    return tmp_path / "config.yaml"


@pytest.fixture
def running(path: Path) -> Settings:
    return load_settings(path)


def test_an_unchanged_file_changes_nothing(path: Path, running: Settings) -> None:
    assert read_again(path, running) == (running, [])


def test_what_can_change_takes_effect(path: Path, running: Settings) -> None:
    path.write_text(
        f"{BEFORE.replace('level: info', 'level: debug, queries: All')}mode: Audit\nallowlist: /other.yaml\n"
        "enforcement: {revocation: Drain}\n"
    )

    after, found = read_again(path, running)

    assert found == []
    assert (after.mode, after.allowlist) == (Mode.AUDIT, Path("/other.yaml"))
    assert (after.log.queries, after.enforcement.revocation) == (LoggedQueries.ALL, Revocation.DRAIN)


def test_what_cannot_is_named_at_its_place_and_left_as_it_was(path: Path, running: Settings) -> None:
    path.write_text("mode: Audit\nupstreams: [10.96.0.11]\ncache:\n  entries: 7\n")

    after, found = read_again(path, running)

    assert [str(one) for one in found] == [
        f"{path}:2:12: warning: upstreams: takes effect at a restart",
        f"{path}:4:12: warning: cache.entries: takes effect at a restart",
    ]
    assert (after.upstreams, after.cache.entries, after.mode) == (running.upstreams, 100, Mode.AUDIT)


def test_a_key_that_is_gone_is_named_where_its_group_was(path: Path, running: Settings) -> None:
    path.write_text("upstreams: [10.96.0.10]\n")

    _, found = read_again(path, running)

    assert [str(one) for one in found] == [f"{path}:1:1: warning: cache.entries: takes effect at a restart"]


def test_a_file_with_errors_raises_them_all(path: Path, running: Settings) -> None:
    path.write_text("upstreams: [nonsense]\nmode: Both\n")

    with pytest.raises(ConfigError) as caught:
        read_again(path, running)

    assert len(caught.value.diagnostics) == 2
