"""The policy and the mode in force, and how others take their place: read, the policy in a child process, then put in
force, or not at all.

Needs the engine only for a reload: the first policy is put in force by whoever restores the leases with it.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from dnsguard.config.diagnostics import ConfigError, Diagnostic, Severity, errors
from dnsguard.config.groups import Mode
from dnsguard.config.live import read_again
from dnsguard.config.settings import Settings
from dnsguard.control.calls import CallError, Reloaded
from dnsguard.core.model import Address
from dnsguard.daemon.reloads import STOPPED
from dnsguard.engine.change import Changes
from dnsguard.engine.contracts import EventKind, Events
from dnsguard.engine.counters import Counters
from dnsguard.sources.loader import Loaded, load
from dnsguard.sources.store import Store


class Policies:
    """Owns the loaded allowlist. `own` tells the node's addresses, which a warning of the loader is about;
    `on_settings` hears of what a reload has changed in the configuration, once policy and mode are in force."""

    def __init__(
        self,
        config: Path,
        settings: Settings,
        events: Events,
        counters: Counters,
        *,
        own: Callable[[], Collection[Address]],
        on_settings: Callable[[Settings], None] = lambda settings: None,
    ) -> None:
        self._on_settings = on_settings
        self._config = config
        self._settings = settings
        self._events = events
        self._counters = counters
        self._own = own
        self._store: Store | None = None
        self.late: list[str] = []
        """What of config.yaml takes effect at a restart only, each with its place."""
        self.rejected = False
        """Whether the last policy read is not the one in force."""

    async def first(self) -> Store:
        """The policy to start with. Raises ConfigError when it cannot be used."""
        loaded = await self._load(self._settings)
        if loaded.store is None:
            raise ConfigError(loaded.diagnostics)
        self._keep(loaded.store)
        self._tell(loaded.diagnostics)
        return loaded.store

    async def reload(self, changes: Changes) -> Reloaded:
        """Read both files again and go over to what they say; one call at a time. Raises CallError, with all as it was,
        when it cannot."""
        settings, late = self._read_settings()
        loaded = await self._load(settings)
        found = [*late, *loaded.diagnostics]
        for key in late:
            self._events.emit(EventKind.RESTART_NEEDED, reason=str(key))
        self._tell(loaded.diagnostics)
        if loaded.store is None:
            raise self._rejected(found)
        before, changed = self._settings.mode, await self._go_over(settings, loaded.store, changes)
        self.late = [str(one) for one in late]
        told: Reloaded = {
            "generation": changes.generation,
            "diagnostics": [str(one) for one in found],
            "changed": changed,
        }
        if settings.mode is not before:
            told["mode"] = settings.mode.value
        return told

    def _read_settings(self) -> tuple[Settings, list[Diagnostic]]:
        try:
            return read_again(self._config, self._settings)
        except ConfigError as error:
            self._tell(error.diagnostics)
            raise self._rejected(error.diagnostics) from error

    def _rejected(self, found: Sequence[Diagnostic]) -> CallError:
        self._reject()
        return CallError("\n".join(map(str, errors(found) or found)))

    async def _go_over(self, settings: Settings, store: Store, changes: Changes) -> int:
        """Policy and mode. What the new policy allows is open before anything is closed, and Audit begins before the
        new policy could close anything. Returns how many pods the policy changes."""
        mode = settings.mode if settings.mode is not self._settings.mode else None
        if mode is Mode.AUDIT:
            await self._go_to(mode, changes)
        try:
            changed = await self._put_in_force(store, changes)
        except BaseException:
            if mode is Mode.AUDIT:
                await self._go_to(self._settings.mode, changes)
            raise
        if mode is Mode.ENFORCE:
            await self._go_to(mode, changes)
        self._settings = settings
        self._on_settings(settings)
        return changed

    async def _go_to(self, mode: Mode, changes: Changes) -> None:
        cut = await changes.audit(mode is Mode.AUDIT)
        self._events.emit(EventKind.MODE_CHANGED, mode=mode.value, count=cut)

    async def _put_in_force(self, store: Store, changes: Changes) -> int:
        """Returns how many pods it changes."""
        try:
            outcome = await changes.policy(store)
        except BaseException as error:
            store.close()
            self._reject()
            why = STOPPED if isinstance(error, CancelledError) else error
            self._events.emit(EventKind.POLICY_NOT_TAKEN, reason=f"the policy could not be put in force: {why}")
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

    async def _load(self, settings: Settings) -> Loaded:
        return await load(self._config, settings.allowlist, settings.paths.runtime, own=frozenset(self._own()))

    def _keep(self, store: Store | None) -> None:
        if self._store is not None:
            self._store.close()
        self._store = store

    def close(self) -> None:
        self._keep(None)

    def _tell(self, diagnostics: Sequence[Diagnostic]) -> None:
        for one in diagnostics:
            self._events.emit(_kind(one), reason=str(one))


def _kind(found: Diagnostic) -> EventKind:
    if found.severity is Severity.WARNING:
        return EventKind.POLICY_WARNING
    return EventKind.POLICY_NOT_TAKEN if found.unread else EventKind.POLICY_REJECTED
