"""Leases: opened, kept, ended, and held against a new policy."""

from __future__ import annotations

from collections.abc import Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnsguard.core.book import Armed, Capacity, Spared
from dnsguard.core.lease import NAMES_PER_LEASE, PAST_PER_LEASE, UNKNOWN, Element, Write
from dnsguard.core.leases import Leases
from dnsguard.core.model import Address, Name, PodId, PortRange, Protocol, Scope

POD = PodId(1)
OTHER = PodId(2)
ME = Address(bytes([10, 244, 0, 5]))
ME6 = Address(bytes([0xFD]) + bytes(14) + b"\5")
YOU = Address(bytes([10, 244, 0, 6]))
DB = Address(bytes([192, 0, 2, 1]))
WEB = Address(bytes([192, 0, 2, 2]))
HTTPS = Scope("tcp_443", (PortRange(Protocol.TCP, 443, 443),))
PG = Scope("tcp_5432", (PortRange(Protocol.TCP, 5432, 5432),))
A = Name(b"\1a\0")
B = Name(b"\1b\0")
C = Name(b"\1c\0")
OLD = Spared(first=1000.0, last=1000.0, most=100)
"""Nothing that has ended before 1000 s is remembered without a flow."""


def table(capacity: Capacity | None = None, *addresses: Address) -> Leases:
    leases = Leases(capacity or Capacity())
    leases.add_pod(POD, addresses or (ME,))
    leases.add_pod(OTHER, (YOU,))
    return leases


def arm(leases: Leases, *addresses: Address, name: Name = A, scope: Scope = HTTPS, now: float = 0.0, need: float = 30.0,
        grace: float = 10.0, ticket: int = 1, pod: PodId = POD) -> Armed | str:  # fmt: skip
    return leases.arm(pod, name, (scope,), addresses, now=now, need=now + need, until=now + need + grace, ticket=ticket)


def armed(*args: object, **kwargs: object) -> Armed:
    found = arm(*args, **kwargs)  # type: ignore[arg-type]
    assert isinstance(found, Armed)
    return found


def test_a_new_address_is_written_for_the_need_and_the_grace() -> None:
    assert armed(table(), DB).writes == [Write("tcp_443", ME + DB, 40_000)]


def test_a_lease_that_lasts_is_not_written_again_but_waited_for() -> None:
    leases = table()
    armed(leases, DB, ticket=7)
    again = armed(leases, DB, now=5.0, need=30.0, ticket=8)
    assert again.writes == []
    assert again.wait == 7


def test_a_lease_that_does_not_last_is_written_under_the_new_ticket() -> None:
    leases = table()
    armed(leases, DB, ticket=7)
    again = armed(leases, DB, now=20.0, ticket=8)
    assert again.writes == [Write("tcp_443", ME + DB, 40_000)]
    assert again.wait == 8


def test_a_smaller_ttl_of_another_name_shortens_nothing() -> None:
    leases = table()
    armed(leases, DB, need=3600.0)
    armed(leases, DB, name=B, need=30.0)
    assert leases.due(3000.0) == []
    assert next(iter(leases)).until == 3610.0


def test_every_address_of_the_pod_in_that_family_gets_an_element() -> None:
    second = Address(bytes([10, 244, 0, 9]))
    writes = armed(table(Capacity(), ME, second, ME6), DB).writes
    assert {w.key for w in writes} == {ME + DB, second + DB}


def test_an_address_of_a_family_the_pod_lacks_is_a_lease_without_elements() -> None:
    leases = table()
    assert armed(leases, ME6).writes == []
    assert len(leases) == 1


def test_a_refused_ticket_makes_the_next_answer_write_again() -> None:
    leases = table()
    first = armed(leases, DB, ticket=3)
    leases.refuse(first.leases, 3)
    assert armed(leases, DB, ticket=4).writes


def test_after_a_refused_write_a_shorter_answer_shortens_nothing() -> None:
    leases = table()
    armed(leases, DB, need=60.0, ticket=1)
    extended = armed(leases, DB, now=50.0, need=60.0, ticket=2)
    leases.refuse(extended.leases, 2)
    again = armed(leases, DB, name=B, now=51.0, need=30.0, ticket=3)
    assert again.writes == [Write("tcp_443", ME + DB, 69_000)]


def test_a_shorter_answer_for_the_same_name_does_not_shorten_its_justification() -> None:
    leases = table()
    armed(leases, DB, need=600.0)
    armed(leases, DB, need=30.0)
    assert leases.rejustify(POD, only(A, "tcp_443"), 10.0, same_program=True).write == []


def test_a_lease_refused_many_times_is_looked_at_once() -> None:
    leases = table()
    for ticket in range(1, 50):
        leases.refuse(armed(leases, DB, now=float(ticket), ticket=ticket).leases, ticket)
    assert sum(len(turn) for turn in leases._turns.values()) == 1
    leases.rejustify(POD, only(A, "tcp_443"), 60.0, same_program=True)
    assert [lease.address for lease in leases.due(200.0)] == [DB]


def test_the_pods_share_is_counted_before_the_kernel_is_asked() -> None:
    leases = table(Capacity(leases=1))
    armed(leases, DB)
    assert arm(leases, WEB) == "leasesPerPod"
    assert len(leases) == 1


def test_names_that_justify_leases_are_counted_too() -> None:
    leases = table(Capacity(pairs=3))
    armed(leases, DB, WEB)
    armed(leases, DB, name=B)
    assert arm(leases, WEB, name=B) == "leasesPerPod"
    assert isinstance(arm(leases, DB, name=B, now=1.0), Armed)
    assert isinstance(arm(leases, DB, WEB, name=C, pod=OTHER), Armed)
    leases.due(100.0)
    armed(leases, DB, WEB, name=C, now=100.0)
    assert leases.pods[POD].pairs == 2


def test_of_names_that_held_a_lease_open_before_the_latest_are_remembered() -> None:
    leases = table()
    for number in range(3 * PAST_PER_LEASE):
        armed(leases, DB, name=Name(b"\4%04d\0" % number), now=float(number))
    leases.due(1000.0)
    past = {name for _, name in leases.stood_on(POD)[DB]}
    assert len(past) == PAST_PER_LEASE


def test_a_full_share_of_one_pod_leaves_room_for_another() -> None:
    leases = table(Capacity(leases=1))
    armed(leases, DB)
    assert isinstance(arm(leases, DB, pod=OTHER), Armed)


def test_the_nodes_total_counts_elements() -> None:
    second = Address(bytes([10, 244, 0, 9]))
    leases = table(Capacity(elements=3), ME, second)
    armed(leases, DB)
    assert leases.elements == 2
    assert arm(leases, WEB) == "tables.leases"


def test_ended_leases_give_their_room_back() -> None:
    leases = table(Capacity(leases=1, elements=1))
    armed(leases, DB)
    assert [lease.address for lease in leases.due(41.5)] == [DB]
    assert isinstance(arm(leases, WEB, now=42.0), Armed)


def test_a_lease_is_not_ended_before_its_time() -> None:
    leases = table()
    armed(leases, DB)
    assert leases.due(39.9) == []


def test_a_name_opens_no_more_addresses_than_its_share() -> None:
    leases = table(Capacity(addresses_per_name=1))
    assert leases.fitting(POD, A, (HTTPS,), (DB, WEB)) == [DB]
    armed(leases, DB)
    assert leases.fitting(POD, A, (HTTPS,), (WEB, DB)) == [DB]


def test_a_purged_name_takes_its_lease_and_leaves_the_others() -> None:
    leases = table()
    armed(leases, DB)
    armed(leases, WEB, name=B)
    changed = leases.rejustify(POD, only(B, "tcp_443"), 1.0, same_program=True)
    assert changed.remove == [Element("tcp_443", ME + DB)]
    assert [lease.address for lease in leases] == [WEB]


def test_a_lease_that_two_names_justify_shrinks_to_the_one_that_stays() -> None:
    leases = table()
    armed(leases, DB, need=3600.0)
    armed(leases, DB, name=B, need=30.0)
    changed = leases.rejustify(POD, only(B, "tcp_443"), 10.0, same_program=True)
    assert changed.write == [Write("tcp_443", ME + DB, 30_000)]
    assert changed.remove == []


def test_a_scope_that_the_new_policy_adds_opens_for_the_names_still_alive_until_their_own_time() -> None:
    leases = table()
    armed(leases, DB)
    changed = leases.rejustify(POD, only(A, "tcp_443", "tcp_5432"), 10.0, same_program=False)
    assert changed.write == [Write("tcp_5432", ME + DB, 30_000)]
    assert changed.remove == []


def test_a_lease_that_the_new_policy_still_justifies_is_not_touched() -> None:
    leases = table()
    armed(leases, DB)
    changed = leases.rejustify(POD, only(A, "tcp_443"), 10.0, same_program=False)
    assert (changed.write, changed.remove) == ([], [])


def test_a_lease_of_unknown_names_stays_while_the_program_does() -> None:
    leases = table()
    leases.restore(POD, "tcp_443", DB, names={UNKNOWN: 40.0}, until=40.0)
    assert leases.rejustify(POD, only(A), 10.0, same_program=True).remove == []
    assert leases.rejustify(POD, only(A, "tcp_443"), 10.0, same_program=False).remove == [Element("tcp_443", ME + DB)]
    assert all(name != UNKNOWN for _, name in leases.stood_on(POD).get(DB, ()))


def test_what_an_ended_lease_stood_on_is_remembered_while_a_flow_is_open() -> None:
    leases = table()
    armed(leases, DB)
    leases.due(60.0)
    leases.forget_ended(POD, {DB}, OLD)
    assert leases.stood_on(POD) == {DB: {("tcp_443", A)}}
    leases.forget_ended(POD, (), OLD)
    assert leases.stood_on(POD) == {}


def test_of_ended_leases_without_a_flow_only_the_last_are_remembered() -> None:
    leases = table()
    for number in range(5):
        armed(leases, Address(bytes([192, 0, 2, number])), now=float(number))
    leases.due(60.0)
    leases.forget_ended(POD, {WEB}, Spared(first=0.0, last=50.0, most=2))
    assert [address[3] for address in leases.stood_on(POD)] == [2, 3, 4]
    assert leases.ended == 3


def test_what_has_just_ended_is_remembered_for_its_flows_are_not_known_yet() -> None:
    leases = table()
    armed(leases, DB)
    armed(leases, WEB, now=5.0)
    leases.due(60.0)
    leases.forget_ended(POD, (), Spared(first=0.0, last=44.0, most=0))
    assert leases.stood_on(POD) == {WEB: {("tcp_443", A)}}


@given(st.lists(st.tuples(st.sampled_from([A, B, C]), st.integers(1, 60), st.integers(0, 20)), min_size=1, max_size=12))
def test_a_lease_is_open_until_the_last_of_its_names_ends_and_each_has_a_time_of_its_own(
    answers: list[tuple[Name, int, int]],
) -> None:
    leases = table()
    ends: dict[Name, float] = {}
    now = 0.0
    for name, need, later in answers:
        now += later
        leases.due(now)
        ends = {known: until for known, until in ends.items() if until > now}
        written = max((lease.written for lease in leases), default=0.0)
        armed(leases, DB, name=name, now=now, need=float(need))
        until = now + need + 10.0
        ends[name] = max(until if written < now + need else min(until, written), ends.get(name, 0.0))
        (lease,) = leases
        assert {n: until for n, until in lease.names.items() if until > now} == ends
        assert lease.until == max(ends.values())


def test_a_thousand_names_justify_a_lease_and_the_next_takes_the_place_of_the_one_that_ends_first() -> None:
    leases = table()
    names = [Name(b"\4%04d\0" % number) for number in range(NAMES_PER_LEASE + 1)]
    for number, name in enumerate(names):
        armed(leases, DB, name=name, now=float(number), need=5000.0)
    (lease,) = leases
    assert set(lease.names) == set(names[1:])
    assert leases.fitting(POD, names[0], (HTTPS,), [WEB] * 1000) == [WEB] * 1000


def test_a_pod_that_went_leaves_nothing() -> None:
    leases = table()
    armed(leases, DB)
    assert leases.remove_pod(POD) == [Element("tcp_443", ME + DB)]
    assert (len(leases), leases.elements) == (0, 0)
    assert not any(leases._turns.values())
    assert leases.due(100.0) == []


def test_a_pod_that_went_takes_nothing_of_another_with_it() -> None:
    leases = table()
    armed(leases, DB)
    armed(leases, DB, pod=OTHER)
    leases.remove_pod(POD)
    assert [lease.pod for lease in leases.due(100.0)] == [OTHER]


def test_a_lease_that_was_taken_back_and_forgotten_is_not_kept_until_it_would_have_ended() -> None:
    leases = table()
    armed(leases, DB, need=3600.0)
    leases.rejustify(POD, only(B), 10.0, same_program=False)
    leases.forget_ended(POD, (), OLD)
    assert not any(leases._turns.values())


def test_an_address_gained_and_one_lost_are_elements_written_and_removed() -> None:
    leases = table()
    armed(leases, DB)
    moved = Address(bytes([10, 244, 0, 77]))
    changed = leases.set_addresses(POD, (moved,), 10.0)
    assert changed.write == [Write("tcp_443", moved + DB, 30_000)]
    assert changed.remove == [Element("tcp_443", ME + DB)]
    assert leases.elements == 1


def test_a_change_that_the_kernel_refused_is_undone_whole() -> None:
    leases = table()
    armed(leases, DB)
    armed(leases, WEB, name=B)
    checkpoint = leases.checkpoint(POD)
    leases.rejustify(POD, only(B, "tcp_5432"), 10.0, same_program=False)
    changed = leases.roll_back(POD, checkpoint, 10.0)
    assert {(lease.scope, lease.address, *lease.names) for lease in leases} == {("tcp_443", DB, A), ("tcp_443", WEB, B)}
    assert changed.remove == [Element("tcp_5432", ME + WEB)]
    assert {w.key for w in changed.write} == {ME + DB, ME + WEB}


def test_a_repair_puts_back_what_has_time_left() -> None:
    leases = table()
    armed(leases, DB)
    assert leases.writes(39.0) == [Write("tcp_443", ME + DB, 1000)]
    assert leases.writes(41.0) == []


def only(name: Name, *scopes: str):  # type: ignore[no-untyped-def]
    def justify(asked: Name, _: Address) -> Collection[str]:
        return scopes if asked == name else ()

    return justify


steps = st.lists(
    st.tuples(
        st.sampled_from([DB, WEB]),
        st.sampled_from([A, B]),
        st.sampled_from([HTTPS, PG]),
        st.integers(0, 40),
        st.integers(1, 100),
    ),
    max_size=30,
)


@given(steps)
def test_whatever_is_asked_no_address_closes_before_the_time_it_was_shown_for(asked: list) -> None:  # type: ignore[type-arg]
    """The kernel as a dict of ends; `need` must never lie behind what it holds, and no element is permanent."""
    leases = table()
    kernel: dict[tuple[str, bytes], float] = {}
    now = 0.0
    for ticket, (address, name, scope, pause, need) in enumerate(asked, 1):
        now += pause
        leases.due(now)
        for write in armed(leases, address, name=name, scope=scope, now=now, need=need, ticket=ticket).writes:
            assert write.timeout_ms > 0
            kernel[write.scope, write.key] = now + write.timeout_ms / 1000
        assert kernel[scope.name, ME + address] >= now + need - 0.001
    assert all(kernel[lease.scope, ME + lease.address] >= lease.until - 0.001 for lease in leases)
    leases.due(now + 1000)
    assert (len(leases), leases.elements, leases.pods[POD].per_name) == (0, 0, {})


@pytest.mark.parametrize("count", [1, 3])
def test_names_are_counted_once_for_each_lease(count: int) -> None:
    leases = table()
    for ticket in range(count):
        armed(leases, DB, now=ticket * 25.0, ticket=ticket + 1)
    assert leases.pods[POD].per_name == {A: 1}


def test_a_lease_whose_time_is_over_counts_as_ended_before_it_is_cleared_away() -> None:
    leases = table()
    armed(leases, DB, need=30.0, grace=10.0)

    told = leases.last_ended(POD, DB, 40.0)

    assert told is not None and told.until == 40.0
    assert leases.open_in(POD, DB, 40.0) == []
    assert leases.last_ended(POD, DB, 39.9) is None
    assert leases.open_in(POD, DB, 39.9) == ["tcp_443"]


def test_a_lease_that_was_taken_back_begins_anew_and_inherits_no_time() -> None:
    leases = table()
    armed(leases, DB, need=3600.0)
    leases.rejustify(POD, lambda name, address: (), 10.0, same_program=False)

    again = armed(leases, DB, now=20.0, need=30.0, grace=10.0)

    assert again.writes == [Write("tcp_443", ME + DB, 40_000)]
    assert next(iter(leases)).until == 60.0


def test_a_lease_that_was_taken_back_has_ended_at_that_moment() -> None:
    leases = table()
    armed(leases, DB, need=3600.0)

    leases.rejustify(POD, lambda name, address: (), 10.0, same_program=False)

    ended = leases.last_ended(POD, DB, 12.0)
    assert ended is not None and ended.until == 10.0
