"""What the engine does beside the conversations of tests/replay."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from dnsguard.core.model import Action, Flow
from dnsguard.engine import revoke
from dnsguard.engine.cache import AnswerCache
from dnsguard.engine.contracts import EventKind
from dnsguard.engine.state import Attempt
from dnsguard.upstream.scripted import Answer
from tests.replay.stage import Stage, address, respond, settings

ALL = "policies: {}\npods: {10.244.0.0/24: ['*.example.com']}\n"
NONE = "policies: {}\npods: {}\n"


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage(ALL, "limits: {tcpConnections: 1}", pods={"web": ["10.244.0.5"], "db": ["10.244.0.6"]})
    made.script("a.example.com", "A", Answer(respond("a.example.com. 60 A 192.0.2.1")))
    yield made
    made.check()
    made.close()


def test_a_pod_has_its_share_of_connections(stage: Stage) -> None:
    exchanges = stage.engine.exchanges

    first = exchanges.admit("10.244.0.5", stage.links["web"])
    refused = exchanges.admit("10.244.0.5", stage.links["web"])
    others = exchanges.admit("10.244.0.6", stage.links["db"])
    assert first is not None
    first()

    assert refused is None
    assert others is not None
    assert exchanges.admit("10.244.0.5", stage.links["web"]) is not None
    assert stage.counters.limited["tcpConnections"] == 1


def test_a_connection_of_a_pod_that_is_not_known_yet_may_wait_for_its_first_answer(stage: Stage) -> None:
    give_back = stage.engine.exchanges.admit("10.244.0.99", stage.links["web"])

    assert give_back is not None
    give_back()


def test_few_connections_of_addresses_that_are_no_pods_are_taken(stage: Stage) -> None:
    exchanges, link = stage.engine.exchanges, stage.links["web"]

    taken = [exchanges.admit(f"10.244.7.{number}", link) for number in range(12)]
    elsewhere = exchanges.admit("10.244.7.99", stage.links["db"])
    assert taken[0] is not None
    taken[0]()

    assert [one is not None for one in taken] == [True] * 10 + [False] * 2
    assert elsewhere is not None
    assert exchanges.admit("10.244.7.1", link) is not None
    assert exchanges.admit("10.244.7.2", link) is None


def test_a_report_about_an_attempt_that_is_over_is_nothing(stage: Stage) -> None:
    stage.ask("web", "b.example.com")
    (attempt,) = stage.engine.fetches._attempts
    assert isinstance(attempt, Attempt)
    stage.engine.fetches.abandon_all()

    stage.engine.fetches.answered(attempt, respond("b.example.com. 60 A 192.0.2.1")(b"id" + attempt.query))
    stage.engine.fetches.failed(attempt, "closed")

    assert stage.engine.quiet
    assert stage.counters.forward_responses == {}


def test_an_emptied_cache_asks_again(stage: Stage) -> None:
    stage.ask("web", "a.example.com")
    kept = len(stage.engine.cache)

    stage.engine.cache.clear()
    stage.ask("web", "a.example.com")

    assert kept == 1
    assert len(stage.upstream.asked) == 2


def test_the_cache_forgets_what_was_used_longest_ago() -> None:
    stage = Stage(ALL, "cache: {entries: 1}")
    for name in ("a", "b"):
        stage.script(f"{name}.example.com", "A", Answer(respond(f"{name}.example.com. 60 A 192.0.2.1")))
        stage.ask("web", f"{name}.example.com")

    stage.ask("web", "a.example.com")

    assert len(stage.engine.cache) == 1
    assert len(stage.upstream.asked) == 3
    stage.close()


def test_a_cache_without_entries_keeps_nothing_and_answers_all_the_same() -> None:
    stage = Stage(ALL, "cache: {entries: 0}")
    stage.script("a.example.com", "A", Answer(respond("a.example.com. 60 A 192.0.2.1")))

    asked = [stage.ask("web", "a.example.com") for _ in range(2)]

    assert all(not one.open for one in asked)
    assert len(stage.engine.cache) == 0
    stage.check()
    stage.close()


def test_parts_of_a_second_are_rounded_so_that_leases_last_longer_and_answers_shorter() -> None:
    made, _ = settings("ttl: {floor: 500ms, grace: 1500ms, cap: 1500ms}\ndns: {serveStale: 500ms}")

    assert (made.exchange.floor, made.exchange.grace, made.exchange.serve_stale) == (1, 2, 1)
    assert made.fetch.cap == 1


def test_an_answer_that_lives_for_no_second_is_not_kept(stage: Stage) -> None:
    cache = AnswerCache(10)
    stage.script("z.example.com", "A", Answer(respond("z.example.com. 0 A 192.0.2.1")))
    stage.ask("web", "z.example.com")

    assert len(cache) == len(stage.engine.cache) == 0


def test_a_long_answer_takes_the_place_of_several(stage: Stage) -> None:
    cache = AnswerCache(10)
    texts = " ".join(f'"{"x" * 200}"' for _ in range(10))
    stage.script("long.example.com", "TXT", Answer(respond(f"long.example.com. 60 TXT {texts}")))
    stage.ask("web", "long.example.com", "TXT")
    (entry,) = stage.engine.cache._entries.values()

    for number in range(10):
        cache.put(number, entry.answer, 0.0)

    assert len(cache) == 5


def test_a_change_that_has_no_room_for_leases_says_so() -> None:
    rule = "{{to: [{{domainNames: [a.example.com]}}], ports: [{{protocol: TCP, port: {0}}}]}}"
    policy = "policies: {{p: {{egress: [{0}]}}}}\npods: {{10.244.0.5: {{policies: [p]}}}}\n"
    one, two = policy.format(rule.format(1)), policy.format(f"{rule.format(1)}, {rule.format(2)}")
    stage = Stage(one, "limits: {leasesPerPod: 1}")
    stage.script("a.example.com", "A", Answer(respond("a.example.com. 60 A 192.0.2.1")))
    stage.ask("web", "a.example.com")
    stage.promises.clear()

    stage.reload(two)

    assert stage.counters.limited["leasesPerPod"] == 1
    assert "lease_refused" in [kind.value for kind in stage.told.kinds()]
    assert stage.passes("web", "192.0.2.1", 1)
    stage.close()


def test_cuts_beyond_a_pods_share_are_made_and_not_remembered(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revoke, "CUTS_PER_POD", 2)
    stage.ask("web", "a.example.com")
    flows = [stage.connect("web", "192.0.2.1", 443) for _ in range(3)]

    stage.reload(NONE)
    remembered = sum(len(flows) for cuts in stage.engine.revocation.cuts.values() for flows in cuts.values())

    assert not any(stage.flowing(flow) for flow in flows)
    assert remembered == 2


def test_a_flow_that_is_let_on_again_is_no_longer_remembered(stage: Stage) -> None:
    stage.ask("web", "a.example.com")
    flow = stage.connect("web", "192.0.2.1", 443)
    stage.reload(NONE)
    stage.reload(ALL)

    stage.ask("web", "a.example.com")

    assert stage.flowing(flow)
    assert not any(stage.engine.revocation.cuts.values())


def test_when_many_leases_have_ended_those_without_a_flow_are_forgotten_before_the_minute(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revoke, "MOST_REMEMBERED", 1)
    records = "\n".join(f"many.example.com. 60 A 192.0.2.{number}" for number in range(1, 5))
    stage.script("many.example.com", "A", Answer(respond(records)))
    stage.ask("web", "many.example.com")
    flow = stage.connect("web", "192.0.2.1", 443)
    stage.pass_time(100)
    stage.engine.revocation._looked = stage.clock.now

    stage.finish(stage.engine.forget(stage.clock.now))

    assert stage.flowing(flow)
    assert sorted(lease.address[3] for lease in stage.engine.leases.pods[stage.pod("web").id].ended.values()) == [1, 4]


def test_a_minute_after_its_flow_has_ended_a_lease_is_forgotten(stage: Stage) -> None:
    stage.ask("web", "a.example.com")
    flow = stage.connect("web", "192.0.2.1", 443)
    stage.pass_time(1000)
    remember = stage.engine.revocation.remember
    pod = stage.pod("web")

    stage.finish(remember(stage.engine.pods, stage.clock.now))
    kept = stage.engine.leases.last_ended(pod.id, address("192.0.2.1"), stage.clock.now)
    stage.flows.flows.discard(flow)
    stage.finish(remember(stage.engine.pods, stage.clock.now))

    assert kept is not None
    assert stage.engine.leases.last_ended(pod.id, address("192.0.2.1"), stage.clock.now) is None


def test_why_an_address_is_closed_is_told_by_what_became_of_its_lease(stage: Stage) -> None:
    def why() -> str:
        return stage.engine.why_closed(stage.pod("web"), address("192.0.2.1"), stage.clock.now)

    before = why()
    stage.ask("web", "a.example.com")
    living = why()
    stage.pass_time(80)
    ended = why()
    stage.ask("web", "a.example.com")
    stage.reload(NONE)

    assert before == "never resolved"
    assert living == "its leases open other ports only"
    assert re.fullmatch(r"lease of a\.example\.com ended \d+ s ago", ended)
    assert why() == "lease of a.example.com was taken back, the policy no longer allows it"


def test_a_flow_of_a_pod_that_is_gone_is_nobodys(stage: Stage) -> None:
    stage.ask("web", "a.example.com")
    stage.connect("web", "192.0.2.1", 443)
    stage.went("web")

    stage.reload(NONE)

    assert stage.counters.flows_cut == 0
    assert all(isinstance(flow, Flow) for flow in stage.flows.flows)
    assert Action.DENY is stage.engine.pods.by_link[stage.links["db"]].policy.default


def test_a_kernel_that_refuses_the_same_lease_again_and_again_costs_no_memory(stage: Stage) -> None:
    stage.enforcer.refuse("set is full")

    for _ in range(100):
        stage.ask("web", "a.example.com")

    assert sum(len(turn) for turn in stage.engine.leases._turns.values()) == 1


def test_leases_are_told_of_while_somebody_asks_and_not_else(stage: Stage) -> None:
    stage.ask("web", "a.example.com")
    before = stage.told.of(EventKind.LEASE_OPENED)
    stage.told.all_leases = True
    stage.ask("db", "a.example.com")

    assert before == []
    (opened,) = stage.told.of(EventKind.LEASE_OPENED)
    assert (opened["pod"], list(opened["address"])) == (stage.pod("db").name, [address("192.0.2.1")])
