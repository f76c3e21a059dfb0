"""A new process takes up leases with the names that were kept of them: extended, judged and taken back as any other."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dnsguard.core.lease import UNKNOWN, Element
from dnsguard.core.names import parse_name
from dnsguard.engine.contracts import Desired, EventKind
from tests.replay.nodes import Node, kept, living
from tests.replay.stage import Stage, address

PODS = {"web": ["10.244.0.5", "10.244.0.6"], "db": ["10.244.0.7", "fd00:10::7"]}
ZONE = {
    "a.example.com": ["a.example.com. 60 A 192.0.2.1"],
    "b.example.com": ["b.example.com. 90 A 192.0.2.1"],
    "c.example.com": ["c.example.com. 5 A 192.0.2.2", "c.example.com. 5 A 192.0.2.1"],
}
HEAD = "policies: {{p: {{egress: [{{to: [{{domainNames: {names}}}], ports: {ports}}}]}}}}\n"
TAIL = "pods: {10.244.0.0/24: {policies: [p]}}\n"
HTTPS, BOTH = "[{protocol: TCP, port: 443}]", "[{protocol: TCP, port: 443}, {protocol: TCP, port: 80}]"
A, B = parse_name("a.example.com"), parse_name("b.example.com")


def policy(*names: str, ports: str = HTTPS) -> str:
    """These names of example.com are allowed on these ports."""
    return HEAD.format(names="[" + ", ".join(f'"{name}.example.com"' for name in names) + "]", ports=ports) + TAIL


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A process that has resolved a name, 20 s ago; its lease has 50 s left."""
    node = Node(tmp_path, policy("a", "b"), PODS, ZONE)
    node.stage.ask("web", "a.example.com")
    node.stage.pass_time(20)
    yield node
    node.stage.check()
    node.stage.check_nothing_left()
    node.close()


def opens(stage: Stage, port: int = 443, to: str = "192.0.2.1") -> bool:
    return stage.passes("web", to, port)


def test_a_restored_lease_has_its_names_and_their_ends(node: Node) -> None:
    before = living(node.stage)

    stage = node.restart(policy("a", "b"))

    assert living(stage) == pytest.approx(before)
    assert {name for *_, name in before} == {A}


def test_a_policy_that_still_allows_the_name_leaves_the_lease_alone(node: Node) -> None:
    written = len(node.stage.enforcer.held())

    stage = node.restart(policy("a", "c"))

    assert opens(stage)
    applied = [call for call in stage.enforcer.calls if call[0] == "apply"]
    assert [(call[2], call[3]) for call in applied] == [((), ())]
    assert len(stage.enforcer.held()) == written
    stage.pass_time(49)
    assert opens(stage)
    stage.pass_time(2)
    assert not opens(stage)


def test_a_policy_that_allows_other_names_on_the_same_ports_closes_it_at_once(node: Node) -> None:
    stage = node.restart(policy("b"))

    assert stage.enforcer.held() == []
    assert stage.told.of(EventKind.LEASES_PURGED) == [{"count": 1}]


def test_a_policy_that_allows_the_name_on_other_ports_moves_the_lease(node: Node) -> None:
    stage = node.restart(policy("a", ports=BOTH))

    assert opens(stage, 443)
    assert opens(stage, 80)
    assert {held.scope for held in stage.enforcer.held()} == {"tcp_80_tcp_443"}
    stage.pass_time(51)
    assert not opens(stage, 80)


def test_of_two_names_the_one_that_is_still_allowed_holds_the_lease_for_its_own_time(node: Node) -> None:
    node.stage.ask("web", "b.example.com")

    stage = node.restart(policy("a"))

    stage.pass_time(49)
    assert opens(stage)
    stage.pass_time(2)
    assert not opens(stage)


def test_a_reload_after_a_restart_judges_by_the_names_too(node: Node) -> None:
    stage = node.restart(policy("a", "b"))

    stage.reload(policy("a", "c"))
    kept_open = opens(stage)
    stage.reload(policy("c"))

    assert kept_open
    assert not opens(stage)


def test_a_restored_lease_is_extended_and_its_names_are_kept_again(node: Node) -> None:
    stage = node.restart(policy("a", "b"))
    stage.ask("web", "a.example.com")
    stage.pass_time(55)

    stage = node.restart(policy("a"))

    assert opens(stage)
    assert {name for *_, name in living(stage)} == {A}


def test_a_flow_is_judged_by_names_whose_lease_ended_before_the_restart(node: Node) -> None:
    flow = node.stage.connect("web", "192.0.2.1", 443)
    node.stage.pass_time(60)

    stage = node.restart(policy("a", "b"))
    stage.reload(policy("a", "c"))
    kept_open = stage.flowing(flow)
    stage.reload(policy("c"))

    assert kept_open
    assert not stage.flowing(flow)


def test_a_flow_is_judged_so_by_a_policy_that_changed_while_nothing_ran(node: Node) -> None:
    flow = node.stage.connect("web", "192.0.2.1", 443)
    node.stage.pass_time(60)

    kept_open = node.restart(policy("a")).flowing(flow)
    cut = not node.restart(policy("b")).flowing(flow)

    assert kept_open
    assert cut


def test_a_flow_of_a_lease_that_was_purged_is_judged_by_its_names_after_two_restarts(node: Node) -> None:
    flow = node.stage.connect("web", "192.0.2.1", 443)

    node.restart(policy("b"))
    stage = node.restart(policy("a"))

    assert {name for _, name in stage.engine.leases.stood_on(stage.pod("web").id)[address("192.0.2.1")]} == {A}
    assert not opens(stage)
    assert flow in stage.flows.deleted or not stage.flowing(flow)


def test_a_name_that_was_taken_back_does_not_live_again(node: Node) -> None:
    node.stage.reload(policy("b"))
    node.stage.ask("web", "b.example.com")

    stage = node.restart(policy("a", "b"))

    assert {name for *_, name in living(stage)} == {B}


def test_what_was_told_last_and_not_yet_written_is_kept_with_names_unknown(node: Node) -> None:
    node.write()
    node.stage.ask("web", "b.example.com")

    stage = node.restart(policy("a", "b"), written=False)

    assert {name for *_, name in living(stage)} == {A, UNKNOWN}
    stage.pass_time(95)
    assert opens(stage)


def test_what_was_not_yet_written_is_closed_by_another_program_at_the_end_of_what_was(node: Node) -> None:
    node.write()
    node.stage.ask("web", "b.example.com")

    stage = node.restart(policy("a"), written=False)

    stage.pass_time(51)
    assert not opens(stage)


def test_what_was_taken_back_is_closed_though_the_kernel_had_not_done_it_yet(node: Node) -> None:
    """Killed after the programs went over and before the leases were taken out, with nftables alone."""
    held = node.stage.enforcer.held()
    node.stage.reload(policy("b"))
    node.stage.enforcer._ends.update({Element(one.scope, one.key): node.stage.clock.now + 50 for one in held})

    stage = node.restart(policy("b"))

    assert stage.enforcer.held() == []


@pytest.mark.parametrize("written", [True, False])
def test_unknown_names_are_taken_back_so_too(node: Node, written: bool) -> None:
    held = node.stage.enforcer.held()
    node.write()
    with node.editing() as file:
        file.execute("DELETE FROM names")
    stage = node.restart(policy("a", "b"))
    assert {name for *_, name in living(stage)} == {UNKNOWN}
    stage.reload(policy("b"))
    stage.enforcer._ends.update({Element(one.scope, one.key): stage.clock.now + 50 for one in held})

    stage = node.restart(policy("b"), written=written)

    assert stage.enforcer.held() == []


def test_what_was_taken_back_is_remembered_as_long_as_what_ended(node: Node) -> None:
    node.restart(policy("b"))

    stage = node.restart(policy("b"))
    stage.finish(stage.engine.revocation.remember(stage.engine.pods, stage.clock.now))

    assert stage.engine.leases.stood_on(stage.pod("web").id).keys() == {address("192.0.2.1")}


def test_a_commit_that_ended_between_the_lines_leaves_what_the_names_justify(node: Node) -> None:
    """One line runs the new program and the other the old one: neither is what the pod runs."""
    node.stage.ask("db", "b.example.com")
    node.stage.enforcer.desired = Desired()

    stage = node.restart(policy("a"))

    assert opens(stage)
    assert not stage.passes("db", "192.0.2.1", 443)


def test_unknown_names_of_an_ended_lease_let_its_flow_go_on_while_the_program_is_the_same(node: Node) -> None:
    node.write()
    node.stage.ask("db", "b.example.com")
    stage = node.restart(policy("a", "b"), written=False)
    flow = stage.connect("db", "192.0.2.1", 443)
    stage.pass_time(120)

    stage = node.restart(policy("a", "b"))
    stage.reload("# a line further down\n" + policy("a", "b"))
    kept_open = stage.flowing(flow)
    stage = node.restart(policy("a"))

    assert kept_open
    assert not stage.flowing(flow)


def test_an_end_in_the_far_future_lasts_as_long_as_the_kernel_says(node: Node) -> None:
    node.stage.ask("web", "b.example.com")
    node.write()
    with node.editing() as file:
        file.execute("UPDATE names SET until = 1e9")

    stage = node.restart(policy("a", "b"))

    assert max(living(stage).values()) <= stage.clock.now + 101


def test_the_names_of_one_pod_are_not_those_of_the_next_on_another_link(node: Node) -> None:
    stage = node.restart(policy("a", "b"), links=20)

    assert stage.enforcer.held() == []
    assert stage.engine.leases.stood_on(stage.pod("web").id) == {}


def test_a_pod_that_went_leaves_no_name(node: Node) -> None:
    node.stage.went("web")

    assert node.kept().keys() == {node.stage.links["db"]}


def test_what_nobody_needs_any_longer_is_not_kept(node: Node) -> None:
    node.stage.pass_time(2000)
    node.stage.finish(node.stage.engine.revocation.remember(node.stage.engine.pods, node.stage.clock.now))

    assert all(not pod.leases for pod in node.kept().values())


# -- any order --------------------------------------------------------------------------------------------------------

POLICIES = [policy("a", "b"), policy("*"), policy("b", "c", ports=BOTH), policy("c"), policy("never")]

steps = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.sampled_from(sorted(PODS)), st.sampled_from(sorted(ZONE))),
        st.tuples(st.just("time"), st.sampled_from([0.3, 7.0, 41.0, 90.0])),
        st.tuples(st.just("reload"), st.sampled_from(POLICIES)),
        st.tuples(st.just("went"), st.sampled_from(sorted(PODS))),
        st.tuples(st.just("restart"), st.sampled_from(POLICIES), st.booleans()),
        st.tuples(st.just("remember")),
    ),
    max_size=12,
)


@given(steps)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_in_any_order_what_is_kept_is_what_is_so(
    played: list[tuple[object, ...]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        node = Node(Path(folder), POLICIES[0], PODS, ZONE)
        for kind, *rest in played:
            play(node, str(kind), *rest)
            so = living(node.stage)
            assert kept(node.kept(), node.stage.clock.now) == pytest.approx(so)
            node.stage.check()
        node.stage.check_nothing_left()
        node.close()


def play(node: Node, kind: str, *rest: object) -> None:
    stage = node.stage
    match kind, *rest:
        case "ask", str(pod), str(name):
            if pod in stage.links and stage.links[pod] in stage.engine.pods.by_link:
                stage.ask(pod, name)
        case "time", float(seconds):
            stage.pass_time(seconds)
        case "reload", str(text):
            stage.reload(text)
        case "went", str(pod):
            if stage.links[pod] in stage.engine.pods.by_link:
                stage.went(pod)
        case "restart", str(text), bool(written):
            node.restart(text, written=written)
        case "remember", *_:
            stage.finish(stage.engine.revocation.remember(stage.engine.pods, stage.clock.now))
