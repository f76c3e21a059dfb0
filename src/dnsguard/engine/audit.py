"""What is remembered in Audit of names that no rule allows: which addresses they resolved to, for whom, and until when.

In Audit such a name is answered like any other, and opens no lease. The kernel lets the flow pass and tells of it by
its address; this is what gives it its name again, and what leases are made from when enforcing begins. Each pod has
room of its own: the answer that was told longest ago goes first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from dnsguard.core.model import Address, Name, PodId, Seconds
from dnsguard.core.policy import Allowed

AUDITED: Final = Allowed((), (), "")
"""The verdict on a name that no rule allows, in Audit: it resolves and opens nothing. Recognised by `is`."""

ANSWERS: Final = 1000
"""Answers remembered for one pod."""
LASTING: Final[Seconds] = 3600.0
"""How long past its TTL an answer still explains a flow: programs keep addresses longer than they should."""


class Told(NamedTuple):
    """One answer: the pod may use these addresses until the end of the TTL that it was shown."""

    name: Name
    addresses: Sequence[Address]
    until: Seconds


class AuditedNames:
    """The answers of every pod, oldest first."""

    def __init__(self) -> None:
        self._told: dict[PodId, dict[tuple[Name, int], Told]] = {}

    def told(self, pod: PodId, told: Told) -> None:
        """A pod was told the addresses of a name that no rule allows; there is at least one."""
        answers = self._told.setdefault(pod, {})
        key = told.name, len(told.addresses[0])
        answers.pop(key, None)
        answers[key] = told
        if len(answers) > ANSWERS:
            del answers[next(iter(answers))]

    def names(self, pod: PodId, address: Address, now: Seconds) -> list[Name]:
        """The names that resolved to this address for this pod, lately."""
        answers = self._told.get(pod, {}).values()
        return [one.name for one in answers if address in one.addresses and one.until + LASTING > now]

    def alive(self, pod: PodId, now: Seconds) -> Iterator[Told]:
        """What the pod may still use."""
        return (one for one in self._told.get(pod, {}).values() if one.until > now)

    def forget(self, pod: PodId) -> None:
        self._told.pop(pod, None)

    def __len__(self) -> int:
        return sum(map(len, self._told.values()))
