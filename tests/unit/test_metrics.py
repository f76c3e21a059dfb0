"""Counters as Prometheus metrics, scraped over HTTP and read by Prometheus' own parser."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import aiohttp
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from dnsguard import __version__
from dnsguard.core.errors import DnsguardError
from dnsguard.enforce.bpf.events import REASONS
from dnsguard.engine.counters import OTHER, TYPE_LABELS, Counters, Histogram
from dnsguard.observe.health import BACKLOG, MOST, PATIENCE, Health, HealthServer, split_listen
from dnsguard.observe.metrics import FROM_THE_START, INTEGERS, TALLIES, Gauges, Metrics, build_registry


class Daemon:
    """What is scraped: counters, gauges and readiness that a test changes."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.missing = ""
        self.stuck = ""
        self.refreshed = 0
        self.endless = False
        gauges = Gauges(leases=lambda: 7, policy_generation=lambda: 3, upstreams_up=lambda: {"10.96.0.10:53": True})
        registry = build_registry(Metrics(self.counters, ["10.96.0.10:53", "[fd00::10]:53"], gauges))
        health = Health(lambda: self.missing, lambda: self.stuck, self.refresh)
        self.server = HealthServer("127.0.0.1:0", registry, health)

    async def refresh(self) -> None:
        self.refreshed += 1
        if self.endless:
            await asyncio.Event().wait()

    async def get(self, path: str) -> tuple[int, str]:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{self.server.port}{path}") as response,
        ):
            return response.status, await response.text()

    async def scrape(self) -> dict[str, Metric]:
        _, text = await self.get("/metrics")
        return {family.name: family for family in text_string_to_metric_families(text)}

    async def value(self, sample: str, **labels: str) -> float:
        for family in (await self.scrape()).values():
            for one in family.samples:
                if one.name == sample and one.labels == labels:
                    return one.value
        raise AssertionError(f"no sample {sample} {labels}")


@pytest.fixture
async def daemon() -> AsyncIterator[Daemon]:
    made = Daemon()
    await made.server.start()
    yield made
    await made.server.stop()


async def test_requests_are_labelled_with_family_protocol_and_type(daemon: Daemon) -> None:
    daemon.counters.requests[6, "tcp", TYPE_LABELS[28]] += 5
    assert await daemon.value("dnsguard_dns_requests_total", family="6", proto="tcp", type="AAAA") == 5


async def test_unusual_types_have_one_label_together() -> None:
    labels = {TYPE_LABELS.get(qtype, OTHER) for qtype in range(65536)}
    assert len(labels) == len(TYPE_LABELS) + 1


async def test_replies_are_labelled_with_their_rcode_and_unknown_ones_together(daemon: Daemon) -> None:
    daemon.counters.responses[3] += 2
    daemon.counters.responses[11] += 1
    daemon.counters.responses[12] += 1
    assert await daemon.value("dnsguard_dns_responses_total", rcode="NXDOMAIN") == 2
    assert await daemon.value("dnsguard_dns_responses_total", rcode="other") == 2


async def test_a_duration_falls_into_every_bucket_at_or_above_it(daemon: Daemon) -> None:
    for seconds in (0.0005, 0.003, 9.0):
        daemon.counters.request_seconds.observe(seconds)
    name = "dnsguard_dns_request_duration_seconds"
    assert await daemon.value(f"{name}_bucket", le="0.0005") == 1
    assert await daemon.value(f"{name}_bucket", le="0.005") == 2
    assert await daemon.value(f"{name}_bucket", le="8.0") == 2
    assert await daemon.value(f"{name}_bucket", le="+Inf") == 3
    assert await daemon.value(f"{name}_count") == 3
    assert await daemon.value(f"{name}_sum") == pytest.approx(9.0035)


async def test_commits_are_labelled_with_their_enforcer(daemon: Daemon) -> None:
    daemon.counters.commit_seconds["nftables"].observe(0.00002)
    name = "dnsguard_enforce_commit_duration_seconds_bucket"
    assert await daemon.value(name, enforcer="nftables", le="2.5e-05") == 1


async def test_forwarding_is_labelled_with_the_upstreams_address(daemon: Daemon) -> None:
    counters = daemon.counters
    counters.forward_requests[1] += 4
    counters.forward_responses[0, 2] += 3
    counters.forward_failures[1, "timeout"] += 2
    counters.forward_seconds[0].observe(0.001)
    assert await daemon.value("dnsguard_forward_requests_total", to="[fd00::10]:53") == 4
    assert await daemon.value("dnsguard_forward_responses_total", to="10.96.0.10:53", rcode="SERVFAIL") == 3
    assert await daemon.value("dnsguard_forward_failures_total", to="[fd00::10]:53", reason="timeout") == 2
    assert await daemon.value("dnsguard_forward_request_duration_seconds_count", to="10.96.0.10:53") == 1


@pytest.mark.parametrize("field", TALLIES)
async def test_every_tally_appears_under_its_metric(field: str, daemon: Daemon) -> None:
    metric, _, label = TALLIES[field]
    getattr(daemon.counters, field)["something"] += 6
    assert await daemon.value(metric, **{label: "something"}) == 6


@pytest.mark.parametrize("field", INTEGERS)
async def test_every_plain_counter_appears_under_its_metric(field: str, daemon: Daemon) -> None:
    setattr(daemon.counters, field, 8)
    assert await daemon.value(INTEGERS[field][0]) == 8


def test_every_field_of_the_counters_is_exported() -> None:
    elsewhere = {"requests", "request_seconds", "responses", "commit_seconds"}
    elsewhere |= {"forward_requests", "forward_responses", "forward_failures", "forward_seconds"}
    assert set(Counters.__slots__) == set(TALLIES) | set(INTEGERS) | elsewhere


async def test_gauges_are_read_at_the_scrape(daemon: Daemon) -> None:
    assert await daemon.value("dnsguard_leases") == 7
    assert await daemon.value("dnsguard_policy_generation") == 3
    assert await daemon.value("dnsguard_upstream_up", to="10.96.0.10:53") == 1
    assert await daemon.value("dnsguard_build_info", version=__version__) == 1


@pytest.mark.parametrize("field", FROM_THE_START)
async def test_what_alerts_watch_for_its_first_time_is_there_at_0(field: str, daemon: Daemon) -> None:
    metric, _, label = TALLIES[field]
    for key in FROM_THE_START[field]:
        assert await daemon.value(metric, **{label: key}) == 0


def test_every_reason_of_a_dropped_packet_is_there_from_the_start() -> None:
    assert set(REASONS.values()) == set(FROM_THE_START["egress_denied"])


async def test_a_scrape_creates_no_keys(daemon: Daemon) -> None:
    await daemon.scrape()
    assert not any(getattr(daemon.counters, field) for field in TALLIES)


async def test_the_process_own_metrics_are_there(daemon: Daemon) -> None:
    assert await daemon.value("process_resident_memory_bytes") > 0


async def test_health_is_ok_while_the_loop_runs(daemon: Daemon) -> None:
    assert await daemon.get("/healthz") == (200, "ok\n")


async def test_health_says_what_stands_still(daemon: Daemon) -> None:
    daemon.stuck = "the kernel's writer has been at one piece of work for 21 s"
    assert await daemon.get("/healthz") == (503, "the kernel's writer has been at one piece of work for 21 s\n")


async def test_a_scrape_asks_for_fresh_values_first_and_health_does_not(daemon: Daemon) -> None:
    await daemon.get("/healthz")
    await daemon.get("/readyz")
    assert daemon.refreshed == 0
    await daemon.get("/metrics")
    assert daemon.refreshed == 1


def test_totals_are_the_counters_without_their_labels() -> None:
    counters = Counters()
    counters.egress_denied["default"] += 3
    counters.egress_denied["cut"] += 4
    counters.flows_cut += 2
    totals = Metrics(counters, [], Gauges(log_lines_dropped=lambda: 5)).totals()
    assert (totals["egress_denied"], totals["flows_cut"], totals["log_lines_dropped"]) == (7, 2, 5)


async def test_readiness_says_what_is_missing(daemon: Daemon) -> None:
    assert await daemon.get("/readyz") == (200, "ready\n")
    daemon.missing = "the interception is not in place"
    assert await daemon.get("/readyz") == (503, "the interception is not in place\n")


async def test_a_busy_port_is_an_error_that_names_the_key() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = HealthServer(
            f"127.0.0.1:{taken.getsockname()[1]}", build_registry(Metrics(Counters(), [], Gauges())), Health(str)
        )
        with pytest.raises(DnsguardError, match=r"^metrics\.listen: 127.0.0.1:\d+: the port is in use"):
            await server.start()


async def test_an_address_that_the_node_does_not_have_is_an_error() -> None:
    server = HealthServer("192.0.2.1:0", build_registry(Metrics(Counters(), [], Gauges())), Health(str))
    with pytest.raises(DnsguardError, match="does not have that address"):
        await server.start()


@pytest.mark.parametrize(
    ("text", "host", "port"), [("127.0.0.1:9353", "127.0.0.1", 9353), ("[::1]:1", "::1", 1), (":9353", None, 9353)]
)
def test_listen_is_an_address_and_a_port(text: str, host: str | None, port: int) -> None:
    assert split_listen(text) == (host, port)


@pytest.mark.parametrize("text", ["9353", "127.0.0.1", "a:", "a:x", "a:99999", ""])
def test_anything_else_is_an_error_that_says_what_to_write(text: str) -> None:
    with pytest.raises(DnsguardError, match=r"write 127\.0\.0\.1:9353"):
        split_listen(text)


def test_an_observation_on_a_bound_belongs_to_it() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (1.0, 2.0, 2.1):
        histogram.observe(value)
    assert histogram.counts == [1, 1, 1]


async def test_connections_that_ask_for_nothing_do_not_add_up(daemon: Daemon) -> None:
    opened = [await asyncio.open_connection("127.0.0.1", daemon.server.port) for _ in range(10 * MOST)]

    status, _ = await daemon.get("/healthz")
    async with asyncio.timeout(5):
        ended = [await reader.read() for reader, _ in opened[: 9 * MOST - BACKLOG]]

    assert (status, set(ended)) == (200, {b""})
    for _, writer in opened:
        writer.close()


async def test_a_scrape_that_does_not_end_does_not_hold_up_the_stop(daemon: Daemon) -> None:
    scraping = asyncio.create_task(daemon.get("/metrics"))
    daemon.endless = True
    while not daemon.refreshed:
        await asyncio.sleep(0.01)

    async with asyncio.timeout(10 * PATIENCE):
        await daemon.server.stop()

    with pytest.raises(aiohttp.ClientError):
        await scraping


@pytest.mark.parametrize(
    ("values", "half", "nearly_all"),
    [
        ([], None, None),
        ([0.1], 0.5, 0.5),
        ([0.1] * 99 + [0.9], 0.5, 0.5),
        ([0.1] * 98 + [0.9] * 2, 0.5, 1.0),
        ([0.1] * 2 + [7.0], 0.5, None),
    ],
)
def test_a_quantile_is_the_bound_that_so_many_values_are_not_above(
    values: list[float], half: float | None, nearly_all: float | None
) -> None:
    histogram = Histogram((0.5, 1.0, 2.0))
    for value in values:
        histogram.observe(value)

    assert (histogram.quantile(0.5), histogram.quantile(0.99)) == (half, nearly_all)
