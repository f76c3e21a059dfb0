"""What the daemon would decide, worked out from the files alone."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from itertools import islice
from pathlib import Path
from typing import Final

from dnsguard.config.diagnostics import ConfigError
from dnsguard.config.settings import read_settings
from dnsguard.control.calls import CallError, Explanation
from dnsguard.control.explain import Subject, refuse_excluded
from dnsguard.core.compile import compile_program
from dnsguard.core.model import Action, Address
from dnsguard.core.pods import assign
from dnsguard.core.policy import effective
from dnsguard.daemon.why import Case, explain_all
from dnsguard.sources.loader import load_here
from dnsguard.sources.store import Store

MOST_OTHERS: Final = 2000
"""Entries of other pods that are looked at for a policy that would allow it."""


def explain_files(config: Path, allowlist: Path | None, question: Mapping[str, str]) -> Explanation:
    """Answer the `explain` call's parameters. Raises ConfigError when the files cannot be used, CallError otherwise."""
    settings, _ = read_settings(config)
    loaded = load_here(config, allowlist)
    if loaded.store is None or settings is None:
        raise ConfigError(loaded.diagnostics)
    refuse_excluded(question["pod"], settings.pods.exclude)
    case = _case(loaded.store, question["pod"], settings.default_action.action, allowlist or settings.allowlist)
    return explain_all(case, question)


def _case(store: Store, pod: str, default: Action, allowlist: Path) -> Case:
    addresses = _addresses(store, pod)
    assignment = assign(addresses, store, default)
    program = compile_program(assignment.policy)
    others = tuple(effective(entry.policies, default) for entry in islice(store.entries(), MOST_OTHERS))
    subject = Subject(assignment.name or pod, assignment.policy, program, addresses[0], others=others)
    return Case(subject, addresses, allowlist, assignment.origin)


def _addresses(store: Store, pod: str) -> list[Address]:
    """The address itself, or those that the allowlist gives to the name (of a CIDR, the first stands for all)."""
    try:
        return [Address(ip_address(pod).packed)]
    except ValueError:
        pass
    found = [Address(entry.network.network_address.packed) for entry in store.named(pod)]
    if not found:
        raise CallError(f"the allowlist has no pod called {pod}: name one of its addresses, or correct the name")
    return found
