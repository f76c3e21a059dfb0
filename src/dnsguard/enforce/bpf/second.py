"""The second line as the daemon holds it: maps and programs, and what keeps them in force.

Loading takes over what an earlier process left, which goes on deciding until the programs of this one take its place
on each link. The `table` belongs to the writer's thread; links have a thread of their own here, because the kernel may
keep whoever changes them waiting; all else is for the event loop and takes some microseconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from dnsguard.core.model import Address, LinkIndex, Pair, Seconds
from dnsguard.enforce.bpf import layout, pins
from dnsguard.enforce.bpf.answers import BpfAnswers
from dnsguard.enforce.bpf.attach import WITH_PEERS, Attachments, driver
from dnsguard.enforce.bpf.idle import idle_ns
from dnsguard.enforce.bpf.load import load
from dnsguard.enforce.bpf.mounts import follows
from dnsguard.enforce.bpf.syscall import Map
from dnsguard.enforce.bpf.table import BpfTable

T = TypeVar("T")

VOUCHED: Final[Seconds] = 10.0
"""How far ahead queries may go up: enough for a restart."""
_SECOND_NS: Final = 1_000_000_000
_ONLY: Final = layout.U32.pack(0)
_ANSWERS_BY: Final = layout.U32.pack(1)
_YES: Final = layout.U32.pack(1)


@dataclass(frozen=True, slots=True)
class EbpfLayout:
    """What the maps are made for. `intercept` None is every address; rates are a second's, of each pod."""

    bpffs: Path
    pods: int = 1_000
    leases: int = 100_000
    flows: int = 200_000
    flows_per_pod: int = 10_000
    answers: int = 50_000
    answers_per_pod: int = 1_000
    prefixes: int = 100_000
    queries: int = 10_000
    query_burst: int = 20_000
    reports: int = 10
    intercept: tuple[Address, ...] | None = None
    audit: bool = False

    @property
    def sizes(self) -> dict[str, int]:
        """Most entries, by map. Two generations of a policy are there at the same time, and what has ended lingers."""
        links = 2 * self.pods + 1024
        return {
            "pairs": 4 * self.pods + 1024,
            "leases": self.leases + self.leases // 4 + 1024,
            "programs": 2 * self.pods + 64,
            "ports": 128 * self.pods + 65_536,
            "blocks": 2 * self.prefixes + 1024,
            "flows": self.flows + 1024,
            "fragments": 128 * self.pods + 1024,
            "links": links,
            "peers": links,
            "flows_made": links,
            "flows_freed": links,
            "counts": 32 * links,
            "answers": self.answers + 1024,
        }

    def settings(self) -> bytes:
        """The entry of the map `settings`."""
        report_ns = _SECOND_NS // self.reports if self.reports else 0
        return layout.SETTINGS.pack(
            *idle_ns(),
            _SECOND_NS // self.queries,
            _SECOND_NS * self.query_burst // self.queries,
            report_ns,
            2 * _SECOND_NS,
            self.flows_per_pod,
            self.intercept is None,
            self.audit,
        )


class SecondLine:
    """Made inside the network namespace it works in; blocks for some tens of milliseconds.

    Raises MissingFeatureError when this machine cannot (it names what is missing), KernelError when the kernel
    refuses. `knows_flows`: the programs of an earlier process, until these take their place, write to the same flows.
    """

    def __init__(self, made_for: EbpfLayout, *, tcx: bool | None = None) -> None:
        self._layout = made_for
        self._loaded = load(made_for.bpffs, made_for.sizes)
        self._follows = follows(made_for.bpffs)
        self.knows_flows = "flows" in self._loaded.same
        self.maps = self._loaded.maps
        self._vouched, self._own = self.maps["dns_open_until_ns"], self.maps["own"]
        self._thread = ThreadPoolExecutor(1, "dnsguard-links")
        try:
            self._write_settings()
            self.table = BpfTable(self.maps)
            self.answers = BpfAnswers(self.maps["answers"], per_source=made_for.answers_per_pod, total=made_for.answers)
            self._attachments = self._thread.submit(
                lambda: Attachments(self._loaded.programs, made_for.bpffs, tcx)
            ).result()
        except BaseException:
            self._thread.shutdown()
            self._loaded.close()
            raise

    def _write_settings(self) -> None:
        self.maps["settings"].update(_ONLY, self._layout.settings())
        _make(self.maps["intercepted"], self._layout.intercept or ())

    def number(self, pair: Pair) -> int | None:
        """The number by which the kernel knows a link and an address; None while it does not."""
        return self.table.number(pair)

    def answers_made_by(self, fingerprint: int) -> bool:
        """Say what this process's answers are made by; False when an earlier one's were made by something else."""
        state = self.maps["state"]
        before, now = state.lookup(_ANSWERS_BY), layout.U64.pack(fingerprint)
        state.update(_ANSWERS_BY, now)
        return before == now

    def vouch(self, now: Seconds) -> None:
        """What goes up is intercepted: let queries up for a while from `now` on."""
        self._vouched.update(_ONLY, layout.U64.pack(int((now + VOUCHED) * 1e9)))

    def distrust(self) -> None:
        """It may not be: let none up until somebody vouches again."""
        self._vouched.update(_ONLY, layout.U64.pack(0))

    def own(self, addresses: Iterable[Address]) -> None:
        """The node's own addresses."""
        _make(self._own, addresses)

    # ---- links

    @property
    def failures(self) -> dict[str, str]:
        """Why the programs are not the first on a link, by its name, as last looked at."""
        return self._attachments.failures

    def attach(self, link: LinkIndex, name: str) -> Awaitable[None]:
        """Put the programs first on a link. Raises MissingFeatureError, KernelError."""
        return self._in_thread(lambda: self._attach(link, name))

    def _attach(self, link: LinkIndex, name: str) -> None:
        key = layout.U32.pack(link)
        if driver(name) in WITH_PEERS:
            self.maps["peers"].update(key, _YES)
        else:
            self.maps["peers"].delete(key)
        self._attachments.attach(link, name)

    def detach(self, link: LinkIndex) -> Awaitable[None]:
        """A link is gone, or no pod's any longer."""
        return self._in_thread(lambda: self._detach(link))

    def _detach(self, link: LinkIndex) -> None:
        self._attachments.detach(link)
        self.maps["peers"].delete(layout.U32.pack(link))

    def retain(self) -> Awaitable[None]:
        """Take the programs off links that are no pod's any longer, by a change of the configuration."""
        return self._in_thread(self._attachments.retain)

    def verify(self) -> Awaitable[list[str]]:
        """What was wrong on any link or with a pin, and has been put right; what could not be is in `failures`."""
        return self._in_thread(lambda: [*self._attachments.verify(), *self._pin_again()])

    def _pin_again(self) -> list[str]:
        with suppress(OSError):  # nothing can be pinned there: the links' failures say so
            if gone := pins.pin_again(self._layout.bpffs, self.maps):
                return [f"pins of {len(gone)} maps were gone"]
        return []

    @property
    def unmounted(self) -> bool:
        """The node's bpffs was taken away under this process, which goes on with a copy that ends with it."""
        return self._follows and not follows(self._layout.bpffs)

    def _in_thread(self, call: Callable[[], T]) -> Awaitable[T]:
        return asyncio.get_running_loop().run_in_executor(self._thread, call)

    def close(self) -> None:
        """What is in the kernel stays in force."""
        self._thread.submit(self._attachments.close).result()
        self._thread.shutdown()
        self._loaded.close()


def _make(addresses: Map, wanted: Iterable[Address]) -> None:
    """Have exactly these addresses in the map."""
    keys = {layout.address(each) for each in wanted}
    for gone in set(addresses.keys()) - keys:
        addresses.delete(gone)
    for key in keys:
        addresses.update(key, _YES)
