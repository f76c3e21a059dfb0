"""What the demo's story is made of: acts, each with what is expected of it, and steps of one or more acts.

An act does one thing on the stage and says in words what happened; a regular expression tells whether that was
expected. Nothing here prints.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from dnsguard.demo.stage import LEASE, PODS, SITES, Stage, Timed
from dnsguard.demo.world import ECHO_PORT

PATIENCE: Final = 10
"""Seconds for what should come, however busy the machine."""
SILENCE: Final = 2
"""Seconds after which nothing will come any more: a second SYN has been dropped, too."""
WORDS: Final = "are you still there?"


@dataclass(frozen=True, slots=True)
class Act:
    """`does` as a person would type or say it; `expects` in words; `pattern` is found in what `play` returns."""

    does: str
    expects: str
    pattern: str
    play: Callable[[Stage], str]

    def is_as_expected(self, happened: str) -> bool:
        return re.search(self.pattern, happened) is not None


@dataclass(frozen=True, slots=True)
class Step:
    title: str
    acts: tuple[Act, ...]


def step(title: str, *acts: Act) -> Step:
    return Step(title, acts)


# -- a pod, or the node, asks for a page -------------------------------------------------------------------------------


def gets_page(who: str, url: str) -> Act:
    """`who` is a pod, or `node`."""
    address, port = _place(url)
    page = f"hello from {address} port {port}"
    return Act(
        f"{who}$ {' '.join(_curl(url))}", f"the page: {page}", rf"^{page}$", lambda stage: _told(stage, who, _curl(url))
    )


def cannot_resolve(pod: str, url: str) -> Act:
    return Act(
        f"{pod}$ {' '.join(_curl(url))}",
        "the name does not resolve",
        r"^curl: \(6\)",
        lambda s: _told(s, pod, _curl(url)),
    )


def is_dropped(pod: str, url: str, because: str) -> Act:
    """`because` is a pattern for the reason in dnsguard's log."""
    argv = _curl(url, SILENCE)
    expects = "no connection: every packet is dropped, and the log says why"
    return Act(f"{pod}$ {' '.join(argv)}", expects, _dropped(because), lambda s: _told_and_why(s, pod, url, argv))


def cannot_borrow(pod: str, address_of: str, url: str) -> Act:
    """The pod sends with another's address, towards what the other may reach."""
    address = PODS[address_of]
    argv = _curl(url, SILENCE, "--interface", address)

    def play(stage: Stage) -> str:
        with stage.borrowed(pod, address):
            return _told_and_why(stage, pod, url, argv)

    return Act(
        f"{pod}$ ip addr add {address}/32 dev eth0; {' '.join(argv)}",
        f"no connection: {address} is {address_of}'s, {pod} cannot send with it, and the log says so",
        _dropped(r"its source address is .* that link$"),
        play,
    )


def _dropped(because: str) -> str:
    return rf"^curl: \(28\) (?!Resolving)(?s:.)*\ndnsguard: {because}"


def _told_and_why(stage: Stage, pod: str, url: str, argv: Sequence[str]) -> str:
    stage.mark_log()
    told = _told(stage, pod, argv)
    return f"{told}\ndnsguard: {stage.reason_of_drop(*_place(url))}" if told.startswith("curl:") else told


def _told(stage: Stage, who: str, argv: Sequence[str]) -> str:
    return (stage.run_on_node(*argv) if who == "node" else stage.run_in_pod(who, *argv)).told


def _curl(url: str, seconds: int = PATIENCE, *options: str) -> tuple[str, ...]:
    return "curl", "-sS", "-m", str(seconds), *options, url


def _place(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    host = parts.hostname or ""
    return SITES.get(host, host), parts.port or 80


# -- DNS ---------------------------------------------------------------------------------------------------------------


def is_told_why(pod: str, name: str) -> Act:
    """A query of its own: curl does not show the reason."""
    return Act(
        f"{pod} asks its resolver for {name}, with EDNS",
        "NXDOMAIN, with the pod's policy and the reason",
        rf"^NXDOMAIN, EDE 15: .*policy {pod}\b.*no rule allows this name",
        lambda stage: stage.ask(pod, name),
    )


def never_left_the_node(name: str) -> Act:
    return Act(
        f"the DNS server outside counts its queries for {name}",
        "0: a denied name never leaves the node",
        r"^0$",
        lambda stage: str(stage.zone.asked(name)),
    )


# -- who answers, and how fast -----------------------------------------------------------------------------------------

OUTSIDE: Final = "the DNS server outside"
CACHE: Final = "dnsguard's cache"
KERNEL: Final = "the kernel"


def is_answered(pod: str, name: str, by: str, *, again: str = "", times: int = 1) -> Act:
    """`by` is OUTSIDE, CACHE or KERNEL; `again` is said behind the name. How fast it was is shown, and not judged."""

    def play(stage: Stage) -> str:
        asked, answered = stage.zone.asked(name), stage.answered_in_kernel(pod)
        timed = stage.time_questions(pod, name, times, PATIENCE)
        asked, answered = stage.zone.asked(name) - asked, stage.answered_in_kernel(pod) - answered
        counts = f"counted meanwhile: {asked} questions at {OUTSIDE}, {answered} answers in {KERNEL}"
        return f"{_typical(timed)}, from {_who(asked, answered, times)}\n{counts}"

    address = re.escape(SITES["files.example.net"])
    pattern = rf"^{address} after \d+ microseconds\b.*, from {by}\n"
    return Act(f"{pod} asks its resolver for {name}{again}", f"its address, from {by}", pattern, play)


def _typical(timed: Sequence[Timed]) -> str:
    told = " or ".join(sorted({one.told for one in timed}))
    median = f" (median of {len(timed)})" if len(timed) > 1 else ""
    return f"{told} after {statistics.median(one.seconds for one in timed) * 1e6:.0f} microseconds{median}"


def _who(asked: int, answered: int, times: int) -> str:
    """By what was counted meanwhile: outside, and in the kernel. What is in neither count was dnsguard's own."""
    if answered:
        return KERNEL if answered == times else f"{KERNEL} {answered} times"
    return OUTSIDE if asked else CACHE


def stands_still() -> Act:
    """Until `goes_on`."""
    return Act(
        "node$ kill -STOP dnsguard    (as if it hung)",
        "it stands still",
        r"^it stands still$",
        lambda stage: "it stands still" if stage.pause_dnsguard() else "it still runs",
    )


def goes_on(pod: str, name: str) -> Act:
    def play(stage: Stage) -> str:
        stage.continue_dnsguard()
        return stage.time_questions(pod, name, 1, PATIENCE)[0].told

    does = f"node$ kill -CONT dnsguard    (and {pod} asks for {name} again)"
    return Act(does, "its address", rf"^{re.escape(SITES['files.example.net'])}$", play)


def nobody_answers(pod: str, name: str) -> Act:
    def play(stage: Stage) -> str:
        (timed,) = stage.time_questions(pod, name, 1, SILENCE)
        return f"{timed.told}; the DNS server outside was asked {stage.zone.asked(name)} times"

    return Act(
        f"{pod} asks its resolver for {name}, for the first time",
        f"no reply within {SILENCE} s, and nothing leaves the node: a new answer needs dnsguard",
        r"^no reply; .* asked 0 times$",
        play,
    )


# -- a connection that stays -------------------------------------------------------------------------------------------


def opens_conversation(pod: str, name: str) -> Act:
    argv = ("curl", "-sSN", f"telnet://{name}:{ECHO_PORT}")

    def play(stage: Stage) -> str:
        stage.conversation = stage.converse(pod, *argv)
        return stage.conversation.say("hello", PATIENCE)

    return Act(f"{pod}$ {' '.join(argv)}    (and types: hello)", "an echo", r"^echo: hello$", play)


def still_talks(pod: str) -> Act:
    return Act(
        f"{pod} types into the old connection: {WORDS}", "an echo", rf"^echo: {re.escape(WORDS)}$", _says(PATIENCE)
    )


def talks_no_more(pod: str) -> Act:
    return Act(f"{pod} types into the old connection: {WORDS}", "silence: it was cut", r"^no echo", _says(SILENCE))


def _says(seconds: int) -> Callable[[Stage], str]:
    def play(stage: Stage) -> str:
        assert stage.conversation is not None
        return stage.conversation.say(WORDS, seconds)

    return play


# -- dnsguard ----------------------------------------------------------------------------------------------------------


def leases_end(pod: str) -> Act:
    """Wait for it."""

    def play(stage: Stage) -> str:
        begin = time.monotonic()
        ended = stage.interrupts.until(lambda: not stage.has_leases(pod), LEASE + 5)
        return f"{'ended' if ended else 'not ended'} after {time.monotonic() - begin:.1f} s"

    expects = f"none after about {LEASE:g} s: the TTL and a second of grace"
    return Act(
        f"wait until neither `dnsguard leases` nor `nft list table inet dnsguard` shows one of {pod}",
        expects,
        r"^ended",
        play,
    )


def reloads(allowlist: str, edit: str) -> Act:
    """`edit` says what is different in `allowlist`."""

    def play(stage: Stage) -> str:
        stage.allow(allowlist)
        return stage.dnsguard("reload").told

    return Act(
        f"edit allowlist.yaml: {edit}; dnsguard reload",
        "the new policy is in force when the command returns",
        r"^policy generation 2 is in force$",
        play,
    )


def shows(command: str, expects: str, pattern: str) -> Act:
    return Act(f"dnsguard {command}", expects, pattern, lambda stage: "\n" + stage.dnsguard(command).told)
