"""The engine's counters as Prometheus metrics, built when somebody scrapes.

Needs the `Counters`, the upstreams' texts (the labels of their indexes), and a function for each gauge. Names follow
CoreDNS's where it has one. Label values come from fixed lists or from the configuration, never from a packet.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from dnsguard import __version__
from dnsguard.engine.counters import ANY_FAMILY, OTHER, Counters, Histogram

RCODES: Final = {
    0: "NOERROR",
    1: "FORMERR",
    2: "SERVFAIL",
    3: "NXDOMAIN",
    4: "NOTIMP",
    5: "REFUSED",
    6: "YXDOMAIN",
    7: "YXRRSET",
    8: "NXRRSET",
    9: "NOTAUTH",
    10: "NOTZONE",
    16: "BADVERS",
}

TALLIES: Final = {
    "dropped": ("dnsguard_dns_dropped_total", "Packets of pods that got no reply", "reason"),
    "verdicts": ("dnsguard_verdicts_total", "Questions judged", "verdict"),
    "cache_hits": ("dnsguard_cache_hits_total", "Answers found in a cache, in user space or in the kernel", "where"),
    "upstream_discarded": ("dnsguard_upstream_discarded_total", "Upstream packets that were not believed", "reason"),
    "records_removed": ("dnsguard_records_removed_total", "Records taken out of answers", "reason"),
    "answers_withheld": ("dnsguard_answers_withheld_total", "Answers that were not shown", "reason"),
    "limited": ("dnsguard_limited_total", "What was beyond a pod's share", "limit"),
    "lease_writes": ("dnsguard_lease_writes_total", "Lease elements made or refreshed", "enforcer"),
    "lease_writes_refused": (
        "dnsguard_lease_writes_refused_total",
        "Answers whose leases the kernel refused",
        "reason",
    ),
    "egress_denied": ("dnsguard_egress_denied_total", "Packets of pods that were dropped", "reason"),
    "egress_audited": (
        "dnsguard_egress_audited_total",
        "Packets of pods that Audit let through and that would have been dropped",
        "reason",
    ),
    "kernel_repairs": ("dnsguard_kernel_repairs_total", "Others' changes to the kernel that were undone", "what"),
    "reloads": ("dnsguard_policy_loads_total", "Policies read", "result"),
    "internal_errors": ("dnsguard_internal_errors_total", "Unexpected errors that were contained", "where"),
}
"""Field of `Counters` -> metric, help, label."""

FROM_THE_START: Final = {
    "verdicts": ("allowed", "denied", "audited"),
    "cache_hits": ("user", "kernel"),
    "kernel_repairs": ("table", "route", "ebpf"),
    "reloads": ("loaded", "rejected"),
    "lease_writes": ("nftables",),
    "answers_withheld": ("protected", "target", "denied", "kernel", "capacity"),
    "limited": (
        *("queriesPerSecond", "inFlight", "uniqueNamesPerMinute", "tcpConnections"),
        *("addressesPerName", "leasesPerPod"),
    ),
    "egress_denied": (
        *("default", "rule", "cut", "inbound", "source", "unknown", "listener", "queries"),
        *("malformed", "vlan", "fragment", "multicast"),
    ),
}
"""Labels that are shown at 0: to Prometheus a counter that begins at 1 has not grown."""

INTEGERS: Final = {
    "cache_misses": ("dnsguard_cache_misses_total", "Questions that no cache could answer"),
    "coalesced": ("dnsguard_coalesced_total", "Questions that joined one already under way"),
    "stale": ("dnsguard_cache_served_stale_total", "Answers served past their TTL"),
    "leases_purged": ("dnsguard_leases_purged_total", "Leases removed by a change of policy"),
    "flows_cut": ("dnsguard_flows_cut_total", "Open flows that were cut"),
}
"""Field of `Counters` -> metric, help."""


def _none() -> int:
    return 0


Reading = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Gauges:
    """Functions that tell a present value; each must return at once."""

    ready: Reading = _none
    pods: Reading = _none
    pods_limit: Reading = _none
    leases: Reading = _none
    leases_limit: Reading = _none
    held_answers: Reading = _none
    in_flight: Reading = _none
    cache_entries: Reading = _none
    tcp_connections: Reading = _none
    policy_generation: Reading = _none
    policy_load_failed: Reading = _none
    writer_busy: Reading = _none
    kernel_counters_age: Reading = _none
    log_lines_dropped: Reading = _none
    log_lines_suppressed: Reading = _none
    log_events_failed: Reading = _none
    udp_discarded: Reading = _none
    udp_unsent: Reading = _none
    tcp_cut: Reading = _none
    drop_reports_lost: Reading = _none
    audit: Reading = _none
    upstreams_up: Callable[[], Mapping[str, bool]] = field(default=dict)
    links_without: Callable[[], Mapping[str, int]] = field(default=dict)


GAUGES: Final = {
    "ready": ("dnsguard_ready", "1 while DNS is intercepted and enforcement is in place"),
    "pods": ("dnsguard_pods", "Governed pods"),
    "pods_limit": ("dnsguard_pods_limit", "How many there may be (tables.pods)"),
    "leases": ("dnsguard_leases", "Live leases, in the elements that the kernel holds for them"),
    "leases_limit": ("dnsguard_leases_limit", "How many elements there may be (tables.leases)"),
    "held_answers": ("dnsguard_held_answers", "Answers that wait for the kernel's acknowledgement"),
    "in_flight": ("dnsguard_dns_in_flight", "Questions that have no reply yet"),
    "cache_entries": ("dnsguard_cache_entries", "Answers in the cache"),
    "tcp_connections": ("dnsguard_tcp_connections", "Open DNS connections of pods"),
    "audit": ("dnsguard_audit", "1 while everything is let through and only told of"),
    "policy_generation": ("dnsguard_policy_generation", "Number of the policy in force"),
    "policy_load_failed": ("dnsguard_policy_load_failed", "1 while the last policy read was rejected"),
    "writer_busy": ("dnsguard_enforce_busy_seconds", "How long the writer to the kernel has been at its present work"),
    "kernel_counters_age": ("dnsguard_kernel_counters_age_seconds", "Since the kernel's counters were read"),
}

COUNTED_ELSEWHERE: Final = {
    "log_lines_dropped": ("dnsguard_log_lines_dropped_total", "Log lines lost because whoever takes them took none"),
    "log_lines_suppressed": ("dnsguard_log_lines_suppressed_total", "Log lines over a pod's limits.logLines"),
    "log_events_failed": ("dnsguard_log_events_failed_total", "Events that could not be written"),
    "udp_discarded": ("dnsguard_udp_discarded_total", "Empty or overlong datagrams of pods"),
    "udp_unsent": ("dnsguard_udp_unsent_total", "Replies that the kernel would not send"),
    "tcp_cut": ("dnsguard_tcp_cut_total", "Connections of pods that were ended because of a limit"),
    "drop_reports_lost": ("dnsguard_drop_reports_lost_total", "Times that reports of dropped packets overflowed"),
}


class Metrics(Collector):
    """A Prometheus collector; `collect` costs about 1 ms and is called in the loop's thread."""

    def __init__(self, counters: Counters, upstreams: Sequence[str], gauges: Gauges) -> None:
        self._counters = counters
        self._upstreams = tuple(upstreams)
        self._gauges = gauges

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not read gauges that are not there yet."""
        return ()

    def totals(self) -> dict[str, int]:
        """Every counter without its labels, under the name of its field: for a terminal."""
        tallies = {name: sum(list(getattr(self._counters, name).values())) for name in TALLIES}
        integers = {name: getattr(self._counters, name) for name in INTEGERS}
        elsewhere = {name: int(getattr(self._gauges, name)()) for name in COUNTED_ELSEWHERE}
        return {**tallies, **integers, **elsewhere}

    def collect(self) -> Iterator[Metric]:
        yield from self._readings()
        yield from self._tallies()
        yield from self._queries()
        yield from self._forwarding()
        duration = ("dnsguard_enforce_commit_duration_seconds", "One transaction of leases, to its acknowledgement")
        # The enforcer's writer may add its first histogram meanwhile: iterate over a copy.
        yield _histograms(duration, "enforcer", list(self._counters.commit_seconds.items()))

    def _readings(self) -> Iterator[Metric]:
        yield _gauge(("dnsguard_build_info", "The version that runs"), "version", {__version__: 1})
        yield _gauge(("dnsguard_upstream_up", "1 while the upstream answers"), "to", self._gauges.upstreams_up())
        without = ("dnsguard_links_without_enforcer", "Pod links on which this enforcer does not decide, and should")
        yield _gauge(without, "enforcer", self._gauges.links_without())
        for name, (metric, text) in GAUGES.items():
            yield GaugeMetricFamily(metric, text, value=getattr(self._gauges, name)())
        for name, (metric, text) in COUNTED_ELSEWHERE.items():
            yield CounterMetricFamily(metric, text, value=getattr(self._gauges, name)())
        for name, (metric, text) in INTEGERS.items():
            yield CounterMetricFamily(metric, text, value=getattr(self._counters, name))

    def _tallies(self) -> Iterator[Metric]:
        for name, (metric, text, label) in TALLIES.items():
            tally = {**dict.fromkeys(FROM_THE_START.get(name, ()), 0), **getattr(self._counters, name)}
            yield _counter((metric, text), (label,), (((key,), count) for key, count in tally.items()))

    def _queries(self) -> Iterator[Metric]:
        requests = (((_family(family), proto, kind), n) for (family, proto, kind), n in self._counters.requests.items())
        yield _counter(("dnsguard_dns_requests_total", "Questions of pods"), ("family", "proto", "type"), requests)
        responses = (((rcode_label(rcode),), count) for rcode, count in self._counters.responses.items())
        yield _counter(("dnsguard_dns_responses_total", "Replies to pods"), ("rcode",), responses)
        duration = ("dnsguard_dns_request_duration_seconds", "From a question's arrival to its reply")
        yield HistogramMetricFamily(*duration, *_buckets(self._counters.request_seconds))

    def _forwarding(self) -> Iterator[Metric]:
        to, counters = self._to, self._counters
        requests = (((to(server),), count) for server, count in counters.forward_requests.items())
        yield _counter(("dnsguard_forward_requests_total", "Attempts sent to upstreams"), ("to",), requests)
        responses = (((to(server), rcode_label(rcode)), n) for (server, rcode), n in counters.forward_responses.items())
        yield _counter(("dnsguard_forward_responses_total", "Answers of upstreams"), ("to", "rcode"), responses)
        failures = (((to(server), reason), n) for (server, reason), n in counters.forward_failures.items())
        yield _counter(("dnsguard_forward_failures_total", "Attempts without answer"), ("to", "reason"), failures)
        duration = ("dnsguard_forward_request_duration_seconds", "From an attempt's sending to its answer")
        yield _histograms(duration, "to", ((to(server), h) for server, h in counters.forward_seconds.items()))

    def _to(self, server: int) -> str:
        return self._upstreams[server] if 0 <= server < len(self._upstreams) else OTHER


def _family(family: int) -> str:
    return OTHER if family == ANY_FAMILY else str(family)


def rcode_label(rcode: int) -> str:
    """The name of an rcode, or `other`."""
    return RCODES.get(rcode, OTHER)


def _gauge(metric: tuple[str, str], label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(*metric, labels=[label])
    for key, value in values.items():
        family.add_metric([key], float(value))
    return family


def _counter(
    metric: tuple[str, str], labels: tuple[str, ...], counts: Iterable[tuple[tuple[str, ...], int]]
) -> CounterMetricFamily:
    """Counts of equal labels are added up: Prometheus refuses a sample that appears twice."""
    summed: dict[tuple[str, ...], int] = {}
    for key, count in counts:
        summed[key] = summed.get(key, 0) + count
    family = CounterMetricFamily(*metric, labels=labels)
    for key, count in summed.items():
        family.add_metric(key, count)
    return family


def _histograms(
    metric: tuple[str, str], label: str, histograms: Iterable[tuple[str, Histogram]]
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(*metric, labels=[label])
    for key, histogram in histograms:
        family.add_metric([key], *_buckets(histogram))
    return family


def _buckets(histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
    """Prometheus counts up to each bound, so the buckets are running sums."""
    bounds = [*(str(bound) for bound in histogram.bounds), "+Inf"]
    sums = itertools.accumulate(histogram.counts)
    return [(bound, float(count)) for bound, count in zip(bounds, sums, strict=True)], histogram.total


def build_registry(metrics: Metrics) -> CollectorRegistry:
    """A registry of our own with dnsguard's metrics and those of the process (memory, CPU, descriptors)."""
    registry = CollectorRegistry()
    registry.register(metrics)
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)
    return registry
