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

PLACES = {
    "github.com": "10.99.2.1",
    "api.github.com": "10.99.2.2",
    "gist.github.com": "10.99.2.3",
    "example.com": "10.99.2.4",
}
ALLOWED, FORBIDDEN = ("github.com", "api.github.com"), ("gist.github.com", "example.com")
ZONES = {
    "github.com": ("@ 60 IN A 10.99.2.1", "api 60 IN A 10.99.2.2", "gist 60 IN A 10.99.2.3"),
    "example.com": ("@ 60 IN A 10.99.2.4",),
}
ALLOWLIST = {
    "policies": {
        "web": {"egress": [{"to": [{"domainNames": list(ALLOWED)}], "ports": [{"protocol": "TCP", "port": 443}]}]},
    },
    "pods": {"10.244.0.6": {"name": "web/crawler-0", "policies": ["web"]}},
}

UNRESOLVED, NO_CONNECTION = 6, 28
"""curl's exit codes: the name could not be resolved; it took too long."""


@dataclass
class Site:
    lab: Lab
    pod: Pod
    folder: Path
    resolver: str

    def curl(self, url: str, *options: str) -> subprocess.CompletedProcess[str]:
        argv = ("curl", "-sS", "--cacert", str(self.folder / "ca.pem"), "--max-time", "4", *options, url)
        return run_in_pod(self.lab, self.pod, *argv, resolver=self.resolver, folder=self.folder)


@pytest.fixture
def site(lab: Lab, tmp_path: Path) -> Iterator[Site]:
    certify(tmp_path, list(PLACES))
    pod = lab.pod("crawler", "10.244.0.6")
    with ExitStack() as stack:
        for address in PLACES.values():
            stack.enter_context(running_website(lab, address, tmp_path))
        coredns = stack.enter_context(running_coredns(lab, ZONES))
        yield Site(lab, pod, tmp_path, coredns.address)


@pytest.fixture
def guarded(site: Site) -> Iterator[Site]:
    with running_dnsguard(site.lab, site.folder, upstreams=[site.resolver], allowlist=ALLOWLIST):
        site.resolver = ANY_RESOLVER
        yield site


def test_without_dnsguard_every_name_is_reached_on_both_ports(site: Site) -> None:
    """What the other tests deny is there: it is dnsguard that denies it."""
    told = [site.curl(f"{scheme}://{name}/").stdout for name in PLACES for scheme in ("https", "http")]

    assert told == [f"{name} here\n" for name in PLACES for _ in range(2)]


@pytest.mark.parametrize("name", ALLOWED)
def test_an_allowed_name_is_reached(guarded: Site, name: str) -> None:
    told = guarded.curl(f"https://{name}/")

    assert (told.returncode, told.stdout) == (0, f"{name} here\n")


@pytest.mark.parametrize("name", FORBIDDEN)
def test_another_name_does_not_resolve_and_its_address_is_closed(guarded: Site, name: str) -> None:
    by_name = guarded.curl(f"https://{name}/")
    by_address = guarded.curl(f"https://{name}/", "--resolve", f"{name}:443:{PLACES[name]}")

    assert by_name.returncode == UNRESOLVED
    assert by_address.returncode == NO_CONNECTION


def test_an_allowed_name_is_closed_on_other_ports(guarded: Site) -> None:
    over_tls = guarded.curl("https://github.com/")
    in_clear = guarded.curl("http://github.com/")

    assert over_tls.returncode == 0
    assert in_clear.returncode == NO_CONNECTION


def test_the_address_of_an_allowed_name_is_closed_until_it_was_asked_for(guarded: Site) -> None:
    before = connects(guarded.lab, guarded.pod.namespace, PLACES["api.github.com"], 443)

    told = guarded.curl("https://api.github.com/")

    assert not before
    assert told.returncode == 0
    assert connects(guarded.lab, guarded.pod.namespace, PLACES["api.github.com"], 443)
