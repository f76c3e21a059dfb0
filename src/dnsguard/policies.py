"""The policy in force, and how another one takes its place: read in a child process, then put in force, or not at all.

Needs the engine only for a reload: the first policy is put in force by whoever restores the leases with it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from dnsguard.config.diagnostics import Diagnostic, Severity, exit_code
from dnsguard.config.settings import Settings
from dnsguard.control.calls import CallError, Reloaded
from dnsguard.core.model import Address
from dnsguard.engine.change import Changes
from dnsguard.engine.contracts import EventKind, Events
from dnsguard.engine.counters import Counters
from dnsguard.sources.loader import Loaded, load
from dnsguard.sources.store import Store


def print_all(diagnostics: Sequence[Diagnostic]) -> int:
    """On standard error; returns the exit code that they ask for."""
    for diagnostic in diagnostics:
        print(diagnostic, file=sys.stderr)
    return exit_code(diagnostics)


class Policies:
    """Owns the loaded allowlist. `own` tells the node's addresses, which a warning of the loader is about."""

    def __init__(
        self,
        config: Path,
        settings: Settings,
        events: Events,
        counters: Counters,
        *,
        own: Callable[[], Collection[Address]],
    ) -> None:
        self._config = config
        self._settings = settings
        self._events = events
        self._counters = counters
        self._own = own
        self._store: Store | None = None
        self._reloading = asyncio.Lock()
        self.rejected = False
        """Whether the last policy read is not the one in force."""

    async def first(self) -> Store:
        """The policy to start with. Raises CallError, with every diagnostic printed, when it cannot be used."""
        loaded = await self._load()
        code = print_all(loaded.diagnostics)
        if loaded.store is None:
            raise CallError(f"{self._settings.allowlist} cannot be used; the errors are above", code)
        self._keep(loaded.store)
        self._tell(loaded)
        return loaded.store

    async def reload(self, changes: Changes) -> Reloaded:
        """Read the allowlist again and go over to it. Raises CallError, with the old one in force, when it cannot."""
        async with self._reloading:
            loaded = await self._load()
            self._tell(loaded)
            if loaded.store is None:
                self._reject()
                raise CallError("\n".join(map(str, loaded.diagnostics)), exit_code(loaded.diagnostics))
            changed = await self._put_in_force(loaded.store, changes)
            return {
                "generation": changes.generation,
                "diagnostics": [str(one) for one in loaded.diagnostics],
                "changed": changed,
            }

    async def _put_in_force(self, store: Store, changes: Changes) -> int:
        """Returns how many pods it changes."""
        try:
            outcome = await changes.policy(store)
        except BaseException as error:
            store.close()
            self._reject()
            self._events.emit(EventKind.POLICY_REJECTED, reason=f"it could not be put in force: {error}")
            raise
        self._keep(store)
        self.rejected = False
        self._counters.reloads["loaded"] += 1
        self._events.emit(
            EventKind.POLICY_LOADED,
            generation=changes.generation,
            pods=outcome.pods,
            opened=outcome.opened,
            purged=outcome.purged,
            cut=outcome.cut,
        )
        return outcome.pods

    def _reject(self) -> None:
        self.rejected = True
        self._counters.reloads["rejected"] += 1

    async def _load(self) -> Loaded:
        settings = self._settings
        return await load(self._config, settings.allowlist, settings.paths.runtime, own=frozenset(self._own()))

    def _keep(self, store: Store | None) -> None:
        if self._store is not None:
            self._store.close()
        self._store = store

    def close(self) -> None:
        self._keep(None)

    def _tell(self, loaded: Loaded) -> None:
        kinds = {Severity.ERROR: EventKind.POLICY_REJECTED, Severity.WARNING: EventKind.POLICY_WARNING}
        for one in loaded.diagnostics:
            self._events.emit(kinds[one.severity], reason=str(one))
