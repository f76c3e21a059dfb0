"""What of the metrics a person reads in a terminal: the same counters and histograms, in few numbers.

A histogram knows only between which bounds its values lie, so a quantile is the bound that it is not above.
"""

from __future__ import annotations

from collections.abc import Mapping

from dnsguard.control.calls import Spread, UpstreamStatus
from dnsguard.core.model import Seconds
from dnsguard.enforce.enforcer import LineEnforcer
from dnsguard.engine.counters import Counters, Histogram
from dnsguard.observe.metrics import rcode_label


def busy(enforcer: LineEnforcer, now: Seconds) -> Seconds:
    """How long the writer's thread has been at its present piece of work; 0 when it has none."""
    since = enforcer.busy_since
    return 0.0 if since is None else max(0.0, now - since)


def spread(histogram: Histogram) -> Spread:
    return {
        "count": sum(histogram.counts),
        "seconds": histogram.total,
        "p50": histogram.quantile(0.5),
        "p99": histogram.quantile(0.99),
    }


def replies(counters: Counters) -> dict[str, int]:
    """By rcode, the most frequent first; those that have none of their own name together."""
    found: dict[str, int] = {}
    for rcode, count in counters.responses.items():
        found[rcode_label(rcode)] = found.get(rcode_label(rcode), 0) + count
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def commits(counters: Counters) -> dict[str, Spread]:
    """By enforcer; its writer may add its first histogram meanwhile."""
    return {enforcer: spread(histogram) for enforcer, histogram in sorted(counters.commit_seconds.copy().items())}


def upstreams(up: Mapping[str, bool], counters: Counters) -> list[UpstreamStatus]:
    """`up`: whether each answers, in the order of the configuration."""
    return [
        {
            "address": address,
            "up": answers,
            "asked": counters.forward_requests.get(number, 0),
            "failed": sum(count for (server, _), count in counters.forward_failures.items() if server == number),
            "latency": spread(counters.forward_seconds.get(number, _NONE)),
        }
        for number, (address, answers) in enumerate(up.items())
    ]


_NONE = Histogram()
