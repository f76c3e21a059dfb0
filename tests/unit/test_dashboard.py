"""The Grafana dashboard: up to date, of the shape that Grafana imports, and about metrics that there are."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.exposed import METRICS, used

FOLDER = Path(__file__).parents[2] / "packaging/grafana"
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "dnsguard.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
SHOWN = [panel for panel in PANELS if panel["type"] != "row"]
WINDOW = {"$__rate_interval": "1m", "$instance": ".*"}


def queries() -> Iterator[tuple[str, str]]:
    """(panel, expression), with Grafana's variables filled in."""
    for panel in SHOWN:
        for target in panel["targets"]:
            expr = target["expr"]
            for variable, value in WINDOW.items():
                expr = expr.replace(variable, value)
            yield panel["title"], expr


def test_the_file_is_up_to_date() -> None:
    """Otherwise run `python3 packaging/grafana/dashboard.py`."""
    made = subprocess.run(
        [sys.executable, "-c", "import dashboard; print(dashboard.text(), end='')"],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (FOLDER / "dnsguard.json").read_text() == made.stdout


def test_it_has_what_grafana_asks_of_a_dashboard() -> None:
    assert isinstance(DASHBOARD["schemaVersion"], int)
    assert DASHBOARD["schemaVersion"] >= 36
    assert isinstance(DASHBOARD["editable"], bool)
    assert DASHBOARD["graphTooltip"] in (0, 1, 2)
    assert 1 <= len(DASHBOARD["uid"]) <= 40
    assert DASHBOARD["title"]
    assert "id" not in DASHBOARD, "an id is of one Grafana only"
    assert set(DASHBOARD["time"]) == {"from", "to"}
    assert all(isinstance(DASHBOARD[key]["list"], list) for key in ("annotations", "templating"))


def test_its_variables_are_those_that_its_queries_use() -> None:
    variables = {one["name"]: one for one in DASHBOARD["templating"]["list"]}
    assert set(variables) == {"datasource", "instance"}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["instance"]["type"] == "query"
    assert used(variables["instance"]["query"]["query"]) <= METRICS
    assert all("$instance" in target["expr"] for panel in SHOWN for target in panel["targets"])


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: f"{panel['id']}-{panel['title']}")
def test_a_panel_has_what_grafana_asks_of_it(panel: dict[str, Any]) -> None:
    assert panel["type"] in ("row", "stat", "timeseries")
    assert panel["title"]
    place = panel["gridPos"]
    assert set(place) == {"x", "y", "w", "h"}
    assert all(isinstance(value, int) and value >= 0 for value in place.values())
    assert 0 < place["w"] <= 24 - place["x"]
    assert place["h"] > 0
    if panel["type"] == "row":
        assert panel["panels"] == []
        return
    assert isinstance(panel["options"], dict)
    assert panel["fieldConfig"]["overrides"] == []
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"][0]["value"] is None
    references = [target["refId"] for target in panel["targets"]]
    assert references
    assert len(set(references)) == len(references)
    sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)


def test_no_two_panels_have_one_number_or_one_place() -> None:
    numbers = [panel["id"] for panel in PANELS]
    assert len(set(numbers)) == len(numbers)
    for one, other in itertools.combinations(PANELS, 2):
        assert not overlap(one["gridPos"], other["gridPos"]), (one["title"], other["title"])


def overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    def along(start: str, length: str) -> bool:
        return one[start] < other[start] + other[length] and other[start] < one[start] + one[length]

    return along("x", "w") and along("y", "h")


@pytest.mark.parametrize(("panel", "expr"), list(queries()))
def test_a_query_is_of_metrics_that_there_are(panel: str, expr: str) -> None:
    assert used(expr)
    assert used(expr) <= METRICS


def test_promtool_can_read_every_query(tmp_path: Path) -> None:
    rules = [{"record": "a", "expr": expr} for _, expr in queries()]
    (tmp_path / "rules.yaml").write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))
    checked = subprocess.run(
        ["promtool", "check", "rules", "--lint=none", tmp_path / "rules.yaml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr


def test_every_metric_of_ours_is_on_the_dashboard() -> None:
    shown = {name for _, expr in queries() for name in used(expr)}
    ours = {name for name in METRICS if name.startswith("dnsguard_") and not name.endswith(("_sum", "_count"))}
    assert ours - shown == {"dnsguard_build_info", "dnsguard_pods_limit", "dnsguard_policy_loads_total"}
