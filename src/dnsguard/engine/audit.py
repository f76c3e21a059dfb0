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
ADDRESSES: Final = 5000
"""Addresses in them: 2 MB. One answer has room for 4,095."""
LASTING: Final[Seconds] = 3600.0
"""How long past its TTL an answer still explains a flow: programs keep addresses longer than they should."""


class Told(NamedTuple):
    """One answer: the pod may use these addresses until the end of the TTL that it was shown."""

    name: Name
    addresses: Sequence[Address]
    until: Seconds


_Key = tuple[Name, int]
"""A name, and the length of its addresses."""


class _Answers:
    """Those of one pod, oldest first."""

    __slots__ = ("by_address", "by_key", "places")

    def __init__(self) -> None:
        self.by_key: dict[_Key, Told] = {}
        self.by_address: dict[Address, dict[_Key, None]] = {}
        self.places = 0

    def add(self, key: _Key, told: Told) -> None:
        self.by_key[key] = told
        self.places += len(told.addresses)
        for address in told.addresses:
            self.by_address.setdefault(address, {})[key] = None

    def drop(self, key: _Key) -> None:
        if (told := self.by_key.pop(key, None)) is None:
            return
        self.places -= len(told.addresses)
        for address in set(told.addresses):
            keys = self.by_address[address]
            del keys[key]
            if not keys:
                del self.by_address[address]


class AuditedNames:
    """The answers of every pod."""

    def __init__(self) -> None:
        self._told: dict[PodId, _Answers] = {}

    def told(self, pod: PodId, told: Told) -> None:
        """A pod was told the addresses of a name that no rule allows; there is at least one."""
        answers = self._told.setdefault(pod, _Answers())
        key = told.name, len(told.addresses[0])
        answers.drop(key)
        answers.add(key, told)
        while len(answers.by_key) > ANSWERS or answers.places > ADDRESSES:
            answers.drop(next(iter(answers.by_key)))

    def names(self, pod: PodId, address: Address, now: Seconds) -> list[Name]:
        """The names that resolved to this address for this pod, lately."""
        if (answers := self._told.get(pod)) is None:
            return []
        keys = answers.by_address.get(address, ())
        return [key[0] for key in keys if answers.by_key[key].until + LASTING > now]

    def alive(self, pod: PodId, now: Seconds) -> Iterator[Told]:
        """What the pod may still use."""
        answers = self._told.get(pod, _Answers())
        return (one for one in answers.by_key.values() if one.until > now)

    def forget(self, pod: PodId) -> None:
        self._told.pop(pod, None)

    def __len__(self) -> int:
        return sum(len(answers.by_key) for answers in self._told.values())
