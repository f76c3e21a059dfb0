"""Policy rules, routing tables and marks: that interception's own are free, or are dnsguard's."""

from __future__ import annotations

from collections.abc import Iterator

from dnsguard.daemon.assembly import interception_route
from dnsguard.doctor.findings import Finding, ok, problem, warning
from dnsguard.doctor.node import Node
from dnsguard.node.routing import OUR_PROTOCOL, takes
from dnsguard.node.rtnetlink import PolicyRule


def check_rules(node: Node) -> Iterator[Finding]:
    ours = interception_route(node.settings)
    others = [rule for rule in node.rules if rule.protocol != OUR_PROTOCOL]
    for rule in _once(rule for rule in others if takes(rule, ours)):
        found = f"the ip rule of priority {rule.priority} may take intercepted queries to table {rule.table}"
        yield problem("ip rule", found, f"set interception.rulePriority below {rule.priority}")
    for rule in _once(rule for rule in others if rule.priority == ours.priority):
        found = f"priority {rule.priority} is used by a rule to table {rule.table}"
        yield warning("ip rule", found, "set interception.rulePriority to a free number")
    if not any(takes(rule, ours) or rule.priority == ours.priority for rule in others):
        yield ok("ip rule", f"priority {ours.priority} is dnsguard's alone, and nothing takes its packets before")


def check_present(node: Node) -> Iterator[Finding]:
    """While the daemon runs, its own rules stand."""
    if node.daemon is None:
        return
    present = [rule for rule in node.rules if rule.protocol == OUR_PROTOCOL]
    missing = [part for family in _families(node) for part in interception_route(node.settings).parts(family)]
    gone = [part for part in missing if isinstance(part, PolicyRule) and part not in present]
    if gone:
        found = "the rule for intercepted queries is missing: they are dropped"
        yield problem(
            "ip rule", found, "the daemon puts it back: look for kernel_state_repaired and node_problem in its log"
        )


def check_table(node: Node) -> Iterator[Finding]:
    table = node.settings.interception.table
    strange = [route for route in node.routes if route.table == table and route.protocol != OUR_PROTOCOL]
    if strange:
        found = f"table {table} has {len(strange)} route(s) of others"
        yield problem("routing table", found, "set interception.table to a free number")
    else:
        yield ok("routing table", f"table {table} has no routes of others")


def check_marks(node: Node) -> Iterator[Finding]:
    """Rules that look at bits of our marks. Those of other tables are found by the query that is asked (query.py)."""
    bits = node.settings.interception.mark | node.settings.interception.reply_mark
    overlapping = [rule for rule in node.rules if rule.mask & bits and rule.protocol != OUR_PROTOCOL and rule.mark]
    for rule in _once(overlapping):
        found = f"the ip rule of priority {rule.priority} looks at mark {rule.mark:#x}/{rule.mask:#x}: bits of ours"
        yield warning("marks", found, "set interception.mark and replyMark to bits that nobody uses")
    if not overlapping:
        yield ok("marks", f"no ip rule looks at bits of {bits:#x}")


def _families(node: Node) -> list[int]:
    """Those that the node has rules of: all but IPv6 where it is switched off."""
    return sorted({rule.family for rule in node.rules})


def _once(rules: Iterator[PolicyRule] | list[PolicyRule]) -> Iterator[PolicyRule]:
    """One rule of each priority and table: most stand twice, for IPv4 and for IPv6."""
    yield from {(rule.priority, rule.table): rule for rule in rules}.values()
