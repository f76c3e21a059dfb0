"""What is remembered in Audit, and that a pod cannot make it much, or slow to look at."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dnsguard.core.model import Address, Name, PodId
from dnsguard.engine.audit import ADDRESSES, ANSWERS, LASTING, AuditedNames, Told

EVIL, GOOD = PodId(1), PodId(2)
NAMES = [Name(b"\1%c\0" % letter) for letter in b"abc"]
PLACES = [Address(bytes((192, 0, 2, last))) for last in range(3)]
answers = st.builds(Told, st.sampled_from(NAMES), st.lists(st.sampled_from(PLACES), min_size=1), st.floats(0, 100))


def long_answer(number: int) -> Told:
    addresses = [Address((number << 12 | last).to_bytes(4, "big")) for last in range(4095)]
    return Told(Name(b"\4%04d\4evil\0" % number), addresses, 60.0)


def test_answers_of_thousands_of_addresses_push_out_older_ones_of_that_pod_alone() -> None:
    audited = AuditedNames()
    audited.told(GOOD, Told(NAMES[0], PLACES[:1], 60.0))
    for number in range(ANSWERS):
        audited.told(EVIL, long_answer(number))

    kept = list(audited.alive(EVIL, 0.0))

    assert [one.name for one in kept] == [long_answer(ANSWERS - 1).name]
    assert sum(len(one.addresses) for one in kept) <= ADDRESSES
    assert audited.names(EVIL, long_answer(0).addresses[0], 0.0) == []
    assert audited.names(EVIL, kept[0].addresses[7], 0.0) == [kept[0].name]
    assert audited.names(GOOD, PLACES[0], 0.0) == [NAMES[0]]


@given(st.lists(answers), st.floats(0, 2 * LASTING))
def test_an_address_has_the_names_whose_last_answer_held_it_lately(told: list[Told], now: float) -> None:
    audited = AuditedNames()
    for one in told:
        audited.told(EVIL, one)

    last = {one.name: one for one in told}.values()

    assert list(audited.alive(EVIL, now)) == [one for one in audited.alive(EVIL, 0.0) if one.until > now]
    for place in PLACES:
        wanted = {one.name for one in last if place in one.addresses and one.until + LASTING > now}
        assert sorted(audited.names(EVIL, place, now)) == sorted(wanted)
