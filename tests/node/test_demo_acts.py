"""Acts of the demo about who answers, and with whose address: each is failed by what it says cannot be."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dnsguard.demo import show
from dnsguard.demo.acts import (
    CACHE,
    KERNEL,
    OUTSIDE,
    Act,
    cannot_borrow,
    gets_page,
    goes_on,
    is_answered,
    nobody_answers,
    stands_still,
)
from dnsguard.demo.interrupts import Interrupts
from dnsguard.demo.stage import PODS, Stage, stage

pytestmark = pytest.mark.node


@pytest.fixture(scope="module")
def made() -> Iterator[Stage]:
    """A stage for single acts."""
    with Interrupts() as interrupts, stage(show.ALLOWLIST, interrupts) as made:
        assert made.without_ebpf is None
        yield made


def as_expected(act: Act, made: Stage) -> bool:
    return act.is_as_expected(act.play(made))


@pytest.mark.parametrize(
    ("name", "by", "expected"),
    [
        ("first.example.net", OUTSIDE, [True, False, False]),
        ("second.example.net", CACHE, [False, True, False]),
        ("third.example.net", KERNEL, [False, False, True]),
    ],
)
def test_an_answer_that_somebody_else_gave_is_not_as_expected(
    made: Stage, name: str, by: str, expected: list[bool]
) -> None:
    act = is_answered("cron", name, by=by)

    assert [as_expected(act, made) for _ in range(3)] == expected


def test_two_hundred_answers_are_the_kernels_only_when_all_are(made: Stage) -> None:
    act = is_answered("cron", "many.example.net", by=KERNEL, times=200)

    assert "from the kernel 198 times\n" in act.play(made)
    assert as_expected(act, made)


def test_an_address_that_is_another_one_is_not_as_expected(made: Stage) -> None:
    made.zone.put("other.example.net", "A", "192.0.2.99")

    assert not as_expected(is_answered("cron", "other.example.net", by=OUTSIDE), made)


def test_a_name_that_is_answered_while_dnsguard_stands_still_is_not_new(made: Stage) -> None:
    for _ in range(2):
        assert as_expected(goes_on("cron", "known.example.net"), made)
    assert as_expected(stands_still(), made)

    assert not as_expected(nobody_answers("cron", "known.example.net"), made)
    assert as_expected(nobody_answers("cron", "unknown.example.net"), made)
    assert as_expected(goes_on("cron", "unknown.example.net"), made)


def test_a_borrowed_address_that_the_node_lets_its_borrower_have_is_not_as_expected(made: Stage) -> None:
    act = cannot_borrow("cron", "backend", "http://192.0.2.10/")
    route = f"route replace {PODS['backend']}/32 dev"
    assert as_expected(gets_page("backend", "http://api.example.com/"), made)
    assert as_expected(act, made)

    made.run_on_node("ip", *f"{route} {made.pods['cron'].link}".split())
    try:
        assert not as_expected(act, made)
    finally:
        made.run_on_node("ip", *f"{route} {made.pods['backend'].link}".split())
