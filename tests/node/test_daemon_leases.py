"""From the answer to the connection, and to the end of the lease: the whole daemon, real clients, the real kernel.

Shortest lease here: TTL 1 and a floor of 2 s make 2 s, with a grace of 1 s.

    the answer leaves only when every address is open ....... ..._the_moment_its_answer_arrives, 500 fresh names
    the lease shows in `nft list set` with its timeout ....... ..._in_the_kernel_with_its_time
    a cache hit re-arms ...................................... an_answer_from_the_cache_opens_...
    never shortened by a smaller TTL of another name ......... a_name_with_a_shorter_ttl_...
    two scopes on one address; one name under two rules ...... two_names_..., a_name_that_two_rules_allow_...
    another pod's full share fails no answer of this one ..... a_pod_that_has_used_up_its_leases_...
    expiry stops new connections, not open ones .............. when_the_lease_ends_...
    a SYN on an old 5-tuple is decided anew .................. the_same_ports_are_decided_anew_...
    a denial says which lease ended how long ago ............. (in when_the_lease_ends_...)
"""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from dnslib import DNSRecord

from tests.node.daemon import ANY_RESOLVER, wait_for
from tests.node.scene import (
    A6,
    DB,
    DB6,
    MAIL,
    OTHER,
    PORT,
    WRONG_PORT,
    A,
    Flow,
    Scene,
    addresses,
    playing,
    rcode,
)

pytestmark = pytest.mark.node

NAMES = 500
ALLOWLIST = {
    "policies": {
        "web": {
            "egress": [
                {
                    "to": [{"domainNames": ["db.example.com", "*.fresh.example.com", "both.example.com"]}],
                    "ports": [{"protocol": "TCP", "port": PORT}],
                },
                {
                    "to": [{"domainNames": ["admin.example.com", "both.example.com"]}],
                    "ports": [{"protocol": "TCP", "port": WRONG_PORT}],
                },
            ]
        },
        "mail": {"egress": [{"to": [{"domainNames": ["mail.example.com", "*.many.example.com"]}]}]},
    },
    "pods": {A: {"name": "shop/a", "policies": ["web"]}, "10.244.0.6": {"name": "shop/b", "policies": ["mail"]}},
}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("leases")
    with playing(
        folder,
        allowlist=ALLOWLIST,
        ttl={"floor": "2s", "cap": "1h", "grace": "1s"},
        limits={"leasesPerPod": NAMES + 100},
    ) as scene:
        yield scene


@pytest.fixture
def descriptors() -> Iterator[None]:
    """As many open files as are permitted: every connection has both its ends in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def connected(scene: Scene, address: str, port: int = PORT, **how: tuple[str, int]) -> Flow:
    flow = scene.connect(scene.a, address, port, **how)
    assert flow is not None, f"{address} port {port} is not open"
    return flow


@pytest.mark.parametrize(("kind", "address"), [("A", DB), ("AAAA", DB6)])
def test_an_address_is_closed_until_its_answer_arrives_and_open_from_that_moment(
    scene: Scene, kind: str, address: str
) -> None:
    before = scene.opens(scene.a, address)

    resolved = scene.resolve(scene.a, "db.example.com", kind)

    with connected(scene, address) as flow:
        assert flow.retransmitted() == 0
        assert flow.alive()
    assert (before, resolved) == (False, [address])


def test_500_fresh_names_resolved_and_connected_at_once_open_at_the_first_syn(scene: Scene, descriptors: None) -> None:
    places = {f"n{n}.fresh.example.com": f"198.18.{4 + n // 250}.{n % 250}" for n in range(NAMES)}
    for name, address in places.items():
        scene.zone.put(name, "A", address)

    sent_again = asyncio.run(_resolve_and_connect(scene, places))

    assert sent_again == [0] * NAMES


async def _resolve_and_connect(scene: Scene, places: dict[str, str]) -> list[int]:
    """Ask for every name at the same time and connect as soon as its answer is there. Per name, the SYNs sent again."""
    loop = asyncio.get_running_loop()
    made = scene.lab.inside(
        scene.a.namespace,
        lambda: [
            (socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            for _ in places
        ],
    )

    async def one(name: str, asking: socket.socket, connecting: socket.socket) -> int:
        with asking, Flow(connecting) as flow:
            asking.setblocking(False)
            connecting.setblocking(False)
            asking.connect((ANY_RESOLVER, 53))
            await loop.sock_sendall(asking, bytes(DNSRecord.question(name).pack()))
            resolved = addresses(DNSRecord.parse(await loop.sock_recv(asking, 512)))
            assert resolved == [places[name]]
            await loop.sock_connect(connecting, (resolved[0], PORT))
            return flow.retransmitted()

    async with asyncio.timeout(20):
        return await asyncio.gather(*(one(name, *pair) for name, pair in zip(places, made, strict=True)))


def test_a_lease_is_in_the_kernel_with_its_time(scene: Scene) -> None:
    scene.zone.put("timed.fresh.example.com", "A", "198.18.1.1", ttl=40)

    scene.resolve(scene.a, "timed.fresh.example.com")

    sets = scene.lab.run(scene.lab.node, "nft", "list", "set", "inet", "dnsguard", "tcp_8080_v4").stdout
    assert f"{A} . 198.18.1.1 timeout 41s expires 4" in sets


def test_another_pod_and_another_port_are_closed(scene: Scene) -> None:
    scene.resolve(scene.a, "db.example.com")

    assert scene.opens(scene.a, DB)
    assert not scene.opens(scene.a, DB, WRONG_PORT)
    assert not scene.opens(scene.b, DB)


def test_a_denied_name_does_not_reach_the_upstream_and_its_address_is_closed(scene: Scene) -> None:
    reply = scene.ask(scene.a, "other.example.com")

    assert (rcode(reply), scene.zone.asked("other.example.com")) == ("NXDOMAIN", 0)
    assert not scene.opens(scene.a, OTHER)


def test_when_the_lease_ends_the_open_flow_stays_and_a_new_one_is_denied_with_the_reason(scene: Scene) -> None:
    scene.zone.put("short.fresh.example.com", "A", "198.18.1.2", ttl=1)
    scene.resolve(scene.a, "short.fresh.example.com")
    with connected(scene, "198.18.1.2") as flow:
        wait_for(lambda: "198.18.1.2" not in scene.elements(A), 6)

        new = scene.opens(scene.a, "198.18.1.2")

        assert not new
        assert flow.alive()
    denied = scene.daemon.told("flow_denied", address="198.18.1.2")
    assert denied["reason"].startswith("lease of short.fresh.example.com ended ")


def test_the_same_ports_are_decided_anew_after_the_lease(scene: Scene) -> None:
    scene.zone.put("again.fresh.example.com", "A", "198.18.1.3", ttl=1)
    scene.resolve(scene.a, "again.fresh.example.com")
    connected(scene, "198.18.1.3", source=(A, 4444)).reset()
    within = scene.opens(scene.a, "198.18.1.3", source=(A, 4445))
    wait_for(lambda: "198.18.1.3" not in scene.elements(A), 6)

    after = scene.opens(scene.a, "198.18.1.3", source=(A, 4444))

    assert (within, after) == (True, False)


def test_an_answer_from_the_cache_opens_its_address_for_longer(scene: Scene) -> None:
    scene.zone.put("hit.fresh.example.com", "A", "198.18.1.4", ttl=2)
    scene.resolve(scene.a, "hit.fresh.example.com")
    first_end = time.monotonic() + 3.0
    wait_for(lambda: scene.elements(A)["198.18.1.4"] < 1.8, 3)

    scene.resolve(scene.a, "hit.fresh.example.com")

    left = scene.elements(A)["198.18.1.4"]
    assert scene.zone.asked("hit.fresh.example.com") == 1
    assert time.monotonic() + left > first_end + 0.3


def test_a_name_with_a_shorter_ttl_on_the_same_address_takes_nothing_away(scene: Scene) -> None:
    scene.zone.put("long.fresh.example.com", "A", "198.18.1.5", ttl=60)
    scene.zone.put("brief.fresh.example.com", "A", "198.18.1.5", ttl=1)
    scene.resolve(scene.a, "long.fresh.example.com")

    scene.resolve(scene.a, "brief.fresh.example.com")

    assert scene.elements(A)["198.18.1.5"] > 50
    (row,) = [row for row in scene.daemon.ask("leases") if row["address"] == "198.18.1.5"]
    assert row["names"] == ["brief.fresh.example.com", "long.fresh.example.com"]


def test_two_names_on_one_address_each_open_the_ports_of_their_own_rule(scene: Scene) -> None:
    scene.zone.put("web.fresh.example.com", "A", "198.18.1.6", ttl=60)
    scene.zone.put("admin.example.com", "A", "198.18.1.6", ttl=1)
    scene.resolve(scene.a, "web.fresh.example.com")
    only_web = scene.opens(scene.a, "198.18.1.6", PORT), scene.opens(scene.a, "198.18.1.6", WRONG_PORT)

    scene.resolve(scene.a, "admin.example.com")

    assert only_web == (True, False)
    assert scene.opens(scene.a, "198.18.1.6", WRONG_PORT)
    wait_for(lambda: not scene.opens(scene.a, "198.18.1.6", WRONG_PORT), 6)
    assert scene.opens(scene.a, "198.18.1.6", PORT)


def test_a_name_that_two_rules_allow_opens_the_ports_of_both(scene: Scene) -> None:
    scene.zone.put("both.example.com", "A", "198.18.1.7")

    scene.resolve(scene.a, "both.example.com")

    assert scene.opens(scene.a, "198.18.1.7", PORT)
    assert scene.opens(scene.a, "198.18.1.7", WRONG_PORT)


def test_an_answer_opens_its_address_for_every_address_of_the_pod_in_that_family(scene: Scene) -> None:
    scene.zone.put("six.fresh.example.com", "AAAA", "2001:db8:80::6")
    scene.lab.add_address(scene.a, "fd00:10:244::55")
    wait_for(lambda: any("fd00:10:244::55" in row["addresses"] for row in scene.daemon.ask("pods")), 3)

    scene.resolve(scene.a, "six.fresh.example.com", "AAAA")

    assert "2001:db8:80::6" in scene.elements("fd00:10:244::55")
    assert "2001:db8:80::6" in scene.elements(A6)


def test_a_pod_that_has_used_up_its_leases_gets_no_address_and_hurts_no_other(scene: Scene) -> None:
    many = [f"198.18.{8 + n // 250}.{n % 250}" for n in range(NAMES + 120)]
    for number in range(0, len(many), 20):
        scene.zone.put(f"m{number}.many.example.com", "A", *many[number : number + 20])

    replies = [scene.ask(scene.b, f"m{number}.many.example.com") for number in range(0, len(many), 20)]

    assert [rcode(reply) for reply in replies[:30]] == ["NOERROR"] * 30
    assert rcode(replies[-1]) == "SERVFAIL"
    assert addresses(replies[-1]) == []
    scene.zone.put("others.fresh.example.com", "A", "198.18.1.8")
    assert scene.resolve(scene.a, "others.fresh.example.com") == ["198.18.1.8"]
    assert scene.opens(scene.a, "198.18.1.8")


def test_when_no_more_leases_fit_into_the_node_the_answer_is_a_failure_and_the_rest_goes_on(tmp_path: Path) -> None:
    with playing(tmp_path, tables={"leases": 2}) as scene:
        for number in (1, 2, 3):
            scene.zone.put(f"n{number}.fresh.example.com", "A", f"198.18.1.{number}")

        replies = [scene.ask(scene.a, f"n{number}.fresh.example.com") for number in (1, 2, 3)]

        assert [rcode(reply) for reply in replies] == ["NOERROR", "NOERROR", "SERVFAIL"]
        assert scene.resolve(scene.a, "n1.fresh.example.com") == ["198.18.1.1"]
        assert not scene.opens(scene.a, "198.18.1.3")


def test_a_pod_without_a_policy_resolves_and_reaches_nothing(scene: Scene) -> None:
    stranger = scene.lab.pod("stranger", "10.244.0.77")

    wait_for(lambda: len(scene.daemon.ask("pods")) == 3, 3)

    assert rcode(scene.ask(stranger, "mail.example.com")) == "NXDOMAIN"
    assert not scene.opens(stranger, MAIL)


@pytest.mark.parametrize(("kind", "shared"), [("A", "10.99.0.255"), ("AAAA", "fd00:99::")])
def test_an_address_that_the_node_shares_with_its_network_is_taken_out(scene: Scene, kind: str, shared: str) -> None:
    """A broadcast address and the routers' anycast address lead to whatever listens on the node, over UDP."""
    name = f"shared-{kind.lower()}.fresh.example.com"
    scene.zone.put(name, kind, shared)

    assert scene.resolve(scene.a, name, kind) == []


def test_the_daemon_has_as_many_descriptors_as_it_may(scene: Scene) -> None:
    limits = Path(f"/proc/{scene.daemon.ask('status')['pid']}/limits").read_text().splitlines()
    soft, hard = next(line.split()[3:5] for line in limits if line.startswith("Max open files"))

    assert soft == hard
