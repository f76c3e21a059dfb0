"""config.yaml: values, defaults, and every error at its place."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dnsguard.config import reference
from dnsguard.config.diagnostics import ConfigError, Diagnostic, Severity
from dnsguard.config.durations import duration_text, parse_duration
from dnsguard.config.networks import Endpoint, parse_endpoint
from dnsguard.config.settings import (
    Settings,
    diagnose,
    load_settings,
    settings_from_text,
)
from dnsguard.core.model import Action, Origin

ROOT = Path(__file__).parents[2]
LEAST = "upstreams: [10.96.0.10]\n"


def read(text: str) -> Settings:
    settings, found = settings_from_text(text, "config.yaml")
    assert settings is not None, found
    return settings


def test_upstreams_alone_are_a_configuration() -> None:
    settings = read(LEAST)

    assert settings.upstreams == (Endpoint(IPv4Address("10.96.0.10"), 53),)
    assert settings.default_action.action is Action.DENY
    assert settings.ttl.floor == 30.0
    assert settings.dns.intercept == ()
    assert settings.answers.protect_default


def test_values_arrive_as_what_they_mean() -> None:
    settings = read(
        "upstreams: [10.96.0.10, '10.96.0.11:5353', '[fd00::10]:53', fd00::11]\n"
        "defaultAction: Allow\n"
        "dns: {intercept: [10.96.0.10], timeout: 500ms, serveStale: 0, prefetch: false}\n"
        "interception: {mark: 0x10, replyMark: 32}\n"
        "answers: {protected: [10.0.0.0/8]}\n"
        "metrics: {listen: null}\n"
        "log: {queries: None}\n"
    )

    assert settings.upstreams[1:] == (
        Endpoint(IPv4Address("10.96.0.11"), 5353),
        Endpoint(IPv6Address("fd00::10"), 53),
        Endpoint(IPv6Address("fd00::11"), 53),
    )
    assert settings.default_action.action is Action.ACCEPT
    assert settings.dns.intercept == (IPv4Address("10.96.0.10"),)
    assert (settings.dns.timeout, settings.dns.serve_stale, settings.dns.prefetch) == (0.5, 0.0, False)
    assert (settings.interception.mark, settings.interception.reply_mark) == (16, 32)
    assert settings.answers.protected_networks == (ip_network("10.0.0.0/8"),)
    assert not settings.answers.protect_default
    assert settings.metrics.listen is None
    assert settings.log.queries == "None"


def test_settings_cannot_be_changed() -> None:
    settings = read(LEAST)

    with pytest.raises(ValidationError):
        settings.ttl.floor = 1.0  # type: ignore[misc]


def test_settings_dump_to_a_file_that_reads_back_as_the_same() -> None:
    settings = read(LEAST + "dns: {intercept: [10.96.0.10], timeout: 1500ms}\nmetrics: {listen: '[::1]:9353'}\n")

    again = read(json.dumps(settings.model_dump(mode="json", by_alias=True)))

    assert again == settings


def test_what_is_wrong_with_a_file_that_is_not_yaml_comes_in_the_order_of_the_file() -> None:
    _, found = settings_from_text("upstreams: []\nupstreams: &dns []\nmode: *dns}\n", "c")

    assert [(one.origin.line, one.origin.column) for one in found] == [(2, 1), (2, 12), (3, 7), (3, 11)]


def test_python_names_are_not_a_second_spelling_of_keys() -> None:
    _, found = settings_from_text(LEAST + "default_action: Allow\n", "c")

    assert [one.text for one in found] == ["unknown key 'default_action'; did you mean 'defaultAction'?"]


def test_an_error_in_a_group_does_not_hide_what_the_group_checks_as_a_whole() -> None:
    _, found = settings_from_text(LEAST + "interception: {mark: 3, replyMark: 2, table: 0}\n", "c")

    assert [(one.origin.column, one.text.split(":")[0]) for one in found] == [
        (36, "interception.replyMark"),
        (46, "interception.table"),
    ]


def test_a_check_of_a_group_is_silent_when_one_of_its_values_is_wrong_itself() -> None:
    _, found = settings_from_text(LEAST + "dns: {deadline: 3, timeout: 5s}\n", "c")

    assert [one.text.split(":")[0] for one in found] == ["dns.deadline"]


def test_load_settings_raises_every_diagnostic(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("upstreams: [x]\nbogus: 1\nttl: {floor: 2h}\n")

    with pytest.raises(ConfigError) as raised:
        load_settings(path)

    assert [(one.origin.line, one.severity) for one in raised.value.diagnostics] == [
        (1, Severity.ERROR),
        (2, Severity.ERROR),
        (3, Severity.WARNING),
    ]


def test_load_settings_gives_settings_in_spite_of_warnings(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(LEAST + "ttl: {floor: 2h}\n")

    assert load_settings(path).ttl.floor == 7200


def test_a_diagnostic_is_one_printable_line_of_bounded_length() -> None:
    line = str(Diagnostic(Origin("f", 1, 2), "a\nb\x1b[31m" + "c" * 10_000))

    assert line.startswith("f:1:2: error: a\\nb\\x1b[31mccc")
    assert len(line) < 2100


@given(st.integers(0, 10**12))
def test_a_duration_reads_back_from_its_text(milliseconds: int) -> None:
    assert parse_duration(duration_text(milliseconds / 1000)) == milliseconds / 1000


@given(st.text(alphabet="0123456789dhms: .", max_size=10))
def test_a_duration_is_read_or_refused_with_what_to_write(text: str) -> None:
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        assert "; write " in str(error)
    else:
        assert seconds >= 0


@given(
    st.ip_addresses().filter(lambda address: address.version == 4 or address.ipv4_mapped is None), st.integers(1, 65535)
)
def test_an_endpoint_reads_back_from_its_text(address: IPv4Address | IPv6Address, port: int) -> None:
    endpoint = Endpoint(address, port)

    assert parse_endpoint(str(endpoint), None) == endpoint
    assert parse_endpoint(str(address), port) == endpoint


@given(st.text(alphabet="0123456789abcdf:.[]%/ -", max_size=24))
def test_an_endpoint_is_read_or_refused(text: str) -> None:
    try:
        endpoint = parse_endpoint(text, 53)
    except ValueError as error:
        assert str(error)
    else:
        assert 1 <= endpoint.port <= 65535


_KEYS = st.sampled_from(
    ["upstreams", "dns", "timeout", "mode", "ttl", "floor", "grace", "metrics", "listen", "pods", "exclude", "x"]
)
_WORDS = st.sampled_from(
    ["10.96.0.10", "30s", "0", "1.5", "012", "on", "null", "true", "*x", "'a'", "[::1]", "Any", "-1", ".inf", "[]", ""]
)
_LINES = st.builds("{}{}: {}".format, st.sampled_from(["", "  "]), _KEYS, _WORDS)


@given(st.lists(_LINES, max_size=8).map(lambda lines: "\n".join(lines).encode()) | st.binary(max_size=80))
def test_any_octets_give_diagnostics_and_never_an_exception(content: bytes) -> None:
    for one in diagnose(content, "c"):
        assert str(one).startswith(f"c:{one.origin.line}:{one.origin.column}: ")


def test_the_shipped_configuration_is_valid_and_shows_every_default() -> None:
    text = (ROOT / "config/config.yaml").read_text()

    settings, found = settings_from_text(text, "config.yaml")

    assert found == []
    assert settings == read(LEAST)
    written = yaml.safe_load(text.replace("ebpf: Auto", "ebpf: 'Auto'"))
    shown = {(group, key) for group, keys in written.items() for key in (keys if isinstance(keys, dict) else [None])}
    every = {
        (group, key)
        for group, keys in read(LEAST).model_dump(mode="json", by_alias=True).items()
        for key in (keys if isinstance(keys, dict) else [None])
    }
    assert shown == every


@pytest.mark.parametrize("path", reference.generated())
def test_a_generated_file_is_as_it_would_be_generated_now(path: str) -> None:
    """Otherwise run `python -m dnsguard.config.reference .`."""
    assert (ROOT / path).read_text() == reference.generated()[path]


@pytest.mark.parametrize("name", ["config", "allowlist"])
def test_shipped_files_name_their_schema_for_editors(name: str) -> None:
    first = (ROOT / f"config/{name}.yaml").read_text().splitlines()[0]

    assert first == f"# yaml-language-server: $schema={name}.schema.json"
    assert (ROOT / f"config/{name}.schema.json").exists()


def test_every_key_has_a_description_in_the_schema() -> None:
    schema = json.loads((ROOT / "config/config.schema.json").read_text())

    for name, group in schema["$defs"].items():
        for key, value in group.get("properties", {}).items():
            assert value.get("description"), f"{name}.{key}"
