"""What dnsguard is for: a pod may reach the writer of a database cluster, and nothing else.

Two real PostgreSQL servers, names served by a real CoreDNS, real `psql` in the pods.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dnsguard.demo.lab import Lab, Pod
from tests.coredns import CoreDns, running_coredns
from tests.node.daemon import ANY_RESOLVER, connects, run_in_pod, running_dnsguard, wait_for
from tests.node.postgres import PORT, USER, Cluster, running_cluster

pytestmark = pytest.mark.node

ONE, TWO = "10.99.1.10", "10.99.1.11"
DOMAIN = "db.example.test"
WRITER, READER = f"shop.cluster.{DOMAIN}", f"shop.cluster-ro.{DOMAIN}"
TTL = 2

ALLOWLIST = {
    "policies": {
        "backend": {"egress": [{"to": [{"domainNames": [WRITER]}], "ports": [{"protocol": "TCP", "port": PORT}]}]},
    },
    "pods": {"10.244.0.5": {"name": "shop/backend-0", "policies": ["backend"]}},
}


def records(*, writer: str, reader: str) -> tuple[str, ...]:
    """As a managed cluster has them: endpoints are aliases of instances, and a failover turns the aliases."""
    instances = {ONE: "instance-1", TWO: "instance-2"}
    return (
        f"instance-1 {TTL} IN A {ONE}",
        f"instance-2 {TTL} IN A {TWO}",
        f"shop.cluster {TTL} IN CNAME {instances[writer]}",
        f"shop.cluster-ro {TTL} IN CNAME {instances[reader]}",
    )


@dataclass
class Site:
    """The cluster with its names, and two pods."""

    lab: Lab
    cluster: Cluster
    coredns: CoreDns
    backend: Pod
    stranger: Pod
    folder: Path
    resolver: str

    def psql(self, pod: Pod, host: str, sql: str) -> subprocess.CompletedProcess[str]:
        """One session of `psql` in a pod, by the name or address of a server."""
        conninfo = f"host={host} user={USER} dbname=postgres connect_timeout=3"
        argv = ("psql", "-XtA", conninfo, "-c", sql)
        return run_in_pod(self.lab, pod, *argv, resolver=self.resolver, folder=self.folder)

    def server(self, pod: Pod, host: str) -> str:
        """Which server a session reaches and whether it takes writes; what `psql` complains of when it reaches none."""
        told = self.psql(pod, host, "select host(inet_server_addr()), pg_is_in_recovery()")
        return told.stdout.strip() or told.stderr.strip()

    def fail_over(self) -> None:
        """The standby becomes the writer, and the names follow. The old writer is still there, as after a partition."""
        self.cluster.promote(TWO)
        self.coredns.write(DOMAIN, *records(writer=TWO, reader=ONE))
        self.coredns.serving(WRITER, TWO)


@pytest.fixture
def site(lab: Lab, tmp_path: Path) -> Iterator[Site]:
    backend, stranger = lab.pod("backend", "10.244.0.5"), lab.pod("stranger", "10.244.0.6")
    zones = {DOMAIN: records(writer=ONE, reader=TWO)}
    with running_cluster(lab, ONE, TWO) as cluster, running_coredns(lab, zones) as coredns:
        yield Site(lab, cluster, coredns, backend, stranger, tmp_path, ANY_RESOLVER)


@pytest.fixture
def guarded(site: Site) -> Iterator[Site]:
    with running_dnsguard(site.lab, site.folder, upstreams=[site.coredns.address], allowlist=ALLOWLIST):
        yield site


def test_without_dnsguard_every_pod_reaches_both_servers_and_follows_a_failover(site: Site) -> None:
    """What the other tests deny is there: it is dnsguard that denies it."""
    site.resolver = site.coredns.address
    before = [site.server(pod, name) for pod in (site.backend, site.stranger) for name in (WRITER, READER)]

    site.fail_over()

    assert before == [f"{ONE}|f", f"{TWO}|t"] * 2
    assert site.server(site.backend, WRITER) == f"{TWO}|f"


def test_the_backend_connects_to_the_writer_by_name(guarded: Site) -> None:
    written = guarded.psql(guarded.backend, WRITER, "create table orders (id int)")

    assert (written.returncode, written.stderr) == (0, "")
    assert guarded.server(guarded.backend, WRITER) == f"{ONE}|f"


def test_the_backend_reaches_the_reader_neither_by_name_nor_by_address(guarded: Site) -> None:
    by_name = guarded.psql(guarded.backend, READER, "select 1")

    assert by_name.returncode == 2
    assert "could not translate host name" in by_name.stderr
    assert not connects(guarded.lab, guarded.backend.namespace, TWO, PORT)


def test_the_writer_is_open_on_its_port_alone_and_only_once_resolved(guarded: Site) -> None:
    namespace = guarded.backend.namespace
    unresolved = connects(guarded.lab, namespace, ONE, PORT)

    guarded.server(guarded.backend, WRITER)

    assert not unresolved
    assert connects(guarded.lab, namespace, ONE, PORT)
    with guarded.lab.socket(guarded.lab.world, 2, 1) as other:
        other.bind((ONE, 8000))
        other.listen()
        assert connects(guarded.lab, guarded.lab.world, ONE, 8000)
        assert not connects(guarded.lab, namespace, ONE, 8000)


def test_after_a_failover_the_name_leads_to_the_new_writer_and_the_old_address_closes(guarded: Site) -> None:
    namespace = guarded.backend.namespace
    assert guarded.server(guarded.backend, WRITER) == f"{ONE}|f"

    guarded.fail_over()

    wait_for(lambda: guarded.server(guarded.backend, WRITER) == f"{TWO}|f", TTL + 4)
    wait_for(lambda: not connects(guarded.lab, namespace, ONE, PORT), TTL + 6)
    assert connects(guarded.lab, guarded.lab.world, ONE, PORT)


def test_a_session_outlives_the_lease_that_let_it_begin(guarded: Site) -> None:
    asked = guarded.psql(guarded.backend, WRITER, f"select pg_sleep({TTL + 6}); select 'still here'")

    assert asked.stdout.split() == ["still", "here"]
    assert not connects(guarded.lab, guarded.backend.namespace, ONE, PORT)


def test_a_pod_without_a_policy_cannot_even_resolve(guarded: Site) -> None:
    guarded.server(guarded.backend, WRITER)

    by_name = guarded.psql(guarded.stranger, WRITER, "select 1")

    assert by_name.returncode == 2
    assert "could not translate host name" in by_name.stderr
    assert not connects(guarded.lab, guarded.stranger.namespace, ONE, PORT)
