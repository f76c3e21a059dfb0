"""allowlist.yaml into policies and pod entries, with every error and every silent mistake in it at its place.

Pod entries come out one by one, so that a file of a whole cluster is never held as objects. The findings are complete
when the last entry has come out; with an error among them none of the entries may be used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from dnsguard.config.diagnostics import ConfigError, Diagnostic, in_order, nearest
from dnsguard.config.files import decode
from dnsguard.config.networks import parse_network
from dnsguard.config.positions import Fields, Items, Node, Scalar, Unreadable, parse, resolve
from dnsguard.core.compile import compile_program
from dnsguard.core.errors import PolicyError
from dnsguard.core.model import Action, DnsMode, DomainPeer, Network, Origin, Pattern, PodEntry, Policy, Rule
from dnsguard.core.policy import effective
from dnsguard.sources.peers import Names, Placed, WrittenRule, read_patterns, read_rule
from dnsguard.sources.reading import Findings
from dnsguard.sources.warnings import (
    Ranges,
    Written,
    warn_of_blocks,
    warn_of_nested,
    warn_of_own,
    warn_of_patterns,
)

POLICY_KEYS = ("dns", "egress")
POD_KEYS = ("name", "policies")
TOP_KEYS = ("apiVersion", "kind", "policies", "pods")
_HEADER = {"apiVersion": "dnsguard/v1", "kind": "Allowlist"}
_POD_EXAMPLE = "a list of names, or {policies: [backend]}"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What of the configuration and of the node bears on an allowlist."""

    protected: tuple[Network, ...] = ()
    own: frozenset[Network] = frozenset()
    """The node's own addresses, each as a network of one."""
    default: Action = Action.DENY
    closed: bool = False
    """Whether a pod without an entry is closed in."""


@dataclass(slots=True)
class _Used:
    """A policy that can be referred to; `policy` is None when it has errors of its own."""

    policy: Policy | None
    origin: Origin
    used: bool = False


@dataclass(slots=True)
class AllowlistReader:
    """Reads one allowlist: `entries()` once, then `diagnostics()`."""

    text: str
    file: str
    around: Surroundings = Surroundings()
    _findings: Findings = field(init=False)
    _policies: dict[str, _Used] = field(init=False, default_factory=dict)
    _networks: dict[Network, Origin] = field(init=False, default_factory=dict)
    _cidrs: list[Written] = field(init=False, default_factory=list)
    _names: dict[str, Written] = field(init=False, default_factory=dict)
    _compiled: set[tuple[str, ...]] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self._findings = Findings(self.file)

    def diagnostics(self) -> list[Diagnostic]:
        return in_order(self._findings.found)

    def entries(self) -> Iterator[PodEntry]:
        """The pod entries that can be understood, in the file's order."""
        top = self._top()
        if "policies" in top:
            self._read_policies(top["policies"])
        if "pods" in top:
            yield from self._read_pods(top["pods"])
        if self.around.closed and not self._networks and not self._findings.errors:
            origin = self._findings.origin(top["pods"]) if "pods" in top else Origin(self.file, 1, 1)
            self._findings.warn_at(origin, "no pod is listed: in Enforce every governed pod is closed in")
        for name, policy in self._policies.items():
            if not policy.used:
                self._findings.warn_at(policy.origin, f"no pod uses policy '{name}'")
        warn_of_nested(self._cidrs, self._findings)

    def _top(self) -> dict[str, Node]:
        root, found = parse(self.text, self.file)
        self.text = ""
        for one in found:
            self._findings.error_at(one.origin, one.text)
        if not isinstance(root, Fields):
            if not found:
                self._findings.error_at(Origin(self.file, 1, 1), _no_mapping(root))
            return {}
        top = dict(self._findings.known(root, TOP_KEYS))
        for key, value in _HEADER.items():
            if key in top and self._findings.text(top[key], value) not in (value, None):
                self._findings.error(top[key], f"{key} must be {value} in an allowlist")
        return top

    # -- policies

    def _read_policies(self, node: Node) -> None:
        fields = self._findings.fields(node, "a mapping of names to policies, or {}")
        for name, value in fields.fields.items() if fields else ():
            origin = self._findings.key(fields, name)  # type: ignore[arg-type]  # not None inside the loop
            if problem := _bad_label(name):
                self._findings.error_at(origin, f"policy name {problem}")
            self._policies[name] = _Used(self._read_policy(name, value, origin), origin)

    def _read_policy(self, name: str, node: Node, origin: Origin) -> Policy | None:
        before = self._findings.errors
        fields = self._findings.fields(node, "a policy: a mapping with egress")
        if fields is None:
            return None
        entries = dict(self._findings.known(fields, POLICY_KEYS))
        dns = self._read_dns(entries.get("dns"))
        if "egress" not in fields.keys:
            self._findings.error_at(
                origin, f"policy '{name}' has no egress; write egress: [] if it is to allow nothing"
            )
        written = self._read_egress(entries.get("egress"))
        warn_of_patterns(written, self._findings)
        warn_of_blocks(written, Ranges(self.around.protected), self._findings)
        if self._findings.errors > before:
            return None
        return Policy(name, tuple(rule.rule(self._findings) for rule in written), dns, origin)

    def _read_egress(self, node: Node | None) -> list[WrittenRule]:
        items = self._findings.items(node, "a list of rules") if node is not None else []
        return [rule for item in items if (rule := read_rule(item, self._findings)) is not None]

    def _read_dns(self, node: Node | None) -> DnsMode:
        text = self._findings.text(node, "Filter or PassThrough") if node is not None else None
        if text is None:
            return DnsMode.FILTER
        if node is not None and text not in list(DnsMode):
            hint = nearest(text, list(DnsMode)) or "; write Filter or PassThrough"
            self._findings.error(node, f"dns cannot be '{text}'{hint}")
            return DnsMode.FILTER
        return DnsMode(text)

    # -- pods

    def _read_pods(self, node: Node) -> Iterator[PodEntry]:
        fields = self._findings.fields(node, "a mapping of addresses to what they may reach, or {}")
        if fields is None:
            return
        for key in list(fields.fields):
            # Taken out of the tree: what was read is freed while the rest is still to come.
            value = fields.fields.pop(key)
            origin = self._findings.key(fields, key)
            network = self._read_key(key, origin)
            entry = self._read_pod(key, network, value, origin)
            if entry is not None:
                yield entry

    def _read_key(self, key: str, origin: Origin) -> Network | None:
        try:
            network = parse_network(key)
        except ValueError as error:
            self._findings.error_at(origin, f"{error}; a pod is written by its address or CIDR")
            return None
        first = self._networks.setdefault(network, origin)
        if first is not origin:
            self._findings.error_at(origin, f"{key} is written twice (first in line {first.line}); keep one")
            return None
        warn_of_own(network, key, self.around.own, origin, self._findings)
        return network

    def _read_pod(self, key: str, network: Network | None, node: Node, origin: Origin) -> PodEntry | None:
        if isinstance(node, Items):
            return self._read_shorthand(key, network, node, origin)
        if isinstance(node, Unreadable):
            return None
        fields = self._findings.fields(node, _POD_EXAMPLE)
        if fields is None:
            return None
        entries = dict(self._findings.known(fields, POD_KEYS))
        name = self._read_name(entries.get("name"))
        names, policies = self._read_references(entries.get("policies"))
        if not names and ("policies" not in entries or isinstance(entries["policies"], Items)):
            self._warn_of_none(key, origin)
        if network is None:
            return None
        self._remember(network, Written(network, origin, names), name)
        self._compile(names, policies, origin)
        return PodEntry(network, name, tuple(policies), origin)

    def _read_shorthand(self, key: str, network: Network | None, node: Items, origin: Origin) -> PodEntry | None:
        placed = read_patterns(node, self._findings, may_be_empty=True)
        if not node.items:
            self._warn_of_none(key, origin)
        if network is None:
            return None
        patterns = tuple([one.pattern for one in placed])
        self._warn_of_shorthand(node, placed)
        if network.prefixlen != network.max_prefixlen:
            self._cidrs.append(Written(network, origin, patterns))
        if not patterns:
            return PodEntry(network, None, (), origin)
        rule = Rule((DomainPeer(patterns),), origin=self._findings.origin(node))
        return PodEntry(network, None, (Policy(key, (rule,), origin=origin),), origin)

    def _warn_of_shorthand(self, node: Items, placed: list[Placed]) -> None:
        distinct: set[Pattern] = {one.pattern for one in placed}
        # The usual case, fifty thousand times over: names without a wildcard and none twice.
        if len(distinct) != len(placed) or any(pattern.wildcard for pattern in distinct):
            warn_of_patterns([WrittenRule(node, [Names(placed, [])], [], ())], self._findings)

    def _warn_of_none(self, key: str, origin: Origin) -> None:
        text = (
            "it resolves nothing and reaches nothing"
            if self.around.default is Action.DENY
            else "everything is open to it"
        )
        self._findings.warn_at(origin, f"pod {key} has no policy: {text}")

    def _read_name(self, node: Node | None) -> str | None:
        text = self._findings.text(node, "a name like shop/backend-0") if node is not None else None
        if node is not None and text is not None and (problem := _bad_label(text)):
            self._findings.error(node, f"pod name {problem}")
            return None
        return text

    def _read_references(self, node: Node | None) -> tuple[tuple[str, ...], list[Policy]]:
        items = self._findings.items(node, "a list of names of policies, like [backend]") if node is not None else []
        names: dict[str, Policy | None] = {}
        for item in items:
            name = self._findings.text(item, "the name of a policy")
            if name is None:
                continue
            if name in names:
                self._findings.warn(item, f"policy '{name}' is listed twice")
            names[name] = self._refer(name, item)
        return tuple(names), [policy for policy in names.values() if policy is not None]

    def _refer(self, name: str, item: Node) -> Policy | None:
        found = self._policies.get(name)
        if found is None:
            hint = self._findings.nearest(name, self._policies) or "; write it under policies:"
            self._findings.error(item, f"there is no policy '{name}'{hint}")
            return None
        found.used = True
        return found.policy

    def _remember(self, network: Network, written: Written, name: str | None) -> None:
        if network.prefixlen != network.max_prefixlen:
            self._cidrs.append(written)
        if name is None:
            return
        first = self._names.setdefault(name, written)
        if first.content != written.content:
            text = f"'{name}' has other policies in line {first.origin.line}; addresses of one pod must have the same"
            self._findings.error_at(written.origin, text)

    def _compile(self, names: tuple[str, ...], policies: list[Policy], origin: Origin) -> None:
        """What cannot become a program is an error of the file. Each combination of policies is tried once."""
        if names in self._compiled or len(names) != len(policies):
            return
        self._compiled.add(names)
        try:
            compile_program(effective(policies, self.around.default))
        except PolicyError as error:
            self._findings.error_at(origin, f"policies {', '.join(names)}: {error}")


def diagnose(content: bytes, file: str, around: Surroundings | None = None) -> list[Diagnostic]:
    """All that is wrong with these octets as an allowlist. Total: any octets give diagnostics, never an exception."""
    try:
        reader = AllowlistReader(decode(content, file), file, around or Surroundings())
    except ConfigError as error:
        return list(error.diagnostics)
    for _ in reader.entries():
        pass
    return reader.diagnostics()


def _no_mapping(root: Node | None) -> str:
    empty = root is None or (isinstance(root, Scalar) and resolve(root) is None)
    what = "the file is empty" if empty else "the file must hold keys with values"
    return f"{what}; write at least: {{apiVersion: dnsguard/v1, kind: Allowlist, policies: {{}}, pods: {{}}}}"


def _bad_label(text: str) -> str | None:
    """Names of policies and pods stand in logs, metrics and DNS replies: printable, without space, `+` or `,`."""
    if not text:
        return "is empty; write one"
    if len(text) > 253:
        return f"has {len(text)} letters; 253 are possible"
    bad = next((letter for letter in text if not "!" <= letter <= "~" or letter in "+,"), None)
    return f"'{text}' has {bad!r} in it; use letters, digits, -, _, . and /" if bad else None
