"""Whatever a pod sends to port 53 comes to the daemon, and to nobody else: real clients beside real obstacles.

UDP, TCP, IPv4, IPv6, any destination, connected sockets .. a_query_to_any_address_...
forged source, IPv6 not listed, link-local source ......... a_forged_source_..., ipv6_of_a_pod_..., a_link_local_...
traffic that does not enter by a pod link is untouched .... what_does_not_enter_by_a_pod_link_...
pods.exclude .............................................. an_excluded_pod_...
the loop guard ............................................ a_query_from_an_upstream_...
listenPort is closed to everyone .......................... nobody_reaches_the_listening_port
beside a kube-proxy that translates the ClusterIP ......... beside_a_translation_...
beside a NodeLocal DNSCache of another user ............... beside_another_process_...
`dns.intercept` is a list ................................. with_a_list_...
nobody listens (the daemon was killed) .................... when_the_daemon_was_killed_...
"""

from __future__ import annotations

import contextlib
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from dnslib import DNSRecord

from dnsguard.demo.lab import NODE_ADDRESSES, WORLD_ADDRESSES, Lab, Pod
from tests.node.daemon import ANY_RESOLVER, wait_for
from tests.node.scene import A6, ALLOWLIST, DB, DB6, MAIL, OTHER, PORT, A, B, Scene, addresses, playing, rcode

pytestmark = pytest.mark.node

EXCLUDED, SERVER, ELSEWHERE = "10.244.0.9", "10.244.0.53", "10.244.7.7"
"""A pod outside dnsguard, a pod that is an upstream itself, and a pod that the allowlist lists on another node."""
LISTEN_PORT = 15353
NODE_LOCAL = "169.254.20.10"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    allowlist = {**ALLOWLIST, "pods": {**ALLOWLIST["pods"], ELSEWHERE: {"policies": ["web"]}}}
    with playing(
        tmp_path_factory.mktemp("interception"),
        allowlist=allowlist,
        upstreams=[WORLD_ADDRESSES[0], SERVER],
        pods={"interfaces": ["veth-*"], "exclude": [EXCLUDED]},
    ) as scene:
        yield scene


@pytest.fixture
def another(scene: Scene) -> Iterator[list[Pod]]:
    """Pods of one test: what it puts here is taken away."""
    made: list[Pod] = []
    yield made
    for pod in made:
        scene.lab.remove_pod(pod)


@pytest.mark.parametrize("stream", [False, True], ids=["udp", "tcp"])
@pytest.mark.parametrize(
    "asked",
    [ANY_RESOLVER, "8.8.8.8", NODE_LOCAL, *WORLD_ADDRESSES, *NODE_ADDRESSES, B, "2001:db8::53", "fd00:10:96::a"],
)
def test_a_query_to_any_address_is_answered_from_it(scene: Scene, asked: str, stream: bool) -> None:
    allowed = scene.resolve(scene.a, "db.example.com", to=asked, stream=stream)
    denied = rcode(scene.ask(scene.a, "other.example.com", to=asked, stream=stream))

    assert (allowed, denied) == ([DB], "NXDOMAIN")
    assert scene.zone.asked("other.example.com") == 0


def test_ipv6_of_a_pod_that_is_listed_by_ipv4_only_is_governed_by_the_same_policy(scene: Scene) -> None:
    before = scene.opens(scene.a, DB6)

    allowed = scene.resolve(scene.a, "db.example.com", "AAAA", to="2001:db8::53", source=A6)

    assert (before, allowed) == (False, [DB6])
    assert scene.opens(scene.a, DB6)
    assert not scene.opens(scene.b, DB6)


def test_a_forged_source_gets_no_answer_and_opens_nothing(scene: Scene) -> None:
    scene.zone.put("forged.fresh.example.com", "A", "198.18.2.1")
    scene.lab.ip(scene.b.namespace, f"addr add {A}/32 dev lo")
    try:
        silent = scene.silent(scene.b, "forged.fresh.example.com", source=A)
        scene.resolve(scene.a, "db.example.com")
        opened = scene.opens(scene.b, DB, source=(A, 0))
    finally:
        scene.lab.ip(scene.b.namespace, f"addr del {A}/32 dev lo")

    assert (silent, opened) == (True, False)
    assert scene.zone.asked("forged.fresh.example.com") == 0
    assert "198.18.2.1" not in scene.elements(A)


@pytest.mark.parametrize("asked", ["fe80::1", "2001:db8::53"])
def test_a_link_local_source_gets_no_answer_and_no_connection(scene: Scene, asked: str) -> None:
    scene.zone.put("local.fresh.example.com", "A", "198.18.2.2")
    listing = scene.lab.run(scene.a.namespace, "ip", "-br", "-6", "addr", "show", "dev", "eth0").stdout
    local = next(word for word in listing.split() if word.startswith("fe80:")).partition("/")[0]

    silent = scene.silent(scene.a, "local.fresh.example.com", to=asked, source=local)

    assert silent
    assert scene.zone.asked("local.fresh.example.com") == 0


@pytest.mark.parametrize("asked", ["fe80::1", "2001:db8::53"])
def test_a_link_local_source_gets_no_dns_connection(scene: Scene, asked: str) -> None:
    listing = scene.lab.run(scene.a.namespace, "ip", "-br", "-6", "addr", "show", "dev", "eth0").stdout
    local = next(word for word in listing.split() if word.startswith("fe80:")).partition("/")[0]

    with pytest.raises(TimeoutError):
        scene.client(scene.a, asked, stream=True, source=local).close()


@pytest.mark.parametrize("ebpf", ["On", "Off"])
def test_a_fragment_that_stays_alone_ends_in_no_error_to_a_forged_source(tmp_path: Path, ebpf: str) -> None:
    """The kernel puts fragments together before all else, and tells the sender what it waited for in vain."""
    with playing(tmp_path, enforcement={"ebpf": ebpf}) as scene:
        scene.lab.sysctl(scene.lab.node, ipv4__ipfrag_time=1, netfilter__nf_conntrack_frag6_timeout=1)
        assert error_told(scene, NODE_ADDRESSES[0], [first_fragment4("198.18.9.9"), first_fragment4(A)]) == (11, 1)
        assert error_told(scene, NODE_ADDRESSES[1], [behind(44, FORGED6), behind(44, A6)]) == (3, 1)


def test_options_that_nobody_knows_end_in_no_error_to_a_forged_source(tmp_path: Path) -> None:
    """The kernel reads hop-by-hop options before nftables sees the packet."""
    with playing(tmp_path, enforcement={"ebpf": "On"}) as scene:
        assert error_told(scene, NODE_ADDRESSES[1], [behind(0, FORGED6), behind(0, A6)]) == (4, 2)


def error_told(scene: Scene, target: str, packets: Sequence[bytes]) -> tuple[int, int]:
    """shop/a sends these packets: type and code of the ICMP error that it is told. Nobody in the world is told any."""
    v6 = ":" in target
    family, icmp = (socket.AF_INET6, socket.IPPROTO_ICMPV6) if v6 else (socket.AF_INET, socket.IPPROTO_ICMP)

    def raw(place: str, protocol: int) -> socket.socket:
        return scene.lab.inside(place, lambda: socket.socket(family, socket.SOCK_RAW, protocol))

    def errors(port: socket.socket) -> Iterator[tuple[int, int]]:
        while True:
            kind, code = port.recv(1500)[0 if v6 else 20 :][:2]
            if kind in (range(1, 5) if v6 else (3, 11, 12)):
                yield kind, code

    with raw(scene.lab.world, icmp) as outside, raw(scene.a.namespace, icmp) as inside:
        with raw(scene.a.namespace, socket.IPPROTO_RAW) as pod:
            for packet in packets:
                pod.sendto(packet, (target, 0))
        inside.settimeout(5)
        told = next(errors(inside))
        outside.setblocking(False)
        with pytest.raises(BlockingIOError):
            next(errors(outside))
        return told


FORGED6 = "2001:db8:80::9"
QUERY = struct.pack(">HHHH", 5, 53, 80, 0) + bytes(40)
"""The beginning of one."""


def first_fragment4(source: str) -> bytes:
    """The kernel adds length and checksum."""
    head = struct.pack(">BBHHHBBH", 0x45, 0, 0, 77, 0x2000, 64, socket.IPPROTO_UDP, 0)
    return head + socket.inet_aton(source) + socket.inet_aton(NODE_ADDRESSES[0]) + QUERY


def behind(header: int, source: str) -> bytes:
    """A query behind a fragment header, as its first part, or behind hop-by-hop options of which nobody knows one."""
    between = bytes([socket.IPPROTO_UDP]) + {44: b"\0\0\1\0\0\0\7", 0: b"\0\xbe\4\0\0\0\0"}[header]
    addresses = b"".join(socket.inet_pton(socket.AF_INET6, each) for each in (source, NODE_ADDRESSES[1]))
    return struct.pack(">IHBB", 6 << 28, 8 + len(QUERY), header, 64) + addresses + between + QUERY


def test_connections_from_addresses_that_are_no_pods_are_few(scene: Scene) -> None:
    """A network that is routed to a link makes no pod, but its addresses are no forgery either."""
    scene.lab.ip(scene.lab.node, f"route add 10.244.77.0/24 dev {scene.b.link}")
    scene.lab.ip(scene.b.namespace, "route add local 10.244.77.0/24 dev lo")
    try:
        with contextlib.ExitStack() as clients:
            wide = [f"10.244.77.{number}" for number in range(1, 41)]
            opened = [clients.enter_context(scene.client(scene.b, "10.96.0.10", stream=True, source=a)) for a in wide]
            wait_for(lambda: sum(_ended(client) for client in opened) == 30, 3)

            assert addresses(scene.ask(scene.b, "mail.example.com", stream=True)) == [MAIL]
    finally:
        scene.lab.ip(scene.b.namespace, "route del local 10.244.77.0/24 dev lo")
        scene.lab.ip(scene.lab.node, f"route del 10.244.77.0/24 dev {scene.b.link}")


def _ended(client: socket.socket) -> bool:
    """Whether the other side has ended the connection."""
    client.setblocking(False)
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def test_a_link_local_source_reaches_no_service_of_the_node(scene: Scene) -> None:
    def listen() -> socket.socket:
        return socket.create_server(("::", 2222), family=socket.AF_INET6)

    with scene.lab.inside(scene.lab.node, listen):
        assert not scene.opens(scene.a, "fe80::1", 2222)


def test_what_does_not_enter_by_a_pod_link_is_untouched(scene: Scene, another: list[Pod]) -> None:
    """A neighbour on another kind of link, and a host beyond the node that has the address of a listed pod."""
    plain = scene.lab.pod("plain", "10.50.0.1", "fd00:50::1", link="plain0")
    another.append(plain)
    scene.lab.add_world_address(ELSEWHERE)
    try:
        resolved = scene.resolve(plain, "other.example.com", to=WORLD_ADDRESSES[0])
        over_tcp = scene.resolve(plain, "other.example.com", to=WORLD_ADDRESSES[1], stream=True)
        unanswered = scene.silent(plain, "other.example.com", to="8.8.8.8")
        opened = scene.opens(plain, OTHER)
        with scene.lab.inside(plain.namespace, lambda: socket.create_server(("", 9999))):
            elsewhere = Pod("world", scene.lab.world, "")
            from_elsewhere = scene.opens(elsewhere, "10.50.0.1", 9999, source=(ELSEWHERE, 0))
    finally:
        scene.lab.remove_world_address(ELSEWHERE)

    assert (resolved, over_tcp, unanswered) == ([OTHER], [OTHER], True)
    assert (opened, from_elsewhere) == (True, True)


def test_an_excluded_pod_asks_and_connects_as_if_there_were_no_dnsguard(scene: Scene, another: list[Pod]) -> None:
    excluded = scene.lab.pod("coredns", EXCLUDED)
    another.append(excluded)
    wait_for(
        lambda: EXCLUDED in scene.lab.run(scene.lab.node, "nft", "list", "set", "inet", "dnsguard", "excluded4").stdout,
        3,
    )

    resolved = scene.resolve(excluded, "other.example.com", to=WORLD_ADDRESSES[0])

    assert resolved == [OTHER]
    assert scene.opens(excluded, OTHER)
    assert scene.silent(excluded, "db.example.com", to="8.8.8.8")
    assert "is in pods.exclude: it is neither" in scene.daemon.call("explain", EXCLUDED, "other.example.com").stderr


def test_the_address_of_an_excluded_pod_excludes_no_other_link(scene: Scene) -> None:
    scene.lab.ip(scene.b.namespace, f"addr add {EXCLUDED}/32 dev lo")
    try:
        silent = scene.silent(scene.b, "other.example.com", to=WORLD_ADDRESSES[0], source=EXCLUDED)
        opened = scene.opens(scene.b, OTHER, source=(EXCLUDED, 0))
    finally:
        scene.lab.ip(scene.b.namespace, f"addr del {EXCLUDED}/32 dev lo")

    assert (silent, opened) == (True, False)


def test_a_query_from_an_upstream_is_refused_with_an_event(scene: Scene, another: list[Pod]) -> None:
    upstream = scene.lab.pod("upstream", SERVER)
    another.append(upstream)

    reply = scene.ask(upstream, "db.example.com")

    assert rcode(reply) == "REFUSED"
    assert scene.daemon.told("forwarding_loop", name="db.example.com")


@pytest.mark.parametrize("stream", [False, True], ids=["udp", "tcp"])
@pytest.mark.parametrize("node", NODE_ADDRESSES)
def test_nobody_reaches_the_listening_port(scene: Scene, node: str, stream: bool) -> None:
    places = {"pod": scene.a.namespace, "world": scene.lab.world, "node": scene.lab.node}

    reached = [name for name, place in places.items() if reaches(scene.lab, place, (node, LISTEN_PORT), stream)]

    assert reached == []


def reaches(lab: Lab, place: str, there: tuple[str, int], stream: bool) -> bool:
    family = socket.AF_INET6 if ":" in there[0] else socket.AF_INET
    with lab.socket(place, family, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM) as client:
        client.settimeout(0.3)
        try:
            client.connect(there)
            client.send(bytes(DNSRecord.question("db.example.com").pack()))
            return stream or bool(client.recv(512))
        except OSError:
            return False


TRANSLATION = f"""
table ip kube-proxy {{
  chain services {{ type nat hook prerouting priority -100
    ip daddr {ANY_RESOLVER} meta l4proto {{ tcp, udp }} th dport 53 dnat to {WORLD_ADDRESSES[0]}
    ip daddr 10.96.0.80 tcp dport {PORT} dnat to {DB}
  }}
}}
"""


@pytest.fixture
def translated(scene: Scene) -> Iterator[None]:
    scene.lab.run(scene.lab.node, "nft", "-f", "-", input=TRANSLATION)
    yield
    scene.lab.run(scene.lab.node, "nft", "delete", "table", "ip", "kube-proxy")


@pytest.mark.parametrize("stream", [False, True], ids=["udp", "tcp"])
def test_beside_a_translation_of_the_resolvers_address_every_query_comes_to_the_daemon(
    scene: Scene, translated: None, stream: bool
) -> None:
    asked = scene.zone.asked("other.example.com")

    allowed = scene.resolve(scene.a, "db.example.com", stream=stream)
    denied = rcode(scene.ask(scene.a, "other.example.com", stream=stream))

    assert (allowed, denied) == ([DB], "NXDOMAIN")
    assert scene.zone.asked("other.example.com") == asked


def test_a_service_is_reached_by_the_address_that_its_name_told(scene: Scene, translated: None) -> None:
    """Policy knows the address that the pod uses, whatever it is translated to afterwards."""
    scene.zone.put("service.fresh.example.com", "A", "10.96.0.80")
    before = scene.opens(scene.a, "10.96.0.80")

    scene.resolve(scene.a, "service.fresh.example.com")

    assert not before
    assert scene.opens(scene.a, "10.96.0.80")


HOLDER = f"""
import socket
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("{NODE_LOCAL}", 53))
tcp = socket.create_server(("{NODE_LOCAL}", 53))
print("holding", flush=True)
print("asked:", udp.recv(512), flush=True)
"""


@pytest.fixture
def holder(scene: Scene) -> Iterator[subprocess.Popen[str]]:
    """Another user's resolver on the address and port that pods ask."""
    scene.lab.sysctl(scene.lab.node, ipv4__ip_unprivileged_port_start=0)
    scene.lab.ip(scene.lab.node, f"addr add {NODE_LOCAL}/32 dev lo")
    other_user = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    process = scene.lab.popen(
        scene.lab.node, *other_user, "/usr/bin/python3", "-c", HOLDER, stdout=subprocess.PIPE, stderr=sys.stderr
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "holding\n"
        yield process
        process.terminate()
        process.wait(5)
    scene.lab.ip(scene.lab.node, f"addr del {NODE_LOCAL}/32 dev lo")


@pytest.mark.parametrize("stream", [False, True], ids=["udp", "tcp"])
def test_beside_another_process_on_the_same_address_queries_come_to_the_daemon(
    scene: Scene, holder: subprocess.Popen[str], stream: bool
) -> None:
    allowed = scene.resolve(scene.a, "db.example.com", to=NODE_LOCAL, stream=stream)
    denied = rcode(scene.ask(scene.a, "other.example.com", to=NODE_LOCAL, stream=stream))

    assert (allowed, denied) == ([DB], "NXDOMAIN")
    assert holder.poll() is None


def test_with_a_list_other_servers_are_ordinary_connections(tmp_path: Path) -> None:
    dns = {"protocol": "UDP", "port": 53}
    block = {"to": [{"ipBlock": {"cidr": f"{WORLD_ADDRESSES[0]}/32"}}], "ports": [dns]}
    allowlist = {
        "policies": {**ALLOWLIST["policies"], "resolver": {"egress": [block]}},
        "pods": {A: {"policies": ["web", "resolver"]}, B: {"policies": ["mail"]}},
    }
    with playing(tmp_path, allowlist=allowlist, dns={"intercept": [ANY_RESOLVER]}) as scene:
        listed = scene.resolve(scene.a, "db.example.com"), rcode(scene.ask(scene.a, "other.example.com"))
        unlisted = scene.resolve(scene.a, "other.example.com", to=WORLD_ADDRESSES[0])

        assert (listed, unlisted) == (([DB], "NXDOMAIN"), [OTHER])
        assert scene.silent(scene.b, "mail.example.com", to=WORLD_ADDRESSES[0])
        assert scene.silent(scene.a, "db.example.com", to=WORLD_ADDRESSES[1])
        assert scene.resolve(scene.b, "mail.example.com") == [MAIL]


def test_when_the_daemon_was_killed_no_query_gets_anywhere_and_leases_run_out(tmp_path: Path) -> None:
    with playing(tmp_path) as scene:
        scene.zone.put("short.fresh.example.com", "A", "198.18.2.9", ttl=2)
        scene.resolve(scene.a, "short.fresh.example.com")
        flow = scene.connect(scene.a, "198.18.2.9")
        assert flow is not None
        scene.daemon.stop(signal.SIGKILL)
        asked = scene.zone.asked("db.example.com")

        with flow:
            assert scene.silent(scene.a, "db.example.com", to=ANY_RESOLVER)
            assert scene.silent(scene.a, "db.example.com", to=WORLD_ADDRESSES[0])
            assert scene.silent(scene.a, "db.example.com", to=WORLD_ADDRESSES[0], stream=True)
            wait_for(lambda: "198.18.2.9" not in scene.elements(A), 5)

            assert scene.zone.asked("db.example.com") == asked
            assert not scene.opens(scene.a, "198.18.2.9")
            assert not scene.opens(scene.a, OTHER)
            assert flow.alive()
