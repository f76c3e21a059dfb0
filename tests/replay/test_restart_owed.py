"""A process killed after the kernel went over, and before the flows that this forbids were cut: the next one cuts them.

The kill is the end of a process that waits for connection tracking, which is where a change looks for flows to cut.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from dnsguard.core.errors import KernelError
from dnsguard.core.model import Flow
from dnsguard.daemon.owed import FILE
from tests.replay.nodes import Node
from tests.replay.stage import Stage, allowlist

PODS = {"web": ["10.244.0.5"], "db": ["10.244.0.7"]}
ZONE = {"a.example.com": ["a.example.com. 60 A 192.0.2.1"], "b.example.com": ["b.example.com. 60 A 192.0.2.2"]}
POLICY = """
policies:
  p: {{egress: [{{to: [{{domainNames: {names}}}], ports: [{{protocol: TCP, port: 443}}]}}]}}
  q: {{egress: [{{to: [{{domainNames: ["a.example.com"]}}], ports: [{{protocol: TCP, port: 443}}]}}]}}
pods: {{10.244.0.5: {{policies: [p]}}, 10.244.0.7: {{policies: [q]}}}}
"""
BOTH, ONLY_B = POLICY.format(names="[a.example.com, b.example.com]"), POLICY.format(names="[b.example.com]")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path, BOTH, dict(PODS), ZONE)
    yield node
    node.stage.check()
    node.stage.check_nothing_left()
    node.close()


def connect(node: Node, pod: str, name: str, to: str) -> Flow:
    node.stage.ask(pod, name)
    return node.stage.connect(pod, to, 443)


def killed_before_it_cuts(stage: Stage, change: Coroutine[Any, Any, Any]) -> None:
    stage.flows.before = asyncio.Event().wait()  # type: ignore[assignment]
    assert not stage.start(change).done()


def test_a_flow_that_the_new_policy_forbids_is_cut_by_the_next_process(node: Node) -> None:
    flow = connect(node, "web", "a.example.com", "192.0.2.1")
    killed_before_it_cuts(node.stage, node.stage.engine.changes.policy(allowlist(ONLY_B)))

    stage = node.restart(ONLY_B)

    assert not stage.flowing(flow)
    assert flow in stage.flows.deleted


def test_one_that_it_allows_goes_on_though_its_lease_has_ended(node: Node) -> None:
    flow = connect(node, "web", "b.example.com", "192.0.2.2")
    node.stage.pass_time(100)
    killed_before_it_cuts(node.stage, node.stage.engine.changes.policy(allowlist(ONLY_B)))

    stage = node.restart(ONLY_B)

    assert not stage.passes("web", "192.0.2.2", 443)
    assert stage.flowing(flow)


def test_a_pod_that_the_change_left_alone_is_not_judged_even_with_names_unknown(node: Node) -> None:
    flow = connect(node, "db", "a.example.com", "192.0.2.1")
    node.stage.pass_time(100)
    killed_before_it_cuts(node.stage, node.stage.engine.changes.policy(allowlist(ONLY_B)))

    stage = node.restart(ONLY_B, known=False)

    assert stage.flowing(flow)


def test_it_is_cut_by_the_third_process_when_the_second_cannot(node: Node) -> None:
    flow = connect(node, "web", "a.example.com", "192.0.2.1")
    killed_before_it_cuts(node.stage, node.stage.engine.changes.policy(allowlist(ONLY_B)))
    with before_it_begins(lambda stage: stage.flows.refuse("EBUSY")):
        uncut = node.restart(ONLY_B).flowing(flow)

    stage = node.restart(ONLY_B)

    assert uncut
    assert not stage.flowing(flow)


def test_what_changed_while_nothing_ran_is_owed_before_the_kernel_goes_over(node: Node, tmp_path: Path) -> None:
    connect(node, "web", "a.example.com", "192.0.2.1")
    said: list[bytes] = []

    def look(stage: Stage) -> None:
        apply = stage.enforcer.apply

        def looking(*what: Any) -> Awaitable[None]:
            said.append((tmp_path / FILE).read_bytes())
            return apply(*what)

        stage.enforcer.apply = looking  # type: ignore[method-assign]

    with before_it_begins(look):
        node.restart(ONLY_B)

    assert said == [b'{"judge": ["10.244.0.5"], "forget": []}\n']


@contextlib.contextmanager
def before_it_begins(do: Callable[[Stage], None]) -> Iterator[None]:
    """Inside, `do` it to each process that starts."""
    begin = Stage.begin

    def first(stage: Stage, *how: Any) -> None:
        do(stage)
        begin(stage, *how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stage, "begin", first)
        yield


def test_flows_that_only_audit_let_open_are_cut_by_the_next_process(tmp_path: Path) -> None:
    node = Node(tmp_path, ONLY_B, dict(PODS), ZONE, "mode: Audit\n")
    stage = node.stage
    flow = connect(node, "web", "a.example.com", "192.0.2.1")
    stage.engine.revocation.cut_ahead = nothing  # type: ignore[method-assign]
    killed_before_it_cuts(stage, stage.engine.changes.audit(False))

    after = node.restart(ONLY_B)

    assert not after.flowing(flow)
    node.close()


async def nothing(pods: object) -> None:
    """Looks for flows a moment before this one opens."""


def test_the_flows_of_a_pod_that_went_are_forgotten_by_the_next_process(node: Node) -> None:
    flow = connect(node, "db", "a.example.com", "192.0.2.1")
    node.stage.forget_promises("db")
    killed_before_it_cuts(node.stage, node.stage.engine.changes.links({node.stage.links["db"]: None}))
    node.stage.flows.flows.add(flow)  # the double had forgotten it at once
    del node.pods["db"]

    stage = node.restart(BOTH)

    assert flow not in stage.flows.flows


def test_nothing_is_owed_when_the_flows_are_cut(node: Node, tmp_path: Path) -> None:
    connect(node, "web", "a.example.com", "192.0.2.1")

    node.stage.reload(ONLY_B)
    node.stage.went("db")

    assert not (tmp_path / FILE).exists()


def test_nothing_is_owed_when_the_kernel_refuses_the_change(node: Node, tmp_path: Path) -> None:
    connect(node, "web", "a.example.com", "192.0.2.1")
    node.stage.enforcer.refuse_changes("EBUSY")
    with pytest.raises(KernelError):
        node.stage.reload(ONLY_B)
    node.stage.enforcer.relent()

    node.stage.finish(node.stage.engine.changes.apply_again())

    assert not (tmp_path / FILE).exists()


def test_what_is_done_about_flows_while_the_kernel_refuses_a_change_is_done_again(node: Node, tmp_path: Path) -> None:
    connect(node, "db", "a.example.com", "192.0.2.1")
    node.stage.enforcer.refuse_changes("EBUSY")
    node.stage.went("db")
    owed = (tmp_path / FILE).read_text()
    node.stage.enforcer.relent()

    node.stage.finish(node.stage.engine.changes.apply_again())

    assert "10.244.0.7" in owed
    assert not (tmp_path / FILE).exists()


def test_what_connection_tracking_refuses_stays_owed_until_it_is_done(node: Node, tmp_path: Path) -> None:
    connect(node, "web", "a.example.com", "192.0.2.1")
    node.stage.flows.refuse("EBUSY")
    node.stage.reload(ONLY_B)
    owed = (tmp_path / FILE).exists()
    node.stage.flows.refuse(None)

    node.stage.finish(node.stage.engine.changes.apply_again())

    assert owed
    assert not (tmp_path / FILE).exists()
