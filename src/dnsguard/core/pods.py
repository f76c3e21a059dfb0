"""Link and addresses -> pod: what the allowlist says of it, and how a query finds it.

In: the addresses routed to a pod link, and a `Lookup` of the allowlist's entries. Out: an `Assignment` (name and
policy), and a `PodTable` of the pods that exist. All addresses of one link are one pod.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import count
from typing import Protocol

from dnsguard.core.limits import Share
from dnsguard.core.model import Action, Address, LinkIndex, Origin, Pair, PodEntry, PodId, Policy, Program
from dnsguard.core.policy import EffectivePolicy, deny_all, effective


class Lookup(Protocol):
    """The allowlist, as sources hold it."""

    def entry(self, address: Address) -> PodEntry | None:
        """The entry with the longest prefix that holds `address`."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """What the allowlist says of one pod. `conflict` names two entries that disagree; the policy then denies all."""

    name: str | None
    policy: EffectivePolicy
    conflict: tuple[Origin, Origin] | None = None
    origin: Origin | None = None
    """Of the entry that decided; None when no address has one."""


def assign(addresses: Collection[Address], lookup: Lookup, default: Action) -> Assignment:
    """The name and policy of the pod with these addresses; `default` is for a pod that no policy selects.

    An address without an entry takes its sibling's. Entries disagree when they mean different rules or give different
    names; an entry without a name agrees with any.
    """
    found = [entry for address in sorted(addresses) if (entry := lookup.entry(address)) is not None]
    if not found:
        return Assignment(None, effective((), default))
    named = next((entry for entry in found if entry.name is not None), found[0])
    for other in found:
        if _disagree(named, other):
            first, second = sorted((named.origin, other.origin), key=lambda o: (o.file, o.line, o.column))
            return Assignment(named.name, deny_all("the pod's allowlist entries disagree"), (first, second), first)
    return Assignment(named.name, effective(named.policies, default), None, named.origin)


def _disagree(one: PodEntry, other: PodEntry) -> bool:
    if one.name is not None and other.name is not None and one.name != other.name:
        return True
    return one.policies != other.policies and _meaning(one.policies) != _meaning(other.policies)


def _meaning(policies: Iterable[Policy]) -> list[object]:
    """The rules without where they stand and what they are called: two shorthand entries may be written twice."""
    return [
        (policy.dns, [(r.domains, r.blocks, r.ports, r.action, r.tier, r.priority) for r in policy.rules])
        for policy in policies
    ]


@dataclass(slots=True, eq=False)
class Pod:
    """One pod link and all addresses routed to it. Changed by the engine only, addresses through `PodTable`."""

    id: PodId
    name: str
    link: LinkIndex
    link_name: str
    addresses: tuple[Address, ...]
    policy: EffectivePolicy
    program: Program
    share: Share
    """Of queries and connections."""
    entry_origin: Origin | None = None

    def pairs(self) -> list[tuple[Pair, str]]:
        """Each (link, address) and the name of the program."""
        return [((self.link, address), self.program.name) for address in self.addresses]


class PodTable:
    """The pods of this node. `by_source` is keyed as a query arrives: (source address as text, link index)."""

    def __init__(self, first: int = 1) -> None:
        self._numbers = count(first)
        self.by_link: dict[LinkIndex, Pod] = {}
        self.by_id: dict[PodId, Pod] = {}
        self.by_source: dict[tuple[str, int], Pod] = {}

    def __iter__(self) -> Iterator[Pod]:
        return iter(self.by_link.values())

    def __len__(self) -> int:
        return len(self.by_link)

    def came(
        self,
        link: LinkIndex,
        link_name: str,
        addresses: Collection[Address],
        *,
        assignment: Assignment,
        program: Program,
        share: Share,
    ) -> Pod:
        """Add a pod under a number that no pod had before. Without a name it is called by its first address."""
        if link in self.by_link:
            raise ValueError(f"link {link} ({link_name}) already is pod {self.by_link[link].name}")
        ordered = tuple(sorted(addresses, key=_family_first))
        name = assignment.name or (address_text(ordered[0]) if ordered else link_name)
        number = PodId(next(self._numbers))
        pod = Pod(number, name, link, link_name, ordered, assignment.policy, program, share, assignment.origin)
        self.by_link[link] = self.by_id[number] = pod
        self._add_sources(pod)
        return pod

    def readdressed(self, pod: Pod, addresses: Collection[Address]) -> None:
        """The pod has exactly these addresses now. Its name, policy and number stay."""
        self._remove_sources(pod)
        pod.addresses = tuple(sorted(addresses, key=_family_first))
        self._add_sources(pod)

    def went(self, link: LinkIndex) -> Pod | None:
        """Remove the pod of this link and return it; None when there was none."""
        pod = self.by_link.pop(link, None)
        if pod is not None:
            del self.by_id[pod.id]
            self._remove_sources(pod)
        return pod

    def find(self, text: str) -> list[Pod]:
        """The pods that a person means by `text`: a name, an address, or a link's name. Several may share a name."""
        address = _address(text)
        return [pod for pod in self if text in (pod.name, pod.link_name) or address in pod.addresses]

    def addresses(self, name: str) -> list[Address]:
        """Those of every pod of this name."""
        return [address for pod in self if pod.name == name for address in pod.addresses]

    def pairs(self) -> Mapping[Pair, str]:
        """Every (link, address) and the name of its program, as an enforcer wants them."""
        return {pair: program for pod in self for pair, program in pod.pairs()}

    def programs(self) -> tuple[Program, ...]:
        """Each program that a pod runs, once."""
        return tuple({pod.program.name: pod.program for pod in self}.values())

    def _add_sources(self, pod: Pod) -> None:
        for address in pod.addresses:
            self.by_source[address_text(address), pod.link] = pod

    def _remove_sources(self, pod: Pod) -> None:
        for address in pod.addresses:
            self.by_source.pop((address_text(address), pod.link), None)


def address_text(address: Address) -> str:
    """As the kernel's socket calls print it: RFC 5952, without a zone."""
    return str(ip_address(address))


def _address(text: str) -> Address | None:
    try:
        return Address(ip_address(text).packed)
    except ValueError:
        return None


def _family_first(address: Address) -> tuple[int, Address]:
    return len(address), address
