"""The Grafana dashboard, made from a table of its panels: run as a script, it writes dnsguard.json beside itself.

Standard library only. Places are computed, so that panels neither overlap nor leave holes. Every query is of one or
more nodes, chosen by the variable `instance`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

TARGET: Final = Path(__file__).with_name("dnsguard.json")
WIDTH: Final = 24
"""Columns of Grafana's grid."""
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
SELECTED: Final = 'instance=~"$instance"'
GREEN, ORANGE, RED = "green", "orange", "red"


@dataclass(frozen=True, slots=True)
class Query:
    """`SEL` in `expr` stands for the chosen nodes, in braces or among other labels. `legend` is in Grafana's form."""

    expr: str
    legend: str = "{{instance}}"


@dataclass(frozen=True, slots=True)
class Panel:
    """A picture of `queries`: `timeseries`, or `stat` for one number that is coloured from the thresholds on."""

    title: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: str = "timeseries"
    about: str = ""
    steps: tuple[tuple[str, float | None], ...] = ((GREEN, None),)
    stacked: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """Panels side by side, as many as fit, under a heading."""

    title: str
    width: int
    height: int
    panels: tuple[Panel, ...]


def rate(metric: str, by: str, labels: str = "") -> str:
    """How often a second, over a window that Grafana fits to the picture."""
    return f"sum by ({by}) (rate({metric}{{SEL{labels and ', ' + labels}}}[$__rate_interval]))"


def quantile(share: float, metric: str, by: str = "instance") -> str:
    return f"histogram_quantile({share}, {rate(metric + '_bucket', f'{by}, le')})"


def number(title: str, expr: str, unit: str = "short", *steps: tuple[str, float | None], about: str = "") -> Panel:
    return Panel(title, (Query(expr),), unit, "stat", about, steps or ((GREEN, None),))


def rates(title: str, metric: str, by: str, about: str = "", unit: str = "cps") -> Panel:
    """One line for each value of a label, stacked."""
    return Panel(title, (Query(rate(metric, by), f"{{{{{by}}}}}"),), unit, about=about, stacked=True)


def latencies(title: str, metric: str, about: str = "") -> Panel:
    shares = ((0.5, "half"), (0.9, "9 in 10"), (0.99, "99 in 100"))
    queries = tuple(Query(quantile(share, metric), f"{{{{instance}}}} {name}") for share, name in shares)
    return Panel(title, queries, "s", about=about)


BAD_ABOVE_0: Final = ((GREEN, None), (RED, 1.0))
ROWS: Final = (
    Row(
        "Now",
        4,
        4,
        (
            number("Nodes that enforce", "sum(dnsguard_ready{SEL})", about="Their dnsguard intercepts and enforces."),
            number(
                "Nodes that do not",
                "count(dnsguard_ready{SEL} == 0) or vector(0)",
                "short",
                *BAD_ABOVE_0,
                about="They run and are not ready; `dnsguard status` says what is missing.",
            ),
            number("Pods", "sum(dnsguard_pods{SEL})"),
            number(
                "Fullest table of leases",
                "max(dnsguard_leases{SEL} / dnsguard_leases_limit{SEL})",
                "percentunit",
                (GREEN, None),
                (ORANGE, 0.7),
                (RED, 0.9),
                about="Of tables.leases, on the node that uses most.",
            ),
            number("Questions a second", "sum(rate(dnsguard_dns_requests_total{SEL}[$__rate_interval]))", "reqps"),
            number("Upstreams down", "count(dnsguard_upstream_up{SEL} == 0) or vector(0)", "short", *BAD_ABOVE_0),
        ),
    ),
    Row(
        "Questions",
        8,
        8,
        (
            rates("Questions", "dnsguard_dns_requests_total", "type", unit="reqps"),
            rates("Verdicts", "dnsguard_verdicts_total", "verdict", unit="reqps"),
            rates("Replies", "dnsguard_dns_responses_total", "rcode", unit="reqps"),
            latencies(
                "From question to reply",
                "dnsguard_dns_request_duration_seconds",
                "Without those that the kernel answers by itself, in less than a microsecond.",
            ),
            Panel(
                "Found in a cache",
                (
                    Query(rate("dnsguard_cache_hits_total", "where"), "{{where}}"),
                    Query("sum(rate(dnsguard_cache_misses_total{SEL}[$__rate_interval]))", "not found"),
                    Query("sum(rate(dnsguard_coalesced_total{SEL}[$__rate_interval]))", "joined another"),
                    Query("sum(rate(dnsguard_cache_served_stale_total{SEL}[$__rate_interval]))", "past its TTL"),
                ),
                "reqps",
                stacked=True,
            ),
            Panel(
                "Being answered",
                (
                    Query("dnsguard_dns_in_flight{SEL}", "{{instance}} no reply yet"),
                    Query("dnsguard_held_answers{SEL}", "{{instance}} held for the kernel"),
                    Query("dnsguard_tcp_connections{SEL}", "{{instance}} TCP connections"),
                ),
            ),
        ),
    ),
    Row(
        "Denied and limited",
        8,
        8,
        (
            Panel(
                "Packets dropped",
                (
                    Query(rate("dnsguard_egress_denied_total", "reason"), "{{reason}}"),
                    Query(rate("dnsguard_egress_audited_total", "reason"), "{{reason}}, let through by Audit"),
                ),
                "pps",
                stacked=True,
            ),
            rates("Answers withheld", "dnsguard_answers_withheld_total", "reason"),
            rates("Over a pod's share", "dnsguard_limited_total", "limit", "By the key under `limits`."),
            rates("Questions without a reply", "dnsguard_dns_dropped_total", "reason"),
            rates("Records taken out of answers", "dnsguard_records_removed_total", "reason"),
            Panel(
                "Datagrams and connections not served",
                (
                    Query("sum(rate(dnsguard_udp_discarded_total{SEL}[$__rate_interval]))", "datagrams discarded"),
                    Query("sum(rate(dnsguard_udp_unsent_total{SEL}[$__rate_interval]))", "replies unsent"),
                    Query("sum(rate(dnsguard_tcp_cut_total{SEL}[$__rate_interval]))", "connections ended"),
                ),
                "cps",
            ),
        ),
    ),
    Row(
        "Upstreams",
        8,
        8,
        (
            Panel("Answers", (Query("min by (to) (dnsguard_upstream_up{SEL})", "{{to}}"),), "bool_yes_no"),
            Panel(
                "Attempts and answers",
                (
                    Query(rate("dnsguard_forward_requests_total", "to"), "{{to}} asked"),
                    Query(rate("dnsguard_forward_responses_total", "to"), "{{to}} answered"),
                ),
                "reqps",
            ),
            Panel(
                "Attempts without answer",
                (
                    Query(rate("dnsguard_forward_failures_total", "to, reason"), "{{to}} {{reason}}"),
                    Query(rate("dnsguard_upstream_discarded_total", "reason"), "not believed: {{reason}}"),
                ),
                "cps",
            ),
            Panel(
                "From attempt to answer, 99 in 100",
                (Query(quantile(0.99, "dnsguard_forward_request_duration_seconds", "to"), "{{to}}"),),
                "s",
            ),
            rates("Their answers", "dnsguard_forward_responses_total", "rcode", unit="reqps"),
            Panel("Answers in the cache", (Query("dnsguard_cache_entries{SEL}"),)),
        ),
    ),
    Row(
        "Kernel and policy",
        8,
        8,
        (
            Panel(
                "Leases",
                (
                    Query("dnsguard_leases{SEL}", "{{instance}} elements"),
                    Query("dnsguard_leases_limit{SEL}", "{{instance}} limit"),
                ),
            ),
            Panel(
                "Lease elements written",
                (
                    Query(rate("dnsguard_lease_writes_total", "enforcer"), "{{enforcer}}"),
                    Query(rate("dnsguard_lease_writes_refused_total", "reason"), "refused: {{reason}}"),
                ),
                "wps",
            ),
            Panel(
                "One commit, 99 in 100",
                (Query(quantile(0.99, "dnsguard_enforce_commit_duration_seconds", "enforcer"), "{{enforcer}}"),),
                "s",
            ),
            Panel(
                "Others' changes undone",
                (Query("sum by (what) (increase(dnsguard_kernel_repairs_total{SEL}[$__rate_interval]))", "{{what}}"),),
                about="Somebody edits or flushes the node's rules.",
            ),
            Panel(
                "Links without an enforcer",
                (Query("dnsguard_links_without_enforcer{SEL}", "{{instance}} {{enforcer}}"),),
            ),
            Panel(
                "Policy",
                (
                    Query("dnsguard_policy_generation{SEL}", "{{instance}} generation"),
                    Query("dnsguard_policy_load_failed{SEL}", "{{instance}} last one rejected"),
                    Query("dnsguard_audit{SEL}", "{{instance}} in Audit"),
                    Query(
                        "increase(dnsguard_leases_purged_total{SEL}[$__rate_interval])", "{{instance}} leases purged"
                    ),
                    Query("increase(dnsguard_flows_cut_total{SEL}[$__rate_interval])", "{{instance}} flows cut"),
                ),
            ),
        ),
    ),
    Row(
        "The daemon",
        8,
        8,
        (
            Panel("Memory", (Query('process_resident_memory_bytes{SEL, job=~"dnsguard.*"}'),), "bytes"),
            Panel(
                "CPU",
                (Query('rate(process_cpu_seconds_total{SEL, job=~"dnsguard.*"}[$__rate_interval])'),),
                "percentunit",
            ),
            Panel("Open descriptors", (Query('process_open_fds{SEL, job=~"dnsguard.*"}'),)),
            Panel(
                "Log",
                (
                    Query(
                        "rate(dnsguard_log_lines_suppressed_total{SEL}[$__rate_interval])", "{{instance}} over a share"
                    ),
                    Query("rate(dnsguard_log_lines_dropped_total{SEL}[$__rate_interval])", "{{instance}} lost"),
                    Query("rate(dnsguard_log_events_failed_total{SEL}[$__rate_interval])", "{{instance}} not written"),
                    Query(
                        "rate(dnsguard_drop_reports_lost_total{SEL}[$__rate_interval])", "{{instance}} drops unreported"
                    ),
                ),
                "cps",
            ),
            rates("Unexpected errors", "dnsguard_internal_errors_total", "where"),
            Panel(
                "The way to the kernel",
                (
                    Query("dnsguard_enforce_busy_seconds{SEL}", "{{instance}} writer busy"),
                    Query("dnsguard_kernel_counters_age_seconds{SEL}", "{{instance}} age of its counters"),
                ),
                "s",
            ),
        ),
    ),
)


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    return {
        "uid": "dnsguard",
        "title": "dnsguard",
        "description": "DNS filtering and enforcement on the nodes.",
        "tags": ["dns", "dnsguard", "security"],
        "schemaVersion": 36,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "refresh": "30s",
        "annotations": {"list": []},
        "links": [],
        "templating": {"list": [_sources(), _instances()]},
        "panels": list(_panels()),
    }


def _sources() -> dict[str, Any]:
    return {"name": "datasource", "label": "Source", "type": "datasource", "query": "prometheus", "refresh": 1}


def _instances() -> dict[str, Any]:
    return {
        "name": "instance",
        "label": "Node",
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": "label_values(dnsguard_build_info, instance)", "refId": "instance"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def _panels() -> Iterator[dict[str, Any]]:
    y = number_of = 0
    for row in ROWS:
        number_of += 1
        place = {"x": 0, "y": y, "w": WIDTH, "h": 1}
        yield {"id": number_of, "type": "row", "title": row.title, "collapsed": False, "gridPos": place, "panels": []}
        y += 1
        across = WIDTH // row.width
        for index, panel in enumerate(row.panels):
            number_of += 1
            x, line = index % across * row.width, index // across
            place = {"x": x, "y": y + line * row.height, "w": row.width, "h": row.height}
            yield {"id": number_of, "gridPos": place, **_panel(panel)}
        y += -(-len(row.panels) // across) * row.height


def _panel(panel: Panel) -> dict[str, Any]:
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "targets": [_target(index, query) for index, query in enumerate(panel.queries)],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _stat() if panel.kind == "stat" else _lines(),
    }


def _target(index: int, query: Query) -> dict[str, Any]:
    return {
        "refId": chr(ord("A") + index),
        "datasource": SOURCE,
        "editorMode": "code",
        "expr": query.expr.replace("SEL", SELECTED),
        "legendFormat": query.legend,
        "range": True,
    }


def _defaults(panel: Panel) -> dict[str, Any]:
    steps = [{"color": colour, "value": least} for colour, least in panel.steps]
    defaults: dict[str, Any] = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}, "min": 0}
    if panel.kind == "timeseries":
        stacking = {"mode": "normal" if panel.stacked else "none", "group": "A"}
        fill = 20 if panel.stacked else 0
        defaults["custom"] = {"drawStyle": "line", "lineWidth": 1, "fillOpacity": fill, "stacking": stacking}
    else:
        defaults["color"] = {"mode": "thresholds"}
    return defaults


def _stat() -> dict[str, Any]:
    reduce = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    return {"reduceOptions": reduce, "colorMode": "value", "graphMode": "area", "textMode": "auto"}


def _lines() -> dict[str, Any]:
    legend = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
    return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}


def text() -> str:
    """The content of dnsguard.json."""
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    TARGET.write_text(text())
