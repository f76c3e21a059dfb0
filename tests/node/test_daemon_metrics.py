"""What a running daemon tells over HTTP and in its log: metrics, health, and events in JSON.

health and readiness ..................... a_ready_daemon_is_healthy
a metric of every part of an answer ...... an_answer_is_counted_from_question_to_commit
dropped packets, by reason and pod ....... a_dropped_packet_is_counted_for_its_pod
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.node.daemon import wait_for
from tests.node.scene import OTHER, Scene, playing

pytestmark = pytest.mark.node

LISTEN = "127.0.0.1:9353"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with playing(tmp_path_factory.mktemp("metrics"), metrics={"listen": LISTEN}) as scene:
        yield scene


def get(scene: Scene, path: str) -> str:
    return scene.lab.run(scene.lab.node, "curl", "-sS", "-m", "5", f"http://{LISTEN}{path}").stdout


def value(scene: Scene, sample: str) -> float:
    found = re.search(rf"^{re.escape(sample)} (\S+)$", get(scene, "/metrics"), re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_a_ready_daemon_is_healthy(scene: Scene) -> None:
    assert (get(scene, "/healthz"), get(scene, "/readyz")) == ("ok\n", "ready\n")


def test_an_answer_is_counted_from_question_to_commit(scene: Scene) -> None:
    before = value(scene, 'dnsguard_verdicts_total{verdict="allowed"}')

    assert scene.resolve(scene.a, "db.example.com")

    assert value(scene, 'dnsguard_verdicts_total{verdict="allowed"}') == before + 1
    assert value(scene, 'dnsguard_dns_requests_total{family="4",proto="udp",type="A"}') >= 1
    assert value(scene, 'dnsguard_enforce_commit_duration_seconds_count{enforcer="nftables"}') >= 1
    assert value(scene, 'dnsguard_lease_writes_total{enforcer="nftables"}') >= 1
    assert value(scene, "dnsguard_leases") >= 1
    assert value(scene, "dnsguard_policy_generation") == 1


def test_what_the_listeners_and_readers_count_is_told(scene: Scene) -> None:
    with scene.client(scene.a, "10.96.0.10") as client:
        client.send(b"")

        wait_for(lambda: value(scene, "dnsguard_udp_discarded_total") >= 1, 5)
    unsent = [value(scene, f"dnsguard_{name}_total") for name in ("udp_unsent", "tcp_cut", "drop_reports_lost")]
    assert unsent == [0, 0, 0]


def test_a_dropped_packet_is_counted_for_its_pod(scene: Scene) -> None:
    assert not scene.opens(scene.b, OTHER)

    wait_for(lambda: value(scene, 'dnsguard_egress_denied_total{reason="default"}') > 0, 15)
    rows = {row["pod"]: row for row in scene.daemon.ask("pods")}
    assert rows["shop/b"]["denied"] > 0
