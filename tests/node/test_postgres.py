"""What dnsguard is for: a pod may reach the writer of a database cluster, and nothing else.

Two real PostgreSQL servers, names served by a real CoreDNS, real `psql` in the pods.
"""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from dnsguard.demo.lab import Lab, Pod
from tests.coredns import CoreDns, running_coredns
from tests.node.daemon import ANY_RESOLVER, PROGRAM, connects, run_in_pod, running_dnsguard, wait_for
from tests.node.postgres import PORT, USER, Cluster, running_cluster

pytestmark = pytest.mark.node

PAGE = Path(__file__).parents[2] / "docs/database-cluster.md"
ONE, TWO = "10.99.1.10", "10.99.1.11"
DOMAIN = "db.example.test"
WRITER, READER = f"shop.cluster.{DOMAIN}", f"shop.cluster-ro.{DOMAIN}"
LONG, SHORT = 60, 1
"""TTLs: leases that last a whole test, and leases that end within it (2 s, with the floor and grace of these tests)."""

BACKENDS = "10.244.1.0/24"
ALLOWLIST = {
    "policies": {
        "backend": {"egress": [{"to": [{"domainNames": [WRITER]}], "ports": [{"protocol": "TCP", "port": PORT}]}]},
    },
    "pods": {BACKENDS: {"policies": ["backend"]}},
}


def records(*, writer: str, reader: str, ttl: int) -> tuple[str, ...]:
    """As a managed cluster has them: endpoints are aliases of instances, and a failover turns the aliases."""
    instances = {ONE: "instance-1", TWO: "instance-2"}
    return (
        f"instance-1 {ttl} IN A {ONE}",
        f"instance-2 {ttl} IN A {TWO}",
        f"shop.cluster {ttl} IN CNAME {instances[writer]}",
        f"shop.cluster-ro {ttl} IN CNAME {instances[reader]}",
    )


@dataclass
class Site:
    """The cluster with its names. Each test has a pod of its own, so leases of others do not help it."""

    lab: Lab
    cluster: Cluster
    coredns: CoreDns
    folder: Path
    resolver: str
    _pods: int = 0

    def backend(self) -> Pod:
        """A new pod with the policy."""
        return self._pod("10.244.1")

    def stranger(self) -> Pod:
        """A new pod that the allowlist does not mention."""
        return self._pod("10.244.2")

    def _pod(self, network: str) -> Pod:
        self._pods += 1
        return self.lab.pod(f"pod{self._pods}", f"{network}.{self._pods}")

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
        self.coredns.write(DOMAIN, *records(writer=TWO, reader=ONE, ttl=SHORT))
        self.coredns.serving(WRITER, TWO)

    def shorten(self) -> None:
        """From now on names have the short TTL."""
        self.coredns.write(DOMAIN, f"ready {SHORT} IN A {ONE}", *records(writer=ONE, reader=TWO, ttl=SHORT))
        self.coredns.serving(f"ready.{DOMAIN}", ONE)


@contextmanager
def running_site(folder: Path) -> Iterator[Site]:
    zones = {DOMAIN: records(writer=ONE, reader=TWO, ttl=LONG)}
    with Lab("dgtest") as lab, running_cluster(lab, ONE, TWO) as cluster, running_coredns(lab, zones) as coredns:
        yield Site(lab, cluster, coredns, folder, coredns.address)


@contextmanager
def guarded(site: Site) -> Iterator[Site]:
    with running_dnsguard(site.lab, site.folder, upstreams=[site.coredns.address], allowlist=ALLOWLIST):
        site.resolver = ANY_RESOLVER
        yield site


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Site]:
    """For tests that change the cluster; not guarded yet."""
    with running_site(tmp_path) as site:
        yield site


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Guarded, for tests that leave the cluster and its names as they are."""
    with running_site(tmp_path_factory.mktemp("site")) as site, guarded(site):
        yield site


def test_without_dnsguard_every_pod_reaches_both_servers_and_follows_a_failover(fresh: Site) -> None:
    """What the other tests deny is there: it is dnsguard that denies it."""
    backend, stranger = fresh.backend(), fresh.stranger()
    before = [fresh.server(pod, name) for pod in (backend, stranger) for name in (WRITER, READER)]

    fresh.fail_over()

    assert before == [f"{ONE}|f", f"{TWO}|t"] * 2
    assert fresh.server(backend, WRITER) == f"{TWO}|f"


def test_a_backend_connects_to_the_writer_by_name(shared: Site) -> None:
    backend = shared.backend()

    written = shared.psql(backend, WRITER, "create temporary table orders (id int)")

    assert (written.returncode, written.stderr) == (0, "")
    assert shared.server(backend, WRITER) == f"{ONE}|f"


def test_a_backend_reaches_the_reader_neither_by_name_nor_by_address(shared: Site) -> None:
    backend = shared.backend()

    by_name = shared.psql(backend, READER, "select 1")

    assert by_name.returncode == 2
    assert "could not translate host name" in by_name.stderr
    assert not connects(shared.lab, backend.namespace, TWO, PORT)


def test_the_instance_behind_the_alias_is_not_allowed_by_its_own_name(shared: Site) -> None:
    backend = shared.backend()

    by_alias = shared.server(backend, WRITER)
    by_name = shared.psql(backend, f"instance-1.{DOMAIN}", "select 1")

    assert by_alias == f"{ONE}|f"
    assert "could not translate host name" in by_name.stderr


def test_the_writer_is_open_on_its_port_alone_and_only_once_resolved(shared: Site) -> None:
    backend = shared.backend()
    unresolved = connects(shared.lab, backend.namespace, ONE, PORT)

    shared.server(backend, WRITER)

    assert not unresolved
    assert connects(shared.lab, backend.namespace, ONE, PORT)
    with shared.lab.socket(shared.lab.world, socket.AF_INET, socket.SOCK_STREAM) as other:
        other.bind((ONE, 8000))
        other.listen()
        assert connects(shared.lab, shared.lab.world, ONE, 8000)
        assert not connects(shared.lab, backend.namespace, ONE, 8000)


def test_a_pod_without_a_policy_cannot_even_resolve(shared: Site) -> None:
    stranger = shared.stranger()
    shared.server(shared.backend(), WRITER)

    by_name = shared.psql(stranger, WRITER, "select 1")

    assert by_name.returncode == 2
    assert "could not translate host name" in by_name.stderr
    assert not connects(shared.lab, stranger.namespace, ONE, PORT)


def test_after_a_failover_the_name_leads_to_the_new_writer_and_the_old_address_closes(fresh: Site) -> None:
    fresh.shorten()
    with guarded(fresh) as site:
        backend = site.backend()
        assert site.server(backend, WRITER) == f"{ONE}|f"

        site.fail_over()

        wait_for(lambda: site.server(backend, WRITER) == f"{TWO}|f", SHORT + 4)
        wait_for(lambda: not connects(site.lab, backend.namespace, ONE, PORT), SHORT + 6)
        assert connects(site.lab, site.lab.world, ONE, PORT)


def test_a_session_outlives_the_lease_that_let_it_begin(fresh: Site) -> None:
    fresh.shorten()
    with guarded(fresh) as site:
        backend = site.backend()

        asked = site.psql(backend, WRITER, f"select pg_sleep({SHORT + 4}); select 'still here'")

        assert asked.stdout.split() == ["still", "here"]
        assert not connects(site.lab, backend.namespace, ONE, PORT)


def test_the_page_about_this_scenario_shows_an_allowlist_that_can_be_used(tmp_path: Path) -> None:
    shown = re.search(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert shown is not None
    (tmp_path / "allowlist.yaml").write_text(shown[1])
    (tmp_path / "config.yaml").write_text("apiVersion: dnsguard/v1\nkind: Configuration\nupstreams: [10.96.0.10]\n")
    files = ("--config", str(tmp_path / "config.yaml"), "--allowlist", str(tmp_path / "allowlist.yaml"))

    checked = subprocess.run([*PROGRAM, "check", *files], capture_output=True, text=True, timeout=60, check=False)

    assert (checked.returncode, checked.stderr) == (0, "")
