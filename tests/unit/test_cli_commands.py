"""The command line against a daemon's socket, in process and as processes of their own."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dnsguard import __version__, service
from dnsguard.cli import app, main, options
from dnsguard.config.settings import Settings
from dnsguard.control import api
from dnsguard.control.api import ControlServer
from dnsguard.control.calls import CallError
from dnsguard.core.errors import KernelError, PolicyError
from dnsguard.daemon.cleanup import Removed
from dnsguard.demo import show

COMMANDS = [
    *("run", "check", "explain", "status", "pods", "leases"),
    *("monitor", "reload", "learn", "demo", "cleanup", "version"),
]

STATUS = {
    "version": __version__,
    "pid": 42,
    "uptime": 7620.0,
    "mode": "Enforce",
    "ready": True,
    "missing": "",
    "config": "/etc/dnsguard/config.yaml",
    "allowlist": "/etc/dnsguard/allowlist.yaml",
    "generation": 3,
    "rejected": "a.yaml:1:1: error: x\n" * 5,
    "late": ["c.yaml:5:12: warning: upstreams: takes effect at a restart"],
    "reloading": True,
    "pods": 2,
    "pods_limit": 1000,
    "leases": 1,
    "lease_elements": 2,
    "leases_limit": 100_000,
    "in_flight": 3,
    "held_answers": 1,
    "totals": {"cache_hits": 5, "limited": 0, "egress_denied": 7, "kernel_repairs": 2, "internal_errors": 0},
    "queries": 10,
    "denied": 4,
    "audited": 0,
    "enforcers": ["nftables", "ebpf"],
    "absent": {},
    "gaps": [{"enforcer": "ebpf", "link": "veth1", "reason": "program 7 stands before from_pod by tcx"}],
    "tcp_connections": 6,
    "cache_entries": 8,
    "writer_busy": 0.0,
    "counted": 0.4,
    "replies": {"NOERROR": 6, "NXDOMAIN": 4},
    "latency": {"count": 10, "seconds": 0.02, "p50": 0.001, "p99": 2.0},
    "commits": {"nftables": {"count": 1, "seconds": 0.001, "p50": 0.0001, "p99": None}},
    "upstreams": [
        {
            "address": "10.96.0.10:53",
            "up": True,
            "asked": 7,
            "failed": 1,
            "latency": {"count": 6, "seconds": 0.02, "p50": 0.0025, "p99": 0.1},
        },
        {
            "address": "10.96.0.11:53",
            "up": False,
            "asked": 2,
            "failed": 2,
            "latency": {"count": 0, "seconds": 0.0, "p50": None, "p99": None},
        },
    ],
}
POD = {
    "pod": "shop/backend-0",
    "addresses": ["10.244.0.5", "fd00:10:244::5"],
    "link": "veth1",
    "policy": "backend",
    "default": "Deny",
    "rules": 2,
    "leases": 1,
    "denied": 4,
    "audited": 0,
    "answered_in_kernel": 9,
    "origin": "allowlist.yaml:9:3",
}
LEASE = {
    "pod": "shop/backend-0",
    "address": "192.0.2.7",
    "scope": "tcp_5432",
    "ports": "tcp/5432",
    "names": ["db.example.com"],
    "remaining": 37.2,
}

SEEN = {
    "pod": "shop/backend-0",
    "addresses": ["10.244.0.5", "fd00:10:244::5"],
    "last": 1,
    "names": [],
    "flows": [],
    "left_out_names": 0,
    "left_out_flows": 0,
}

PROBE = {"name": "doctor.dnsguard.invalid", "count": 1, "last": 1, "rule": "", "outcome": "missing", "names": 1}
PROBED = {**SEEN, "pod": "203.0.113.253", "addresses": [], "names": [PROBE]}


def past(event: str, subject: str) -> dict[str, Any]:
    times = {"count": 1, "first": 9.0, "last": 9.0}
    return {"pod": "a", "event": event, "subject": subject, "reason": "r", **times, "nearest": [], "add": None}


class Daemon:
    """A control socket served in a thread, with calls that answer what a test wants."""

    def __init__(self, folder: Path) -> None:
        self.config = folder / "config.yaml"
        self.config.write_text(f"upstreams: [10.96.0.10]\npaths: {{runtime: {folder}}}\nmode: Audit\n")
        self.asked: list[dict[str, str]] = []
        self.past: list[dict[str, Any]] = []
        self.reloaded: Any = {"generation": 4, "diagnostics": ["a.yaml:1:1: warning: x"]}
        handlers = {name: getattr(self, name) for name in ("status", "pods", "leases", "explain", "reload", "learn")}
        self._server = ControlServer(folder, handlers, lambda call, error: None)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def start(self) -> None:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._server.start(), self._loop).result(5)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._server.stop(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    async def status(self) -> Any:
        return STATUS

    async def pods(self, pod: str = "") -> Any:
        if pod == "unknown":
            raise CallError("no governed pod is called unknown")
        return [POD]

    async def leases(self, pod: str = "") -> Any:
        return [LEASE] if pod in ("", LEASE["pod"]) else []

    async def explain(self, **arguments: str) -> Any:
        self.asked.append(arguments)
        return {
            "pod": arguments["pod"],
            "policy": "backend",
            "subject": "db.example.com A",
            "verdict": "denied" if arguments.get("name", "").startswith("evil") else "allowed",
            "reason": "its addresses open on tcp/5432",
            "rules": [],
            "leases": [LEASE],
            "source": "live",
            "past": self.past,
        }

    async def learn(self) -> Any:
        return [SEEN, PROBED]

    async def reload(self) -> Any:
        if isinstance(self.reloaded, Exception):
            raise self.reloaded
        return self.reloaded


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon(tmp_path)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def dead(tmp_path: Path) -> str:
    """A configuration whose daemon does not run."""
    config = tmp_path / "config.yaml"
    config.write_text(f"upstreams: [10.96.0.10]\npaths: {{runtime: {tmp_path}}}\n")
    return str(config)


def process(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "dnsguard", *arguments], capture_output=True, text=True, timeout=30)


def test_status_is_told_in_words(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--config", str(daemon.config)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "state:    ready" in lines
    assert "policy:   generation 3 of /etc/dnsguard/allowlist.yaml" in lines
    assert "running:  2h07m as process 42" in lines
    assert "reload:   under way" in lines
    assert lines.count("refused:  at the last reload: a.yaml:1:1: error: x") == 3
    assert "refused:  2 more; `dnsguard check` prints them all" in lines
    assert "restart:  c.yaml:5:12: warning: upstreams: takes effect at a restart" in lines
    assert "gap:      ebpf does not decide on veth1: program 7 stands before from_pod by tcx" in lines
    served = "7 attempts, 1 without an answer, half within 2.5 ms, 99 of 100 within 100 ms"
    assert f"upstream: 10.96.0.10:53 up, {served}" in lines
    assert "upstream: 10.96.0.11:53 DOWN, 2 attempts, 2 without an answer, none yet" in lines
    assert "replies:  10, 6 NOERROR, 4 NXDOMAIN" in lines
    assert "latency:  half within 1 ms, 99 of 100 within 2 s" in lines
    assert "commits:  nftables 1, half within 0.1 ms, 99 of 100 within more than is told apart" in lines
    assert "pods:     2 of 1000" in lines
    assert "leases:   1, 2 of 100000 elements" in lines
    assert "queries:  10, 4 denied, 5 from a cache, 0 over a limit, 0 withheld" in lines
    held = "3 being answered, 1 of them held for the kernel"
    assert f"now:      {held}, 6 TCP connections, 8 answers cached" in lines
    assert "dropped:  7 packets" in lines
    assert "repaired: 2 changes of others to the kernel undone" in lines
    assert not [line for line in lines if line.startswith("errors:")]


def test_status_is_one_json_object(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--json", "--config", str(daemon.config)]) == 0
    assert json.loads(capsys.readouterr().out) == STATUS


@pytest.mark.parametrize("before", [True, False])
def test_config_stands_before_or_after_the_command(
    before: bool, daemon: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    option = ["--config", str(daemon.config)]
    assert main([*option, "status"] if before else ["status", *option]) == 0


def test_config_after_the_command_wins(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", "/absent", "status", "--config", str(daemon.config)]) == 0


def test_pods_are_listed(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pods", "--config", str(daemon.config)]) == 0
    out = capsys.readouterr().out
    assert "10.244.0.5, fd00:10:244::5" in out and "allowlist.yaml:9:3" in out


def test_a_pod_that_is_not_there_is_an_error(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pods", "--pod", "unknown", "--config", str(daemon.config)]) == 1
    assert capsys.readouterr().err == "no governed pod is called unknown\n"


def test_leases_say_how_long_they_have_left(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["leases", "--pod", "shop/backend-0", "--config", str(daemon.config)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "POD             ADDRESS    PORTS     NAMES           ENDS IN",
        "shop/backend-0  192.0.2.7  tcp/5432  db.example.com  37s",
    ]


def test_leases_in_json_keep_their_numbers(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["leases", "--json", "--config", str(daemon.config)]) == 0
    assert json.loads(capsys.readouterr().out) == LEASE


def test_pods_and_reload_have_json_too(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pods", "--json", "--config", str(daemon.config)]) == 0
    assert main(["reload", "--json", "--config", str(daemon.config)]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [POD, daemon.reloaded]


def test_without_any_configuration_the_default_socket_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(options, "DEFAULT_CONFIG", tmp_path / "absent.yaml")
    monkeypatch.setattr(options, "DEFAULT_RUNTIME", tmp_path / "run")
    assert main(["status"]) == 1
    assert f"no socket at {tmp_path}/run/control.sock" in capsys.readouterr().err


def test_the_version_is_an_option_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dnsguard {__version__}\n"


def test_the_version_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["version"] == __version__


def test_no_leases_are_said_on_standard_error(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["leases", "--pod", "other", "--config", str(daemon.config)]) == 0
    assert capsys.readouterr() == ("", "no live leases of other\n")


def test_reload_says_the_generation_and_the_warnings(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reload", "--config", str(daemon.config)]) == 0
    assert capsys.readouterr() == ("policy generation 4 is in force\n", "a.yaml:1:1: warning: x\n")


def test_reload_of_a_broken_file_prints_its_errors_and_ends_with_1(
    daemon: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.reloaded = PolicyError("a.yaml:3:5: error: y\na.yaml:4:5: error: z")
    assert main(["reload", "--config", str(daemon.config)]) == 1
    assert capsys.readouterr() == ("", "a.yaml:3:5: error: y\na.yaml:4:5: error: z\n")


def test_explain_asks_the_daemon_first(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "shop/backend-0", "db.example.com", "--config", str(daemon.config)]) == 0
    assert daemon.asked == [{"pod": "shop/backend-0", "name": "db.example.com", "type": "A"}]
    out = capsys.readouterr().out
    assert out.startswith("verdict: allowed: its addresses open on tcp/5432\n")
    assert "192.0.2.7  tcp/5432  db.example.com  37s" in out


def test_a_denial_ends_with_3(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "shop/backend-0", "evil.test", "AAAA", "--config", str(daemon.config)]) == 3
    assert daemon.asked[0]["type"] == "AAAA"


@pytest.mark.parametrize(("text", "port", "protocol"), [("443", "443", "tcp"), ("53/UDP", "53", "UDP")])
def test_explain_of_an_address_asks_for_a_port(
    text: str, port: str, protocol: str, daemon: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", "a", "192.0.2.7", text, "--config", str(daemon.config)]) == 0
    assert daemon.asked == [{"pod": "a", "address": "192.0.2.7", "port": port, "protocol": protocol}]


def test_explain_of_an_address_without_a_port_is_a_usage_error(dead: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "a", "192.0.2.7", "--config", dead]) == 2
    assert "name a port too, like 192.0.2.7 443" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("subject", "words"),
    [
        ("198.18.0.1:8080", "two words here: 198.18.0.1 8080"),
        ("[2001:db8::1]:53", "two words here: 2001:db8::1 53"),
        ("db.example.com:8080", "without a port: db.example.com; a connection by the address: ADDRESS 8080"),
        ("10.0.0.0/16", "is a network: name one address and a port, like 10.0.0.0 443"),
    ],
)
def test_what_belongs_in_a_file_is_told_as_it_is_typed(
    subject: str, words: str, dead: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", "a", subject, "--config", dead]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("words", [("10.244.0.5", "a\udcffb.de"), ("\udcff", "a.de")])
def test_octets_that_are_no_text_are_refused_before_the_daemon_is_asked(
    words: tuple[str, str], dead: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", *words, "--config", dead]) == 2
    assert "\\xff" in (err := capsys.readouterr().err) and "is not text in UTF-8" in err


def test_what_came_before_a_verdict_says_what_became_of_each(
    daemon: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    events = ("query_audited", "answer_audited", "answer_withheld", "query_failed", "query_denied", "forwarding_loop")
    daemon.past = [past(event, f"n{number}.test A") for number, event in enumerate(events)]

    assert main(["explain", "a", "db.example.com", "--config", str(daemon.config)]) == 0

    out = capsys.readouterr().out
    assert re.findall(r"^n\d\.test A +(\w+)", out, re.M) == [
        *("audited", "audited", "withheld", "failed", "denied", "refused")
    ]
    assert re.search(r"^BEFORE +OUTCOME +TIMES", out, re.M)


@pytest.mark.parametrize("pod", ["shop/backend-0", "fd00:10:244:0:0::5", "FD00:10:244::5", "10.244.0.5"])
def test_what_was_seen_of_a_pod_is_found_by_any_form_of_its_address(
    pod: str, daemon: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["learn", "--json", "--pod", pod, "--config", str(daemon.config)]) == 0
    assert json.loads(capsys.readouterr().out) == SEEN


def test_the_doctors_own_probe_is_not_told_as_a_pod(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["learn", "--json", "--config", str(daemon.config)]) == 0
    assert json.loads(capsys.readouterr().out) == SEEN
    assert main(["learn", "--config", str(daemon.config)]) == 0
    assert "203.0.113.253" not in capsys.readouterr().out


@pytest.mark.parametrize("command", ["status", "pods", "leases", "monitor", "reload"])
def test_without_a_daemon_there_is_one_clear_line(command: str, dead: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--config", dead]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("the daemon is not running (no socket at ") and err.count("\n") == 1


def test_another_version_of_the_daemon_is_noted_beside_the_result(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(api, "__version__", "9.9.9")
    assert main(["leases", "--json", "--config", str(daemon.config)]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1 and "the daemon runs version 9.9.9" in err


@pytest.mark.parametrize("broken", ["mod: Enforce", "upstreams: [here]", "pods: {interfaces: 7}"])
def test_a_configuration_with_errors_still_leads_to_the_daemon(
    daemon: Daemon, broken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.config.write_text(f"paths: {{runtime: {daemon.config.parent}}}\n{broken}\n")

    assert main(["status", "--json", "--config", str(daemon.config)]) == 0

    out, err = capsys.readouterr()
    assert json.loads(out)["ready"]
    assert err == f"{daemon.config} has errors, which `dnsguard check` tells\n"


@pytest.mark.parametrize("text", ["", "[]", "paths: {runtime: 7}", "paths: [", "\x01", "path: {runtime: /run/other}"])
def test_only_the_usual_file_leads_to_the_usual_daemon_when_it_does_not_say_where_it_is(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)

    assert main(["reload", "--config", str(file)]) == 1
    assert "the daemon is not running" not in capsys.readouterr().err

    monkeypatch.setattr(options, "DEFAULT_CONFIG", file)
    monkeypatch.setattr(options, "DEFAULT_RUNTIME", tmp_path)
    assert main(["reload"]) == 1
    assert f"the daemon is not running (no socket at {tmp_path}" in capsys.readouterr().err


def test_a_named_configuration_that_is_missing_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--config", "/absent/config.yaml"]) == 1
    assert capsys.readouterr().err.startswith("/absent/config.yaml:1:1: error:")


def test_run_is_given_the_path_and_its_code_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    paths: list[Path] = []

    def run(path: Path) -> int:
        paths.append(path)
        return 77

    monkeypatch.setattr(service, "run", run)
    assert main(["run", "--config", "/x.yaml"]) == 77
    assert paths == [Path("/x.yaml")]


class Kernel:
    """Stands for what `cleanup` takes out of the kernel, and remembers what it was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.given: list[Settings] = []
        self.there = Removed(table=True, programs=3, maps=14, rules=2, routes=1)
        monkeypatch.setattr("dnsguard.daemon.cleanup.cleanup", self._cleanup)

    def _cleanup(self, settings: Settings) -> Removed:
        self.given.append(settings)
        return self.there


def test_cleanup_says_what_it_removed(
    dead: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = Kernel(monkeypatch)

    assert main(["cleanup", "--config", dead]) == 0

    assert [settings.paths.runtime for settings in kernel.given] == [Path(dead).parent]
    removed = "removed: table inet dnsguard, 3 programs, 14 maps, 2 rules, 1 route; pods are unfiltered now\n"
    assert capsys.readouterr() == (removed, "")


def test_cleanup_says_that_there_was_nothing(
    dead: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Kernel(monkeypatch).there = Removed()

    assert main(["cleanup", "--config", dead]) == 0
    assert capsys.readouterr().out == "nothing of dnsguard is in the kernel\n"


@pytest.mark.parametrize("wrong", ["mdoe: Enforce", "upstreams: [here]", "dns: {listenPort: 70000}"])
def test_cleanup_uses_what_is_right_in_a_configuration_with_errors(
    dead: str, wrong: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = Kernel(monkeypatch)
    paths = {"runtime": str(Path(dead).parent), "bpffs": "/sys/fs/bpf/other"}
    Path(dead).write_text(f"paths: {json.dumps(paths)}\n{wrong}\n")

    assert main(["cleanup", "--config", dead]) == 0

    used = kernel.given[0].paths
    assert (used.runtime, used.bpffs) == (Path(dead).parent, Path("/sys/fs/bpf/other"))
    out, err = capsys.readouterr()
    assert out.startswith("removed: ")
    assert f"{dead}:2:" in err
    assert f"{used.runtime} and paths.bpffs /sys/fs/bpf/other\n" in err


@pytest.mark.parametrize("content", [None, "", "paths: [", "\x01", "- a", "paths: {runtime: 7, bpffs: 8}"])
def test_cleanup_without_a_usable_configuration_goes_by_the_defaults(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel, file = Kernel(monkeypatch), tmp_path / "config.yaml"
    if content is not None:
        file.write_text(content)

    assert main(["cleanup", "--config", str(file)]) == 0

    used = kernel.given[0].paths
    assert (used.runtime, used.bpffs) == (Path("/run/dnsguard"), Path("/sys/fs/bpf/dnsguard"))
    assert "warning: going on with what is right in" in capsys.readouterr().err


def test_what_the_kernel_refuses_is_one_line_and_1(
    dead: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(settings: object) -> Removed:
        raise KernelError("a daemon runs")

    monkeypatch.setattr("dnsguard.daemon.cleanup.cleanup", refuse)
    assert main(["cleanup", "--config", dead]) == 1
    assert capsys.readouterr().err == "a daemon runs\n"


@pytest.mark.parametrize("keep", [True, False])
def test_demo_is_told_whether_to_keep(keep: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show, "main", lambda kept: 5 if kept is keep else 9)
    assert main(["demo", "--keep"] if keep else ["demo"]) == 5


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["status", "--colour"], ["explain"], ["status", "--config"], ["monitor", "--type", "drops"]],
)
def test_wrong_usage_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2


def test_several_kinds_of_events_in_one_word_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["monitor", "--type", "query,drop"]) == 2
    said = capsys.readouterr().err
    assert "query,drop is none of query, drop, lease, policy; give --type once for each" in said
    assert "Value error" not in said


def test_help_writes_arguments_and_choices_as_they_are_typed() -> None:
    explained = CliRunner().invoke(app, ["explain", "--help"]).output
    assert "explain [OPTIONS] POD [NAME|ADDRESS] [TYPE|PORT[/PROTO]]\n" in explained
    assert "--type query|drop|lease|policy " in CliRunner().invoke(app, ["monitor", "--help"]).output


def test_help_names_every_command() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.output.split("Commands:\n")[1].splitlines()[:12]] == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_an_example(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f"dnsguard {command}" in " ".join(result.output.split("Example", 1)[1].split())


# ---- as processes


def test_the_process_ends_with_the_commands_code(dead: str) -> None:
    done = process("status", "--config", dead)
    assert done.returncode == 1
    assert done.stdout == "" and done.stderr.startswith("the daemon is not running")


def test_the_process_prints_its_version() -> None:
    assert process("version").stdout.startswith(f"dnsguard {__version__} (Python ")


def test_help_needs_none_of_the_heavy_libraries() -> None:
    script = (
        "import sys\nfrom dnsguard.cli import main\nassert main(['--help']) == 0\n"
        "print([m for m in ('aiohttp', 'pydantic', 'yaml', 'rich', 'pyroute2', 'structlog', 'uvloop', 'asyncio')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_a_reader_that_stops_early_gets_no_traceback(daemon: Daemon) -> None:
    command = f"{sys.executable} -m dnsguard leases --config {daemon.config} | true"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=30)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["version", "leases"])
def test_a_result_that_does_not_fit_is_an_error_of_one_line(daemon: Daemon, command: str) -> None:
    whole = f"{sys.executable} -m dnsguard --config {daemon.config} {command} > /dev/full"
    done = subprocess.run(["sh", "-c", whole], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (1, "standard output: No space left on device\n")


def test_whoever_wants_no_output_gets_none(daemon: Daemon) -> None:
    whole = f"{sys.executable} -m dnsguard --config {daemon.config} status >&-"
    done = subprocess.run(["sh", "-c", whole], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
