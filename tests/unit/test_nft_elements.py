"""Elements as bytes, merging, and the messages they travel in."""

from __future__ import annotations

import struct
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnsguard.core.model import Address, Flow, LinkIndex
from dnsguard.enforce.denials import Audited
from dnsguard.enforce.nftables import elements, netlink
from dnsguard.enforce.nftables.audited import record
from dnsguard.engine.contracts import Write

KEYS = st.binary(min_size=8, max_size=8) | st.binary(min_size=32, max_size=32)
WRITES = st.lists(st.builds(Write, st.sampled_from(["a", "b"]), KEYS, st.integers(1, 1 << 40)), max_size=40)
POD, PEER, OTHER = Address(bytes([10, 0, 0, 5])), Address(bytes([192, 0, 2, 1])), Address(bytes([192, 0, 2, 2]))


@given(KEYS, st.integers(1, (1 << 63) - 1))
def test_a_timed_element_reads_back_as_it_was_packed(key: bytes, ms: int) -> None:
    ((kind, body),) = netlink.each(elements.timed(key, ms))
    element = netlink.attributes(body)
    assert kind == 1
    assert elements.element_key(element) == key
    assert elements.remaining_ms(element) == ms == int.from_bytes(element[4], "big")


@given(st.dictionaries(st.binary(min_size=8, max_size=8), st.integers(1, (1 << 63) - 1), max_size=30))
def test_a_list_of_leases_reads_back_as_it_was_packed(leases: dict[bytes, int]) -> None:
    assert elements.read_leases(b"".join(elements.timed(key, ms) for key, ms in leases.items()), 8) == leases


def test_a_list_with_an_element_of_another_form_is_read_all_the_same() -> None:
    odd = [elements.plain(bytes(8)), elements.plain(b"x" * 8), elements.timed(b"y" * 8, 7)]
    assert elements.read_leases(b"".join(odd), 8) == {bytes(8): 0, b"x" * 8: 0, b"y" * 8: 7}
    assert len(b"".join(elements.plain(bytes([n]) * 8) for n in range(11))) == 5 * 44
    assert len(elements.read_leases(b"".join(elements.plain(bytes([n]) * 8) for n in range(11)), 8)) == 11


def test_an_element_for_all_keys_is_read_and_deleted_without_a_key() -> None:
    ((_, body),) = netlink.each(elements.plain(elements.EVERY))

    assert elements.element_key(netlink.attributes(body)) == elements.EVERY
    assert elements.read_leases(elements.plain(elements.EVERY), 8) == {elements.EVERY: 0}


def test_elements_with_keys_of_another_length_are_no_leases() -> None:
    assert elements.read_leases(elements.timed(bytes(12), 1) + elements.timed(bytes(8), 1), 8) == {bytes(8): 1}


def counted(key: bytes, packets: int, more: bytes = b"") -> bytes:
    """An element as the kernel writes one that counts."""
    numbers = netlink.attribute(1, bytes(8)) + netlink.attribute(2, struct.pack(">Q", packets))
    expression = netlink.text(1, "counter") + netlink.nested(2, numbers)
    return netlink.nested(1, netlink.nested(1, netlink.attribute(1, key)) + netlink.nested(7, expression) + more)


COUNTS = st.dictionaries(st.binary(min_size=16, max_size=16), st.integers(0, (1 << 64) - 1), max_size=30)


@given(COUNTS, st.sampled_from([b"", netlink.attribute(5, bytes(8)), netlink.attribute(4, bytes(8)) * 2]))
def test_a_list_of_counters_reads_back_as_it_was_written(counts: dict[bytes, int], more: bytes) -> None:
    listed = b"".join(counted(key, packets, more) for key, packets in counts.items())
    assert dict(elements.read_counters(listed)) == counts


@given(COUNTS, st.binary(min_size=12, max_size=12))
def test_counters_of_several_forms_are_read_all_the_same(counts: dict[bytes, int], portless: bytes) -> None:
    lists = [counted(key, packets) for key, packets in counts.items()]
    listed = b"".join([*lists, counted(portless, 7), elements.timed(bytes(8), 9)])
    assert dict(elements.read_counters(listed)) == counts | {portless: 7, bytes(8): 0}


@given(st.binary(max_size=300))
def test_counters_are_read_from_any_octets(listed: bytes) -> None:
    assert all(packets >= 0 for _, packets in elements.read_counters(listed))


@pytest.mark.parametrize(("pod", "peer"), [(POD, PEER), (Address(bytes(15) + b"\1"), Address(bytes(15) + b"\2"))])
def test_a_record_says_between_whom_its_packets_passed(pod: Address, peer: Address) -> None:
    assert record(pod + peer + b"\6\0\0\0" + b"\x01\xbb\0\0", 3, 9) == Audited(pod, peer, 6, 443, 3, 9)
    assert record(pod + peer + b"\1\0\0\0", None, 9) == Audited(pod, peer, 1, 0, None, 9)


@given(WRITES)
def test_merging_keeps_every_key_once_with_its_longest_timeout(writes: list[Write]) -> None:
    merged = elements.merged(writes)
    flat = {(name, key): ms for name, keys in merged.items() for key, ms in keys.items()}
    longest: dict[tuple[str, bytes], int] = {}
    for scope, key, ms in writes:
        where = (elements.lease_set(scope, key), key)
        longest[where] = max(ms, longest.get(where, 0))
    assert flat == longest


@given(st.lists(KEYS, max_size=4000))
def test_messages_stay_below_the_length_of_an_attribute_and_lose_nothing(keys: list[bytes]) -> None:
    packed = [elements.timed(key, 1) for key in keys]
    parts = list(elements.parts(netlink.NEWSETELEM, "a_v4", packed))
    lists = [netlink.attributes(part.body)[3] for part in parts]
    assert all(0 < len(each) <= netlink.LIST_LIMIT for each in lists)
    assert b"".join(lists) == b"".join(packed)


def test_an_element_of_a_verdict_map_names_its_chain() -> None:
    key = elements.pair_key(LinkIndex(7), POD)
    ((_, body),) = netlink.each(elements.jump_to(key, "program_x"))
    assert elements.goto_chain(netlink.attributes(body)) == "program_x"
    assert elements.element_key(netlink.attributes(body)) == struct.pack("=I", 7) + POD


def test_an_element_that_goes_nowhere_names_no_chain() -> None:
    assert elements.goto_chain({}) == ""


def test_a_flow_is_cut_as_the_pod_sees_it_and_as_its_replies_arrive() -> None:
    plain = Flow(6, POD, 4000, PEER, 443, PEER, 443)
    translated = Flow(6, POD, 4000, PEER, 443, OTHER, 8443)
    assert len(list(elements.cut_keys(plain))) == 1
    assert {key[4:8] for _, key in elements.cut_keys(translated)} == {PEER, OTHER}


def test_a_protocol_without_ports_is_cut_by_its_addresses_and_icmp_not_at_all() -> None:
    assert [name for name, _ in elements.cut_keys(Flow(47, POD, 0, PEER, 0, PEER, 0))] == ["cut_portless4"]
    assert list(elements.cut_keys(Flow(1, POD, 9, PEER, 0, PEER, 0))) == []


@given(st.binary(max_size=400))
def test_readers_of_messages_take_any_bytes(data: bytes) -> None:
    for message in netlink.messages(data):
        assert list(chain.from_iterable(netlink.each(message.payload))) is not None
        netlink.error_number(message.payload)
