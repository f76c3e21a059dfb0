"""What the eBPF line does beyond the contract: numbers that are never given again, steps that are taken back, room."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

import pytest
from hypothesis import HealthCheck, given, settings

from dnsguard.core.errors import KernelError
from dnsguard.core.model import Address, Flow, LinkIndex, Program, Protocol
from dnsguard.enforce.bpf import layout
from dnsguard.enforce.bpf.layout import FlowKey
from dnsguard.enforce.bpf.load import load
from dnsguard.enforce.bpf.syscall import Map
from dnsguard.enforce.bpf.table import BpfTable
from dnsguard.engine.contracts import Desired, Element, Write
from tests.contract.ebpf import LOOPBACK, SECOND, Bench, loaded, set_up
from tests.contract.generator import Place, Scenario, address, scenarios
from tests.contract.scenario import packets
from tests.contract.subject import crowd
from tests.contract.test_enforcer import (
    OTHER,
    PEER,
    PEER6,
    WEB,
    WEB_AND_MAIL,
    block,
    compiled,
    element,
    named,
    packet,
    running,
    tcp,
    write,
)
from tests.node.nftables_lab import ACK, LAYOUT, RST, SYN, SYN_ACK, ip, udp
from tests.node.nftables_lab import tcp as segment

pytestmark = pytest.mark.node

ONE, TWO, _, _ = crowd(LOOPBACK, LOOPBACK)
EVERYTHING = compiled(block("0.0.0.0/0"), block("::/0"))
FAR = LinkIndex(4711)
FIN = 1


@pytest.fixture(scope="module")
def whole() -> Iterator[Bench]:
    with loaded(LAYOUT) as made:
        yield Bench(made)


@pytest.fixture
def bench() -> Iterator[Bench]:
    with loaded(LAYOUT) as made:
        yield Bench(made)


@pytest.fixture
def cramped() -> Iterator[Bench]:
    """Little room for anything."""
    sizes = {"pairs": 8, "programs": 3, "ports": 8, "blocks": 8, "leases": 16, "flows": 8}
    made = load(None, sizes)
    try:
        set_up(made)
        yield Bench(made)
    finally:
        made.close()


def entries(bench: Bench) -> dict[str, dict[bytes, bytes]]:
    names = ("pairs", "leases", "programs", "ports", "blocks", "flows")
    return {name: dict(bench.maps[name].items()) for name in names}


def sources(bench: Bench) -> dict[bytes, int]:
    return {key: layout.PAIR.unpack(value)[1] for key, value in bench.maps["pairs"].items()}


def used(bench: Bench, link: LinkIndex = LOOPBACK) -> int:
    made, freed = (bench.maps[name].lookup(layout.U32.pack(link)) for name in ("flows_made", "flows_freed"))
    return (int.from_bytes(made or b"", "little") - int.from_bytes(freed or b"", "little")) % (1 << 64)


# ---- the decision


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(scenario=scenarios(crowd(LOOPBACK, LOOPBACK)))
def test_made_up_packets_pass_as_the_rules_say_read_one_by_one(whole: Bench, scenario: Scenario) -> None:
    table = BpfTable(whole.maps)
    table.prepare(scenario.desired, scenario.writes)
    table.turn()
    made = {Element(asked.scope, asked.key) for asked in scenario.writes}
    table.finish({Element(held.scope, held.key) for held in table.read()} - made)
    wrong = [each for pod, each in packets(scenario) if whole.lets(each) != scenario.expected(pod, each)]
    assert wrong == []


# ---- pairs and their numbers


def test_a_pair_that_comes_back_has_another_number_and_none_of_its_leases(bench: Bench) -> None:
    table = BpfTable(bench.maps)
    table.apply(running({ONE: WEB}), [write(ONE)], ())
    first = sources(bench)
    table.apply(running({TWO: WEB}), (), ())
    table.apply(running({ONE: WEB, TWO: WEB}), (), ())
    assert not set(first.values()) & {sources(bench)[key] for key in first}
    assert not bench.lets(packet(ONE))


def test_a_later_process_gives_no_number_again_of_which_no_pair_is_left(bench: Bench) -> None:
    table = BpfTable(bench.maps)
    table.apply(running({ONE: WEB}), (), ())
    given_before = set(sources(bench).values())
    table.apply(Desired(), (), ())
    assert sources(bench) == {}
    BpfTable(bench.maps).apply(running({ONE: WEB}), (), ())
    assert not given_before & set(sources(bench).values())


def test_a_later_process_finds_pairs_programs_and_leases_as_they_were(bench: Bench) -> None:
    desired = running({ONE: WEB, TWO: WEB_AND_MAIL}, [(FAR, ONE.v4)])
    BpfTable(bench.maps).apply(desired, [write(ONE), write(TWO, PEER6)], ())
    before = entries(bench)
    table = BpfTable(bench.maps)
    assert table.running() == desired.pairs
    table.learn(["tcp_443"])
    assert {Element(held.scope, held.key) for held in table.read()} == {element(write(ONE)), element(write(TWO, PEER6))}
    table.apply(desired, (), ())
    assert entries(bench) == before
    assert bench.lets(packet(ONE))


def test_a_lease_is_for_each_link_that_the_pods_address_is_on_and_read_once(bench: Bench) -> None:
    table = BpfTable(bench.maps)
    both = {(LOOPBACK, ONE.v4): WEB.name, (FAR, ONE.v4): WEB.name}
    table.apply(Desired((WEB,), both), (), ())
    assert table.arm([write(ONE)]) == {}
    assert len(entries(bench)["leases"]) == 2
    assert [Element(held.scope, held.key) for held in table.read()] == [element(write(ONE))]
    bench.maps["leases"].delete(next(iter(entries(bench)["leases"])))
    assert table.read() == []


def test_a_lease_of_an_address_that_no_pair_has_is_refused(bench: Bench) -> None:
    table = BpfTable(bench.maps)
    table.apply(running({ONE: WEB}), (), ())
    assert table.arm([write(TWO), write(ONE)]) == {element(write(TWO)): "ENOENT"}


def test_what_an_excluded_pair_sends_passes_and_is_not_remembered(bench: Bench) -> None:
    table = BpfTable(bench.maps)
    table.apply(Desired((), {}, frozenset({(LOOPBACK, ONE.v4)})), (), ())
    assert bench.lets(packet(ONE))
    assert entries(bench)["flows"] == {}
    assert table.running() == {}


# ---- changes


def test_what_is_prepared_is_seen_by_no_packet_and_can_be_taken_back(bench: Bench) -> None:
    table = BpfTable(bench.maps)
    table.apply(running({ONE: WEB}), [write(ONE, seconds=30)], ())
    before = entries(bench)
    table.prepare(running({ONE: EVERYTHING, TWO: WEB_AND_MAIL}), [])
    assert not bench.lets(packet(ONE, 444))
    assert not bench.lets(packet(TWO))
    table.undo()
    assert entries(bench) == before
    table.prepare(running({ONE: WEB_AND_MAIL}), [write(ONE), write(ONE, OTHER, "tcp_25")])
    table.undo()
    assert entries(bench) == before


def test_a_process_that_died_in_a_change_leaves_nothing_behind_the_next_one(bench: Bench) -> None:
    table = BpfTable(bench.maps)
    table.apply(running({ONE: WEB}), (), ())
    before = entries(bench)
    table.prepare(running({ONE: EVERYTHING, TWO: WEB_AND_MAIL}), ())
    bench.maps["programs"].delete(layout.U64.pack(layout.program_number(WEB_AND_MAIL.name)))
    BpfTable(bench.maps).apply(running({ONE: WEB}), (), ())
    assert entries(bench) == before


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 9])
def test_a_lease_of_a_scope_that_was_not_carried_for_a_while_does_not_come_back(
    bench: Bench, steps: int, restarted: bool
) -> None:
    table = BpfTable(bench.maps)
    table.apply(running({ONE: WEB_AND_MAIL}), [write(ONE, scope="tcp_25"), write(ONE)], ())
    table.sweep()
    table.apply(running({ONE: WEB}), (), ())
    for _ in range(steps):
        table.sweep()
    later = BpfTable(bench.maps) if restarted else table
    later.apply(running({ONE: WEB_AND_MAIL}), (), ())
    assert not bench.lets(packet(ONE, 25))
    assert bench.lets(packet(ONE))


def blocks(count: int) -> Program:
    return compiled(*(block(f"10.{number}.0.0/16", tcp(80 + number)) for number in range(count)))


def test_a_change_without_room_names_the_key_to_raise_and_leaves_the_maps_as_they_were(cramped: Bench) -> None:
    table = BpfTable(cramped.maps)
    table.apply(running({ONE: WEB, TWO: WEB}), [write(ONE)], ())
    before = entries(cramped)
    crowded = {(LinkIndex(number), ONE.v4): WEB.name for number in range(2, 12)}
    ports = compiled(named("a.test", (*tcp(1, 6), *tcp(11, 19), *tcp(21, 38))))
    peers = [write(ONE, address(f"203.0.113.{last}")) for last in range(1, 30)]
    refused: list[tuple[Desired, list[Write], str]] = [
        (Desired((WEB,), crowded), [], "tables.pods"),
        (running({ONE: WEB, TWO: blocks(9)}), [], "tables.prefixes"),
        (running({ONE: WEB, TWO: ports}), [], "tables.prefixes"),
        (Desired(tuple(map(blocks, range(1, 5)))), [], "tables.pods"),
        (running({ONE: WEB, TWO: WEB}), [write(ONE, seconds=1), *peers], "tables.leases"),
    ]
    for desired, add, key in refused:
        with pytest.raises(KernelError, match=f"raise {key}"):
            table.apply(desired, add, ())
        assert entries(cramped) == before, key
    assert table.arm([write(TWO)]) == {}


def test_leases_that_ended_make_room_for_others(cramped: Bench) -> None:
    table = BpfTable(cramped.maps)
    table.apply(running({ONE: WEB, TWO: WEB}), (), ())
    short = [write(ONE, address(f"203.0.113.{last}"))._replace(timeout_ms=1) for last in range(16)]
    assert table.arm(short) == {}
    wait_for(lambda: table.read() == [])
    assert table.arm([write(TWO, address(f"203.0.113.{last}")) for last in range(16)]) == {}


def test_leases_of_pods_that_have_gone_make_room_for_others(cramped: Bench) -> None:
    table = BpfTable(cramped.maps)
    table.apply(running({ONE: WEB}), [write(ONE, address(f"203.0.113.{last}")) for last in range(16)], ())
    table.apply(running({TWO: WEB}), (), ())
    assert table.arm([write(TWO, address(f"203.0.113.{last}")) for last in range(16)]) == {}


# ---- flows


def flow(place: Place = ONE, protocol: int = Protocol.UDP, port: int = 443) -> Flow:
    return Flow(protocol, place.v4, 40000, PEER, port, PEER, port)


def out(of: Flow, data: bytes) -> bytes:
    return ip(of.pod, of.peer, of.protocol, data)


def back(of: Flow, data: bytes) -> bytes:
    return ip(of.peer, of.pod, of.protocol, data)


def test_cuts_and_what_takes_them_back_keep_the_count_of_a_links_flows_right(bench: Bench) -> None:
    table = BpfTable(bench.maps)
    table.apply(running({ONE: EVERYTHING}), (), ())
    assert bench.from_pod(out(flow(), udp(40000, 443)))
    table.cut([flow(), flow(port=444)])
    table.cut([flow()])
    assert (used(bench), len(entries(bench)["flows"])) == (2, 2)
    assert not bench.from_pod(out(flow(), udp(40000, 443)))
    assert not bench.to_pod(back(flow(), udp(443, 40000)))
    assert sorted(BpfTable(bench.maps).cut_before()) == sorted([flow(), flow(port=444)])
    assert used(bench) == 2
    table.uncut([flow(), flow(port=444), flow(port=445)])
    assert (used(bench), entries(bench)["flows"]) == (0, {})
    assert bench.from_pod(out(flow(), udp(40000, 443)))


def test_an_open_flow_is_not_uncut_away(bench: Bench) -> None:
    table = BpfTable(bench.maps)
    table.apply(running({ONE: EVERYTHING}), (), ())
    assert bench.from_pod(out(flow(), udp(40000, 443)))
    table.uncut([flow()])
    assert used(bench) == 1


@pytest.mark.parametrize(("pod", "peer", "protocol"), [(ONE.v4, PEER, 1), (ONE.v6, PEER6, 58)])
def test_a_cut_of_icmp_forgets_the_requests_of_that_identifier(
    bench: Bench, pod: Address, peer: Address, protocol: int
) -> None:
    table = BpfTable(bench.maps)
    table.apply(running({ONE: EVERYTHING}), (), ())
    request, reply = (ip(pod, peer, 1, b"\x08\0\0\0\0\x05\0\1"), ip(peer, pod, 1, b"\0\0\0\0\0\x05\0\1"))
    if protocol == 58:
        request, reply = (
            ip(pod, peer, 58, b"\x80\0\0\0\0\x05\0\1"),
            ip(peer, pod, 58, b"\x81\0\0\0\0\x05\0\1"),
        )
    assert bench.from_pod(request) and bench.to_pod(reply)
    table.apply(running({ONE: WEB}), (), ())
    assert bench.from_pod(request)
    table.cut([Flow(protocol, pod, 5, peer, 0, peer, 0)])
    assert bench.to_pod(reply), "it begins no flow"
    assert not bench.from_pod(request)
    assert used(bench) == 0
    assert table.cut_before() == []


def test_when_flows_have_no_room_the_pod_with_the_fewest_is_cut_its_own_first(cramped: Bench) -> None:
    table = BpfTable(cramped.maps)
    table.apply(running({ONE: EVERYTHING, TWO: EVERYTHING}), (), ())
    many = [flow(port=port) for port in range(1, 20)]
    with pytest.raises(KernelError, match=r"flows of 1 pod addresses .* raise tables.flows"):
        table.cut([*many, flow(TWO)])
    assert flow(TWO) in table.cut_before()
    assert len(table.cut_before()) == 8


def test_flows_that_connection_tracking_knew_are_open(bench: Bench) -> None:
    table = BpfTable(bench.maps)
    table.apply(running({ONE: WEB}), (), ())
    known, begun_outside, unknown = (flow(protocol=Protocol.TCP, port=port) for port in (443, 444, 445))
    table.seed([known], [begun_outside])
    for each, passes in ((known, True), (begun_outside, True), (unknown, False)):
        ports = each.pod_port, each.peer_port
        assert bench.from_pod(out(each, segment(*ports, ACK))) is passes
        assert bench.to_pod(back(each, segment(*reversed(ports), ACK))) is passes
        assert not bench.from_pod(out(each, segment(*ports, SYN)))
    assert used(bench) == 2


def test_the_sweep_takes_out_what_ended_a_while_ago_and_whose_pod_has_gone(bench: Bench) -> None:
    table = BpfTable(bench.maps)
    table.apply(running({ONE: EVERYTHING, TWO: EVERYTHING}), (), ())
    for place in (ONE, TWO):
        for port in (443, 444, 445):
            assert bench.from_pod(out(flow(place, port=port), udp(40000, port)))
    age(bench.maps["flows"], sources(bench)[layout.pair_key(LOOPBACK, ONE.v4)], {443: 6, 444: 1})
    while table.sweep():
        pass
    assert (used(bench), len(entries(bench)["flows"])) == (5, 5)
    table.apply(running({ONE: EVERYTHING}), (), ())
    while table.sweep():
        pass
    assert (used(bench), len(entries(bench)["flows"])) == (2, 2)


def age(flows: Map, source: int, ended: Mapping[int, int]) -> None:
    """Have the flows of a source to these ports have ended so many seconds ago."""
    for key, value in [*flows.items()]:
        at = FlowKey.unpack(key)
        _, state, link = layout.FLOW.unpack(value)
        if at.source == source and at.peer_port in ended:
            ends_ns = time.monotonic_ns() - ended[at.peer_port] * SECOND
            flows.update(key, layout.FLOW.pack(ends_ns, state, link))


def test_what_was_counted_on_a_link_that_has_gone_is_forgotten(bench: Bench) -> None:
    table = BpfTable(bench.maps)
    table.apply(running({ONE: EVERYTHING}), (), ())
    assert bench.from_pod(out(flow(), udp(40000, 443)))
    table.apply(Desired(), (), ())
    while table.sweep():
        pass
    assert [dict(bench.maps[name].items()) for name in ("flows", "flows_made", "flows_freed")] == [{}, {}, {}]


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not what():
        assert time.monotonic() < deadline


def test_an_echo_reply_that_answers_nothing_opens_nothing(bench: Bench) -> None:
    BpfTable(bench.maps).apply(running({ONE: WEB}), (), ())
    icmp = flow(protocol=1)
    request, reply = (bytes((kind, 0, 0, 0, 0, 7, 0, 1)) for kind in (8, 0))
    assert bench.to_pod(back(icmp, reply))
    assert not bench.from_pod(out(icmp, request))
    assert used(bench) == 0


@pytest.mark.parametrize("flags", [ACK, SYN_ACK, ACK | FIN, RST])
def test_tcp_out_of_nowhere_from_a_peer_that_the_pod_may_reach_opens_nothing(bench: Bench, flags: int) -> None:
    table = BpfTable(bench.maps)
    table.apply(running({ONE: WEB}), [write(ONE)], ())
    web = flow(protocol=Protocol.TCP)
    assert bench.to_pod(back(web, segment(443, 40000, flags)))
    table.apply(running({ONE: WEB}), (), [element(write(ONE))])
    assert not bench.from_pod(out(web, segment(40000, 443, ACK)))
    assert not bench.to_pod(back(web, segment(443, 40000, flags)))
    assert used(bench) == 0


@pytest.mark.parametrize("flags", [SYN_ACK, ACK | FIN, RST])
def test_what_begins_no_connection_is_not_remembered_as_one(bench: Bench, flags: int) -> None:
    BpfTable(bench.maps).apply(running({ONE: EVERYTHING}), (), ())
    assert bench.from_pod(out(flow(protocol=Protocol.TCP), segment(40000, 443, flags)))
    assert used(bench) == 0
