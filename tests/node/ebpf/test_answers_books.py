"""Which answers the kernel is given, and which are taken out again, and when."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from dnsguard.core.model import Seconds
from dnsguard.core.wire import Question
from dnsguard.enforce.bpf.answers import SLICE, BpfAnswers
from dnsguard.enforce.bpf.layout import ANSWER, ANSWER_KEY
from dnsguard.enforce.bpf.syscall import HASH, Map, create_map
from dnsguard.engine.contracts import KernelAnswers, NoAnswers
from tests.node.ebpf.questions import LONG, Asking, question_of, vetted
from tests.node.ebpf.rig import SOURCE, SOURCE6, Rig
from tests.unit.messages import ask, query

ONE, TWO = 1, 2
NOW: Seconds = 1000.0


@pytest.fixture
def kernel() -> Iterator[Map]:
    made = Map(create_map(HASH, "answers", ANSWER_KEY.size, ANSWER.size, 1000))
    yield made
    made.close()


def names(kernel: Map, source: int = ONE) -> list[str]:
    """The first labels that the kernel knows for a source."""
    found = (ANSWER_KEY.unpack(key) for key, _ in kernel.items())
    return sorted(name[1 : 1 + name[0]].decode() for whose, _, _, name in found if whose == source)


def deny(answers: KernelAnswers, label: str, source: int = ONE, until: Seconds = NOW) -> bool:
    return answers.put_denial(source, asked(label), rcode=3, ede=None, until=until)


def asked(label: str) -> Question:
    return question_of(query(f"{label}.example.com"))


def test_a_full_share_gives_up_what_was_put_first_and_nobody_elses(kernel: Map) -> None:
    answers = BpfAnswers(kernel, per_source=2, total=10)
    for label, source in (("a", TWO), ("a", ONE), ("b", ONE), ("c", ONE)):
        assert deny(answers, label, source)
    assert (names(kernel, ONE), names(kernel, TWO), len(answers)) == (["b", "c"], ["a"], 3)


def test_what_is_put_again_is_the_youngest(kernel: Map) -> None:
    answers = BpfAnswers(kernel, per_source=2, total=10)
    for label in ("a", "b", "a", "c"):
        assert deny(answers, label)
    assert (names(kernel), len(answers)) == (["a", "c"], 2)


def test_what_stands_already_is_not_written_again(kernel: Map) -> None:
    answers = BpfAnswers(kernel, per_source=5, total=5)
    told = vetted("www.example.com. 300 A 192.0.2.1", ask())

    def put_both(until: Seconds) -> list[tuple[bytes, bytes]]:
        assert answers.put(ONE, ask(), told, ttl_ends=NOW + 300, until=until)
        assert deny(answers, "denied", until=until)
        return sorted(kernel.items())

    first = put_both(NOW)

    assert put_both(NOW) == first, "each entry has a serial of its own"
    later = put_both(NOW + 1)
    assert all(one != other for one, other in zip(first, later, strict=True))
    answers.forget(ONE)
    assert put_both(NOW + 1) != later
    assert len(answers) == 2


def test_a_full_node_takes_only_from_the_one_who_wants_more(kernel: Map) -> None:
    answers = BpfAnswers(kernel, per_source=5, total=2)
    assert deny(answers, "a", ONE) and deny(answers, "b", ONE) and deny(answers, "c", ONE)
    assert not deny(answers, "a", TWO)
    assert (names(kernel, ONE), names(kernel, TWO), len(answers)) == (["b", "c"], [], 2)


def test_a_full_map_is_no_failure() -> None:
    kernel = Map(create_map(HASH, "answers", ANSWER_KEY.size, ANSWER.size, 1))
    answers = BpfAnswers(kernel, per_source=5, total=5)
    assert deny(answers, "a") and not deny(answers, "b") and deny(answers, "a")
    assert (names(kernel), len(answers)) == (["a"], 1)
    kernel.close()


@pytest.mark.parametrize(
    ("question", "zone", "fits"),
    [
        (ask(), "{0}. 300 A 192.0.2.1", True),
        (ask(do=True), "{0}. 300 A 192.0.2.1", False),
        (ask(cd=1), "{0}. 300 A 192.0.2.1", False),
        (ask(), "\n".join(f"{{0}}. 300 A 192.0.2.{n}" for n in range(16)), True),
        (ask(), "\n".join(f"{{0}}. 300 A 192.0.2.{n}" for n in range(17)), False),
        (ask(qtype="TXT"), f'{{0}}. 300 TXT "{"x" * 255}" "{"y" * 232}"', True),
        (ask(qtype="TXT"), f'{{0}}. 300 TXT "{"x" * 255}" "{"y" * 233}"', False),
    ],
    ids=["plain", "dnssec", "unchecked", "sixteen", "seventeen", "longest", "longer"],
)
def test_an_answer_that_has_no_form_in_the_kernel_is_left_out(
    kernel: Map, question: Question, zone: str, fits: bool
) -> None:
    answers = BpfAnswers(kernel, per_source=5, total=5)
    answer = vetted(zone.format("www.example.com"), question)
    assert answers.put(ONE, question, answer, ttl_ends=NOW, until=NOW) is fits
    assert len(answers) == len(names(kernel)) == fits


@pytest.mark.parametrize(("length", "fits"), [(459, True), (460, False)])
def test_a_denial_whose_reason_is_too_long_is_left_out(kernel: Map, length: int, fits: bool) -> None:
    answers = BpfAnswers(kernel, per_source=5, total=5)
    assert answers.put_denial(ONE, ask(), rcode=3, ede=(15, "x" * length), until=NOW) is fits


def test_what_is_forgotten_is_gone_and_nothing_else(kernel: Map) -> None:
    answers = BpfAnswers(kernel, per_source=5, total=4)
    for label, source in (("a", ONE), ("b", ONE), ("a", TWO)):
        deny(answers, label, source)
    answers.forget(ONE)
    answers.forget(ONE)
    assert (names(kernel, ONE), names(kernel, TWO), len(answers)) == ([], ["a"], 1)
    assert all(deny(answers, label, ONE) for label in "abc")


def test_what_has_ended_is_swept(kernel: Map) -> None:
    answers = BpfAnswers(kernel, per_source=9, total=9)
    deny(answers, "ended", until=NOW - 1)
    deny(answers, "later", until=NOW + 1)
    deny(answers, "put-again", until=NOW - 1)
    deny(answers, "put-again", until=NOW + 60)
    assert not answers.sweep(NOW)
    assert (names(kernel), len(answers)) == (["later", "put-again"], 2)
    answers.sweep(NOW + 61)
    assert (names(kernel), len(answers)) == ([], 0)


def test_a_sweep_does_a_slice_at_a_time(kernel: Map) -> None:
    answers = BpfAnswers(kernel, per_source=1000, total=1000)
    for number in range(SLICE + 1):
        deny(answers, f"n{number}")
    assert answers.sweep(NOW + 2) and len(answers) == len(names(kernel)) == 1
    assert not answers.sweep(NOW + 2) and len(answers) == len(names(kernel)) == 0


def test_a_new_process_takes_over_the_answers_of_sources_it_knows(kernel: Map) -> None:
    before = BpfAnswers(kernel, per_source=9, total=9)
    for label, source, until in (("a", ONE, NOW), ("b", ONE, NOW + 60), ("c", ONE, NOW + 70), ("a", TWO, NOW)):
        deny(before, label, source, until)
    after = BpfAnswers(kernel, per_source=3, total=9)
    after.adopt({ONE})
    assert (names(kernel, ONE), names(kernel, TWO), len(after)) == (["a", "b", "c"], [], 3)
    assert deny(after, "d", until=NOW + 60)
    assert names(kernel) == ["b", "c", "d"], "the first to end went for it"
    after.sweep(NOW + 62)
    assert names(kernel) == ["c"]


def test_a_smaller_share_than_before_keeps_what_ends_last(kernel: Map) -> None:
    before = BpfAnswers(kernel, per_source=9, total=9)
    for label, until in (("a", NOW + 9), ("b", NOW), ("c", NOW + 8)):
        deny(before, label, until=until)
    after = BpfAnswers(kernel, per_source=2, total=9)
    after.adopt({ONE})
    assert (names(kernel), len(after)) == (["a", "c"], 2)


def test_hot_is_what_was_asked_for_and_ends_soon_and_is_said_once(rig: Rig) -> None:
    asking = Asking(rig)
    answer = vetted("www.example.com. 300 A 192.0.2.1", ask())
    for name, until in (("www.example.com", LONG), ("unasked.example.com", LONG), ("later.example.com", LONG + 60)):
        assert asking.put(answer, query(name), until=until)
        if not name.startswith("unasked"):
            assert asking.ask(query(name), family=6) is not None
    now = time.monotonic()
    assert asking.answers.hot(now, LONG - 30) == []
    assert asking.answers.hot(now, LONG + 2) == [(SOURCE6, ask().name, 1)]
    assert asking.answers.hot(now, LONG + 2) == []
    assert asking.put(answer, query(), until=LONG)
    assert asking.ask(query()) is not None
    assert asking.answers.hot(now, LONG + 2) == [(SOURCE, ask().name, 1)], "what was put again may be hot again"


def test_no_answers_are_answers_too() -> None:
    nothing: KernelAnswers = NoAnswers()
    assert not deny(nothing, "a")
    assert not nothing.put(ONE, ask(), vetted("", ask()), ttl_ends=NOW, until=NOW)
    nothing.adopt({ONE})
    nothing.forget(ONE)
    assert not nothing.sweep(NOW) and nothing.hot(NOW, 5) == []
