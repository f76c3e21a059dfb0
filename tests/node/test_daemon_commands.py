"""What an operator sees of a running daemon: commands, their exit codes and JSON, metrics, health, and the log.

every command against a running daemon .................... status_..., pods_..., leases_..., monitor_..., explain_...
a clear error when none runs .............................. without_a_daemon_...
what is not built yet exits with 77 ....................... what_is_not_built_...
metrics and health ........................................ a_scrape_..., health_..., the_status_and_the_metrics_...
the log as text and as JSON ............................... the_log_...
"""

from __future__ import annotations

import itertools
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dnsguard import __version__
from dnsguard.daemon.kernel_counters import FRESH, PATIENCE
from tests.node.daemon import ANY_RESOLVER, Dnsguard, wait_for
from tests.node.picture import METRICS, get, of_metrics, of_status, samples
from tests.node.scene import A6, ALLOWLIST, DB, OTHER, PORT, WRONG_PORT, A, B, Scene, playing

pytestmark = pytest.mark.node


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A daemon that has allowed a name, and denied a name and a connection."""
    log = {"format": "json", "queries": "All"}
    with playing(tmp_path_factory.mktemp("commands"), metrics={"listen": METRICS}, log=log) as scene:
        scene.resolve(scene.a, "db.example.com")
        scene.ask(scene.a, "other.example.com", stream=True)
        scene.opens(scene.a, OTHER)
        yield scene


def objects(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode in (0, 3), done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


# -- commands ---------------------------------------------------------------------------------------------------------


def test_status_tells_people_and_programs_how_the_daemon_is(scene: Scene) -> None:
    (told,) = objects(scene.daemon.call("status", "--json"))
    table = scene.daemon.call("status")

    assert told["ready"] is True
    assert (told["mode"], told["enforcers"], told["pods"], told["missing"]) == ("Enforce", ["nftables", "ebpf"], 2, "")
    assert [(one["address"], one["up"]) for one in told["upstreams"]] == [("10.99.0.2:53", True)]
    assert told["denied"] >= 1 < told["queries"]
    assert "state:    ready\n" in table.stdout
    assert table.returncode == 0


def test_pods_lists_names_addresses_policies_and_where_they_are_written(scene: Scene) -> None:
    rows = {row["pod"]: row for row in objects(scene.daemon.call("pods", "--json"))}
    table = scene.daemon.call("pods", "--pod", A)

    assert set(rows) == {"shop/a", "shop/b"}
    assert rows["shop/a"]["addresses"] == [A, A6]
    assert (rows["shop/a"]["link"], rows["shop/a"]["policy"], rows["shop/a"]["leases"]) == ("veth-a", "web", 1)
    assert re.fullmatch(rf"{scene.daemon.folder}/allowlist.yaml:\d+:\d+", rows["shop/a"]["origin"])
    assert "shop/a" in table.stdout
    assert "shop/b" not in table.stdout


def test_the_packets_that_were_dropped_count_in_the_pods_row(scene: Scene) -> None:
    def denied() -> int:
        return int(scene.daemon.ask("pods", pod="shop/a")[0]["denied"])

    before = denied()
    scene.opens(scene.a, OTHER)

    wait_for(lambda: denied() > before, 8)


def test_leases_lists_what_is_open_to_whom_because_of_which_name(scene: Scene) -> None:
    (row,) = objects(scene.daemon.call("leases", "--pod", "shop/a", "--json"))
    nothing = scene.daemon.call("leases", "--pod", "shop/b")

    assert (row["pod"], row["address"], row["ports"], row["names"]) == ("shop/a", DB, "tcp/8080", ["db.example.com"])
    assert 0 < row["remaining"] <= 61
    assert (nothing.returncode, nothing.stdout, nothing.stderr) == (0, "", "no live leases of shop/b\n")


def test_monitor_shows_what_happens_to_a_pod_until_it_is_interrupted(scene: Scene, tmp_path: Path) -> None:
    program = (sys.executable, "-m", "dnsguard", "monitor", "--json", "--config", str(scene.daemon.config))
    shown = tmp_path / "shown"
    numbers = itertools.count()

    def kinds() -> set[str]:
        written = shown.read_text()
        rows = [
            json.loads(line) for line in written[: written.rfind("\n") + 1].splitlines()
        ]  # the last may be half a line
        assert all(row["pod"] == "shop/a" for row in rows)
        return {row["event"] for row in rows}

    def provoke() -> bool:
        fresh = f"{next(numbers)}.example.com"  # what was asked before, the kernel may answer without a word
        for pod in (scene.a, scene.b):
            scene.ask(pod, fresh)
        scene.opens(scene.a, OTHER)
        return kinds() >= {"query_denied", "flow_denied"}

    with shown.open("w") as out:
        process = scene.lab.popen(scene.lab.node, *program, "--pod", A, stdout=out, stderr=subprocess.STDOUT)
        wait_for(provoke, 20)
        process.send_signal(signal.SIGINT)

        assert process.wait(10) == 0


def test_a_pod_that_is_not_here_is_an_error_that_says_where_to_look(scene: Scene) -> None:
    for command in (("pods", "--pod", "shop/z"), ("leases", "--pod", "shop/z"), ("explain", "shop/z", "a.test")):
        done = scene.daemon.call(*command)

        assert (done.returncode, done.stdout) == (1, "")
        assert "shop/z" in done.stderr


@pytest.mark.parametrize(
    ("asked", "code", "reason"),
    [
        (("shop/a", "db.example.com"), 0, ""),
        ((A, "db.example.com", "AAAA"), 0, ""),
        (("shop/a", "other.example.com"), 3, "no rule allows this name"),
        (("shop/a", DB, f"{PORT}/tcp"), 0, ""),
        (("shop/a", DB, str(WRONG_PORT)), 3, ""),
        (("shop/a", OTHER, str(PORT)), 3, ""),
        (("shop/b", DB, str(PORT)), 3, ""),
    ],
)
def test_explain_asks_the_daemon_and_ends_with_the_verdict(
    scene: Scene, asked: tuple[str, ...], code: int, reason: str
) -> None:
    done = scene.daemon.call("explain", *asked, "--json")

    (told,) = objects(done)
    assert done.returncode == code
    assert (told["source"], told["verdict"]) == ("live", "allowed" if code == 0 else "denied")
    assert reason in told["reason"]


def test_explain_of_an_open_address_shows_its_lease_and_the_rule(scene: Scene) -> None:
    (told,) = objects(scene.daemon.call("explain", "shop/a", DB, str(PORT), "--json"))

    assert [(lease["address"], lease["names"]) for lease in told["leases"]] == [(DB, ["db.example.com"])]
    assert told["rules"][0]["policy"] == "web"
    assert told["rules"][0]["origin"].startswith(f"{scene.daemon.folder}/allowlist.yaml:")


def test_explain_agrees_with_what_happens(scene: Scene) -> None:
    for address, port in ((DB, PORT), (DB, WRONG_PORT), (OTHER, PORT)):
        scene.resolve(scene.a, "db.example.com")

        explained = scene.daemon.call("explain", "shop/a", address, str(port)).returncode == 0

        assert explained == scene.opens(scene.a, address, port)


def test_check_version_and_completion_need_no_daemon(scene: Scene) -> None:
    checked = scene.daemon.call("check")

    assert (checked.returncode, checked.stdout) == (0, "usable: no errors, no warnings\n")
    assert __version__ in scene.daemon.call("version").stdout


def test_reload_prints_json_and_warnings_of_the_file(scene: Scene) -> None:
    unused = {**ALLOWLIST, "policies": {**ALLOWLIST["policies"], "unused": {"egress": []}}}
    scene.daemon.write("allowlist.yaml", "Allowlist", unused)

    (told,) = objects(scene.daemon.call("reload", "--json"))
    said = scene.daemon.call("reload")

    assert told["generation"] >= 2
    assert [one for one in told["diagnostics"] if ": warning: " in one]
    assert (said.returncode, said.stdout) == (0, f"policy generation {told['generation'] + 1} is in force\n")
    assert said.stderr.splitlines() == told["diagnostics"]


@pytest.mark.parametrize("command", [("nonsense",), ("status", "--nonsense"), ("explain", "shop/a", DB)])
def test_wrong_usage_exits_with_2(scene: Scene, command: tuple[str, ...]) -> None:
    assert scene.daemon.call(*command).returncode == 2


@pytest.mark.parametrize("command", ["status", "pods", "leases", "monitor", "reload"])
def test_without_a_daemon_a_command_says_how_to_start_one(scene: Scene, tmp_path: Path, command: str) -> None:
    idle = Dnsguard(scene.lab, tmp_path)
    idle.write("config.yaml", "Configuration", {"upstreams": ["10.0.0.1"], "paths": {"runtime": str(tmp_path / "run")}})

    done = idle.call(command)

    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"the daemon is not running \(no socket at .*\): start it with .*\n", done.stderr)


def test_without_a_daemon_explain_reads_the_files(scene: Scene, tmp_path: Path) -> None:
    idle = Dnsguard(scene.lab, tmp_path)
    files = {"allowlist": str(tmp_path / "allowlist.yaml"), "paths": {"runtime": str(tmp_path / "run")}}
    idle.write("config.yaml", "Configuration", {"upstreams": ["10.0.0.1"], **files})
    idle.write("allowlist.yaml", "Allowlist", ALLOWLIST)

    allowed, denied = (idle.call("explain", B, f"{name}.example.com", "--json") for name in ("mail", "db"))

    assert (allowed.returncode, denied.returncode) == (0, 3)
    assert json.loads(allowed.stdout)["source"] == "files"


# -- metrics and health -----------------------------------------------------------------------------------------------


def test_health_says_that_it_lives_and_is_ready(scene: Scene) -> None:
    assert get(scene, "/healthz") == (200, "ok\n")
    assert get(scene, "/readyz") == (200, "ready\n")
    assert get(scene, "/other")[0] == 404


def test_a_scrape_counts_what_pods_did(scene: Scene) -> None:
    before = samples(scene)
    scene.ask(scene.a, "db.example.com", "TXT")  # the kernel never has an answer to it
    scene.resolve(scene.a, "db.example.com", stream=True)
    scene.ask(scene.a, "other.example.com", stream=True)

    after = samples(scene)

    def grown(name: str, **labels: str) -> float:
        key = (name, tuple(sorted(labels.items())))
        return after[key] - before.get(key, 0.0)

    assert grown("dnsguard_dns_requests_total", family="4", proto="udp", type="TXT") == 1
    assert grown("dnsguard_dns_requests_total", family="4", proto="tcp", type="A") == 2
    assert grown("dnsguard_dns_responses_total", rcode="NXDOMAIN") == 1
    assert grown("dnsguard_verdicts_total", verdict="denied") == 1
    assert grown("dnsguard_cache_hits_total", where="user") == 1
    assert grown("dnsguard_dns_request_duration_seconds_count") == 3
    assert after["dnsguard_pods", ()] == 2
    assert after["dnsguard_leases", ()] == 1
    assert after["dnsguard_build_info", (("version", __version__),)] == 1
    assert after["dnsguard_enforce_commit_duration_seconds_count", (("enforcer", "nftables"),)] >= 1
    assert after["dnsguard_policy_generation", ()] >= 1
    assert not [key for key in after if key[0] == "dnsguard_internal_errors_total"]


def test_a_scrape_reads_the_kernels_own_counters(scene: Scene) -> None:
    key = "dnsguard_egress_denied_total", (("reason", "default"),)
    before = samples(scene).get(key, 0.0)

    scene.opens(scene.a, OTHER)

    wait_for(lambda: samples(scene)[key] > before, FRESH + PATIENCE)
    assert samples(scene)["dnsguard_kernel_counters_age_seconds", ()] < FRESH + PATIENCE


def test_the_status_and_the_metrics_are_one_picture(scene: Scene) -> None:
    with scene.client(scene.a, ANY_RESOLVER, stream=True):
        wait_for(lambda: scene.daemon.ask("status")["tcp_connections"] == 1, 5)
        # As often as something happens between the two.
        wait_for(lambda: of_status(scene.daemon.ask("status")) == of_metrics(samples(scene)), 10)

        told = of_status(scene.daemon.ask("status"))
    assert {"replies NXDOMAIN", "latency", "tcp_connections", "cache_entries", "asked 10.99.0.2:53"} <= told.keys()
    assert {"commits nftables", "commits ebpf", "totals egress_denied"} <= told.keys()


def test_no_label_holds_what_a_pod_has_sent(scene: Scene) -> None:
    scene.ask(scene.a, "smuggled.example.net", "TYPE4711")

    text = get(scene, "/metrics")[1]

    assert "smuggled" not in text
    assert "4711" not in text
    assert "shop/a" not in text


def test_a_datagram_that_is_no_message_is_counted(scene: Scene) -> None:
    key = "dnsguard_udp_discarded_total", ()
    before = samples(scene)[key]

    with scene.client(scene.a, "10.96.0.10") as client:
        client.send(b"")

        wait_for(lambda: samples(scene)[key] == before + 1, 5)


# -- the log ----------------------------------------------------------------------------------------------------------


def test_the_log_in_json_has_one_object_a_line_with_the_fields_of_the_event(scene: Scene) -> None:
    lines = [json.loads(line) for line in scene.daemon.log.read_text().splitlines()]

    denied = next(line for line in lines if line["event"] == "query_denied")
    dropped = next(line for line in lines if line["event"] == "flow_denied")
    assert all({"event", "level", "time", "message"} <= line.keys() for line in lines)
    assert (denied["pod"], denied["name"], denied["type"], denied["verdict"], denied["policy"]) == (
        "shop/a",
        "other.example.com",
        "A",
        "denied",
        "web",
    )
    assert re.fullmatch("[0-9a-f]{32}", denied["message_id"])
    assert (dropped["address"], dropped["port"], dropped["protocol"]) == (OTHER, PORT, "tcp")
    assert dropped["reason"] == "never resolved"
    assert any(line["event"] == "query_allowed" for line in lines)


def test_the_log_as_text_is_a_sentence_with_its_fields_and_no_colours_in_a_file(tmp_path: Path) -> None:
    with playing(tmp_path, log={"format": "text"}) as scene:
        scene.ask(scene.a, "other.example.com")
        scene.resolve(scene.a, "db.example.com")
        sentence = "shop/a may not resolve other.example.com (A): no rule allows this name"

        wait_for(lambda: sentence in scene.daemon.log.read_text(), 3)

        (line,) = [line for line in scene.daemon.log.read_text().splitlines() if sentence in line]
        assert re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z \[info +\] ", line)
        assert "pod=shop/a" in line
        assert "event=query_denied" in line
        assert "\x1b" not in scene.daemon.log.read_text()
        assert "query_allowed" not in scene.daemon.log.read_text()
