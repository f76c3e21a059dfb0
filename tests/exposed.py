"""What metrics there are, for tests of everything that is written about them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from prometheus_client.metrics_core import Metric

from dnsguard.engine.counters import Counters
from dnsguard.observe.metrics import Gauges, Metrics, build_registry

SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
OF_PROMETHEUS = frozenset({"up"})


def _names(family: Metric) -> Iterator[str]:
    return (family.name + suffix for suffix in SUFFIXES.get(family.type, ()))


METRICS = (
    frozenset(
        name
        for family in build_registry(Metrics(Counters(), [], Gauges())).collect()
        for name in _names(family)
        if name.startswith(("dnsguard_", "process_"))
    )
    | OF_PROMETHEUS
)


def used(expr: str) -> set[str]:
    """The metrics that an expression is about."""
    return set(re.findall(r"\b(?:dnsguard_|process_)\w+\b|\bup\b", expr))
