"""A real Prometheus beside a running daemon: it scrapes, loads the alert rules, and answers the dashboard's queries."""

from __future__ import annotations

import itertools
import json
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.node.daemon import wait_for
from tests.node.scene import DB, OTHER, Scene, playing
from tests.packaging.test_alerts import ALERTS
from tests.packaging.test_dashboard import queries

pytestmark = pytest.mark.node

SHIPPED = Path(__file__).parents[2] / "packaging/prometheus"
DNSGUARD, LISTEN = "127.0.0.1:9353", "127.0.0.1:9090"
START_SECONDS = 30.0


@dataclass
class Prometheus:
    """One in the node's network namespace, which ends with the lab at the latest."""

    scene: Scene

    def get(self, call: str, **arguments: str) -> Any:
        """The data of an answer. Raises AssertionError with Prometheus' own words when it is none."""
        address = f"http://{LISTEN}/api/v1/{call}?{urllib.parse.urlencode(arguments)}"

        def fetch() -> str:
            try:
                with urllib.request.urlopen(address, timeout=5) as reply:
                    return str(reply.read().decode())
            except urllib.error.HTTPError as error:
                with error:
                    return error.read().decode()

        answer = json.loads(self.scene.lab.inside(self.scene.lab.node, fetch))
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expr: str) -> list[dict[str, Any]]:
        return list(self.get("query", query=expr)["result"])

    def up(self) -> bool:
        try:
            return [one["value"][1] for one in self.query('up{job="dnsguard"}')] == ["1"]
        except (OSError, ValueError, AssertionError):
            return False  # it reads its log first, and answers 503


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """It has scraped a daemon that has allowed and denied questions and dropped packets, more than once."""
    folder = tmp_path_factory.mktemp("prometheus")
    with playing(folder, metrics={"listen": DNSGUARD}) as scene:
        made = Prometheus(scene)
        with (folder / "prometheus.log").open("w") as log:
            process = scene.lab.popen(scene.lab.node, *command(folder), stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_for(made.up, START_SECONDS)
        except TimeoutError as error:
            error.add_note((folder / "prometheus.log").read_text()[-2000:])
            raise
        scene.ask(scene.a, "other.example.com")
        scene.opens(scene.a, OTHER)
        names = (f"n{number}.fresh.example.com" for number in itertools.count())
        wait_for(lambda: seen(made, next(names)), START_SECONDS)
        yield made
        process.terminate()
        process.wait(15)


def seen(prometheus: Prometheus, name: str) -> bool:
    """Whether it knows of dropped packets, and of commits by more than one scrape; with one more of them for `name`."""
    scene = prometheus.scene
    scene.zone.put(name, "A", DB)
    scene.resolve(scene.a, name)
    grown = (
        "rate(dnsguard_egress_denied_total[1m]) > 0",
        "rate(dnsguard_enforce_commit_duration_seconds_count[1m]) > 0",
    )
    return all(prometheus.query(expr) for expr in grown)


def command(folder: Path) -> list[str]:
    """Prometheus with the shipped example, but that it scrapes and judges every second."""
    config = yaml.safe_load((SHIPPED / "prometheus.yaml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["scrape_interval"] = "1s"
    config["rule_files"] = [str(SHIPPED / one) for one in config["rule_files"]]
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    return [
        "prometheus",
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={LISTEN}",
    ]


def test_the_example_configuration_finds_the_daemon(prometheus: Prometheus) -> None:
    (target,) = prometheus.get("targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    assert target["labels"] == {"instance": DNSGUARD, "job": "dnsguard"}
    assert target["lastScrapeDuration"] < 1


def test_every_alert_rule_is_loaded_and_evaluated_without_an_error(prometheus: Prometheus) -> None:
    def rules() -> list[dict[str, Any]]:
        return [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]

    wait_for(lambda: all(rule["health"] != "unknown" for rule in rules()), START_SECONDS)

    assert {rule["name"]: (rule["health"], rule.get("lastError", "")) for rule in rules()} == dict.fromkeys(
        ALERTS, ("ok", "")
    )


def test_a_daemon_that_does_its_work_alerts_nobody(prometheus: Prometheus) -> None:
    assert [one["labels"]["alertname"] for one in prometheus.get("alerts")["alerts"]] == []


def test_every_query_of_the_dashboard_is_answered(prometheus: Prometheus) -> None:
    now = time.time()
    for _, expr in queries():
        answer = prometheus.get("query_range", query=expr, start=str(now - 5), end=str(now), step="1")
        assert answer["resultType"] == "matrix", expr


def test_the_dashboard_has_something_to_show(prometheus: Prometheus) -> None:
    empty = {expr for _, expr in queries() if not prometheus.query(expr)}
    assert not [expr for expr in empty if "_total" not in expr]
    shown = {panel for panel, expr in queries() if expr not in empty}
    assert {"Questions", "Verdicts", "Replies", "Packets dropped", "Leases", "Nodes that enforce", "Memory"} <= shown
    assert prometheus.query("sum(dnsguard_ready)")[0]["value"][1] == "1"


def test_the_rejected_allowlist_is_seen_and_the_corrected_one_too(prometheus: Prometheus) -> None:
    daemon = prometheus.scene.daemon
    before = (daemon.folder / "allowlist.yaml").read_text()
    (daemon.folder / "allowlist.yaml").write_text("policies: [\n")
    assert daemon.call("reload").returncode == 1
    wait_for(lambda: bool(prometheus.query("dnsguard_policy_load_failed == 1")), START_SECONDS)
    (daemon.folder / "allowlist.yaml").write_text(before)
    assert daemon.call("reload").returncode == 0
    wait_for(lambda: bool(prometheus.query("dnsguard_policy_load_failed == 0")), START_SECONDS)
