"""The maps as they should be, and the ways they are brought there: leases, cuts, and changes in steps.

Lives in the writer's thread, and means what `enforce/nftables/table.Table` means. What is asked for names a pod by
its address; the maps know it by a number for each link that the address is on.

Maps have no transaction. A change goes: room for new pairs, new programs, new leases, to which nothing refers yet and
which can all be taken back (`prepare`); then each pair to what it runs from here on, the only moment that packets see
(`turn`); then leases and programs that nobody needs any more (`finish`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from dnsguard.core.errors import KernelError
from dnsguard.core.model import Flow, Pair
from dnsguard.enforce.bpf import layout
from dnsguard.enforce.bpf.flows import Flows
from dnsguard.enforce.bpf.leases import Ends, Leases
from dnsguard.enforce.bpf.pairs import Pairs, Runs
from dnsguard.enforce.bpf.program import Entries, entries
from dnsguard.enforce.bpf.programs import Programs
from dnsguard.enforce.bpf.sweep import Sweep
from dnsguard.enforce.bpf.syscall import Map
from dnsguard.enforce.denials import Audited
from dnsguard.engine.contracts import Desired, Element, Held, Write

_ONLY = layout.U32.pack(0)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What `Desired` means in the maps."""

    programs: dict[str, Entries] = field(default_factory=dict)
    runs: dict[Pair, Runs] = field(default_factory=dict)
    scopes: frozenset[str] = frozenset()


class BpfTable:
    """Implements `enforce.lines.Second`. Takes over what an earlier process left in the maps.

    `prepare`, `apply` and `cut` raise KernelError when the kernel refuses; a want of room is told by the configuration
    key to raise.
    """

    def __init__(self, maps: Mapping[str, Map]) -> None:
        self._settings = maps["settings"]
        self._pairs = Pairs(maps)
        self._programs = Programs(maps)
        self._leases = Leases(maps["leases"], self._pairs, self._programs.scopes)
        self._flows = Flows(maps, self._pairs)
        self._sweep = Sweep(maps, self._pairs, self._leases, self._flows)
        self._in_force = self._coming = _Wanted()
        self._undo: list[Callable[[], None]] = []

    @property
    def empty(self) -> bool:
        """True when there is no pair: nothing was ever asked for, or nothing is governed."""
        return not self._pairs

    def number(self, pair: Pair) -> int | None:
        """The number of a pair; for any thread."""
        return self._pairs.number(pair)

    # Leases

    def arm(self, writes: Sequence[Write]) -> dict[Element, str]:
        """Make or refresh leases; returns the refused elements with the reason. The others are real."""
        return self._leases.arm(writes)

    def drop(self, elements: Iterable[Element]) -> None:
        self._leases.drop(elements)

    def keep(self, elements: Collection[Element]) -> None:
        """Take out every lease but these."""
        self._leases.keep(elements)

    def learn(self, scopes: Iterable[str]) -> None:
        """Scopes have numbers here, made from their names: `read` finds the leases of those that it was told of."""
        self._leases.learn(scopes)

    def read(self) -> list[Held]:
        return self._leases.read()

    # Flows

    def cut(self, flows: Iterable[Flow]) -> None:
        self._flows.cut(flows)

    def uncut(self, flows: Iterable[Flow]) -> None:
        self._flows.uncut(flows)

    def cut_before(self) -> list[Flow]:
        """What is cut: after taking over, the flows that an earlier process has cut."""
        return self._flows.cut_flows()

    def seed(self, outbound: Iterable[Flow], inbound: Iterable[Flow] = ()) -> None:
        """Take these flows, which pods or their peers began and which were judged, for open."""
        self._flows.seed(outbound, inbound)

    def sweep(self) -> bool:
        """Take out a slice of what has ended: some milliseconds. False when that was the last slice of a turn."""
        return self._sweep.step()

    # Audit

    def audit(self, on: bool) -> None:
        """Drop nothing but forged sources and what cannot be read, without a word; or decide again."""
        fields = layout.SETTINGS.unpack(self._settings.lookup(_ONLY) or bytes(layout.SETTINGS.size))
        self._settings.update(_ONLY, layout.SETTINGS.pack(*fields[:-1], on))

    def audited(self) -> Sequence[Audited]:
        """Nothing: what passes in Audit is the other line's to record."""
        return ()

    # Programs and pairs

    def apply(self, desired: Desired, add: Sequence[Write], remove: Collection[Element]) -> None:
        """Go over to `desired`. When it raises, what was in force is in force."""
        self.prepare(desired, add)
        self.turn()
        self.finish(remove)

    def prepare(self, desired: Desired, add: Sequence[Write]) -> None:
        """All of a change that can fail. Followed by `turn` and `finish`, or by `undo`; when it raises, by neither."""
        wanted = self._meaning(desired)
        if missing := {write.scope for write in add} - wanted.scopes:
            raise KernelError(f"no program carries scope {min(missing)}, and leases in it are to be made")
        self._coming = wanted
        try:
            self._undo.append(self._leases.expect(wanted.scopes))
            self._undo.append(partial(self._pairs.release, self._pairs.reserve(wanted.runs)))
            self._undo.append(partial(self._programs.unload, self._programs.load(wanted.programs.values())))
            self._add(add)
        except KernelError:
            self.undo()
            raise

    def _meaning(self, desired: Desired) -> _Wanted:
        known = self._in_force.programs
        programs = {each.name: known.get(each.name) or entries(each) for each in desired.programs}
        runs: dict[Pair, Runs] = {}
        for pair, program in desired.pairs.items():
            if program not in programs:
                raise KernelError(f"a pair runs program {program}, which is not among the programs")
            runs[pair] = Runs(programs[program].number)
        runs.update((pair, Runs(excluded=True)) for pair in desired.excluded)
        scopes = frozenset(rule.scope.name for each in desired.programs for rule in each.rules if rule.scope)
        return _Wanted(programs, runs, scopes)

    def _add(self, add: Sequence[Write]) -> None:
        ends = self._leases.ends(add)
        before = self._leases.before(ends)
        self._undo.append(lambda: self._restore(before))
        if refused := self._leases.write(ends):
            why = next(iter(refused.values()))
            raise KernelError(f"no room for {len(refused)} of {len(ends)} leases ({why}): raise tables.leases")

    def _restore(self, before: Ends) -> None:
        self._leases.write(before)

    def turn(self) -> None:
        """From here on packets are decided by what was prepared. A pair for which that fails is closed."""
        self._undo.clear()
        self._in_force = self._coming
        self._leases.carry(self._in_force.scopes)
        self._pairs.turn(self._in_force.runs)

    def finish(self, remove: Collection[Element]) -> None:
        """Take out what nobody needs. What belongs to pairs that have gone is nobody's, and swept."""
        self._leases.drop(remove)
        self._programs.keep({each.number for each in self._in_force.programs.values()})

    def undo(self) -> None:
        """Take back what was prepared."""
        while self._undo:
            self._undo.pop()()

    def running(self) -> dict[Pair, str]:
        """The program that each (link, address) runs, as the kernel has it."""
        return self._pairs.running()
