"""What the kernel did by itself: packets dropped in either line, and questions answered, told and counted once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnsguard.core.model import LinkIndex
from dnsguard.daemon.drops import AnsweredInKernel, Drops, Growth
from dnsguard.enforce.bpf.events import REASONS
from dnsguard.enforce.denials import Answered, Denial, Dropped
from dnsguard.engine.contracts import EventKind
from dnsguard.engine.counters import ANY_FAMILY, OTHER, UNSEEN_RCODE
from dnsguard.observe.metrics import Gauges, Metrics
from dnsguard.upstream.scripted import Answer
from tests.replay.stage import Stage, address, respond

LISTED = """
policies:
  web:
    egress:
      - to: [{domainNames: [a.example.com]}]
  closed:
    egress:
      - to: [{ipBlock: {cidr: 192.0.2.0/24}}]
pods:
  10.244.0.5: {name: web, policies: [web, closed]}
  10.244.0.6: {name: db, policies: [closed]}
"""
POD, PEER = address("10.244.0.5"), address("192.0.2.1")


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage(LISTED, pods={"web": ["10.244.0.5"], "db": ["10.244.0.6"]})
    made.script("a.example.com", "A", Answer(respond("a.example.com. 60 A 192.0.2.1")))
    yield made
    made.close()


@pytest.fixture
def drops(stage: Stage) -> Drops:
    return Drops(stage.engine, stage.told, stage.clock)


def told(stage: Stage) -> dict[str, object]:
    return stage.told.of(EventKind.FLOW_DENIED)[-1]


def denial(stage: Stage, reason: str = "default", *, rule: int | None = None, packets: int = 1) -> Denial:
    return Denial(stage.links["web"], POD, PEER, 6, 443, reason, rule, packets)


# ---- events


def test_one_event_says_for_how_many_packets_it_stands(stage: Stage, drops: Drops) -> None:
    drops.tell(denial(stage, packets=12))
    assert told(stage) == {
        "pod": "web",
        "pod_ip": POD,
        "address": PEER,
        "port": 443,
        "protocol": "tcp",
        "verdict": "denied",
        "reason": "never resolved",
        "rule": None,
        "policy": "web+closed",
        "count": 12,
    }


def test_a_denial_by_default_names_the_lease_that_ended(stage: Stage, drops: Drops) -> None:
    stage.ask("web", "a.example.com")
    stage.pass_time(80)
    drops.tell(denial(stage))
    assert str(told(stage)["reason"]).startswith("lease of a.example.com ended ")


def test_a_denial_by_a_rule_names_the_policies_behind_it(stage: Stage, drops: Drops) -> None:
    drops.tell(denial(stage, "rule", rule=0))
    assert (told(stage)["rule"], told(stage)["policy"]) == (0, stage.pod("web").program.rules[0].label)
    drops.tell(denial(stage, "rule", rule=63))
    assert told(stage)["policy"] == "web+closed"


@pytest.mark.parametrize("reason", sorted(set(REASONS.values()) - {"default", "multicast"}))
def test_every_other_reason_of_either_line_is_said_in_words(reason: str, stage: Stage, drops: Drops) -> None:
    drops.tell(denial(stage, reason))
    assert " " in str(told(stage)["reason"])


def test_a_packet_without_addresses_of_a_link_that_is_no_pods_is_told_too(stage: Stage, drops: Drops) -> None:
    drops.tell(Denial(LinkIndex(99), None, None, 0, 0, "default"))
    assert (told(stage)["pod"], told(stage)["pod_ip"], told(stage)["reason"]) == (None, None, "default")


# ---- counters of drops


def test_the_counts_of_both_lines_add_up(stage: Stage, drops: Drops) -> None:
    drops.count([Dropped("default", None, POD, None, 3)])
    drops.count([Dropped("default", None, None, stage.links["web"], 4)], "ebpf")
    assert stage.counters.egress_denied["default"] == 7
    assert drops.by_pod == {"web": 7}


def test_a_counter_of_one_line_is_not_taken_for_that_of_the_other(stage: Stage, drops: Drops) -> None:
    same = Dropped("source", None, None, stage.links["web"], 5)
    for enforcer in ("nftables", "ebpf", "nftables", "ebpf"):
        drops.count([same], enforcer)
    assert stage.counters.egress_denied["source"] == 10


def test_a_counter_that_went_away_and_came_back_at_0_adds_nothing(stage: Stage, drops: Drops) -> None:
    one = Dropped("default", None, POD, None, 100)
    for found in ([one], [], [one._replace(packets=0)], [one._replace(packets=2)]):
        drops.count(found)
    assert stage.counters.egress_denied["default"] == 102


def test_a_counter_that_is_listed_twice_counts_once(stage: Stage, drops: Drops) -> None:
    one = Dropped("default", None, None, stage.links["web"], 6)
    drops.count([one, one])
    assert (stage.counters.egress_denied["default"], drops.by_pod) == (6, {"web": 6})


def test_what_an_earlier_process_has_counted_is_not_of_this_one(stage: Stage, drops: Drops) -> None:
    one = Dropped("default", None, None, stage.links["web"], 100)
    drops.adopt([one], "ebpf")
    drops.count([one._replace(packets=101)], "ebpf")
    assert (stage.counters.egress_denied["default"], drops.by_pod) == (1, {"web": 1})


def test_what_every_pod_sends_unasked_is_in_no_pods_row(stage: Stage, drops: Drops) -> None:
    drops.count([Dropped("multicast", None, None, stage.links["web"], 9)], "ebpf")
    assert (stage.counters.egress_denied["multicast"], drops.by_pod) == (9, {})


def test_a_pod_that_went_is_counted_no_longer(stage: Stage, drops: Drops) -> None:
    drops.count([Dropped("default", None, POD, None, 3)])
    stage.went("web")
    drops.count([])
    assert drops.by_pod == {}


@given(st.lists(st.one_of(st.none(), st.integers(0, 5)), max_size=20))
def test_a_total_is_what_was_added_however_often_the_counter_went(steps: list[int | None]) -> None:
    growth, counter, total, added = Growth(), 0, 0, 0
    for step in steps:
        if step is None:
            counter = 0
            assert growth.of({}) == {}
            continue
        counter, added = counter + step, added + step
        total += growth.of({"x": counter})["x"]
    assert total == added


# ---- answers of the kernel


def test_an_answer_of_the_kernel_is_a_question_a_verdict_a_hit_and_a_reply(stage: Stage) -> None:
    answers, counters = AnsweredInKernel(stage.engine), stage.counters
    answers.count([Answered(stage.links["web"], 5, 2, 30), Answered(LinkIndex(99), 1, 0, 0)])
    assert counters.requests == {(ANY_FAMILY, "udp", OTHER): 8}
    assert (counters.responses[UNSEEN_RCODE], counters.cache_hits["kernel"]) == (8, 8)
    assert (counters.verdicts["allowed"], counters.verdicts["denied"]) == (6, 2)
    assert answers.by_pod == {"web": 7}


def test_the_labels_that_the_kernel_does_not_count_are_other(stage: Stage) -> None:
    AnsweredInKernel(stage.engine).count([Answered(stage.links["web"], 5, 0, 0)])
    samples = {
        sample.name: sample.labels
        for family in Metrics(stage.counters, [], Gauges()).collect()
        for sample in family.samples
    }
    assert samples["dnsguard_dns_requests_total"] == {"family": "other", "proto": "udp", "type": "other"}
    assert samples["dnsguard_dns_responses_total"] == {"rcode": "other"}


def test_what_the_kernel_answered_for_an_earlier_process_is_not_counted_again(stage: Stage) -> None:
    answers, one = AnsweredInKernel(stage.engine), Answered(stage.links["web"], 5, 2, 30)
    answers.adopt([one])
    answers.count([one])
    assert (dict(stage.counters.requests), answers.by_pod) == ({}, {})
    answers.count([one._replace(answered=6)])
    assert answers.by_pod == {"web": 1}


def test_nothing_answered_leaves_no_label_behind(stage: Stage) -> None:
    AnsweredInKernel(stage.engine).count([Answered(stage.links["web"], 0, 0, 4)])
    assert dict(stage.counters.requests) == {} and dict(stage.counters.cache_hits) == {}


# ---- in Audit


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("default", EventKind.FLOW_AUDITED),
        ("rule", EventKind.FLOW_AUDITED),
        ("cut", EventKind.FLOW_AUDITED),
        ("listener", EventKind.FLOW_AUDITED),
        ("unknown", EventKind.FLOW_AUDITED),
        ("source", EventKind.FLOW_DENIED),
        ("malformed", EventKind.FLOW_DENIED),
    ],
)
def test_in_audit_what_has_passed_is_told_and_counted_apart(
    stage: Stage, drops: Drops, reason: str, kind: EventKind
) -> None:
    stage.engine.exchanges.set_audit(True)

    drops.tell(denial(stage, reason))
    drops.count([Dropped(reason, None, POD, None, 3)])

    counters, passed = stage.engine.counters, kind is EventKind.FLOW_AUDITED
    assert [one for one, _ in stage.told.events if one.value.startswith("flow_")] == [kind]
    assert stage.told.of(kind)[0]["verdict"] == ("audited" if passed else "denied")
    assert (dict(counters.egress_audited), dict(drops.audited)) == (({reason: 3}, {"web": 3}) if passed else ({}, {}))
    assert (dict(counters.egress_denied), drops.by_pod) == (({}, {}) if passed else ({reason: 3}, {"web": 3}))


def test_whoever_learns_hears_of_every_report(stage: Stage) -> None:
    heard: list[Denial] = []

    Drops(stage.engine, stage.told, stage.clock, heard.append).tell(denial(stage))

    assert heard == [denial(stage)]
