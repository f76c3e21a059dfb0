"""Files that root may read and the service's user may not: found by becoming that user, and told by `check`."""

from __future__ import annotations

import json
import os
import pwd
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dnsguard.cli import check, main, system
from dnsguard.config.diagnostics import ConfigError
from dnsguard.config.files import read_text
from dnsguard.doctor import readable
from dnsguard.doctor.readable import obstacles

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """One that everybody may enter, with a usable configuration; `nobody` runs the service."""
    monkeypatch.setattr(readable, "USER", "nobody")
    with tempfile.TemporaryDirectory() as made:
        path = Path(made)
        path.chmod(0o755)
        (path / "config.yaml").write_text(f"upstreams: [10.96.0.10]\nallowlist: {path}/allowlist.yaml\n")
        (path / "allowlist.yaml").write_text("pods: {10.0.0.1: [a.example.com]}\n")
        monkeypatch.setattr(check, "DEFAULT_CONFIG", path / "config.yaml")
        monkeypatch.setattr(system, "DEFAULT_CONFIG", path / "config.yaml")
        yield path


def test_what_the_services_user_may_read_is_no_obstacle(folder: Path) -> None:
    assert list(obstacles([folder / "config.yaml", folder / "absent.yaml"])) == []


def test_whoever_may_not_read_a_file_is_named_and_not_told_to_be_root(folder: Path) -> None:
    (folder / "config.yaml").chmod(0o600)
    os.seteuid(pwd.getpwnam("nobody").pw_uid)
    try:
        with pytest.raises(ConfigError, match="permission denied; make it readable for user nobody"):
            read_text(folder / "config.yaml")
    finally:
        os.seteuid(0)


def test_a_file_of_roots_alone_is_named_with_what_to_do(folder: Path) -> None:
    file = folder / "config.yaml"
    file.chmod(0o600)

    (found,) = obstacles([file])

    assert (found.file, found.remedy) == (file, f"chgrp nobody {file} && chmod g+r {file}")


def test_a_folder_that_may_not_be_entered_is_named_instead_of_the_file(folder: Path) -> None:
    folder.chmod(0o700)

    (found,) = obstacles([folder / "config.yaml"])

    assert found.remedy == f"chmod o+x {folder}"


def test_without_such_a_user_there_is_nothing_to_say(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "config.yaml").chmod(0o600)
    monkeypatch.setattr(readable, "USER", "no-such-user")

    assert list(obstacles([folder / "config.yaml"])) == []


def test_check_warns_of_both_files_of_the_service(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("config.yaml", "allowlist.yaml"):
        (folder / name).chmod(0o600)

    assert main(["check", "--config", str(folder / "config.yaml")]) == 0

    out, err = capsys.readouterr()
    assert out == "usable: 2 warnings\n"
    assert [line.partition(": the service")[0] for line in err.splitlines()] == [
        f"{folder}/config.yaml:1:1: warning",
        f"{folder}/allowlist.yaml:1:1: warning",
    ]


def test_the_look_at_the_node_warns_of_them_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(system, "examine", lambda node: [])
    (folder / "allowlist.yaml").chmod(0o600)

    assert main(["check", "--system", "--json", "--config", str(folder / "config.yaml")]) == 0

    (found,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (found["level"], found["subject"]) == ("warning", f"{folder}/allowlist.yaml")


def test_files_that_the_service_does_not_read_are_not_its_users_matter(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "config.yaml"
    other.write_text((folder / "config.yaml").read_text())
    other.chmod(0o600)

    assert main(["check", "--config", str(other)]) == 0
    assert capsys.readouterr().out == "usable: no errors, no warnings\n"
