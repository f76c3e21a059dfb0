"""The Grafana dashboard: up to date, of the schema that Grafana imports, and about metrics that there are."""

from __future__ import annotations

import copy
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.exposed import METRICS, used
from tests.grafana import UNITS, objections

FOLDER = Path(__file__).parents[2] / "packaging/grafana"
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "dnsguard.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
SHOWN = [panel for panel in PANELS if panel["type"] != "row"]
WINDOW = {"$__rate_interval": "1m", "$instance": ".*"}

KINDS = ("row", "stat", "timeseries")
SMALL = {**DASHBOARD, "panels": [next(panel for panel in PANELS if panel["type"] == kind) for kind in KINDS]}
"""The dashboard with one panel of each kind, to be spoilt."""
ROW, STAT, LINES = range(len(KINDS))
GONE = object()
Place = tuple[str | int, ...]


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
    assert DASHBOARD["schemaVersion"] >= 36
    assert 1 <= len(DASHBOARD["uid"]) <= 40
    assert DASHBOARD["title"]
    assert "id" not in DASHBOARD, "an id is of one Grafana only"
    assert set(DASHBOARD["time"]) == {"from", "to"}


def test_it_is_of_grafanas_own_schema() -> None:
    assert list(objections(DASHBOARD)) == []
    assert list(objections(SMALL)) == []


@pytest.mark.parametrize(
    ("place", "value", "objection"),
    [
        (("title",), 5, ".title: 5 is not"),
        (("timeRange",), {"from": "now-1h", "to": "now"}, ".timeRange: there is no such field"),
        (("graphTooltip",), 3, ".graph_tooltip: 3 is not"),
        (("templating", "list", 1, "type"), "queries", "[1].type_val: 'queries' is not"),
        (("templating", "list", 1, "refresh"), "2", "[1].refresh: '2' is not"),
        (("templating", "list", 1, "name"), GONE, "[1].name: missing"),
        (("panels", LINES, "type"), "lines", ".options: {"),
        (("panels", LINES, "type"), GONE, "cannot be read"),
        (("panels", LINES, "gridPos", "x"), "0", ".grid_pos.x: '0' is not"),
        (("panels", LINES, "gridPos", "h"), True, ".grid_pos.h: True is not"),
        (("panels", LINES, "gridPos"), "0, 0", ".gridPos: '0, 0' is read as"),
        (("panels", LINES, "options", "legends"), {"showLegend": True}, ".options.legends: there is no such field"),
        (("panels", LINES, "options", "tooltip", "mode"), "many", ".options.tooltip.mode: 'many' is not"),
        (("panels", LINES, "fieldConfig", "defaults", "lineWidth"), 1, ".defaults.lineWidth: there is no such field"),
        (("panels", LINES, "fieldConfig", "defaults", "custom", "drawStyle"), "dots", ".custom.draw_style: 'dots' is"),
        (("panels", LINES, "fieldConfig", "defaults", "custom", "unit"), "s", ".custom.unit: there is no such field"),
        (("panels", LINES, "targets", 0, "expr"), GONE, ".targets[0].expr: missing"),
        (("panels", LINES, "targets", 0, "expression"), "up", ".targets[0].expression: there is no such field"),
        (("panels", LINES, "targets", 0, "editorMode"), "text", ".targets[0].editor_mode: 'text' is not"),
        (("panels", LINES, "datasource", "type"), "prometeus", ".targets[0].data: {"),
        (("panels", STAT, "options", "colourMode"), "value", ".options.colourMode: there is no such field"),
        (("panels", STAT, "options", "graphMode"), "bars", ".options.graph_mode: 'bars' is not"),
        (("panels", STAT, "options", "legend"), {}, ".options.legend: there is no such field"),
        (("panels", STAT, "options", "reduceOptions", "calcs"), "lastNotNull", ".calcs: 'lastNotNull' is not"),
        (("panels", STAT, "fieldConfig", "defaults", "custom"), {"lineWidth": 1}, ".defaults.custom: {"),
        (("panels", STAT, "fieldConfig", "defaults", "color", "mode"), "threshold", ".color.mode: 'threshold' is not"),
        (("panels", STAT, "fieldConfig", "defaults", "thresholds", "steps", 0, "color"), GONE, ".color: missing"),
        (("panels", ROW, "collapsed"), "false", ".collapsed: 'false' is not"),
        (("panels", ROW, "targets"), [], ".targets: there is no such field"),
    ],
)
def test_what_is_not_of_the_schema_is_refused(place: Place, value: object, objection: str) -> None:
    assert [one for one in objections(spoilt(place, value)) if objection in one]


def test_a_field_that_is_misspelt_anywhere_is_refused() -> None:
    unseen = []
    for place in fields(SMALL):
        misspelt = spoilt(place, GONE)
        within(misspelt, place[:-1])[f"{place[-1]}s"] = within(SMALL, place)
        if not any(objections(misspelt)):
            unseen.append(place)
    assert {place[:-1] for place in unseen} == {("templating", "list", 1, "query")}, "it is the data source's"


def spoilt(place: Place, value: object) -> dict[str, Any]:
    """SMALL, with another value in one place."""
    dashboard = copy.deepcopy(SMALL)
    holder = within(dashboard, place[:-1])
    if value is GONE:
        del holder[place[-1]]
    else:
        holder[place[-1]] = value
    return dashboard


def within(value: Any, place: Place) -> Any:
    for step in place:
        value = value[step]
    return value


def fields(value: object, *place: str | int) -> Iterator[Place]:
    """The place of every field, at any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*place, key)
            yield from fields(inner, *place, key)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from fields(inner, *place, index)


def test_its_variables_are_those_that_its_queries_use() -> None:
    variables = {one["name"]: one for one in DASHBOARD["templating"]["list"]}
    assert set(variables) == {"datasource", "instance"}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["instance"]["type"] == "query"
    assert set(variables["instance"]["query"]) == {"query", "refId"}
    assert used(variables["instance"]["query"]["query"]) <= METRICS
    assert all("$instance" in target["expr"] for panel in SHOWN for target in panel["targets"])


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: f"{panel['id']}-{panel['title']}")
def test_a_panel_has_what_grafana_asks_of_it(panel: dict[str, Any]) -> None:
    assert panel["type"] in KINDS
    assert panel["title"]
    place = panel["gridPos"]
    assert set(place) == {"x", "y", "w", "h"}
    assert all(value >= 0 for value in place.values())
    assert 0 < place["w"] <= 24 - place["x"]
    assert place["h"] > 0
    if panel["type"] == "row":
        assert panel["panels"] == []
        return
    assert panel["options"]
    assert panel["fieldConfig"]["overrides"] == []
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
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
