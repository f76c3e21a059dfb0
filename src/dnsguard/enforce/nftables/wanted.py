"""What `Desired` means in the kernel: every chain, set and pair of the table. Pure; `table.py` brings it there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypedDict

from dnsguard.core.errors import KernelError
from dnsguard.enforce.nftables import elements, endings, ruleset
from dnsguard.enforce.nftables.elements import Key, SetName
from dnsguard.enforce.nftables.layout import Chains, Layout, Sets
from dnsguard.enforce.nftables.program import Compiled, compiled
from dnsguard.engine.contracts import Desired


class PairFields(TypedDict):
    pairs: dict[SetName, dict[Key, str]]
    excluded: dict[SetName, frozenset[Key]]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Every chain, set, pair and excluded pair of the table."""

    chains: Chains
    sets: Sets
    lease_sets: frozenset[SetName]
    pairs: dict[SetName, dict[Key, str]]
    excluded: dict[SetName, frozenset[Key]]
    programs: dict[str, Compiled] = field(default_factory=dict)


def meaning(desired: Desired, known: Mapping[str, Compiled], layout: Layout) -> Wanted:
    """Programs that are `known` are not compiled again. Raises KernelError for a pair whose program is not there."""
    programs = {each.name: known.get(each.name) or compiled(each) for each in desired.programs}
    return whole(programs, _pairs(desired, programs), layout)


def whole(programs: dict[str, Compiled], pairs: PairFields, layout: Layout) -> Wanted:
    """The table of these programs and pairs."""
    static_chains, static_sets = _static(layout)
    chains, sets = dict(static_chains), dict(static_sets)
    for why in sorted({why for each in programs.values() for why in each.denials}):
        chains[f"denied_{why}"] = endings.denial_chain(why, layout)
        sets.update(endings.denial_sets(why, layout))
    lease_sets = frozenset(name for each in programs.values() for name in each.lease_sets)
    sets.update((name, ruleset.lease_set_definition(name, layout)) for name in lease_sets)
    for each in programs.values():
        chains.update(each.chains)
    return Wanted(chains, sets, lease_sets, **pairs, programs=programs)


@lru_cache(maxsize=2)
def _static(layout: Layout) -> tuple[Chains, Sets]:
    return ruleset.static_chains(layout), ruleset.static_sets(layout)


def _pairs(desired: Desired, programs: Mapping[str, Compiled]) -> PairFields:
    pairs: dict[SetName, dict[Key, str]] = {"pods4": {}, "pods6": {}}
    for (link, address), program in desired.pairs.items():
        if program not in programs:
            raise KernelError(f"a pair runs program {program}, which is not among the programs")
        pairs["pods4" if len(address) == 4 else "pods6"][elements.pair_key(link, address)] = programs[program].entry
    excluded: dict[SetName, set[Key]] = {"excluded4": set(), "excluded6": set()}
    for link, address in desired.excluded:
        excluded["excluded4" if len(address) == 4 else "excluded6"].add(elements.pair_key(link, address))
    return PairFields(pairs=pairs, excluded={name: frozenset(keys) for name, keys in excluded.items()})
