"""What a query leaves in memory while it is under way: an exchange, the fetch it waits for, its attempts."""

from __future__ import annotations

from collections.abc import Hashable

from dnsguard.core.answers import Answer
from dnsguard.core.model import Name, Seconds
from dnsguard.core.pods import Pod
from dnsguard.core.policy import Allowed, Denied, EffectivePolicy
from dnsguard.core.wire import Question, forwarded
from dnsguard.engine.contracts import Client


class Exchange:
    """One pod query from arrival to reply. `policy` is the one that `verdict` was taken from; None: arm again."""

    __slots__ = (
        "again",
        "answer",
        "client",
        "ends",
        "fetch",
        "packet",
        "pod",
        "policy",
        "question",
        "shown",
        "source",
        "stale",
        "started",
        "ttl",
        "verdict",
    )

    def __init__(
        self, question: Question, client: Client, pod: Pod, verdict: Allowed, started: Seconds, source: str = ""
    ) -> None:
        self.question = question
        self.client = client
        self.pod = pod
        self.policy: EffectivePolicy | None = pod.policy
        self.verdict = verdict
        self.started = started
        self.source = source
        """The pod's address that asked, as text."""
        self.fetch: Fetch | None = None
        self.answer: Answer | None = None
        self.shown: Answer | None = None
        """What is left of `answer` for this pod."""
        self.again = False
        """It was asked before: the kernel may tell it from here on, until its TTL ends at `ends`."""
        self.ends: Seconds = 0.0
        self.ttl = 0
        self.stale = False
        self.packet = b""
        """The reply, while the gate holds it."""


class Attempt:
    """One query to one upstream (contracts.Attempt). `asleep`: it failed early and waits for its time to pass."""

    __slots__ = ("asleep", "edns", "fetch", "handle", "query", "section", "sent", "server", "stream")

    def __init__(self, fetch: Fetch, server: int, *, edns: bool, stream: bool, sent: Seconds) -> None:
        self.fetch = fetch
        self.server = server
        self.stream = stream
        self.edns = edns
        self.query = forwarded(fetch.question, edns=edns)
        self.section = fetch.question.section
        self.sent = sent
        self.asleep = False
        self.handle: object = None


class Fetch:
    """One question to the upstreams, for everyone who asks it meanwhile.

    `waiters` are keyed by what tells a retry from a new question. `late` is set once stale answers were given out:
    whoever joins after that gets one at once.
    """

    __slots__ = (
        "error",
        "key",
        "late",
        "outstanding",
        "pod",
        "policy",
        "question",
        "rcode",
        "started",
        "tried",
        "waiters",
    )

    def __init__(self, key: Hashable, first: Exchange, started: Seconds) -> None:
        self.key = key
        self.question = first.question
        self.pod = first.pod
        self.policy = first.pod.policy
        """Judges the names inside SVCB answers, which for that reason are shared only under one policy."""
        self.started = started
        self.waiters: dict[Hashable, Exchange] = {}
        self.outstanding: list[Attempt] = []
        self.tried: list[int] = []
        self.error: str | None = None
        """Why the last attempt that failed on its way did: `refused`, `unreachable`."""
        self.rcode: int | None = None
        """The failure that an upstream answered with, passed on when no other does better."""
        self.late = False

    def allows(self, name: Name) -> bool:
        """Whether the policy of the first who asked lets `name` be shown as a target."""
        return not isinstance(self.policy.verdict(name), Denied)
