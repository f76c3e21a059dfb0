"""Queries, answers, acknowledgements, refusals, ticks, policies and pods in any order: I1, I2, and one reply each.

The stage checks I1 at every reply and, with I2, at every tick; here is what may happen, and what must be true after.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dnsguard.core.errors import KernelError
from dnsguard.core.pods import Pod
from dnsguard.upstream.scripted import Answer, Failure, Silence
from tests.replay.stage import Asked, Stage, allowlist, respond

PODS = {"web": ["10.244.0.5"], "db": ["10.244.0.6", "fd00:10::6"]}
MORE = {"web": ["10.244.0.5", "10.244.0.7"], "db": ["10.244.0.6"]}
NAMES = ["a.example.com", "b.example.com", "c.example.com"]
ADDRESSES = ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
POLICY = """
policies:
  p:
    egress:
      - {{to: [{{domainNames: [{one}]}}], ports: [{{protocol: TCP, port: 443}}]}}
      - {{to: [{{domainNames: [{two}]}}], ports: [{{protocol: TCP, port: 80}}, {{protocol: UDP, port: 53}}]}}
pods: {{10.244.0.5: {{policies: [p]}}, 10.244.0.6: [{three}], 10.244.0.7: {{policies: [p]}}}}
"""
POLICIES = [
    POLICY.format(one='"*.example.com"', two="a.example.com", three='"*.example.com"'),
    POLICY.format(one="a.example.com", two="b.example.com", three="c.example.com"),
    POLICY.format(one="b.example.com, c.example.com", two='"*.example.com"', three="a.example.com, b.example.com"),
    POLICY.format(one="never.example.com", two="never.example.com", three="never.example.com"),
]

pods = st.sampled_from(sorted(PODS))
names = st.sampled_from(NAMES)
answers = st.tuples(
    st.lists(st.sampled_from(ADDRESSES), unique=True, min_size=1),
    st.sampled_from([0, 1, 5, 60, 300]),
    st.sampled_from([0.0, 0.1, 0.7, 1.5]),
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), pods, names),
        st.tuples(st.just("ask"), pods, names),
        st.tuples(st.just("ask"), pods, names),
        st.tuples(st.just("upstream"), names, st.one_of(answers, st.sampled_from(["silence", "refused", "servfail"]))),
        st.tuples(st.just("time"), st.sampled_from([0.05, 0.3, 0.9, 2.0, 7.0, 41.0])),
        st.tuples(
            st.just("kernel"), st.sampled_from(["hold", "release", "relent", "refuse", "refuse changes", "late"])
        ),
        st.tuples(st.just("refuse"), pods),
        st.tuples(st.just("reload"), st.sampled_from(range(len(POLICIES)))),
        st.tuples(st.just("abandon")),
        st.tuples(st.just("went"), pods),
        st.tuples(st.just("came"), pods, st.booleans()),
    ),
    max_size=40,
)


class Play:
    """One run. `alive` are the queries of pods that were known; those of pods that went since need no reply."""

    def __init__(self, *, kernel: bool) -> None:
        limits = "limits: {queriesPerSecond: 100000, burst: 100000}"
        self.stage = Stage(POLICIES[0], limits, pods=PODS, kernel=kernel)
        self.stage.slack = 1.0
        self.alive: list[tuple[Pod, Asked]] = []
        self.here = set(PODS)
        self.held = False
        for number, name in enumerate(NAMES):
            self.upstream(name, ([ADDRESSES[number]], 60, 0.1))

    def step(self, kind: str, *arguments: Any) -> None:
        getattr(self, kind)(*arguments)
        self.stage.spin_if_busy()
        self.stage.look()
        self.stage.check()

    def ask(self, pod: str, name: str) -> None:
        if pod not in self.here:
            return
        known = self.stage.engine.pods.by_link.get(self.stage.links[pod])
        asked = self.stage.ask(pod, name)
        if known is not None:  # else its coming is not done: it waits a second at most, and is dropped
            self.alive.append((known, asked))

    def upstream(self, name: str, answer: Any) -> None:
        words = {"silence": Silence(), "refused": Failure("refused"), "servfail": Answer(respond(rcode=2))}
        if isinstance(answer, str):
            self.stage.script(name, "A", words[answer])
        else:
            found, ttl, delay = answer
            zone = "\n".join(f"{name}. {ttl} A {one}" for one in found)
            self.stage.script(name, "A", Answer(respond(zone), delay))

    def time(self, seconds: float) -> None:
        if self.held:
            # What is written so late also ends so late.
            seconds = min(seconds, 2.0)
            self.stage.slack += seconds
        self.stage.pass_time(seconds)

    def kernel(self, what: str) -> None:
        enforcer = self.stage.enforcer
        self.held = what == "hold" or (self.held and what != "release")
        match what:
            case "refuse":
                enforcer.refuse("set is full")
            case "refuse changes":
                enforcer.refuse_changes("no memory")
            case "late":
                enforcer.latency = 0.4
            case _:
                {"hold": enforcer.hold, "release": enforcer.release, "relent": enforcer.relent}[what]()

    def refuse(self, pod: str) -> None:
        self.stage.enforcer.refuse("set is full", pods=self.stage.addresses[pod])

    def reload(self, number: int) -> None:
        self.stage.start(self.stage.engine.changes.policy(allowlist(POLICIES[number])))

    def abandon(self) -> None:
        """Whoever waits for a reload gives up."""
        for task in self.stage.tasks:
            if not task.done():
                task.cancel()
                break

    def went(self, pod: str) -> None:
        self.here.discard(pod)
        self.stage.forget_promises(pod)
        self.stage.start(self.stage.engine.changes.links({self.stage.links[pod]: None}))

    def came(self, pod: str, more: bool) -> None:
        # Promises to an address that the pod has lost are void.
        self.stage.forget_promises(pod)
        self.here.add(pod)
        self.stage.start(self.stage.engine.changes.links(self.stage.seen(pod, *(MORE if more else PODS)[pod])))

    def end(self) -> None:
        """Everything is well again; every query has had one reply, and nothing is left."""
        self.stage.enforcer.latency = 0
        self.stage.enforcer.relent()
        self.stage.enforcer.release()
        self.stage.pass_time(1)
        self.stage.spin()
        for task in self.stage.tasks:
            if not task.cancelled() and task.exception() is not None:
                assert isinstance(task.exception(), KernelError)
        self.stage.finish(self.stage.engine.changes.apply_again())
        self.stage.pass_time(6)
        self.stage.check()
        for pod, asked in self.alive:
            if pod.id in self.stage.engine.pods.by_id:
                assert len(asked.packets) == 1, f"{pod.name} {asked.name} at {asked.at}: {len(asked.packets)} replies"
        self.stage.check_nothing_left()


@pytest.mark.parametrize("kernel", [False, True], ids=["", "kernel"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(asked=steps)
def test_whatever_happens_in_whatever_order_nothing_is_told_early_left_open_or_unanswered(
    kernel: bool, asked: list[Any]
) -> None:
    play = Play(kernel=kernel)
    try:
        for step in asked:
            play.step(*(step if isinstance(step, tuple) else (step,)))
        play.end()
    finally:
        play.stage.close()
