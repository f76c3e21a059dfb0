"""What the kernel may answer by itself, and hot names asked again before their answers end.

An answer goes into the kernel when it is asked for a second time: a pod that asks for ever new names pushes out
nothing, not even of its own. It is told there for as long as its leases hold for what a reply promises (the TTL shown,
and the floor); then the query comes up again. Names that were told lately are asked for shortly before that, so that
whoever uses them never waits. What a pod was told is forgotten before anything else of a change is done.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache
from ipaddress import ip_address
from typing import Final

from dnsguard.core.answers import Answer
from dnsguard.core.leases import Leases
from dnsguard.core.model import Address, Name, Pair, PodId, Seconds
from dnsguard.core.pods import Pod, PodTable, address_text
from dnsguard.core.wire import ExtendedError, Question, query
from dnsguard.engine.contracts import KernelAnswers
from dnsguard.engine.state import Exchange

LEAD: Final[Seconds] = 3.0
"""How long before its end a hot answer is asked for again: three attempts."""
DENIAL: Final[Seconds] = 30.0
"""How long the kernel denies a name by itself at most: the daemon is to hear of it now and then."""
TURN: Final[Seconds] = 10.0
"""Denials end in turns, so that a name that is denied again and again is written once in so long."""
DENIED_NAMES: Final = 1000
"""Denied names remembered for each pod, to tell a second asking from a first."""

Refresh = Callable[[Pod, str, Question], None]
"""`refresh(pod, source, question)`: ask the upstreams for it on behalf of a pod, whether or not it is cached."""


class Refreshing:
    """The client of a question that nobody waits for (contracts.Client)."""

    __slots__ = ()
    stream = True

    @property
    def identity(self) -> object:
        return self

    def reply(self, packet: bytes) -> None:
        """There is nobody to tell: the answer is in the cache and in the kernel."""


class _Seen:
    """Which keys came lately: the last thousand at least, and at most twice as many. A question costs 0.25 us so, and
    1.2 us by age. They are told apart by their hashes, which no pod knows: 70 octets each instead of 200, of names that
    pods are free to make up."""

    __slots__ = ("_earlier", "_lately")

    def __init__(self) -> None:
        self._lately: set[int] = set()
        self._earlier: set[int] = set()

    def again(self, key: Hashable) -> bool:
        """Whether it has come before; it has now."""
        known = hash(key)
        if known in self._lately or known in self._earlier:
            return True
        if len(self._lately) >= DENIED_NAMES:
            self._earlier, self._lately = self._lately, set()
        self._lately.add(known)
        return False


class KernelFeed:
    """Between the exchanges and the kernel's answers. `numbers(pair)` is the kernel's number for a pair, None while it
    has none."""

    def __init__(
        self,
        answers: KernelAnswers,
        numbers: Callable[[Pair], int | None],
        *,
        pods: PodTable,
        leases: Leases,
        floor: Seconds,
        prefetch: bool,
    ) -> None:
        self._answers = answers
        self._numbers = numbers
        self._pods = pods
        self._leases = leases
        self._floor = floor
        self._prefetch = prefetch
        self._denied: dict[PodId, _Seen] = {}
        self._sources: dict[int, tuple[PodId, str]] = {}
        self.refresh: Refresh = lambda pod, source, question: None

    def asked_again(self, exchange: Exchange, answer: Answer) -> None:
        """This was just released to a pod that had it from the cache: from here on the kernel may tell it."""
        number = self._number(exchange.pod, exchange.source)
        if number is None:
            return
        until = exchange.ends
        if answer.addresses and exchange.verdict.scopes:
            lasting = self._leases.lasting(exchange.pod.id, exchange.verdict.scopes, answer.addresses)
            if lasting < until:
                return
            until = min(until, lasting - self._floor)
        self._answers.put(number, exchange.question, answer, ttl_ends=exchange.ends, until=until)

    def denied(
        self, pod: Pod, source: str, question: Question, *, rcode: int, ede: ExtendedError | None, now: Seconds
    ) -> None:
        """A name was denied. The second time, the kernel may say so for a while."""
        number = self._number(pod, source)
        if number is None:
            return
        before = self._denied.get(pod.id)
        if before is None:
            before = self._denied[pod.id] = _Seen()
        if before.again((source, question.name, question.qtype)):
            self._answers.put_denial(number, question, rcode=rcode, ede=ede, until=now - now % TURN + DENIAL)

    def _number(self, pod: Pod, source: str) -> int | None:
        number = self._numbers((pod.link, _address(source)))
        if number is not None:
            self._sources[number] = pod.id, source
        return number

    # ---- changes

    def forget(self, pod: Pod) -> None:
        """When it returns the kernel tells this pod nothing by itself, until something is put anew."""
        self._denied.pop(pod.id, None)
        for address in pod.addresses:
            number = self._numbers((pod.link, address))
            if number is not None:
                self._answers.forget(number)
                self._sources.pop(number, None)

    def forget_all(self) -> None:
        """What no answer may contain has changed."""
        for pod in self._pods:
            self.forget(pod)

    # ---- time

    def tick(self, now: Seconds) -> None:
        """Take out what has ended, and ask again for what is hot."""
        self._answers.sweep(now)
        if self._prefetch:
            for number, name, qtype in self._answers.hot(now, LEAD):
                self._ask_again(number, name, qtype)

    def _ask_again(self, number: int, name: Name, qtype: int) -> None:
        known = self._sources.get(number)
        pod = self._pods.by_id.get(known[0]) if known else None
        if known is not None and pod is not None:
            self.refresh(pod, known[1], query(name, qtype))

    def adopt(self, unchanged: Callable[[Pod], bool]) -> None:
        """Take over what an earlier process put for pods that are `unchanged` since; the rest is forgotten."""
        for pod in filter(unchanged, self._pods):
            for address in pod.addresses:
                self._number(pod, address_text(address))
        self._answers.adopt(self._sources.keys())


@lru_cache(4096)
def _address(source: str) -> Address:
    return Address(ip_address(source).packed)
