"""How a packet ends that no rule accepts: counted, reported, and dropped.

In Audit it is let through instead, and recorded by pod, peer, protocol and port: `audited_<why>_4`, or
`audited_portless_<why>_4` for a protocol without ports. A forged source is dropped as ever. A set that is full, or a
link whose share of them is used up, records nothing more; the packet passes, and is counted all the same. So does one
that can begin no flow: it answers what came to the pod, and whoever sent that would choose what is recorded.
"""

from __future__ import annotations

from collections.abc import Iterator

from dnsguard.enforce.nftables.layout import ADDRESS_TYPE, IP, Layout, Sets

LINK_REASONS = ("source", "unknown", "listener", "cut")
"""Why a packet is dropped before its pod's program is asked; counted by link."""

AUDIT_SHARES = "audit_shares"
"""The set in which each link has what is left of its share of records."""

# Connection tracking comes before the check of the source, and takes what is dropped later for an answer, or an end.
FORGED = "fib saddr . iif oif missing"

_COUNTERS = "flags dynamic,timeout; timeout 1h;"
_WITH_PORTS = "meta l4proto { tcp, udp, udplite, dccp, sctp }"
_PORTLESS = "meta l4proto != { tcp, udp, udplite, dccp, sctp }"

ICMP_ERRORS = (
    "icmp type { destination-unreachable, time-exceeded, parameter-problem }",
    "icmpv6 type { destination-unreachable, time-exceeded, parameter-problem, packet-too-big }",
)
# An INIT is the only chunk of its packet (RFC 9260, 6.10). Kernels before 5.14 cannot be asked for chunks by name.
NO_INIT = "@th,96,8 != 1"
_BEGIN_NOTHING = ("tcp flags & rst == rst", f"meta l4proto sctp {NO_INIT}", *ICMP_ERRORS)
"""What a pod's stack sends by itself in answer to a packet of no flow: the packet's sender chooses where to."""


def counters(key: str, layout: Layout) -> str:
    return f"set {{ type {key}; {_COUNTERS} size {layout.counter_set_size}; }}"


def ending_sets(layout: Layout) -> Sets:
    """The sets of all endings that have nothing to do with a program."""
    sets = {f"dropped_{why}": counters("iface_index", layout) for why in LINK_REASONS}
    sets["logged"] = f"set {{ type iface_index; flags dynamic,timeout; timeout 1m; size {layout.counter_set_size}; }}"
    if layout.audit:
        sets[AUDIT_SHARES] = f"set {{ type iface_index; {_COUNTERS} size {layout.counter_set_size}; }}"
        sets.update(_audited_sets("unknown", layout))
    return sets


def ending(why: str, layout: Layout) -> tuple[str, ...]:
    """Of a packet that does not come to its pod's program. One whose source is routed to its link, and is no pod's
    yet, passes in Audit, and so does a query that nobody listens for."""
    counted = (f"update @dropped_{why} {{ iif counter }}", *logged(why, layout))
    if layout.audit and why == "unknown":
        return (f"{FORGED} goto drop_source", *counted, *_let_through(why, layout))
    return (*counted, "accept" if layout.audit and why == "listener" else "drop")


def denial_sets(why: str, layout: Layout) -> Sets:
    """Denied packets by the pod's address, of one rule."""
    sets = {f"denied_{why}_{family}": counters(kind, layout) for family, kind in ADDRESS_TYPE.items()}
    return {**sets, **_audited_sets(why, layout)} if layout.audit else sets


def denial_chain(why: str, layout: Layout) -> tuple[str, ...]:
    counted = (f"update @denied_{why}_{family} {{ {ip} saddr counter }}" for family, ip in IP.items())
    return (*counted, *logged(why, layout), *(_let_through(why, layout) if layout.audit else ("drop",)))


def logged(why: str, layout: Layout) -> tuple[str, ...]:
    """The rule that reports a packet, so many a second for each pod link."""
    if not layout.log_rate:
        return ()
    rate = f"limit rate {layout.log_rate}/second burst {2 * layout.log_rate} packets"
    report = f'log prefix "dnsguard {why}" group {layout.nflog_group} snaplen 128'
    return (f"update @logged {{ iif {rate} }} {report}",)


def _audited_sets(why: str, layout: Layout) -> Sets:
    sets = {}
    for family, kind in ADDRESS_TYPE.items():
        for name, key in ((f"audited_{why}", " . inet_service"), (f"audited_portless_{why}", "")):
            body = f"type {kind} . {kind} . inet_proto{key}; {_COUNTERS} size {layout.audited_set_size};"
            sets[f"{name}_{family}"] = f"set {{ {body} }}"
    return sets


def _let_through(why: str, layout: Layout) -> Iterator[str]:
    """What is recorded goes on being counted; only what is new takes of its link's share. Asking a set whether it has
    an element would count that, too; asking whether it has not does not."""
    records = [
        (ports, key, name)
        for family, ip in IP.items()
        for ports, key, name in (
            (_WITH_PORTS, f"{ip} saddr . {ip} daddr . meta l4proto . th dport", f"audited_{why}_{family}"),
            (_PORTLESS, f"{ip} saddr . {ip} daddr . meta l4proto", f"audited_portless_{why}_{family}"),
        )
    ]
    yield from (f"{answer} accept" for answer in _BEGIN_NOTHING)
    share = f"limit rate over 10/minute burst {layout.audited_per_link} packets"
    for ports, key, name in records:
        yield f"{ports} {key} != @{name} update @{AUDIT_SHARES} {{ iif {share} }} accept"
    for ports, key, name in records:
        yield f"{ports} update @{name} {{ {key} counter }} accept"
    yield "accept"
