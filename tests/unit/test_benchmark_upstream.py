"""The benchmark's upstream answers with the addresses that its load expects."""

from __future__ import annotations

import struct

import pytest
from benchmarks.names import POOL, Kind, addresses, name, query
from benchmarks.upstream import QUESTION_END, _answers
from dnslib import DNSRecord


def message(number: int, kind: Kind, records: int) -> DNSRecord:
    asked, tails = query(number, kind), _answers(kind, 3600)
    return DNSRecord.parse(
        asked[:2] + struct.pack("!5H", 0x8580, 1, records, 0, 0) + asked[12:] + tails[number % len(tails)]
    )


@pytest.mark.parametrize(("kind", "records"), [(Kind.ONE_A, 1), (Kind.CHAIN, 3), (Kind.TARGET, 2)])
def test_an_answer_holds_the_addresses_of_its_name(kind: Kind, records: int) -> None:
    for number in (0, 1, 24_999, 25_000, 49_999, 50_000, 89_999_999):
        answer = message(number, kind, records)

        assert [bytes(rr.rdata.data) for rr in answer.rr if rr.rtype == 1] == addresses(number, kind)


def test_a_chain_leads_from_the_name_asked_to_the_owner_of_the_addresses() -> None:
    alias, *hosts = message(7, Kind.CHAIN, 3).rr

    assert str(alias.rname).rstrip(".") == name(7, Kind.CHAIN)
    assert {str(host.rname) for host in hosts} == {str(alias.rdata.label)} == {f"{name(7, Kind.TARGET)}."}


@pytest.mark.parametrize("kind", [Kind.ONE_A, Kind.CHAIN, Kind.TARGET])
def test_every_question_ends_where_the_upstream_looks(kind: Kind) -> None:
    assert len(query(12_345_678, kind)) == QUESTION_END


@pytest.mark.parametrize("kind", [Kind.ONE_A, Kind.CHAIN])
def test_the_whole_pool_is_answered(kind: Kind) -> None:
    assert len({a for n in range(POOL) for a in addresses(n, kind)}) == POOL
