"""What a running daemon tells of itself, twice: by its metrics and by its status, each as the same numbers."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from dnsguard.observe.metrics import COUNTED_ELSEWHERE, INTEGERS, TALLIES
from tests.node.scene import Scene

METRICS = "127.0.0.1:9353"
"""`metrics.listen` of the daemons that are asked."""

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]

PLAIN = {
    "ready": "ready",
    "pods": "pods",
    "pods_limit": "pods_limit",
    "lease_elements": "leases",
    "leases_limit": "leases_limit",
    "in_flight": "dns_in_flight",
    "held_answers": "held_answers",
    "tcp_connections": "tcp_connections",
    "cache_entries": "cache_entries",
    "generation": "policy_generation",
    "queries": "dns_requests_total",
}
"""Key of the status -> metric after `dnsguard_`."""
TOTALS = {name: metric[0] for name, metric in {**TALLIES, **INTEGERS, **COUNTED_ELSEWHERE}.items()}


def get(scene: Scene, path: str) -> tuple[int, str]:
    """The HTTP status and the body; no body of an error."""

    def fetch() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://{METRICS}{path}", timeout=5) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, ""

    return scene.lab.inside(scene.lab.node, fetch)


def samples(scene: Scene) -> Samples:
    code, text = get(scene, "/metrics")
    assert code == 200
    families = text_string_to_metric_families(text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def of_metrics(found: Samples) -> dict[str, float]:
    """Whatever has labels under each label's value; what is 0 under a label is left out."""
    picture = {key: _sum(found, f"dnsguard_{metric}") for key, metric in PLAIN.items()}
    picture |= {f"totals {name}": _sum(found, metric) for name, metric in TOTALS.items()}
    for key, metric in {
        "replies": "dns_responses_total",
        "commits": "enforce_commit_duration_seconds_count",
        "commits' seconds": "enforce_commit_duration_seconds_sum",
        "latency": "dns_request_duration_seconds_count",
        "latency's seconds": "dns_request_duration_seconds_sum",
        "up": "upstream_up",
        "asked": "forward_requests_total",
        "failed": "forward_failures_total",
        "upstreams' latency": "forward_request_duration_seconds_count",
        "gaps": "links_without_enforcer",
    }.items():
        for (name, labels), value in found.items():
            if name == f"dnsguard_{metric}":
                of = " ".join([key, *(value for label, value in labels if label != "reason")])
                picture[of] = picture.get(of, 0.0) + value
    return {key: value for key, value in picture.items() if value}


def of_status(told: Mapping[str, Any]) -> dict[str, float]:
    picture = {key: float(told[key]) for key in PLAIN}
    picture |= {f"totals {name}": told["totals"][name] for name in TOTALS}
    picture |= {f"replies {rcode}": count for rcode, count in told["replies"].items()}
    picture |= {"latency": told["latency"]["count"], "latency's seconds": told["latency"]["seconds"]}
    for enforcer, spread in told["commits"].items():
        picture |= {f"commits {enforcer}": spread["count"], f"commits' seconds {enforcer}": spread["seconds"]}
    for one in told["upstreams"]:
        to = one["address"]
        picture |= {f"up {to}": one["up"], f"asked {to}": one["asked"], f"failed {to}": one["failed"]}
        picture[f"upstreams' latency {to}"] = one["latency"]["count"]
    for gap in told["gaps"]:
        picture[f"gaps {gap['enforcer']}"] = picture.get(f"gaps {gap['enforcer']}", 0.0) + 1
    return {key: float(value) for key, value in picture.items() if value}


def _sum(found: Samples, metric: str) -> float:
    return sum(value for (name, _), value in found.items() if name == metric)
