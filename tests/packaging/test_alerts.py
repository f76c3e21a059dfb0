"""The alert rules: each can fire, none fires for nothing, and all are of metrics that there are."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from dnsguard.engine.contracts import EventKind
from tests.exposed import METRICS, used

ROOT = Path(__file__).parents[2] / "packaging/prometheus"
ALERTS: dict[str, dict[str, Any]] = {
    rule["alert"]: rule
    for group in yaml.safe_load((ROOT / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
}


def promtool(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *argv], cwd=ROOT, capture_output=True, text=True, check=False)


def test_promtool_takes_the_rules_and_the_example_configuration() -> None:
    for what in (("rules", "alerts.yaml"), ("config", "prometheus.yaml")):
        checked = promtool("check", *what)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_each_fires_when_it_should_and_nothing_else_does() -> None:
    tested = promtool("test", "rules", "alerts_test.yaml")
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_alert_is_seen_firing_by_a_test() -> None:
    seen = set(re.findall(r'alertname="(\w+)"', (ROOT / "alerts_test.yaml").read_text()))
    assert seen == set(ALERTS)


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_is_of_metrics_that_there_are(alert: str) -> None:
    assert used(ALERTS[alert]["expr"]) <= METRICS


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_how_bad_it_is_what_happened_and_what_to_do(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert "$labels.instance" in rule["annotations"]["summary"]
    assert rule["annotations"]["description"].endswith(".")
    named = re.findall(r"DNSGUARD_EVENT=(\w+)", rule["annotations"]["description"])
    assert set(named) <= set(EventKind)
