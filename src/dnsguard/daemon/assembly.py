"""What the configuration means to each room: the one place where settings are turned into what rooms are built from."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from math import ceil

from dnsguard.config.groups import DenyResponse, Mode, OnExceed, Revocation, Settings
from dnsguard.core.answers import DEFAULT_PROTECTED, Protected
from dnsguard.core.book import Capacity
from dnsguard.core.lease import NAMES_PER_LEASE
from dnsguard.core.limits import REFUSED_BEFORE_DROPPING, Limits
from dnsguard.core.model import Address
from dnsguard.core.wire import Rcode
from dnsguard.enforce.bpf.second import EbpfLayout
from dnsguard.enforce.nftables.layout import Layout
from dnsguard.engine.change import ChangeSettings
from dnsguard.engine.engine import EngineSettings
from dnsguard.engine.fetches import FetchLimits
from dnsguard.engine.refusals import ExchangeSettings
from dnsguard.node.routing import InterceptionRoute

NAMES_FOR_EACH = 4
"""Names of a pod's leases, on the average: most have one."""
_DENY_RCODES = {
    DenyResponse.NXDOMAIN: Rcode.NXDOMAIN,
    DenyResponse.NODATA: Rcode.NOERROR,
    DenyResponse.REFUSED: Rcode.REFUSED,
}


def engine_settings(settings: Settings) -> EngineSettings:
    """For the two stories. TTLs count whole seconds: what must last is rounded up, what may be shown down."""
    limits, ttl, dns = settings.limits, settings.ttl, settings.dns
    return EngineSettings(
        exchange=ExchangeSettings(
            deny_rcode=_DENY_RCODES[dns.deny_response],
            drop_over_limit=limits.on_exceed is OnExceed.DROP,
            deadline=dns.deadline,
            serve_stale=ceil(dns.serve_stale),
            floor=ceil(ttl.floor),
            grace=ceil(ttl.grace),
            loop_sources=frozenset(str(upstream.address) for upstream in settings.upstreams),
        ),
        fetch=FetchLimits(attempt=dns.timeout, total=dns.deadline, cap=int(ttl.cap)),
        change=ChangeSettings(
            default=settings.default_action.action,
            exclude=frozenset(Address(address.packed) for address in settings.pods.exclude),
            limits=Limits(
                queries_per_second=limits.queries_per_second,
                burst=limits.burst,
                in_flight=limits.in_flight,
                connections=limits.tcp_connections,
                names_per_minute=limits.unique_names_per_minute,
            ),
            most_pods=settings.tables.pods,
        ),
        capacity=Capacity(
            limits.leases_per_pod,
            limits.addresses_per_name,
            settings.tables.leases,
            pairs=NAMES_FOR_EACH * limits.leases_per_pod + NAMES_PER_LEASE,
        ),
        cache_entries=settings.cache.entries,
        drain=settings.enforcement.revocation is Revocation.DRAIN,
        prefetch=settings.dns.prefetch,
        audit=settings.mode is Mode.AUDIT,
    )


def table_layout(settings: Settings) -> Layout:
    """For the nftables enforcer."""
    return Layout(
        interfaces=settings.pods.interfaces,
        listen_port=settings.dns.listen_port,
        mark=settings.interception.mark,
        reply_mark=settings.interception.reply_mark,
        intercept=tuple(Address(address.packed) for address in settings.dns.intercept) or None,
        nflog_group=settings.interception.nflog_group,
        leases=settings.tables.leases,
        flows=settings.tables.flows,
        pods=settings.tables.pods,
        log_rate=settings.limits.log_lines,
        audit=settings.mode is Mode.AUDIT,
    )


def ebpf_layout(settings: Settings) -> EbpfLayout:
    """For the eBPF line. Over the rate the daemon refuses, up to ten times of it; the kernel drops what is beyond."""
    limits, tables = settings.limits, settings.tables
    refused = 1 if limits.on_exceed is OnExceed.DROP else 1 + REFUSED_BEFORE_DROPPING
    return EbpfLayout(
        bpffs=settings.paths.bpffs,
        pods=tables.pods,
        leases=tables.leases,
        flows=tables.flows,
        flows_per_pod=limits.flows_per_pod,
        answers=tables.answers,
        answers_per_pod=limits.kernel_answers_per_pod,
        prefixes=tables.prefixes,
        queries=limits.queries_per_second * refused,
        query_burst=limits.burst * refused,
        reports=limits.log_lines,
        audit=settings.mode is Mode.AUDIT,
        intercept=tuple(Address(address.packed) for address in settings.dns.intercept) or None,
    )


def answers_fingerprint(settings: Settings, own: Iterable[Address]) -> int:
    """Stands for all that decides what an answer may contain and how long it is told, besides the policies."""
    content = [settings.mode, settings.ttl, settings.answers, settings.dns.deny_response, sorted(own)]
    return int.from_bytes(sha256(repr(content).encode()).digest()[:8], "big")


def protected(settings: Settings, own: Iterable[Address]) -> Protected:
    """Addresses that no answer may contain; `own` are the node's."""
    answers = settings.answers
    if not answers.protect_default:
        return Protected(answers.protected_networks)
    return Protected((*DEFAULT_PROTECTED, *answers.protected_networks), own)


def interception_route(settings: Settings) -> InterceptionRoute:
    """For the rule and the route that deliver intercepted packets."""
    interception = settings.interception
    return InterceptionRoute(interception.mark, interception.rule_priority, interception.table)
