"""The operator's files: any octets give diagnostics that can be shown, and what has no errors can be put to use."""

from __future__ import annotations

import io
from collections.abc import Sequence
from ipaddress import ip_network
from itertools import islice

from dnsguard.config import settings
from dnsguard.config.diagnostics import Diagnostic, errors, exit_code
from dnsguard.config.files import decode
from dnsguard.core.answers import DEFAULT_PROTECTED
from dnsguard.core.compile import MOST_RULES, compile_program
from dnsguard.core.errors import PolicyError
from dnsguard.core.model import Action, Address, PodEntry
from dnsguard.core.names import pattern_text
from dnsguard.core.pods import assign
from dnsguard.daemon.assembly import engine_settings, interception_route, protected, table_layout
from dnsguard.sources import allowlist
from dnsguard.sources.store import Store, StoreWriter

NODE = allowlist.Surroundings(DEFAULT_PROTECTED, frozenset([ip_network("192.0.2.7")]))
LONGEST_LINE = 2_300
MOST_ENTRIES = 20


def config(content: bytes) -> None:
    """config.yaml. Without errors the daemon could be built from it."""
    found = settings.diagnose(content, "config.yaml")
    check_diagnostics(content, found)
    if any("is not UTF-8" in one.text for one in found):
        return
    read, again = settings.settings_from_text(decode(content, "config.yaml"), "config.yaml")
    assert again == found
    assert (read is None) == (exit_code(found) == 1)
    if read is not None:
        engine_settings(read)
        table_layout(read)
        interception_route(read)
        protected(read, ())


def policies(content: bytes) -> None:
    """allowlist.yaml. Without errors every entry can be stored, found again, compiled and asked."""
    found = allowlist.diagnose(content, "allowlist.yaml", NODE)
    check_diagnostics(content, found)
    if errors(found):
        return
    reader = allowlist.AllowlistReader(decode(content, "allowlist.yaml"), "allowlist.yaml", NODE)
    file, entries = io.BytesIO(), []
    writer = StoreWriter(file)
    for entry in reader.entries():
        writer.add(entry)
        entries.append(entry)
    writer.finish("allowlist.yaml")
    assert reader.diagnostics() == found
    store = Store(file.getvalue())
    for entry in entries[:MOST_ENTRIES]:
        check_entry(entry, store)


def check_entry(entry: PodEntry, store: Store) -> None:
    address = Address(entry.network.network_address.packed)
    stored = store.entry(address)
    assert stored is not None and entry.network.supernet_of(stored.network)  # type: ignore[arg-type]
    if stored.network == entry.network:
        assert stored == entry
    try:
        assignment = assign((address,), store, Action.DENY)
        assert len(compile_program(assignment.policy).rules) <= MOST_RULES
    except PolicyError:
        # Rules of several entries may be too many together only where they are combined; the daemon then denies all.
        raise AssertionError(f"{entry.network} has no errors and cannot be compiled") from None
    for policy in entry.policies:
        for peer in (peer for rule in policy.rules for peer in rule.domains):
            for pattern in islice(peer.patterns, MOST_ENTRIES):
                assert pattern_text(pattern)
                assignment.policy.verdict(pattern.name)


def check_diagnostics(content: bytes, found: Sequence[Diagnostic]) -> None:
    """Each is one line that a terminal can show, at a place that the file has; they come in the file's order."""
    lines = content.decode("utf-8-sig", "replace").replace("\r\n", "\n").replace("\r", "\n").count("\n") + 1
    lines += sum(content.count(mark) for mark in (b"\xc2\x85", b"\xe2\x80\xa8", b"\xe2\x80\xa9"))
    places = []
    for one in found:
        assert str(one).isprintable()
        assert len(str(one)) <= LONGEST_LINE
        assert 1 <= one.origin.line <= lines + 1
        assert one.origin.column >= 1
        places.append((one.origin.line, one.origin.column))
    assert places == sorted(places)
    assert exit_code(found) in (0, 1, 77)
