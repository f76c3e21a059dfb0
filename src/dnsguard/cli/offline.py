"""What the daemon would decide, worked out from the files alone."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path

from dnsguard.config.diagnostics import ConfigError
from dnsguard.config.settings import read_settings
from dnsguard.control.calls import CallError, Explanation
from dnsguard.control.explain import Subject, explain
from dnsguard.core.compile import compile_program
from dnsguard.core.model import Action, Address
from dnsguard.core.pods import assign
from dnsguard.sources.loader import load_here
from dnsguard.sources.store import Store


def explain_files(config: Path, allowlist: Path | None, question: Mapping[str, str]) -> Explanation:
    """Answer the `explain` call's parameters. Raises ConfigError when the files cannot be used, CallError otherwise."""
    settings, _ = read_settings(config)
    loaded = load_here(config, allowlist)
    if loaded.store is None or settings is None:
        raise ConfigError(loaded.diagnostics)
    subject = _subject(loaded.store, question["pod"], settings.default_action.action)
    return explain(subject, question)


def _subject(store: Store, pod: str, default: Action) -> Subject:
    addresses = _addresses(store, pod)
    assignment = assign(addresses, store, default)
    program = compile_program(assignment.policy)
    return Subject(assignment.name or pod, assignment.policy, program, addresses[0])


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
