"""Connection tracking without a kernel: a documented double of `contracts.Flows` that holds what a test puts in it.

`flows` are the open ones. What the engine deletes is taken out and remembered in `deleted`; addresses it forgets are in
`forgotten`. `refuse` makes every call fail as a kernel would. It settles each call before the call returns, unless
`before` is set: then whoever awaits one waits for that first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Collection, Generator, Iterable, Sequence
from typing import Any, Generic, TypeVar

from dnsguard.core.errors import KernelError
from dnsguard.core.model import Address, Flow

T = TypeVar("T")


class _Settled(Generic[T]):
    """An awaitable that needs no event loop, unless it has to wait for something first."""

    __slots__ = ("_before", "_value")

    def __init__(self, value: T, before: Awaitable[None] | None) -> None:
        self._value = value
        self._before = before

    def __await__(self) -> Generator[Any, None, T]:
        if self._before is not None:
            yield from self._before.__await__()
        return self._value


class ScriptedFlows:
    """Implements `Flows`. `asked` holds the addresses of each call of `begun_by`, in order."""

    def __init__(self) -> None:
        self.flows: set[Flow] = set()
        self.deleted: list[Flow] = []
        self.forgotten: list[Address] = []
        self.asked: list[frozenset[Address]] = []
        self.before: Awaitable[None] | None = None
        self._refusal: str | None = None

    def refuse(self, reason: str | None) -> None:
        """From here on every call raises KernelError with this reason; None: no more."""
        self._refusal = reason

    def begun_by(self, addresses: Collection[Address]) -> Awaitable[Sequence[Flow]]:
        self._object()
        wanted = frozenset(addresses)
        self.asked.append(wanted)
        return _Settled(sorted(flow for flow in self.flows if flow.pod in wanted), self.before)

    def delete(self, flows: Iterable[Flow]) -> Awaitable[None]:
        self._object()
        for flow in flows:
            self.flows.discard(flow)
            self.deleted.append(flow)
        return _Settled(None, self.before)

    def forget(self, addresses: Collection[Address]) -> Awaitable[None]:
        self._object()
        self.forgotten += sorted(addresses)
        self.flows = {flow for flow in self.flows if not {flow.pod, flow.peer, flow.reply_peer} & set(addresses)}
        return _Settled(None, self.before)

    def _object(self) -> None:
        if self._refusal is not None:
            raise KernelError(self._refusal)
