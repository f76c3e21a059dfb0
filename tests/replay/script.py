"""Plays scenarios: YAML that reads like a conversation between pods, dnsguard, upstreams, the kernel and time.

A file holds any number of documents, each one scenario: `scenario` says what is so, `row` (optional) which row of the
DNS behaviour it belongs to, `config` and `allowlist` are the files, `pods` the pod links with their addresses, and
`steps` is the conversation. Each step is a mapping of one key:

    upstream: {www.example.com A: ...}    from now on it answers so: lines of a zone file, or a mapping of zone,
                                          authority, rcode, flags, opt, after (seconds); `silence`; `fails REASON`; or
                                          a list of these, the last of which stays. `... A server 1` is for one only
    POD asks: www.example.com A           or a mapping: question, edns (null: none), do, cd, rd, tcp, id, source;
                                          again: LABEL is a retry of that query; as: LABEL names it
    POD asks many: {question: ..., times: 9}   many were: {NOERROR: 5, nothing: 4}
    POD sends: "0001..."                  any octets, in hexadecimal
    reply: {...}  reply to LABEL: {...}   of rcode, answer, authority, ttl, flags, ede, edns, size; all are compared
    no reply: [LABEL...]                  none so far (`~`: the last query)
    dropped: ~                            there never will be one
    TIME_PASSES: 1.5                      in seconds
    POD reaches: [192.0.2.1 443]          a new connection passes (`192.0.2.1 53 UDP`)
    POD cannot reach: [192.0.2.1 80]      it does not
    POD connects: {c1: 192.0.2.1 443}     opens a flow and calls it c1
    flowing: [c1]    cut: [c1]            whether its packets still pass
    kernel: hold | release | relent | {refuse: REASON, pods: [...], scopes: [...]} |
            {refuse changes: REASON} | {latency: 1.5}
    reload: |...     reload fails: {allowlist: |..., because: TEXT}    reload begins: |...    reload ends: ~
    reload failed: TEXT                   changed pods: 1
    pod came: {db: [10.244.0.6]}          pod went: db        pods changed: {...} all at once
    pod changes: {...}  pod leaves: db    the same, but the kernel is not waited for
    stranger: {new: 10.244.0.9}           this is what the link and address will be, when they are known
    forgotten: [10.244.0.6]               addresses whose flows connection tracking was made to forget
    flows refuse: REASON                  connection tracking does nothing any more; `~`: it does again
    owed: true          apply again: ~    what the kernel would not do
    remember: ~                           the minute's look at which flows are still open
    why closed: {web 192.0.2.1: TEXT}
    upstream was asked: [...]             since this was last looked at: `name TYPE [server N] [tcp]`
    events: [...]                         since this was last looked at, at least these, with these fields or texts
    counted: {answers_withheld.kernel: 1}
    leases: {web: [tcp_443 192.0.2.1 310]}  what the kernel holds: scope, address, seconds left
    under way: {exchanges: 1, fetches: 1, attempts: 2, held: 0}

After the last step everything gets its time, and nothing may be left; I1 and I2 are checked throughout (stage.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import yaml
from dnslib import DNSRecord

from dnsguard.core.errors import KernelError
from dnsguard.core.model import Name, Protocol
from dnsguard.core.names import to_text
from dnsguard.core.wire import type_text
from dnsguard.upstream.scripted import Answer, Failure, Silence, Step
from tests.replay.stage import RCODES, Asked, Reply, Stage, address, respond

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Scenario:
    """One document of a file."""

    file: str
    content: dict[str, Any]

    @property
    def title(self) -> str:
        return str(self.content["scenario"])


def scenarios() -> Iterator[Scenario]:
    for path in sorted(HERE.glob("*.yaml")):
        for content in yaml.safe_load_all(path.read_text()):
            if content is not None:
                yield Scenario(path.stem, content)


def play(scenario: Scenario) -> None:
    """Raises AssertionError, with the number of the step that was not as it should be."""
    content = dict(scenario.content)
    pods = {pod: _list(found) for pod, found in (content.pop("pods", None) or {"web": "10.244.0.5"}).items()}
    stage = Stage(content.pop("allowlist"), content.pop("config", ""), pods=pods)
    try:
        _Player(stage).play(content.pop("steps"))
        stage.check_nothing_left()
    finally:
        stage.close()
    assert set(content) <= {"scenario", "row"}, set(content)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


class _Player:
    """Plays the steps of one scenario on a stage."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.asked: dict[str, Asked] = {}
        self.sent: dict[str, tuple[str, dict[str, Any]]] = {}
        self.last: Asked | None = None
        self.flows: dict[str, Any] = {}
        self.looked_at = {"asked": 0, "events": 0}
        self.reload: Any = None
        self.outcome: Any = None
        self.many: list[Asked] = []

    def play(self, steps: list[dict[str, Any]]) -> None:
        for number, step in enumerate(steps, 1):
            ((key, value),) = step.items()
            try:
                self._step(key, value)
                self.stage.check()
            except AssertionError as error:
                raise AssertionError(f"step {number}, {key}: {value}\n{error}") from error

    def _step(self, key: str, value: Any) -> None:
        method = getattr(self, "do_" + key.replace(" ", "_").replace("TIME_PASSES", "time_passes"), None)
        if method is not None:
            method(value)
            return
        if key.startswith("reply to "):
            self._reply(self.asked[key.removeprefix("reply to ")], value)
            return
        pod, _, verb = key.partition(" ")
        getattr(self, "pod_" + verb.replace(" ", "_"))(pod, value)

    # ---- questions and replies

    def do_upstream(self, value: dict[str, Any]) -> None:
        for question, steps in value.items():
            name, qtype, *rest = question.split()
            server = int(rest[1]) if rest else None
            self.stage.script(name, qtype, *map(_upstream_step, _list(steps)), server=server)

    def pod_asks(self, pod: str, value: Any) -> None:
        options = dict(value) if isinstance(value, dict) else {"question": value}
        label = options.pop("as", None)
        again = options.pop("again", None)
        if again is not None:
            before = self.asked[again]
            question, first = self.sent[again]
            options = {**first, **options, "socket": before.socket, "ident": int.from_bytes(before.ident)}
        else:
            question = options.pop("question")
            options["stream"] = options.pop("tcp", False)
            if "id" in options:
                options["ident"] = options.pop("id")
        name, _, qtype = question.partition(" ")
        self.last = self.stage.ask(pod, name, qtype or "A", **options)
        if label is not None:
            self.asked[label] = self.last
            self.sent[label] = (question, {k: v for k, v in options.items() if k not in ("socket", "ident")})

    def pod_sends(self, pod: str, value: str) -> None:
        self.last = self.stage.send(pod, bytes.fromhex(str(value)))

    def pod_asks_many(self, pod: str, value: dict[str, Any]) -> None:
        name, _, qtype = value["question"].partition(" ")
        self.many = [self.stage.ask(pod, name, qtype) for _ in range(value["times"])]

    def do_many_were(self, value: dict[str, int]) -> None:
        found = Counter("nothing" if asked.open else asked.reply.rcode for asked in self.many)
        assert found == value, f"they were {dict(found)}"

    def do_reply(self, value: Any) -> None:
        assert self.last is not None
        self._reply(self.last, value)

    def _reply(self, asked: Asked, expected: Any) -> None:
        assert asked.packets, "no reply"
        reply = asked.reply
        for key, value in ({"rcode": expected} if isinstance(expected, str) else expected).items():
            getattr(self, "reply_" + key)(reply, value)

    def reply_rcode(self, reply: Reply, value: str) -> None:
        assert reply.rcode == value, f"rcode {reply.rcode} {reply.ede}"

    def reply_answer(self, reply: Reply, value: Any) -> None:
        assert reply.answer == _list(value), f"answer {reply.answer}"

    def reply_authority(self, reply: Reply, value: Any) -> None:
        found = [" ".join(one.split()[:2]) if one.split()[1] == "SOA" else one for one in reply.authority]
        assert found == _list(value), f"authority {reply.authority}"

    def reply_ttl(self, reply: Reply, value: int) -> None:
        assert reply.ttls == {value}, f"TTLs {reply.ttls}"

    def reply_flags(self, reply: Reply, value: str) -> None:
        assert reply.flags == set(value.split()), f"flags {reply.flags}"

    def reply_edns(self, reply: Reply, value: bool) -> None:
        assert reply.edns is value

    def reply_ede(self, reply: Reply, value: Any) -> None:
        if value is None:
            assert reply.ede is None, f"EDE {reply.ede}"
            return
        assert reply.ede is not None, "no EDE"
        code, _, text = str(value).partition(" ")
        assert reply.ede[0] == int(code), f"EDE {reply.ede}"
        assert text in reply.ede[1], f"EDE {reply.ede}"

    def reply_size(self, reply: Reply, value: int) -> None:
        assert len(reply.packet) <= value

    def do_no_reply(self, value: Any) -> None:
        for asked in [self.asked[label] for label in _list(value)] or [self.last]:
            assert asked is not None
            assert asked.open, f"a reply: {asked.reply.record}"

    def do_dropped(self, value: Any) -> None:
        self.stage.pass_time(6)
        self.do_no_reply(value)

    # ---- packets

    def pod_reaches(self, pod: str, value: Any) -> None:
        for one in _list(value):
            assert self.stage.passes(pod, *_peer(one)), f"{one} is closed"

    def pod_cannot_reach(self, pod: str, value: Any) -> None:
        for one in _list(value):
            assert not self.stage.passes(pod, *_peer(one)), f"{one} is open"

    def pod_connects(self, pod: str, value: dict[str, str]) -> None:
        for label, one in value.items():
            self.flows[label] = self.stage.connect(pod, *_peer(one))

    def do_flowing(self, value: Any) -> None:
        for label in _list(value):
            assert self.stage.flowing(self.flows[label]), f"{label} is cut"
            assert self.flows[label] in self.stage.flows.flows or self.flows[label] in self.stage.flows.deleted

    def do_cut(self, value: Any) -> None:
        for label in _list(value):
            assert not self.stage.flowing(self.flows[label]), f"{label} flows"
            assert self.flows[label] in self.stage.flows.deleted

    def do_leases(self, value: dict[str, Any]) -> None:
        for pod, expected in value.items():
            own = self.stage.addresses[pod]
            found = sorted(
                f"{held.scope} {ip_address(held.key[len(held.key) // 2 :])} {round(held.remaining_ms / 1000)}"
                for held in self.stage.enforcer.held()
                if held.key[: len(held.key) // 2] in own
            )
            assert found == sorted(_list(expected)), f"leases {found}"

    # ---- the surroundings

    def do_time_passes(self, value: float) -> None:
        self.stage.pass_time(float(value))

    def do_kernel(self, value: Any) -> None:
        enforcer = self.stage.enforcer
        if value == "hold" or "latency" in value:
            self.stage.slack = 2.0
        if isinstance(value, str):
            {"hold": enforcer.hold, "release": enforcer.release, "relent": enforcer.relent}[value]()
            self.stage.spin_if_busy()
        elif "refuse" in value:
            pods = [a for pod in value.get("pods", ()) for a in self.stage.addresses[pod]]
            enforcer.refuse(value["refuse"], pods=pods, scopes=value.get("scopes", ()))
        elif "refuse changes" in value:
            enforcer.refuse_changes(value["refuse changes"])
        else:
            enforcer.latency = float(value["latency"])

    def do_reload(self, value: str) -> None:
        self.outcome = self.stage.reload(value)

    def do_changed_pods(self, value: int) -> None:
        assert self.outcome.pods == value, self.outcome

    def do_reload_fails(self, value: dict[str, str]) -> None:
        try:
            self.stage.reload(value["allowlist"])
        except KernelError as error:
            assert value["because"] in str(error)
        else:
            raise AssertionError("it did not fail")

    def do_reload_begins(self, value: str) -> None:
        from tests.replay.stage import allowlist

        self.reload = self.stage.start(self.stage.engine.changes.policy(allowlist(value)))
        assert not self.reload.done()

    def do_reload_ends(self, value: None) -> None:
        self.stage.spin()
        assert self.reload.done()
        self.reload.result()

    def do_pod_came(self, value: dict[str, Any]) -> None:
        for pod, texts in value.items():
            self.stage.came(pod, *_list(texts))

    def do_reload_failed(self, value: str) -> None:
        self.stage.spin()
        error = self.reload.exception()
        assert isinstance(error, KernelError)
        assert value in str(error)

    def do_stranger(self, value: dict[str, Any]) -> None:
        for pod, texts in value.items():
            self.stage.seen(pod, *_list(texts))

    def do_pods_changed(self, value: dict[str, Any]) -> None:
        seen = {
            link: state for pod, texts in value.items() for link, state in self.stage.seen(pod, *_list(texts)).items()
        }
        self.stage.finish(self.stage.engine.changes.links(seen))

    def do_pod_changes(self, value: dict[str, Any]) -> None:
        for pod, texts in value.items():
            self.stage.start(self.stage.engine.changes.links(self.stage.seen(pod, *_list(texts))))

    def do_pod_went(self, value: str) -> None:
        self.stage.went(value)

    def do_pod_leaves(self, value: str) -> None:
        self.stage.forget_promises(value)
        self.stage.start(self.stage.engine.changes.links({self.stage.links[value]: None}))

    def do_forgotten(self, value: Any) -> None:
        assert self.stage.flows.forgotten == [address(text) for text in _list(value)]

    def do_flows_refuse(self, value: str | None) -> None:
        self.stage.flows.refuse(value)

    def do_owed(self, value: bool) -> None:
        assert self.stage.engine.changes.unapplied is value

    def do_apply_again(self, value: None) -> None:
        self.stage.finish(self.stage.engine.changes.apply_again())

    def do_remember(self, value: None) -> None:
        self.stage.finish(self.stage.engine.revocation.remember(self.stage.engine.pods, self.stage.clock.now))

    def do_why_closed(self, value: dict[str, str]) -> None:
        for one, expected in value.items():
            pod, text = one.split()
            found = self.stage.engine.why_closed(self.stage.pod(pod), address(text), self.stage.clock.now)
            assert found == expected, found

    # ---- what was told

    def do_upstream_was_asked(self, value: Any) -> None:
        asked = self.stage.upstream.asked[self.looked_at["asked"] :]
        self.looked_at["asked"] += len(asked)
        several = len(self.stage.config.upstreams) > 1
        found = [
            f"{to_text(a.name)} {type_text(a.qtype)}"
            + (f" server {a.server}" if several else "")
            + (" tcp" if a.stream else "")
            for a in asked
        ]
        assert found == _list(value), f"asked {found}"

    def do_upstream_was_asked_with_EDNS(self, value: list[bool]) -> None:  # noqa: N802
        found = [DNSRecord.parse(b"id" + query).header.ar == 1 for query in self.stage.wire.sent]
        assert found == value, f"EDNS {found}"

    def do_events(self, value: list[Any]) -> None:
        events = self.stage.told.events[self.looked_at["events"] :]
        self.looked_at["events"] = len(self.stage.told.events)
        for one in value:
            kind, fields = (one, {}) if isinstance(one, str) else next(iter(one.items()))
            found = [f for k, f in events if k.value == kind]
            assert found, f"no event {kind} in {[k.value for k, _ in events]}"
            assert any(_carries(f, fields) for f in found), f"{kind}: {found}"

    def do_counted(self, value: dict[str, int]) -> None:
        for path, expected in value.items():
            field, _, key = path.partition(".")
            found: Any = getattr(self.stage.counters, field)
            if key:
                found = found[int(key) if key.isdigit() else key]
            assert found == expected, f"{path} is {found}"

    def do_under_way(self, value: dict[str, int]) -> None:
        engine = self.stage.engine
        found = {
            "exchanges": len(engine.exchanges),
            "fetches": len(engine.fetches),
            "attempts": self.stage.upstream.outstanding,
            "held": engine.exchanges.gate.holding,
        }
        assert {key: found[key] for key in value} == value, f"under way {found}"


def _upstream_step(step: Any) -> Step:
    if step == "silence":
        return Silence()
    if isinstance(step, str) and step.startswith("fails "):
        return Failure(step.removeprefix("fails "))
    if not isinstance(step, dict):
        return Answer(respond(step or ""))
    step = dict(step)
    after = float(step.pop("after", 0))
    if "fails" in step:
        return Failure(step["fails"], after)
    if "octets" in step:
        octets = bytes.fromhex(step["octets"])
        return Answer(lambda query: query[:2] + octets, after)
    rcode = step.pop("rcode", "NOERROR")
    step["rcode"] = next((code for code, text in RCODES.items() if text == rcode), rcode)
    step["flags"] = step.get("flags", "").split()
    return Answer(respond(step.pop("zone", ""), **step), after)


def _peer(text: str) -> tuple[str, int, Protocol]:
    to, port, *protocol = text.split()
    return to, int(port), Protocol[protocol[0]] if protocol else Protocol.TCP


def _carries(fields: dict[str, object], expected: Any) -> bool:
    if isinstance(expected, str):
        return any(expected in str(value) for value in fields.values())
    return all(str(value) in _plain(key, fields.get(key)) for key, value in expected.items())


def _plain(key: str, value: object) -> str:
    if isinstance(value, list):
        return ", ".join(_plain(key, one) for one in value)
    if isinstance(value, bytes):
        return to_text(Name(value)) if key == "name" else str(ip_address(value))
    return str(value)


__all__ = ["Scenario", "address", "play", "scenarios"]
