"""The other common case: a pod may reach two names on 443, and nothing else. Real TLS servers, real curl."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from dnsguard.demo.lab import Lab, Pod
from tests.coredns import running_coredns
from tests.node.daemon import ANY_RESOLVER, connects, run_in_pod, running_dnsguard
from tests.node.websites import certify, running_website

pytestmark = pytest.mark.node

ALLOWED = {"github.com": "10.99.2.1", "api.github.com": "10.99.2.2"}
FORBIDDEN = {"gist.github.com": "10.99.2.3", "example.com": "10.99.2.4"}
PLACES = ALLOWED | FORBIDDEN
ZONES = {
    "github.com": ("@ 60 IN A 10.99.2.1", "api 60 IN A 10.99.2.2", "gist 60 IN A 10.99.2.3"),
    "example.com": ("@ 60 IN A 10.99.2.4",),
}
ALLOWLIST = {
    "policies": {
        "web": {"egress": [{"to": [{"domainNames": list(ALLOWED)}], "ports": [{"protocol": "TCP", "port": 443}]}]},
    },
    "pods": {"10.244.1.0/24": {"policies": ["web"]}},
}

UNRESOLVED, NO_CONNECTION = 6, 28
"""curl's exit codes: the name could not be resolved; it took too long."""


@dataclass
class Site:
    """The servers and their names. Each test has a pod of its own, so leases of others do not help it."""

    lab: Lab
    folder: Path
    resolver: str
    _pods: int = 0

    def pod(self) -> Pod:
        self._pods += 1
        return self.lab.pod(f"pod{self._pods}", f"10.244.1.{self._pods}")

    def curl(self, pod: Pod, url: str, *options: str) -> subprocess.CompletedProcess[str]:
        argv = ("curl", "-sS", "--cacert", str(self.folder / "ca.pem"), "--max-time", "4", *options, url)
        return run_in_pod(self.lab, pod, *argv, resolver=self.resolver, folder=self.folder)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("websites")
    certify(folder, list(PLACES))
    with ExitStack() as stack:
        lab = stack.enter_context(Lab("dgtest"))
        for address in PLACES.values():
            stack.enter_context(running_website(lab, address, folder))
        coredns = stack.enter_context(running_coredns(lab, ZONES))
        yield Site(lab, folder, coredns.address)


@pytest.fixture(scope="module")
def _reached_without_dnsguard(site: Site) -> None:
    """What the tests find closed is there: it is dnsguard that closes it."""
    pod = site.pod()
    told = [site.curl(pod, f"{scheme}://{name}/").stdout for name in PLACES for scheme in ("https", "http")]
    assert told == [f"{name} here\n" for name in PLACES for _ in range(2)]


@pytest.fixture(scope="module")
def guarded(site: Site, _reached_without_dnsguard: None) -> Iterator[Site]:
    with running_dnsguard(site.lab, site.folder, upstreams=[site.resolver], allowlist=ALLOWLIST):
        site.resolver = ANY_RESOLVER
        yield site


def test_the_allowed_names_are_reached(guarded: Site) -> None:
    pod = guarded.pod()

    told = [guarded.curl(pod, f"https://{name}/") for name in ALLOWED]

    assert [(each.returncode, each.stdout) for each in told] == [(0, f"{name} here\n") for name in ALLOWED]


def test_other_names_do_not_resolve_and_their_addresses_are_closed(guarded: Site) -> None:
    pod = guarded.pod()

    by_name = [guarded.curl(pod, f"https://{name}/") for name in FORBIDDEN]
    by_address = [
        guarded.curl(pod, f"https://{name}/", "--resolve", f"{name}:443:{address}", "--connect-timeout", "1")
        for name, address in FORBIDDEN.items()
    ]

    assert [told.returncode for told in by_name] == [UNRESOLVED, UNRESOLVED]
    assert [told.returncode for told in by_address] == [NO_CONNECTION, NO_CONNECTION]


def test_an_allowed_name_is_closed_on_other_ports(guarded: Site) -> None:
    pod = guarded.pod()

    over_tls = guarded.curl(pod, "https://github.com/")
    in_clear = guarded.curl(pod, "http://github.com/", "--connect-timeout", "1")

    assert over_tls.returncode == 0
    assert in_clear.returncode == NO_CONNECTION


def test_the_address_of_an_allowed_name_is_closed_until_it_was_asked_for(guarded: Site) -> None:
    pod = guarded.pod()
    before = connects(guarded.lab, pod.namespace, PLACES["api.github.com"], 443)

    told = guarded.curl(pod, "https://api.github.com/")

    assert not before
    assert told.returncode == 0
    assert connects(guarded.lab, pod.namespace, PLACES["api.github.com"], 443)
