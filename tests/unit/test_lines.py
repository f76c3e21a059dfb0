"""Two lines as one: what passes is open in both, and nothing stays open in one only."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import pytest

from dnsguard.core.errors import KernelError
from dnsguard.core.model import Action, Address, Flow, LinkIndex, Pair, Program, ProgramRule, Scope, Tier
from dnsguard.enforce.denials import Audited
from dnsguard.enforce.lines import Both
from dnsguard.engine.contracts import Desired, Element, Held, Write

KEY, OTHER = b"12345678", b"1234abcd"
PAIR, PAIR2 = (LinkIndex(2), Address(b"1234")), (LinkIndex(3), Address(b"5678"))
WEB = Program("p_000000000001", (ProgramRule(Tier.POD, Action.ACCEPT, (), scope=Scope("web", ())),))
MAIL = Program("p_000000000002", (ProgramRule(Tier.POD, Action.ACCEPT, (), scope=Scope("mail", ())),))
RECORD = Audited(Address(b"1234"), Address(b"5678"), 6, 443, None, 1)
DESIRED = Desired((WEB,), {PAIR: WEB.name})


class Remembering:
    """A line without a kernel. Refuses the elements in `refuses`, with that reason, and changes when `broken`."""

    def __init__(self, log: list[str] | None = None, name: str = "") -> None:
        self.held: dict[Element, int] = {}
        self.pairs: dict[Pair, str] = {}
        self.cuts: list[Flow] = []
        self.refuses: dict[Element, str] = {}
        self.broken = self.audits = False
        self.known: set[str] = set()
        self._log, self._name = log if log is not None else [], name
        self._before: tuple[dict[Element, int], dict[Pair, str]] | None = None
        self._coming: Mapping[Pair, str] = {}

    def _say(self, what: str) -> None:
        self._log.append(f"{self._name} {what}")

    @property
    def empty(self) -> bool:
        return not self.pairs

    def arm(self, writes: Sequence[Write]) -> Mapping[Element, str]:
        asked = {Element(write.scope, write.key): write.timeout_ms for write in writes}
        self._say(f"arms {len(asked)}")
        self.held.update({each: ms for each, ms in asked.items() if each not in self.refuses})
        return {each: self.refuses[each] for each in asked if each in self.refuses}

    def drop(self, elements: Collection[Element]) -> None:
        for each in elements:
            self.held.pop(each, None)

    def keep(self, elements: Collection[Element]) -> None:
        self.held = {each: ms for each, ms in self.held.items() if each in elements}

    def learn(self, scopes: Iterable[str]) -> None:
        self.known |= set(scopes)

    def apply(self, desired: Desired, add: Sequence[Write], remove: Collection[Element]) -> None:
        self.prepare(desired, add)
        self.turn()
        self.finish(remove)

    def prepare(self, desired: Desired, add: Sequence[Write]) -> None:
        self._say("prepares")
        if self.broken:
            raise KernelError("broken")
        self._before, self._coming = (dict(self.held), dict(self.pairs)), desired.pairs
        self.arm(add)

    def turn(self) -> None:
        self._say("turns")
        self.pairs = dict(self._coming)

    def finish(self, remove: Collection[Element]) -> None:
        self._say("finishes")
        self.drop(remove)

    def undo(self) -> None:
        self._say("undoes")
        assert self._before is not None
        self.held, self.pairs = self._before

    def cut(self, flows: Collection[Flow]) -> None:
        if self.broken:
            raise KernelError("broken")
        self.cuts += flows

    def audit(self, on: bool) -> None:
        self._say(f"audits {on}")
        if self.broken:
            raise KernelError("broken")
        self.audits = on

    def audited(self) -> Sequence[Audited]:
        return [RECORD] if self.audits else []

    def uncut(self, flows: Collection[Flow]) -> None:
        self.cuts = [each for each in self.cuts if each not in flows]

    def read(self) -> Sequence[Held]:
        return [Held(each.scope, each.key, ms) for each, ms in self.held.items()]

    def running(self) -> Mapping[Pair, str]:
        return self.pairs

    def cut_before(self) -> Sequence[Flow]:
        return self.cuts


def element(scope: str = "web", key: bytes = KEY) -> Element:
    return Element(scope, key)


def write(scope: str = "web", key: bytes = KEY, ms: int = 1000) -> Write:
    return Write(scope, key, ms)


def running_both() -> tuple[Both, Remembering, Remembering]:
    first, second = Remembering(), Remembering()
    both = Both(first, second)
    both.apply(DESIRED, [], ())
    return both, first, second


def test_a_lease_is_made_in_both() -> None:
    both, first, second = running_both()
    assert both.arm([write(), write("mail")]) == {}
    assert first.held == second.held == {element(): 1000, element("mail"): 1000}


def test_what_the_second_refuses_is_not_asked_of_the_first_and_the_rest_is() -> None:
    both, first, second = running_both()
    second.refuses[element()] = "E2BIG"
    assert both.arm([write(), write("mail")]) == {element(): "E2BIG"}
    assert both.arm([write()]) == {element(): "E2BIG"}
    assert first.held == {element("mail"): 1000}


@pytest.mark.parametrize("why", ["ENFILE", "ENOENT"])
def test_what_the_first_has_no_room_for_is_taken_out_of_the_second(why: str) -> None:
    both, first, second = running_both()
    first.refuses[element()] = why
    assert both.arm([write(), write("mail")]) == {element(): why}
    assert first.held == second.held == {element("mail"): 1000}


def test_what_the_first_cannot_refresh_is_still_there_in_both() -> None:
    both, first, second = running_both()
    both.arm([write()])
    first.refuses[element()] = "ENOMEM"
    assert both.arm([write(ms=9000)]) == {element(): "ENOMEM"}
    assert element() in first.held
    assert element() in second.held


def test_a_change_is_prepared_in_the_second_before_the_first_goes_over_and_done_after() -> None:
    log: list[str] = []
    both = Both(Remembering(log, "first"), Remembering(log, "second"))
    both.apply(DESIRED, [], ())
    steps = [each for each in log if "arms" not in each]
    assert steps == [
        "second prepares",
        *("first prepares", "first turns", "first finishes"),
        *("second turns", "second finishes"),
    ]


def test_a_change_that_either_refuses_leaves_both_as_they_were() -> None:
    both, first, second = running_both()
    both.arm([write()])
    for broken in (first, second):
        broken.broken = True
        with pytest.raises(KernelError, match="broken"):
            both.apply(Desired((MAIL,), {PAIR2: MAIL.name}), [write("mail")], [element()])
        broken.broken = False
        assert first.held == second.held == {element(): 1000}
        assert first.pairs == second.pairs == DESIRED.pairs


def test_at_the_start_what_only_one_holds_is_taken_out_of_it() -> None:
    first, second = Remembering(), Remembering()
    for line in (first, second):
        line.apply(DESIRED, [write("mail")], ())
    first.arm([write()])
    second.arm([write(key=OTHER)])
    Both(first, second).reconcile()
    assert first.held == second.held == {element("mail"): 1000}
    assert second.known == {"web", "mail"}


def test_what_both_hold_is_read_with_the_shorter_time() -> None:
    both, first, second = running_both()
    first.arm([write(ms=1000), write("mail", ms=2000), write(key=OTHER)])
    second.arm([write(ms=1500), write("mail", ms=1200)])
    assert sorted(both.read()) == [Held("mail", KEY, 1200), Held("web", KEY, 1000)]


def test_a_pair_runs_a_program_when_both_say_so() -> None:
    both, first, second = running_both()
    first.pairs = {PAIR: WEB.name, PAIR2: WEB.name}
    second.pairs = {PAIR: WEB.name, PAIR2: MAIL.name}
    assert both.running() == {PAIR: WEB.name}


def test_a_second_line_that_begins_empty_is_given_what_the_first_holds_and_the_change_leaves() -> None:
    first, second = Remembering(), Remembering()
    first.apply(DESIRED, [write(), write(key=OTHER), write("mail")], ())
    both = Both(first, second)
    both.reconcile()
    assert (both.running(), len(both.read())) == (DESIRED.pairs, 3)
    both.apply(DESIRED, [], [element(key=OTHER), element("mail")])
    assert second.held == {element(): 1000}
    assert both.read() == [Held("web", KEY, 1000)]


def test_flows_are_cut_in_the_one_when_the_other_refuses() -> None:
    flow = Flow(17, Address(b"1234"), 4000, Address(b"5678"), 53, Address(b"5678"), 53)
    for index in (1, 2):
        lines = running_both()
        lines[index].broken = True  # type: ignore[union-attr]
        with pytest.raises(KernelError):
            lines[0].cut([flow])
        assert lines[0].cut_before() == [flow]
        lines[0].uncut([flow])
        assert lines[0].cut_before() == []


def test_audit_begins_in_the_line_that_may_refuse_it_and_is_recorded_there() -> None:
    log: list[str] = []
    first, second = Remembering(log, "first"), Remembering(log, "second")
    both = Both(first, second)
    both.audit(True)
    assert log == ["first audits True", "second audits True"]
    assert both.audited() == [RECORD]


def test_audit_that_the_first_line_refuses_is_not_on_in_the_second() -> None:
    first, second = Remembering(), Remembering()
    first.broken = True
    with pytest.raises(KernelError):
        Both(first, second).audit(True)
    assert not second.audits
