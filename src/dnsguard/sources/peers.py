"""One rule of a policy as it is written: `to` and `ports`, in the shapes of ApplicationNetworkPolicy."""

from __future__ import annotations

from typing import NamedTuple

from dnsguard.config.diagnostics import nearest
from dnsguard.config.networks import parse_cidr
from dnsguard.config.positions import Items, Node, Scalar
from dnsguard.core.errors import InvalidNameError
from dnsguard.core.model import BlockPeer, DomainPeer, Network, Pattern, PortRange, Ports, Protocol, Rule
from dnsguard.core.names import parse_pattern
from dnsguard.core.ports import merge_ports
from dnsguard.sources.reading import Findings


class Placed(NamedTuple):
    """A pattern and where it stands."""

    pattern: Pattern
    node: Node


class Names(NamedTuple):
    """A domain peer with the places of its patterns, for warnings."""

    patterns: list[Placed]
    excepts: list[Placed]

    def peer(self) -> DomainPeer:
        return DomainPeer(tuple(one.pattern for one in self.patterns), tuple(one.pattern for one in self.excepts))


class Block(NamedTuple):
    """A block peer with the places of its networks."""

    cidr: Network
    node: Node
    excepts: list[tuple[Network, Node]]

    def peer(self) -> BlockPeer:
        return BlockPeer(self.cidr, tuple(network for network, _ in self.excepts))


class WrittenRule(NamedTuple):
    """A rule with the places of all its parts."""

    node: Node
    names: list[Names]
    blocks: list[Block]
    ports: Ports

    def rule(self, findings: Findings) -> Rule:
        domains = tuple(names.peer() for names in self.names)
        blocks = tuple(block.peer() for block in self.blocks)
        return Rule(domains, blocks, self.ports, origin=findings.origin(self.node))


PEERS = ("domainNames", "except", "ipBlock")
"""Keys of one entry of `to`."""

_PEER_EXAMPLE = 'domainNames: ["db.example.com"] or ipBlock: {cidr: 10.0.0.0/16}'


def read_rule(node: Node, findings: Findings) -> WrittenRule | None:
    """One entry of `egress`, or None when it is not even a mapping."""
    fields = findings.fields(node, "a rule: a mapping with to and, if not every port, ports")
    if fields is None:
        return None
    entries = dict(findings.known(fields, ("to", "ports")))
    rule = WrittenRule(node, [], [], _ports(entries.get("ports"), findings))
    if "to" not in entries:
        findings.error(
            node, "'to' is missing, and a rule without it opens nothing; write to: [{domainNames: [db.example.com]}]"
        )
        return rule
    peers = findings.items(entries["to"], "a list of peers")
    if not peers and isinstance(entries["to"], Items):
        findings.error(entries["to"], f"the list is empty, and such a rule opens nothing; write {_PEER_EXAMPLE}")
    for peer in peers:
        _read_peer(peer, rule, findings)
    return rule


def _read_peer(node: Node, rule: WrittenRule, findings: Findings) -> None:
    fields = findings.fields(node, f"a peer like {_PEER_EXAMPLE}")
    if fields is None:
        return
    entries = dict(findings.known(fields, PEERS))
    if "domainNames" in entries and "ipBlock" in entries:
        text = "one entry of 'to' has one kind of peer; begin a new entry: - ipBlock:"
        findings.error_at(findings.key(fields, "ipBlock"), text)
    if "domainNames" in entries:
        rule.names.append(_read_names(entries, findings))
    elif "except" in entries:
        findings.error_at(findings.key(fields, "except"), "'except' stands beside domainNames, or inside ipBlock")
    elif not fields.keys:
        findings.error(node, f"the peer is empty; write {_PEER_EXAMPLE}")
    if "ipBlock" in entries:
        block = _read_block(entries["ipBlock"], findings)
        if block is not None:
            rule.blocks.append(block)


def _read_names(entries: dict[str, Node], findings: Findings) -> Names:
    patterns = read_patterns(entries["domainNames"], findings)
    excepts = read_patterns(entries["except"], findings) if "except" in entries else []
    return Names(patterns, excepts)


def read_patterns(node: Node, findings: Findings, *, may_be_empty: bool = False) -> list[Placed]:
    """A list of patterns; every one that is wrong becomes an error at its place."""
    items = findings.items(node, 'a list of names, like [db.example.com, "*.s3.amazonaws.com"]')
    if not items and not may_be_empty and isinstance(node, Items):
        findings.error(node, "the list is empty; write at least one name")
    patterns = []
    for item in items:
        # A million names go through here: no call that a good name does not need.
        text = item.text if type(item) is Scalar and item.text[:1].isalpha() else None
        if text is None or len(text) < 6:
            text = findings.text(item, "a domain name")
            if text is None:
                continue
        try:
            patterns.append(Placed(parse_pattern(text), item))
        except InvalidNameError as error:
            findings.error(item, str(error))
    return patterns


def _read_block(node: Node, findings: Findings) -> Block | None:
    fields = findings.fields(node, "a mapping like {cidr: 10.0.0.0/16, except: [10.0.5.0/24]}")
    if fields is None:
        return None
    entries = dict(findings.known(fields, ("cidr", "except")))
    if "cidr" not in entries:
        if "cidr" not in fields.keys:
            findings.error(node, "'cidr' is missing; write cidr: 10.0.0.0/16")
        return None
    cidr = _read_cidr(entries["cidr"], findings)
    written = findings.items(entries["except"], "a list of CIDRs") if "except" in entries else []
    excepts = [(network, item) for item in written if (network := _read_cidr(item, findings)) is not None]
    if cidr is None:
        return None
    inside = [(network, item) for network, item in excepts if _inside(network, cidr, item, findings)]
    return Block(cidr, entries["cidr"], inside)


def _read_cidr(node: Node, findings: Findings) -> Network | None:
    text = findings.text(node, "a CIDR like 10.0.0.0/16")
    if text is None:
        return None
    try:
        return parse_cidr(text)
    except ValueError as error:
        findings.error(node, str(error))
        return None


def _inside(network: Network, cidr: Network, node: Node, findings: Findings) -> bool:
    inside = contains(cidr, network)
    if not inside:
        findings.error(node, f"'{network}' is not inside {cidr}, so there is nothing to except; write a part of {cidr}")
    return inside


def contains(wide: Network, narrow: Network) -> bool:
    return wide.version == narrow.version and narrow.subnet_of(wide)  # type: ignore[arg-type]  # the same version


def _ports(node: Node | None, findings: Findings) -> Ports:
    if node is None:
        return ()
    items = findings.items(node, "a list of ports, like [{protocol: TCP, port: 443}]")
    if not items and isinstance(node, Items):
        findings.error(
            node, "the list is empty; leave out 'ports' for every port, or write [{protocol: TCP, port: 443}]"
        )
    return merge_ports([one for item in items if (one := _read_port(item, findings)) is not None])


def _read_port(node: Node, findings: Findings) -> PortRange | None:
    fields = findings.fields(node, "a mapping like {protocol: TCP, port: 443}")
    if fields is None:
        return None
    entries = dict(findings.known(fields, ("protocol", "port", "endPort")))
    if not entries:
        if not fields.keys:
            findings.error(node, "the entry is empty; write {protocol: TCP, port: 443}")
        return None
    protocol = _read_protocol(entries.get("protocol"), findings)
    first = _read_number(entries.get("port"), findings)
    last = _read_number(entries.get("endPort"), findings)
    if "endPort" in entries and "port" not in entries:
        findings.error(entries["endPort"], "endPort needs port: write {port: 8000, endPort: 8010}")
        return None
    if protocol is None or ("port" in entries and first is None) or ("endPort" in entries and last is None):
        return None
    if first is not None and last is not None and last < first:
        findings.error(entries["endPort"], f"endPort {last} is below port {first}; write the lower one as port")
        return None
    return PortRange(protocol, 0, 65535) if first is None else PortRange(protocol, first, last or first)


def _read_protocol(node: Node | None, findings: Findings) -> Protocol | None:
    if node is None:
        return Protocol.TCP
    text = findings.text(node, "TCP, UDP or SCTP")
    if text is None:
        return None
    if text not in Protocol.__members__:
        hint = nearest(text.upper(), Protocol.__members__) or "; write TCP, UDP or SCTP"
        findings.error(node, f"protocol '{text}' is not known{hint}")
        return None
    return Protocol[text]


def _read_number(node: Node | None, findings: Findings) -> int | None:
    if node is None:
        return None
    port = findings.integer(node, "a port number (named ports are not known here)")
    if port is not None and not 1 <= port <= 65535:
        findings.error(node, f"{port} is not a port; write a number from 1 to 65535")
        return None
    return port
