"""The part of the table that does not depend on any pod: sets, base chains and shared chains, as nft commands.

A chain is a list of rules in the order the kernel takes them; a set is its definition. Governed is what enters by a
link whose name matches a pattern; nothing else is touched, but for two things of our own: the marked replies of the
listener, and its port, which only TPROXY may reach.

    fragments    prerouting -450   no fragment of a forged source waits for its others, which ends in an error to it
    raw          prerouting -300   DNS of pod links is kept out of connection tracking and so out of every DNAT,
                                   and so are forged sources, which would change the state of others' flows
    intercept    prerouting -150   every packet of a pod link, after conntrack, before DNAT: see `pod`
    own_port     input      -150   the listening port is closed to all; an intercepted packet is for port 53
    to_pod       postrouting -150  what goes to a pod link: no TCP flow without a SYN, nothing of a cut flow
    replies      output     -300   our marked replies leave from port 53, untracked
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_address

from dnsguard.enforce.nftables.endings import FORGED, ICMP_ERRORS, LINK_REASONS, NO_INIT, ending, ending_sets
from dnsguard.enforce.nftables.layout import ADDRESS_TYPE, IP, Chains, Layout, Sets
from dnsguard.enforce.nftables.session import TABLE

BASE_CHAINS: Mapping[str, str] = {
    "fragments": "type filter hook prerouting priority -450; policy accept;",
    "raw": "type filter hook prerouting priority -300; policy accept;",
    "intercept": "type filter hook prerouting priority -150; policy accept;",
    "own_port": "type filter hook input priority -150; policy accept;",
    "to_pod": "type filter hook postrouting priority -150; policy accept;",
    "replies": "type filter hook output priority -300; policy accept;",
}
_FRAGMENTS = ("ip frag-off & 0x3fff != 0", "exthdr frag exists")
_NOT_NEW = "tcp flags & (syn | ack) != syn"


def static_sets(layout: Layout) -> Sets:
    """Every set that is always there, by name."""
    sets = ending_sets(layout)
    for family, kind in ADDRESS_TYPE.items():
        flow = f"{kind} . {kind} . inet_proto"
        timed = "flags dynamic,timeout; timeout 10m;"
        sets[f"pods{family}"] = f"map {{ type iface_index . {kind} : verdict; }}"
        sets[f"excluded{family}"] = f"set {{ type iface_index . {kind}; }}"
        sets[f"cut{family}"] = (
            f"set {{ type {flow} . inet_service . inet_service; {timed} size {layout.cuts + 1024}; }}"
        )
        sets[f"cut_portless{family}"] = f"set {{ type {flow}; {timed} size {layout.portless_cuts + 1024}; }}"
    return sets


def static_chains(layout: Layout) -> Chains:
    """Every chain that is always there, base chains included."""
    chains: Chains = {
        "fragments": tuple(
            line for each in _FRAGMENTS for line in _for_links("iifname", layout, f"{each} goto fragment_of_pod")
        ),
        "raw": _for_links("iifname", layout, "goto raw_pod"),
        "intercept": _intercept(layout),
        "own_port": (f"meta l4proto {{ tcp, udp }} th dport {layout.listen_port} counter drop",),
        "to_pod": _for_links("oifname", layout, "goto toward_pod"),
        "replies": _replies(layout),
        "raw_pod": (
            *_excluded("iif", "saddr", "return"),
            *(f"{dns} {'jump raw_dns' if layout.audit else 'notrack'}" for dns in _intercepted(layout)),
            f"{FORGED} notrack",
        ),
        "fragment_of_pod": (f"{FORGED} goto drop_source",),
        "pod": _pod(layout),
        "dns": _dns(layout),
        "flows": _flows(),
        "toward_pod": _toward_pod(layout),
    }
    if layout.audit:
        chains["raw_dns"] = _listened_for(layout, "notrack")
    for family in IP:
        for way in ("out", "back"):
            end = () if layout.audit else (_END_OF_CUT[way],)
            chains[f"cut{family}_{way}"] = (_renewed(family, way), *end)
            chains[f"cut_portless{family}_{way}"] = (_renewed_portless(family, way), *end)
    chains.update((f"drop_{why}", ending(why, layout)) for why in LINK_REASONS)
    return chains


def _pod(layout: Layout) -> tuple[str, ...]:
    """What enters by a pod link. Established flows are let through by the programs, behind the check of the source:
    a forged source must not ride on another pod's flow."""
    return (
        *_excluded("iif", "saddr", "accept"),
        *_SOURCE_ROUTES,
        *_NEIGHBOUR_DISCOVERY,
        *_DHCP,
        _MULTICAST_REPORTS,
        *(f"{dns} goto dns" for dns in _intercepted(layout)),
        "iif . ip saddr vmap @pods4",
        "iif . ip6 saddr vmap @pods6",
        "goto drop_unknown",
    )


# A node that is told to (accept_source_route, seg6_enabled) sends them on to another address than the one decided here.
_SOURCE_ROUTES = (
    "ip option lsrr exists counter drop",
    "ip option ssrr exists counter drop",
    "rt seg-left > 0 counter drop",
)
# What is let through here the node's own stack may answer with an error that quotes it: to a forged source that would
# carry out whatever a pod puts in.
_ROUTED_SOURCE = "fib saddr . iif oif exists"
# To addresses of the link and of the node only: the rest would be forwarded, and carry whatever a pod puts in it.
_NEIGHBOURS = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit } ip6 hoplimit 255"
_NEIGHBOUR_DISCOVERY = tuple(
    f"{_NEIGHBOURS} {source} {target} accept"
    for source in ("ip6 saddr { ::, fe80::/10 }", _ROUTED_SOURCE)
    for target in ("ip6 daddr { fe80::/10, ff02::/16 }", "fib daddr type local")
)
# Every pod's stack sends these when its link comes up; on a routed link nobody needs them. Not worth an event.
_MULTICAST_REPORTS = "icmpv6 type { mld-listener-report, mld-listener-done, mld2-listener-report } counter drop"
_DHCP = (
    "ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept",
    f"udp sport 68 udp dport 67 {_ROUTED_SOURCE} fib daddr type local accept",
    "ip6 saddr fe80::/10 ip6 daddr { fe80::/10, ff02::/16 } udp sport 546 udp dport 547 accept",
)


def _dns(layout: Layout) -> tuple[str, ...]:
    """A query goes to the listener, or nowhere. Every link has a route to fe80::/10, and no pod its address there."""
    mark = f"meta mark set meta mark or {layout.mark:#x}"
    return (
        "ip6 saddr fe80::/10 goto drop_source",
        f"{FORGED} goto drop_source",
        *_listened_for(layout, f"{mark} accept"),
        "goto drop_listener",
    )


def _listened_for(layout: Layout, then: str) -> tuple[str, ...]:
    """What becomes of a query that somebody listens for: where nobody does, the rule ends at its `tproxy`. That is how
    in Audit a query without a listener is tracked, and so reaches the server that stands behind a service's address.
    """
    return tuple(
        f"meta nfproto ipv{family} {protocol} dport 53 tproxy {ip} to :{layout.listen_port} {then}"
        for family, ip in IP.items()
        for protocol in ("udp", "tcp")
    )


def _flows() -> tuple[str, ...]:
    """The first thing each program asks: is this packet part of an open flow? A SYN never is, nor an SCTP INIT.

    A flow that the pod began is open once it was answered. Before that it is also the subject of no ICMP error: the
    pod's own packets keep its entry alive, dropped or not, and errors carry whatever it puts into them.
    """
    return (
        *(
            f"{ip} saddr . {ip} daddr . meta l4proto . th sport . th dport @cut{family} goto cut{family}_out"
            for family, ip in IP.items()
        ),
        *(
            f"{ip} saddr . {ip} daddr . meta l4proto @cut_portless{family} goto cut_portless{family}_out"
            for family, ip in IP.items()
        ),
        "ct direction original ct status & seen-reply == 0 return",
        f"meta l4proto tcp {_NOT_NEW} ct state established accept",
        f"meta l4proto sctp {NO_INIT} ct state established accept",
        "meta l4proto != { tcp, sctp } ct state established accept",
        *(f"{error} ct state related accept" for error in ICMP_ERRORS),
    )


def _toward_pod(layout: Layout) -> tuple[str, ...]:
    """What leaves by a pod link. After a cut the peer's next packet would begin an inbound flow, in whose replies
    everything passes (conntrack's tcp_loose); so an inbound TCP flow begins with a SYN, in Audit too: as the pod's
    own it can be judged when it is over. A flow to a server that was asked when nobody listened may be cut; its port
    may be used for a query that is answered here."""
    return (
        *_excluded("oif", "daddr", "accept"),
        f"{_marked(layout)} meta l4proto {{ tcp, udp }} th sport 53 accept",
        *(
            f"{ip} daddr . {ip} saddr . meta l4proto . th dport . th sport @cut{family} goto cut{family}_back"
            for family, ip in IP.items()
        ),
        *(
            f"{ip} daddr . {ip} saddr . meta l4proto @cut_portless{family} goto cut_portless{family}_back"
            for family, ip in IP.items()
        ),
        f"meta l4proto tcp ct state new {_NOT_NEW} counter drop",
    )


def _renewed(family: str, way: str) -> str:
    """Only this: what ends the packet is a rule of its own, for a failed update ends its rule. In Audit none does, and
    the pod's program decides."""
    pod, peer = _ENDS[way]
    ip = IP[family]
    key = f"{ip} {pod}addr . {ip} {peer}addr . meta l4proto . th {pod}port . th {peer}port"
    return f"update @cut{family} {{ {key} }}"


def _renewed_portless(family: str, way: str) -> str:
    pod, peer = _ENDS[way]
    ip = IP[family]
    return f"update @cut_portless{family} {{ {ip} {pod}addr . {ip} {peer}addr . meta l4proto }}"


_ENDS = {"out": ("s", "d"), "back": ("d", "s")}
"""Whose address and port the pod's are, and the peer's: the source's or the destination's."""
_END_OF_CUT = {"out": "goto drop_cut", "back": "counter drop"}


def _replies(layout: Layout) -> tuple[str, ...]:
    marked = _marked(layout)
    return (
        f"{marked} udp sport {layout.listen_port} notrack",
        f"{marked} udp sport {layout.listen_port} udp sport set 53",
        f"{marked} tcp sport 53 notrack",
    )


def _marked(layout: Layout) -> str:
    return f"meta mark and {layout.reply_mark:#x} == {layout.reply_mark:#x}"


def _intercept(layout: Layout) -> tuple[str, ...]:
    """A packet that comes back undecided is dropped."""
    return tuple(
        line
        for jump, drop in zip(
            _for_links("iifname", layout, "jump pod"), _for_links("iifname", layout, "drop"), strict=True
        )
        for line in (jump, drop)
    )


def _for_links(direction: str, layout: Layout, verdict: str) -> tuple[str, ...]:
    return tuple(
        f'{direction} != "lo" {verdict}' if pattern == "*" else f'{direction} "{pattern}" {verdict}'
        for pattern in layout.interfaces
    )


def _excluded(link: str, address: str, verdict: str) -> tuple[str, ...]:
    return tuple(f"{link} . {ip} {address} @excluded{family} {verdict}" for family, ip in IP.items())


def _intercepted(layout: Layout) -> tuple[str, ...]:
    """The matches for queries that are taken from their way."""
    port = "meta l4proto { tcp, udp } th dport 53"
    if layout.intercept is None:
        return (port,)
    matches = []
    for family, octets in (("4", 4), ("6", 16)):
        asked = sorted({str(ip_address(address)) for address in layout.intercept if len(address) == octets})
        if asked:
            matches.append(f"{IP[family]} daddr {{ {', '.join(asked)} }} {port}")
    return tuple(matches)


def lease_set_definition(name: str, layout: Layout) -> str:
    kind = ADDRESS_TYPE[name[-1]]
    return f"set {{ type {kind} . {kind}; flags timeout; size {layout.lease_set_size}; }}"


def add_sets(sets: Mapping[str, str]) -> list[str]:
    """Commands that make these sets and maps."""
    commands = []
    for name, definition in sets.items():
        kind, _, body = definition.partition(" ")
        commands.append(f"add {kind} inet {TABLE} {name} {body}")
    return commands


def add_chains(chains: Mapping[str, Iterable[str]]) -> list[str]:
    """Commands that make these chains, all of them before the first rule: rules go from one to another."""
    make = [f"add chain inet {TABLE} {name}{_hook(name)}" for name in chains]
    return make + [f"add rule inet {TABLE} {name} {rule}" for name, rules in chains.items() for rule in rules]


def _hook(name: str) -> str:
    return f" {{ {BASE_CHAINS[name]} }}" if name in BASE_CHAINS else ""
