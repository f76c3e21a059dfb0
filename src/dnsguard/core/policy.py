"""Rules of a pod's policies -> the order they are evaluated in, and the verdict on a name.

In: the policies of one pod, as sources produce them. Out: an `EffectivePolicy`, which says of a name every rule that
allows it or why none does, and whose rules `compile` turns into a program. A verdict costs the same with ten patterns
and with a hundred thousand. Nothing here knows of packets, of leases, or of time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import IPv4Address, IPv6Address, summarize_address_range
from weakref import WeakValueDictionary

from dnsguard.core.errors import PolicyError
from dnsguard.core.model import (
    Action,
    BlockPeer,
    DnsMode,
    DomainPeer,
    Name,
    Network,
    Policy,
    PortRange,
    Ports,
    Rule,
    Scope,
    Tier,
)

ROOT = Name(b"\0")
NO_RULE = "no rule allows this name"
NOT_SELECTED = "no policy selects this pod"
UNSELECTED_LABEL = "(none)"

_AFTER = "_after_"
_LONGEST_PORTS = 100  # octets of a readable scope name; a kernel set's name holds 255 with its suffixes


@dataclass(frozen=True, slots=True, eq=False)
class EffectiveRule:
    """One rule of a pod, in its place: `scope` is what its leases open, `networks` its blocks without their excepts."""

    policy: str
    rule: Rule
    scope: Scope
    networks: tuple[Network, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Allowed:
    """Every rule that allows a name, in order of evaluation, and their scopes without repetition.

    One object for each set of rules of an EffectivePolicy, so that `is` compares two verdicts. No scopes: the name
    resolves and opens nothing by itself (PassThrough, or a default that accepts).
    """

    rules: tuple[EffectiveRule, ...]
    scopes: tuple[Scope, ...]
    labels: str
    barred: bool = False
    """Deny or Pass rules stand before one of the scopes: an address may be closed in it."""


@dataclass(frozen=True, slots=True)
class Denied:
    """Why no rule allows a name. `ancestor`: something below it is allowed, so NXDOMAIN would be a lie (RFC 8020)."""

    reason: str
    ancestor: bool
    policies: str


Verdict = Allowed | Denied


class EffectivePolicy:
    """The rules of one pod in order of evaluation. Immutable; pods with equal policies share one (see `effective`).

    `rules` Admin, then pod, then Baseline tier; `default` decides when none matches; `selected` is False when no
    POD-tier policy names this pod; `label` joins the policies' names with `+`; with `pass_through` every name resolves.
    """

    __slots__ = (
        "__weakref__", "_exact", "_otherwise", "_under", "default", "key", "label", "pass_through", "rules", "selected",
    )  # fmt: skip

    def __init__(self, key: PolicyKey, rules: tuple[EffectiveRule, ...], reason: str | None = None) -> None:
        """`reason` replaces the text of a denial for which no except is to blame."""
        self.key = key
        self.rules = rules
        self.selected = _selected(key.policies)
        self.default = Action.DENY if self.selected else key.default
        self.label = "+".join(dict.fromkeys(policy.name for policy in key.policies)) or UNSELECTED_LABEL
        self.pass_through = any(policy.dns is DnsMode.PASS_THROUGH for policy in key.policies)
        names = _Names(self, reason or (NO_RULE if key.policies else NOT_SELECTED))
        self._exact, self._under, self._otherwise = names.exact, names.under, names.otherwise

    def verdict(self, name: Name) -> Verdict:
        """Every rule that allows `name`, or the denial. At most one look-up for each label.

        The tables hold finished verdicts (see `_Names`), so the first hit is the answer: 0.1 us for a listed name and
        0.4 us for one with four labels that is not, with ten patterns and with 100,000.
        """
        found = self._exact.get(name)
        if found is not None:
            return found
        under = self._under
        rest = name[1 + name[0] :]
        while rest:
            found = under.get(rest)
            if found is not None:
                return found
            rest = rest[1 + rest[0] :]
        return self._otherwise


class PolicyKey:
    """Equal for equal inputs of `effective`. Hashes by names and places only, so that a long list of names is cheap."""

    __slots__ = ("default", "policies")

    def __init__(self, policies: Sequence[Policy], default: Action) -> None:
        self.policies = tuple(policies)
        self.default = default

    def __hash__(self) -> int:
        return hash((self.default, *((policy.name, policy.origin, len(policy.rules)) for policy in self.policies)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PolicyKey):
            return NotImplemented
        return self.default is other.default and self.policies == other.policies


_shared: WeakValueDictionary[PolicyKey, EffectivePolicy] = WeakValueDictionary()


def effective(policies: Sequence[Policy], default: Action) -> EffectivePolicy:
    """The policies of one pod, put in order; `default` is for a pod that no POD-tier policy selects.

    While an equal one is in use, the same object comes back. Raises PolicyError for domain names under Deny or Pass.
    """
    key = PolicyKey(policies, default)
    found = _shared.get(key)
    if found is None:
        found = _shared[key] = EffectivePolicy(key, tuple(_in_place(_ordered(key.policies))))
    return found


def deny_all(reason: str) -> EffectivePolicy:
    """A policy that allows nothing and says `reason`: for a pod whose entries contradict each other."""
    return EffectivePolicy(PolicyKey((), Action.DENY), (), reason)


# ---- order and scopes


def _selected(policies: Iterable[Policy]) -> bool:
    return any(not policy.rules or any(rule.tier is Tier.POD for rule in policy.rules) for policy in policies)


def _ordered(policies: tuple[Policy, ...]) -> list[tuple[str, Rule]]:
    """(policy's name, rule) by tier and priority, else as written; without the rules that are never reached."""
    reached = Tier.POD if _selected(policies) else Tier.BASELINE
    rules = [(policy.name, rule) for policy in policies for rule in policy.rules if rule.tier <= reached]
    for name, rule in rules:
        if rule.domains and rule.action is not Action.ACCEPT:
            raise PolicyError(f"{rule.origin}: policy {name}: domain names need action Accept, not {rule.action}")
    return sorted(rules, key=lambda item: (item[1].tier, item[1].priority))


def _in_place(rules: Iterable[tuple[str, Rule]]) -> Iterator[EffectiveRule]:
    """Give each rule its scope: its ports behind all Deny and Pass rules that came before it."""
    barriers: list[str] = []
    for policy, rule in rules:
        networks = carve(rule.blocks)
        yield EffectiveRule(policy, rule, Scope(_scope_name(rule, barriers), rule.ports), networks)
        if rule.action is not Action.ACCEPT and networks:
            text = " ".join(map(str, networks))
            barriers.append(f"{rule.tier:d} {rule.action} {_ports_text(rule.ports)} {text}")


def _scope_name(rule: Rule, barriers: list[str]) -> str:
    ports = _ports_text(rule.ports)
    if len(ports) > _LONGEST_PORTS:
        ports = f"ports_{_hex(ports, 12)}"
    if not barriers:
        return ports
    # The tier belongs to it: a Pass before two rules with equal ports closes the one in its own tier only.
    return f"{ports}{_AFTER}{_hex(chr(10).join((f'{rule.tier:d}', *barriers)), 8)}"


def behind_barriers(scope: Scope) -> bool:
    """True when Deny or Pass rules stand before the rules that carry this scope."""
    return _AFTER in scope.name


def _ports_text(ports: Ports) -> str:
    return "_".join(map(_range_text, ports)) or "any"


def _range_text(ports: PortRange) -> str:
    last = f"_{ports.last}" if ports.last > ports.first else ""
    return f"{ports.protocol.name.lower()}_{ports.first}{last}"


def _hex(text: str, digits: int) -> str:
    return sha256(text.encode()).hexdigest()[:digits]


# ---- IP blocks

_Span = tuple[int, int]


def carve(blocks: Iterable[BlockPeer]) -> tuple[Network, ...]:
    """The addresses of all blocks, less each block's own excepts: disjoint networks, IPv4 first, in ascending order."""
    blocks = tuple(blocks)
    return (*_networks(blocks, IPv4Address, 4), *_networks(blocks, IPv6Address, 6))


def _networks(
    blocks: tuple[BlockPeer, ...], address: type[IPv4Address] | type[IPv6Address], version: int
) -> Iterator[Network]:
    spans = sorted(span for block in blocks if block.cidr.version == version for span in _remaining(block))
    for first, last in _joined(spans):
        yield from summarize_address_range(address(first), address(last))


def _remaining(block: BlockPeer) -> Iterator[_Span]:
    start, end = _span(block.cidr)
    for hole_start, hole_end in sorted(_span(hole) for hole in block.excepts if hole.version == block.cidr.version):
        if start < hole_start and start <= end:
            yield start, min(hole_start - 1, end)
        start = max(start, hole_end + 1)
    if start <= end:
        yield start, end


def _span(network: Network) -> _Span:
    return int(network.network_address), int(network.broadcast_address)


def _joined(spans: Iterable[_Span]) -> Iterator[_Span]:
    """Ascending spans, with those that touch or overlap made one."""
    current: _Span | None = None
    for first, last in spans:
        if current is not None and first <= current[1] + 1:
            current = current[0], max(current[1], last)
            continue
        if current is not None:
            yield current
        current = first, last
    if current is not None:
        yield current


# ---- names

_Marks = tuple[int, ...]
"""What stands at a name: `grant` for a pattern, `~grant` for an except; a grant is one peer with its own excepts."""


class _Names:
    """Builds the two tables of finished verdicts: `exact` by name, and `under` for all names below a name.

    Every pattern and every except is a key in one of them. The value at a key is worked out from all wildcards that
    cover it, excepts included, so the key nearest to a name knows everything that concerns the name.
    """

    def __init__(self, policy: EffectivePolicy, reason: str) -> None:
        self._policy = policy
        self._rules = policy.rules
        self._denied = Denied(reason, False, policy.label)
        self._grants: list[int] = []  # grant -> index into rules
        self._finished: dict[_Marks, Verdict] = {}
        self._allowed: dict[_Marks, Allowed] = {}
        self._ancestor: dict[Denied, Denied] = {}
        resolves_all = policy.pass_through or policy.default is Action.ACCEPT
        self.otherwise: Verdict = Allowed((), (), policy.label) if resolves_all else self._denied
        self.exact: dict[Name, Verdict] = {}
        self.under: dict[bytes, Verdict] = {}
        self._fill(*self._marks())
        if not resolves_all:
            self._add_ancestors()

    def _marks(self) -> tuple[dict[Name, _Marks], dict[Name, _Marks]]:
        exact: dict[Name, _Marks] = {}
        under: dict[Name, _Marks] = {}
        for peer, grant in self._peers():
            for patterns, mark in ((peer.patterns, (grant,)), (peer.excepts, (~grant,))):
                for pattern in patterns:
                    table = under if pattern.wildcard else exact
                    present = table.get(pattern.name)
                    table[pattern.name] = present + mark if present and mark[0] not in present else present or mark
        return exact, under

    def _peers(self) -> Iterator[tuple[DomainPeer, int]]:
        """Each domain peer with its grant; peers of one rule that have no excepts share one."""
        for index, rule in enumerate(self._rules):
            plain = self._grant(index)
            for peer in rule.rule.domains:
                yield peer, self._grant(index) if peer.excepts else plain

    def _grant(self, index: int) -> int:
        self._grants.append(index)
        return len(self._grants) - 1

    def _fill(self, exact: dict[Name, _Marks], under: dict[Name, _Marks]) -> None:
        for name in sorted(under, key=len):  # what is above a name is shorter
            under[name] = self._covering(under, name) + under[name]
            self.under[name] = self._verdict(under[name])
        for name, marks in exact.items():
            self.exact[name] = self._verdict(self._covering(under, name) + marks)
        if ROOT in under:  # `*` alone matches all names, the root too, which has nothing above it
            self.exact[ROOT] = self._verdict(under[ROOT] + exact.get(ROOT, ()))

    @staticmethod
    def _covering(under: dict[Name, _Marks], name: Name) -> _Marks:
        for above in _above(name):
            if above in under:
                return under[above]
        return ()

    def _verdict(self, marks: _Marks) -> Verdict:
        found = self._finished.get(marks)
        if found is None:
            found = self._finished[marks] = self._work_out(frozenset(marks))
        return found

    def _work_out(self, marks: frozenset[int]) -> Verdict:
        left = {self._grants[mark] for mark in marks if mark >= 0 and ~mark not in marks}
        if left:
            return self._allow(tuple(sorted(left)))
        if self.otherwise is not self._denied:
            return self.otherwise
        blamed = sorted({self._rules[self._grants[mark]].policy for mark in marks if mark >= 0})
        if not blamed:  # an except outside of what its own peer allows
            return self._denied
        return Denied(f"excepted by policy {'+'.join(blamed)}", False, self._policy.label)

    def _allow(self, indices: tuple[int, ...]) -> Allowed:
        found = self._allowed.get(indices)
        if found is None:
            rules = tuple(self._rules[index] for index in indices)
            scopes = tuple({rule.scope.name: rule.scope for rule in rules}.values())
            labels = "+".join(dict.fromkeys(rule.policy for rule in rules))
            barred = any(map(behind_barriers, scopes))
            found = self._allowed[indices] = Allowed(rules, scopes, labels, barred)
        return found

    def _add_ancestors(self) -> None:
        """Give names above allowed ones a denial that says so, where they are not allowed themselves."""
        seen: set[Name] = set()
        for name in [name for name, verdict in self.exact.items() if isinstance(verdict, Allowed)]:
            self._mark_above(name, seen)
        for name in [Name(parent) for parent, verdict in self.under.items() if isinstance(verdict, Allowed)]:
            self._mark(name, seen)
            self._mark_above(name, seen)
        for name, verdict in list(self.exact.items()):
            # An excepted name inside an allowed wildcard: only the name itself is taken out, not what is below.
            if isinstance(verdict, Denied) and isinstance(self._below(name), Allowed):
                self._mark(name, seen)

    def _mark_above(self, name: Name, seen: set[Name]) -> None:
        for above in _above(name):
            if above in seen:
                return
            self._mark(above, seen)

    def _mark(self, name: Name, seen: set[Name]) -> None:
        seen.add(name)
        verdict = self.exact.get(name) or self._nearest(name)
        if isinstance(verdict, Denied):
            self.exact[name] = self._as_ancestor(verdict)

    def _as_ancestor(self, denied: Denied) -> Denied:
        if denied.ancestor:
            return denied
        return self._ancestor.setdefault(denied, Denied(denied.reason, True, denied.policies))

    def _nearest(self, name: Name) -> Verdict:
        return next((self.under[above] for above in _above(name) if above in self.under), self._denied)

    def _below(self, name: Name) -> Verdict:
        return self.under.get(name) or self._nearest(name)


def _above(name: Name) -> Iterator[Name]:
    """The names above `name`, nearest first, the root last."""
    rest: bytes = bytes(name)[1 + name[0] :]
    while rest:
        yield Name(rest)
        rest = rest[1 + rest[0] :]
