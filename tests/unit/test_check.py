"""`dnsguard check`: what it prints, where, and its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import typer
from typer.testing import CliRunner, Result

from dnsguard.cli.check import check

LEAST = "upstreams: [10.96.0.10]\n"


def run(*arguments: str | Path) -> Result:
    application = typer.Typer()
    application.command()(check)
    return CliRunner().invoke(application, [str(argument) for argument in arguments])


def files(folder: Path, config: str, allowlist: str) -> list[str | Path]:
    (folder / "config.yaml").write_text(config)
    (folder / "allowlist.yaml").write_text(allowlist)
    return ["--config", folder / "config.yaml", "--allowlist", folder / "allowlist.yaml"]


def test_usable_files_exit_0_and_say_so(tmp_path: Path) -> None:
    result = run(*files(tmp_path, LEAST, "pods: {10.0.0.1: [a.example.com]}\n"))

    assert (result.exit_code, result.stdout, result.stderr) == (0, "usable: no errors, no warnings\n", "")


def test_warnings_are_printed_and_do_not_fail(tmp_path: Path) -> None:
    result = run(*files(tmp_path, LEAST, "pods: {10.0.0.1: []}\n"))

    assert result.exit_code == 0
    assert result.stderr.startswith(f"{tmp_path}/allowlist.yaml:1:8: warning: pod 10.0.0.1 has no policy")
    assert result.stdout == "usable: 1 warning\n"


def test_every_error_of_both_files_is_printed_on_standard_error(tmp_path: Path) -> None:
    result = run(*files(tmp_path, LEAST + "a: 1\nb: 2\n", "pods: {x: [a.example.com], 10.0.0.1: [a b]}\n"))

    assert result.exit_code == 1
    assert [line.split(": ")[0].removeprefix(f"{tmp_path}/") for line in result.stderr.splitlines()] == [
        "config.yaml:2:1",
        "config.yaml:3:1",
        "allowlist.yaml:1:8",
        "allowlist.yaml:1:39",
        "not usable",
    ]
    assert result.stdout == ""


def test_the_allowlist_that_the_configuration_names_is_checked(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"{LEAST}allowlist: {tmp_path}/other.yaml\n")

    result = run("--config", tmp_path / "config.yaml")

    assert result.exit_code == 1
    assert result.stderr.startswith(f"{tmp_path}/other.yaml:1:1: error: there is no such file")


def test_a_missing_configuration_is_an_error_of_the_same_form(tmp_path: Path) -> None:
    result = run("--config", tmp_path / "config.yaml")

    assert result.exit_code == 1
    assert result.stderr.startswith(f"{tmp_path}/config.yaml:1:1: error: there is no such file")


def test_json_is_one_object_a_line_on_standard_output(tmp_path: Path) -> None:
    result = run(*files(tmp_path, LEAST + "a: 1\n", "pods: {10.0.0.1: []}\n"), "--json")

    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.exit_code == 1
    assert result.stderr == ""
    assert [(line["line"], line["column"], line["severity"]) for line in lines] == [(2, 1, "error"), (1, 8, "warning")]
    assert lines[0]["file"] == f"{tmp_path}/config.yaml"
    assert lines[0]["text"].startswith("unknown key 'a'")


def test_an_address_of_this_machine_is_warned_about(tmp_path: Path) -> None:
    result = run(*files(tmp_path, LEAST, "pods: {127.0.0.1: [a.example.com]}\n"))

    assert result.exit_code == 0
    assert "127.0.0.1 is an address of the node itself" in result.stderr
