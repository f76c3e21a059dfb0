"""Dnsguard's table as it should be, and the ways the kernel is brought there: install, apply, repair.

Lives in the writer's thread. What was asked for is kept here (the kernel is not listed again for one pod more), with
the time each lease ends, so that the table can be made anew when someone else has damaged it.

A change goes: new sets and chains, to which nothing refers yet; new lease elements; then one transaction that turns
the pairs to their chains, the only moment that packets see; then leases, chains and sets that nobody needs any more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from dnsguard.core.errors import KernelError
from dnsguard.core.model import Flow, Pair
from dnsguard.enforce.denials import Audited
from dnsguard.enforce.nftables import elements, netlink, ruleset
from dnsguard.enforce.nftables.audited import audited
from dnsguard.enforce.nftables.elements import Key, LeaseSets, SetName
from dnsguard.enforce.nftables.inventory import Inventory, deletions, inventory, sets
from dnsguard.enforce.nftables.layout import Layout
from dnsguard.enforce.nftables.netlink import Part
from dnsguard.enforce.nftables.program import program_of
from dnsguard.enforce.nftables.session import TABLE, Session, delete_table
from dnsguard.enforce.nftables.wanted import PairFields, Wanted, meaning, whole
from dnsguard.engine.contracts import Desired, Element, Held, Write

T = TypeVar("T")
Ends = dict[Key, float]
_CHUNK = 20_000
"""Elements in one transaction: some 80 ms, during which no other commit of the namespace proceeds."""
_SWEEP_FLOOR = 10_000


class Table:
    """`apply` and the others raise KernelError when the kernel refuses."""

    def __init__(self, session: Session, layout: Layout, own: bool, refreshes: bool) -> None:
        self._session = session
        self._own = own
        self._leases = LeaseSets(session, refreshes)
        self._layout = layout
        self._installed: Wanted | None = None
        self._ends: dict[SetName, Ends] = {}
        self._cuts: dict[SetName, dict[Key, None]] = {}
        self._sweep_at = _SWEEP_FLOOR
        self.owned = False
        if session.table():
            self._adopt()

    def _adopt(self) -> None:
        """Take over what an earlier process left: its leases are ours from here on."""
        self.owned = self._session.claim(self._own)
        now = time.monotonic()
        sets = inventory(self._session).sets
        for name in filter(elements.is_lease_set, sets):
            self._ends[name] = {key: now + ms / 1000 for key, ms in self._held(name).items()}
        for name in filter(sets.__contains__, elements.CUT_SETS):
            self._cuts[name] = {elements.element_key(each): None for each in elements.dump_set(self._session, name)}

    # Leases

    def arm(self, writes: Iterable[Write]) -> dict[Element, str]:
        """Make or refresh leases in one transaction; returns the refused elements with the reason."""
        leases = elements.merged(writes)
        refused = self._leases.make(leases)
        if refused and self._installed and "ENOENT" in refused.values() and self._missing(refused):
            self.repair()
            refused = self._leases.make(leases)
        self._remember(leases, refused)
        return refused

    def _missing(self, refused: Mapping[Element, str]) -> bool:
        """Someone has taken away a set that should be there."""
        wanted = self._installed.lease_sets if self._installed else frozenset()
        return any(elements.lease_set(*element) in wanted for element, why in refused.items() if why == "ENOENT")

    def _remember(self, leases: elements.Leases, refused: Mapping[Element, str]) -> None:
        now = time.monotonic()
        for name, keys in leases.items():
            ends = self._ends.setdefault(name, {})
            moments = {ms: now + ms / 1000 for ms in set(keys.values())}  # most are the same: one object for these
            for key, ms in keys.items():
                ends[key] = moments[ms]
        for element in refused:
            self._ends[elements.lease_set(*element)].pop(element.key, None)
        if sum(map(len, self._ends.values())) > self._sweep_at:
            self._sweep(now)

    def _sweep(self, now: float) -> None:
        for name, ends in self._ends.items():
            self._ends[name] = {key: end for key, end in ends.items() if end > now}
        self._sweep_at = max(_SWEEP_FLOOR, 2 * sum(map(len, self._ends.values())))

    def read(self) -> list[Held]:
        """Every lease in the kernel, of every set that is there."""
        return [
            Held(elements.scope_of(name), key, ms)
            for name in filter(elements.is_lease_set, inventory(self._session).sets)
            for key, ms in self._held(name).items()
            if ms > 0 and key != elements.EVERY
        ]

    def _held(self, name: SetName) -> dict[Key, int]:
        return elements.dump_leases(self._session, name)

    def drop(self, gone: Collection[Element]) -> None:
        """Take these leases out, present or not."""
        for element in gone:
            self._ends.get(elements.lease_set(*element), {}).pop(element.key, None)
        self._leases.drop(gone)

    # Flows

    def cut(self, flows: Iterable[Flow]) -> None:
        """When there is no room for the flows of some pod, it is cut none, and the others theirs before this raises."""
        refused: list[KernelError] = []
        for name, members in _by_pod(_cut_keys(flows)):
            try:
                self._despite_damage(partial(self._make_cuts, name, members))
            except KernelError as error:
                refused.append(error)
            else:
                self._cuts.setdefault(name, {}).update(dict.fromkeys(members))
        self._forget_silent_cuts()
        if refused:
            raise KernelError(f"the flows of {len(refused)} pod addresses are not cut: {refused[0]}")

    def _make_cuts(self, name: SetName, keys: Iterable[Key]) -> None:
        packed = [elements.timed(key, elements.CUT_MS) for key in keys]
        self._session.commit([*elements.parts(netlink.NEWSETELEM, name, packed)], "to cut flows")

    def uncut(self, flows: Iterable[Flow]) -> None:
        for name, members in _cut_keys(flows).items():
            known = self._cuts.get(name, {})
            for key in members:
                known.pop(key, None)
            elements.delete_present_or_not(self._session, name, members)

    def cut_before(self) -> list[Flow]:
        """What is cut: after taking over, the flows that an earlier process has cut."""
        return [elements.cut_flow(key) for keys in self._cuts.values() for key in keys]

    def _forget_silent_cuts(self) -> None:
        """Packets renew a cut in the kernel, so only the kernel knows which have ended."""
        for name, known in self._cuts.items():
            room = self._layout.portless_cuts if "portless" in name else self._layout.cuts
            if len(known) > room:  # more could not all be made again in a repair
                alive = {elements.element_key(each) for each in elements.dump_set(self._session, name)}
                self._cuts[name] = {key: None for key in known if key in alive}

    # Programs and pairs

    def apply(self, desired: Desired, add: Sequence[Write], remove: Collection[Element]) -> None:
        """Go over to `desired`. When it raises, what was in force is in force."""
        known = self._installed.programs if self._installed else {}
        wanted = meaning(desired, known, self._layout)
        before = self._despite_damage(lambda: self._change(wanted, add))
        first = self._installed is None
        self._installed = wanted
        self._finish(before, wanted, remove, everything=first)

    def _change(self, wanted: Wanted, add: Sequence[Write]) -> Wanted:
        """All of a change that can still be taken back; returns what was there before."""
        undo: list[Callable[[], None]] = []
        try:
            before = self._installed or self._begin(wanted, undo)
            self._extend(before, wanted, undo)
            self._add(add, undo)
            self._turn(before, wanted)
        except KernelError:
            for step in reversed(undo):
                step()
            raise
        return before

    def _despite_damage(self, call: Callable[[], T]) -> T:
        """Someone may have taken the table away a moment ago: then repair it, and try once more."""
        try:
            return call()
        except KernelError:
            if self._installed is None or not self.verify():
                raise
            self.repair()
            return call()

    def _begin(self, wanted: Wanted, undo: list[Callable[[], None]]) -> Wanted:
        """Install over nothing, or over what an earlier process left; pairs stay as they are."""
        found = inventory(self._session)
        if not found.chains:
            undo.append(self.remove)
        self.owned = self._session.claim(self._own)
        self._install(wanted, found)
        return replace(wanted, **self._pairs_in_kernel())

    def _install(self, wanted: Wanted, found: Inventory) -> None:
        """All chains with all their rules anew, and the sets that are missing, in one transaction."""
        commands = [f"flush chain inet {TABLE} {name}" for name in wanted.chains if name in found.chains]
        commands += ruleset.add_sets({name: kind for name, kind in wanted.sets.items() if name not in found.sets})
        commands += ruleset.add_chains(wanted.chains)
        self._session.run("\n".join(commands))

    def _extend(self, before: Wanted, wanted: Wanted, undo: list[Callable[[], None]]) -> None:
        sets = {name: kind for name, kind in wanted.sets.items() if name not in before.sets}
        chains = {name: rules for name, rules in wanted.chains.items() if name not in before.chains}
        self._session.run("\n".join(ruleset.add_sets(sets) + ruleset.add_chains(chains)))
        undo.append(lambda: self._delete(chains, sets))

    def _add(self, add: Sequence[Write], undo: list[Callable[[], None]]) -> None:
        for start in range(0, len(add), _CHUNK):
            chunk = add[start : start + _CHUNK]
            earlier = {Element(w.scope, w.key): self._end(w) for w in chunk}
            undo.append(partial(self._restore, earlier))
            if refused := self.arm(chunk):
                element, why = next(iter(refused.items()))
                raise KernelError(f"the kernel refused {len(refused)} leases, the first in {element.scope}: {why}")

    def _end(self, write: Write) -> float:
        return self._ends.get(elements.lease_set(write.scope, write.key), {}).get(write.key, 0.0)

    def _restore(self, earlier: Mapping[Element, float]) -> None:
        """Undo `_add`: what was alive gets its end back, the rest goes."""
        now = time.monotonic()
        alive = {element: end for element, end in earlier.items() if end > now}
        self.drop([element for element in earlier if element not in alive])
        self.arm([Write(e.scope, e.key, max(1, int((end - now) * 1000))) for e, end in alive.items()])

    def _turn(self, before: Wanted, wanted: Wanted) -> None:
        """The transaction that packets notice: every pair goes to its new chain at once."""
        batch: list[Part] = []
        for name, pairs in wanted.pairs.items():
            batch += _map_change(name, before.pairs[name], pairs)
        for name, keys in wanted.excluded.items():
            gone, new = before.excluded[name] - keys, keys - before.excluded[name]
            batch += elements.parts(netlink.DELSETELEM, name, map(elements.plain, gone))
            batch += elements.parts(netlink.NEWSETELEM, name, map(elements.plain, new))
        self._session.commit(batch, "the pairs of links and addresses")

    def _finish(self, before: Wanted, wanted: Wanted, remove: Collection[Element], everything: bool) -> None:
        """Take out what nobody needs. It is too late to go back; what fails here is damage, and repaired."""
        try:
            self.drop([each for each in remove if elements.lease_set(*each) in wanted.lease_sets])
            if everything:
                self._delete_unknown(wanted)
                self._delete_endless(wanted)
            else:
                self._delete(before.chains.keys() - wanted.chains.keys(), before.sets.keys() - wanted.sets.keys())
        except KernelError:
            self.repair()

    def _delete(self, chains: Iterable[str], sets: Iterable[str]) -> None:
        doomed = list(sets)
        self._session.commit(deletions(chains, doomed), "to delete what nobody needs")
        for name in doomed:
            self._ends.pop(name, None)

    def _delete_unknown(self, wanted: Wanted) -> None:
        found = inventory(self._session)
        self._delete(found.chains.keys() - wanted.chains.keys(), found.sets - wanted.sets.keys())

    def _delete_endless(self, wanted: Wanted) -> None:
        """Leases of an earlier process have an end, and each is of one pair: anything else was added by others."""
        for name in sorted(wanted.lease_sets):
            endless = [key for key, ms in self._held(name).items() if ms == 0 or key == elements.EVERY]
            if endless:
                elements.delete_present_or_not(self._session, name, endless)

    def _pairs_in_kernel(self) -> PairFields:
        dump = partial(elements.dump_set, self._session)
        key, chain = elements.element_key, elements.goto_chain
        pairs = {name: {key(each): chain(each) for each in dump(name)} for name in ("pods4", "pods6")}
        excluded = {name: frozenset(map(key, dump(name))) for name in ("excluded4", "excluded6")}
        return {"pairs": pairs, "excluded": excluded}

    def running(self) -> dict[Pair, str]:
        """The program that each (link, address) goes to, as the kernel has it."""
        if self._session.table() is None:
            return {}
        chains = self._pairs_in_kernel()["pairs"]
        known = [each for pairs in chains.values() for each in pairs.items() if each[0] != elements.EVERY]
        return {elements.pair_of(key): program_of(chain) for key, chain in known}

    # Audit

    def audit(self, on: bool) -> None:
        """Let through, from here on, what no rule accepts; or drop it again. When it raises, nothing has changed."""
        layout, before = replace(self._layout, audit=on), self._installed
        if before is None:
            self._layout = layout
            return
        wanted = whole(before.programs, PairFields(pairs=before.pairs, excluded=before.excluded), layout)
        self._despite_damage(partial(self._rewrite, before, wanted))
        self._layout, self._installed = layout, wanted
        self._finish(before, wanted, (), everything=False)

    def _rewrite(self, before: Wanted, wanted: Wanted) -> None:
        """In one transaction, so that each packet meets the old chains or the new ones."""
        changed = {name: rules for name, rules in wanted.chains.items() if before.chains.get(name) != rules}
        commands = [f"flush chain inet {TABLE} {name}" for name in changed if name in before.chains]
        commands += ruleset.add_sets({name: kind for name, kind in wanted.sets.items() if name not in before.sets})
        self._session.run("\n".join(commands + ruleset.add_chains(changed)))

    def audited(self) -> list[Audited]:
        """What was let through in Audit and would have been dropped."""
        return audited(self._session, sets(self._session))

    # Damage

    def repair(self) -> None:
        """Bring the kernel back to what was asked for, leases and cuts included, whatever was done to the table."""
        wanted = self._installed
        if wanted is None:
            return
        found = inventory(self._session)
        try:
            self.owned = self._session.claim(self._own)
            self._install(wanted, found)
        except KernelError:
            # A set of another type under our name, a hook where none should be: begin from nothing.
            self._session.transact([delete_table()])
            self.owned = self._session.claim(self._own)
            self._install(wanted, Inventory({}, frozenset()))
        self._turn(replace(wanted, **self._pairs_in_kernel()), wanted)
        self._reconcile_leases(wanted)
        for name, keys in self._cuts.items():
            self._make_cuts(name, keys)
        self._delete_unknown(wanted)

    def _reconcile_leases(self, wanted: Wanted) -> None:
        now = time.monotonic()
        self._sweep(now)
        for name in sorted(wanted.lease_sets):
            ends, held = self._ends.get(name, {}), self._held(name)
            foreign = {key for key, ms in held.items() if ms == 0 or now + ms / 1000 > ends.get(key, 0.0) + 1}
            if foreign:
                elements.delete_present_or_not(self._session, name, list(foreign))
            lost = {key: end for key, end in ends.items() if held.get(key, 0) / 1000 < end - now - 1 or key in foreign}
            self._make_again(name, lost, now)

    def _make_again(self, name: SetName, lost: Mapping[Key, float], now: float) -> None:
        items = list(lost.items())
        for start in range(0, len(items), _CHUNK):
            chunk = {key: max(1, int((end - now) * 1000)) for key, end in items[start : start + _CHUNK]}
            if refused := self._leases.make({name: chunk}):
                raise KernelError(f"the kernel refused {len(refused)} leases of {name} in a repair")

    def verify(self) -> list[str]:
        """What is wrong with the table, by names and numbers of rules; nothing when it is as installed. Elements
        are not looked at."""
        wanted = self._installed
        if wanted is None:
            return ["nothing is installed"]
        found = inventory(self._session)
        expected = {name: len(rules) for name, rules in wanted.chains.items()}
        wrong = [f"set {name} is missing" for name in sorted(wanted.sets.keys() - found.sets)]
        for name in sorted(expected.keys() | found.chains.keys()):
            if found.chains.get(name) != expected.get(name):
                wrong.append(f"chain {name} has {found.chains.get(name)} rules, not {expected.get(name)}")
        return wrong

    def remove(self) -> None:
        """Take the whole table out of the kernel."""
        if self._session.table():
            self._session.commit([delete_table()], f"to delete table inet {TABLE}")
        self._installed = None
        self._ends.clear()
        self._cuts.clear()


def _map_change(name: SetName, before: Mapping[Key, str], after: Mapping[Key, str]) -> list[Part]:
    gone = [key for key, chain in before.items() if after.get(key) != chain]
    new = [(key, chain) for key, chain in after.items() if before.get(key) != chain]
    return [
        *elements.parts(netlink.DELSETELEM, name, map(elements.plain, gone)),
        *elements.parts(netlink.NEWSETELEM, name, (elements.jump_to(key, chain) for key, chain in new)),
    ]


def _cut_keys(flows: Iterable[Flow]) -> dict[SetName, list[Key]]:
    keys: dict[SetName, dict[Key, None]] = {}
    for flow in flows:
        for name, key in elements.cut_keys(flow):
            keys.setdefault(name, {})[key] = None
    return {name: list(members) for name, members in keys.items()}


def _by_pod(keys: Mapping[SetName, Sequence[Key]]) -> list[tuple[SetName, list[Key]]]:
    """The keys of each pod address apart, the fewest first: a pod with too many leaves room for the others'."""
    groups: dict[tuple[SetName, Key], list[Key]] = {}
    for name, members in keys.items():
        octets = 4 if name.endswith("4") else 16
        for key in members:
            groups.setdefault((name, key[:octets]), []).append(key)
    return sorted(((name, members) for (name, _), members in groups.items()), key=lambda group: len(group[1]))
