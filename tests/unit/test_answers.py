"""Upstream answers vetted, shown with one TTL, and written as replies."""

from __future__ import annotations

import itertools
from contextlib import suppress
from struct import pack

import pytest
from dnslib import QTYPE, DNSError, DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from dnsguard.core.answers import Answer, Outcome, classify, reply, vet, without
from dnsguard.core.errors import UpstreamError
from dnsguard.core.model import Name
from dnsguard.core.names import parse_name, to_text
from dnsguard.core.protected import DEFAULT_PROTECTED, Protected
from dnsguard.core.wire import Question
from tests.hostile.readers import check_reply
from tests.unit.messages import NAME, SOA, address, answer, ask, ede, judge, protected, query, read, shown

CHAIN = """
www.example.com. 60 CNAME a.cdn.test.
a.cdn.test. 50 CNAME b.cdn.test.
b.cdn.test. 40 A 192.0.2.1
b.cdn.test. 45 A 192.0.2.2
"""
A1 = "www.example.com. 60 A 192.0.2.1"


def view(given: Answer, question: Question | None = None, ttl: int | None = None, *, stream: bool = True) -> DNSRecord:
    """The reply as dnslib reads it."""
    return read(reply(given, question or ask(), given.ttl if ttl is None else ttl, stream=stream))


def raw(
    *records: bytes, name: str = NAME, qtype: int = 1, flags: int = 0x8180, authority: tuple[bytes, ...] = ()
) -> bytes:
    """An upstream's packet of records in wire form."""
    counts = pack(">HHHH", 1, len(records), len(authority), 0)
    question = parse_name(name) + pack(">HH", qtype, 1)
    return b"\x99\x99" + pack(">H", flags) + counts + question + b"".join(records) + b"".join(authority)


def rr(rdata: bytes, rtype: int = 1, *, owner: bytes = b"\xc0\x0c", ttl: int = 60, rclass: int = 1) -> bytes:
    return owner + pack(">HHIH", rtype, rclass, ttl, len(rdata)) + rdata


# ---- what is shown


def test_addresses_are_shown_and_told() -> None:
    vetted = judge(answer(A1 + "\nwww.example.com. 30 A 192.0.2.7"))

    assert vetted.answer.addresses == (address("192.0.2.1"), address("192.0.2.7"))
    assert (vetted.answer.ttl, vetted.answer.rcode, vetted.answer.negative) == (30, 0, False)
    assert (vetted.removed, vetted.counts) == ((), ())
    assert shown(view(vetted.answer).rr) == [(NAME, "A", "192.0.2.1"), (NAME, "A", "192.0.2.7")]


def test_a_chain_is_followed_from_the_questions_name_and_every_ttl_is_its_lowest() -> None:
    vetted = judge(answer(CHAIN))

    message = view(vetted.answer)
    assert vetted.answer.addresses == (address("192.0.2.1"), address("192.0.2.2"))
    assert [r.ttl for r in message.rr] == [40] * 4
    assert [o for o, _, _ in shown(message.rr)] == [NAME, "a.cdn.test", "b.cdn.test", "b.cdn.test"]


def test_a_chain_in_any_order_and_without_compression_is_the_same_answer() -> None:
    a, b = parse_name("a.test"), parse_name(NAME)
    plain = raw(rr(a, 5, owner=b), rr(b"\xc0\0\2\1", owner=a))
    reversed_ = raw(rr(b"\xc0\0\2\1", owner=a), rr(a, 5, owner=b))

    assert judge(plain).answer.addresses == judge(reversed_).answer.addresses == (address("192.0.2.1"),)
    assert judge(reversed_).counts == ()


@pytest.mark.parametrize(("links", "found"), [(16, 1), (17, 0)])
def test_a_chain_has_at_most_16_links(links: int, found: int) -> None:
    names = [NAME, *(f"n{i}.test" for i in range(1, links + 1))]
    zone = "\n".join(f"{a}. 60 CNAME {b}." for a, b in itertools.pairwise(names))

    vetted = judge(answer(zone + f"\n{names[-1]}. 60 A 192.0.2.1"))

    assert len(vetted.answer.addresses) == found
    assert vetted.answer.negative is (found == 0)


def test_a_chain_that_bites_its_tail_opens_nothing() -> None:
    zone = "www.example.com. 60 CNAME a.test.\na.test. 60 CNAME www.example.com.\nb.test. 60 A 192.0.2.1"

    assert judge(answer(zone)).answer.addresses == ()


def test_a_chain_without_an_address_is_passed_with_its_soa_and_opens_nothing() -> None:
    packet = answer("www.example.com. 600 CNAME a.example.com.", authority=SOA)

    vetted = judge(packet)

    assert (vetted.answer.addresses, vetted.answer.negative, vetted.answer.ttl) == ((), True, 60)
    message = view(vetted.answer)
    assert [t for _, t, _ in shown(message.rr)] == ["CNAME"]
    assert [(r.rtype, r.ttl) for r in message.auth] == [(QTYPE.SOA, 60)]


def test_only_records_on_the_chain_are_shown_or_opened() -> None:
    vetted = judge(
        answer(CHAIN + "evil.test. 60 A 192.0.2.66\nwww.example.com. 60 TXT x\na.cdn.test. 9 CNAME evil.test.", ad=1)
    )

    assert vetted.answer.addresses == (address("192.0.2.1"), address("192.0.2.2"))
    assert dict(vetted.counts) == {"owner": 1, "type": 1, "chain": 1}
    assert vetted.removed == ()
    message = view(vetted.answer)
    assert len(message.rr) == 4
    assert (message.header.ad, vetted.answer.ttl) == (0, 40)


def test_records_of_another_class_or_malformed_are_dropped_and_counted() -> None:
    packet = raw(rr(b"\xc0\0\2\1"), rr(b"\xc0\0\2\2", rclass=3), rr(b"\xc0\0\2"), rr(b"\xc0\0\2\3\4"))

    vetted = judge(packet)

    assert vetted.answer.addresses == (address("192.0.2.1"),)
    assert dict(vetted.counts) == {"class": 1, "malformed": 2}


def test_only_malformed_records_leave_an_empty_answer_that_is_not_kept() -> None:
    vetted = judge(raw(rr(b"\xc0\0\2")))

    assert (vetted.answer.negative, vetted.answer.ttl, view(vetted.answer).rr) == (True, 0, [])


def test_a_dname_above_the_chain_is_shown_when_the_cname_was_made_from_it() -> None:
    dname, cname, lie = parse_name("other.test"), parse_name("www.other.test"), parse_name("elsewhere")
    packet = raw(
        rr(dname, 39, owner=parse_name("example.com"), ttl=20),
        rr(lie, 39, owner=parse_name("com"), ttl=5),
        rr(cname, 5),
        rr(b"\xc0\0\2\1", owner=cname),
    )

    vetted = judge(packet)

    assert vetted.answer.addresses == (address("192.0.2.1"),)
    assert (vetted.answer.ttl, dict(vetted.counts)) == (20, {"owner": 1})
    assert [r.rtype for r in view(vetted.answer).rr] == [39, 5, 1]


def test_authority_and_additional_records_of_a_positive_answer_are_left_out() -> None:
    packet = answer(A1, authority="example.com. 60 NS ns.test.", additional="ns.test. 60 A 192.0.2.9", ad=1)

    vetted = judge(packet)

    message = view(vetted.answer)
    assert vetted.counts == ()
    assert (len(message.rr), message.auth, len(message.ar), message.header.ad) == (1, [], 1, 1)


def test_an_answer_with_more_records_than_it_announces_shows_those_announced() -> None:
    packet = answer(A1)

    assert judge(packet + rr(b"\xc0\0\2\x63")).answer.addresses == (address("192.0.2.1"),)


# ---- TTLs


@pytest.mark.parametrize(
    ("ttl", "expected"),
    [(0, 0), (1, 1), (3600, 3600), (86400, 3600), (0x7FFFFFFF, 3600), (0x80000000, 0), (0xFFFFFFFF, 0)],
)
@pytest.mark.parametrize("extra", [b"", rr(b"x", 16)])
def test_a_ttl_is_capped_and_2_to_the_31_is_0(ttl: int, expected: int, extra: bytes) -> None:
    packet = raw(rr(b"\xc0\0\2\1", ttl=ttl), *([extra] if extra else []))

    assert judge(packet).answer.ttl == expected


def test_every_shown_record_carries_the_ttl_that_the_reply_is_given() -> None:
    vetted = judge(answer(CHAIN))

    assert {r.ttl for r in view(vetted.answer, ttl=7).rr} == {7}


# ---- denials


@pytest.mark.parametrize("rcode", [0, 3])
@pytest.mark.parametrize(
    ("soa_ttl", "minimum", "ttl"), [(300, 60, 60), (30, 60, 30), (86400, 86400, 3600), (60, 0x80000000, 0)]
)
def test_a_denial_keeps_its_soa_and_lives_as_long_as_that_says(
    rcode: int, soa_ttl: int, minimum: int, ttl: int
) -> None:
    packet = answer(
        authority=f"example.com. {soa_ttl} SOA ns.example.com. host.example.com. 1 2 3 4 {minimum}", rcode=rcode
    )

    vetted = judge(packet)

    assert (vetted.answer.rcode, vetted.answer.negative, vetted.answer.ttl) == (rcode, True, ttl)
    message = view(vetted.answer)
    assert message.header.rcode == rcode
    assert [(str(r.rname), r.ttl) for r in message.auth] == [("example.com.", ttl)]


def test_a_denial_without_a_soa_is_passed_and_not_kept() -> None:
    vetted = judge(answer(authority="example.com. 60 NS ns.example.com."))

    assert (vetted.answer.negative, vetted.answer.ttl, view(vetted.answer).auth) == (True, 0, [])


@pytest.mark.parametrize("zone", ["other.test.", "example.org.", "le.com.", "www.www.example.com.", "w.example.com."])
def test_a_soa_of_a_zone_that_holds_no_name_of_the_chain_is_left_out(zone: str) -> None:
    vetted = judge(answer(authority=SOA.replace("example.com.", zone, 1)))

    assert (vetted.answer.ttl, view(vetted.answer).auth) == (0, [])


@pytest.mark.parametrize("zone", [".", "com.", "Example.com.", "www.example.com."])
@pytest.mark.parametrize("more", ["", "\nexample.com. 60 NS ns.example.com."])
def test_a_soa_at_or_above_the_name_is_shown(zone: str, more: str) -> None:
    vetted = judge(answer(authority=f"{zone} 60 SOA ns.test. host.test. 1 2 3 4 60{more}"))

    assert [str(r.rname).lower() for r in view(vetted.answer).auth] == [zone.lower()]
    assert str(view(vetted.answer).auth[0].rdata) == "ns.test. host.test. 1 2 3 4 60"


def test_nxdomain_shows_the_chain_and_never_an_address() -> None:
    zone = "www.example.com. 60 CNAME a.test.\na.test. 60 A 192.0.2.1"

    vetted = judge(answer(zone, authority=SOA, rcode=3))

    assert (vetted.answer.addresses, vetted.answer.negative, dict(vetted.counts)) == ((), True, {"nxdomain": 1})
    assert [t for _, t, _ in shown(view(vetted.answer).rr)] == ["CNAME"]


# ---- protected addresses


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1",
        "0.0.0.0",
        "169.254.169.254",
        "224.0.0.1",
        "239.255.255.255",
        "255.255.255.255",
        "168.63.129.16",
        "100.100.100.200",
        "::",
        "::1",
        "fe80::1",
        "febf::1",
        "ff02::1",
        "fd00:ec2::254",
        "fd20:ce::254",
        "::ffff:127.0.0.1",
        "::169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::a9fe:a9fe",
        "64:ff9b:1:a9fe:00a9:fe00::",
        "64:ff9b:1:1a9:00fe:a9fe::",
        "64:ff9b:1:1234:00a9:fea9:fe00:0",
        "2002:a9fe:a9fe::1",
    ],
)
def test_the_default_protects_it(text: str) -> None:
    assert address(text) in Protected(DEFAULT_PROTECTED)


@pytest.mark.parametrize(
    "text",
    [
        "10.0.0.1",
        "223.255.255.255",
        "168.63.129.17",
        "100.100.100.201",
        "240.0.0.1",
        "2001:db8::1",
        "fd00:ec3::1",
        "fd20:ce::253",
        "64:ff9b::808:808",
        "64:ff9b:1::808:808",
        "64:ff9b:1:808:8:800::",
        "2002:808:808::1",
        "fec0::1",
    ],
)
def test_the_default_does_not_protect_it(text: str) -> None:
    assert address(text) not in Protected(DEFAULT_PROTECTED)


def test_own_addresses_and_networks_are_protected_also_when_translated() -> None:
    guard = protected("10.1.2.0/23", "10.8.0.0/13", "2001:db8:1::/48", own=("192.0.2.1", "2001:db8::5"))

    inside = ["10.1.3.255", "10.15.255.255", "2001:db8:1:ffff::", "192.0.2.1", "2001:db8::5", "::ffff:192.0.2.1"]
    outside = ["10.1.4.0", "10.16.0.0", "2001:db8:2::", "192.0.2.2", "2001:db8::6", "::ffff:192.0.2.2", "127.0.0.1"]
    assert [address(t) in guard for t in inside] == [True] * 6
    assert [address(t) in guard for t in outside] == [False] * 7


def test_nothing_is_protected_when_nothing_is_listed() -> None:
    guard = protected()

    assert not any(address(t) in guard for t in ("127.0.0.1", "::1", "::ffff:127.0.0.1"))


@given(st.ip_addresses(v=4), st.integers(0, 32), st.ip_addresses(v=4))
def test_a_protected_network_holds_what_ipaddress_says_it_holds(base: object, length: int, other: object) -> None:
    from ipaddress import ip_address, ip_network

    network = ip_network(f"{base}/{length}", strict=False)
    for text in (str(other), str(network[0]), str(network[-1])):
        assert (address(text) in protected(str(network))) == (ip_address(text) in network)


def test_a_protected_address_is_taken_out_and_the_rest_shown() -> None:
    vetted = judge(answer(A1 + "\nwww.example.com. 60 A 127.0.0.1\nwww.example.com. 60 A 169.254.169.254", ad=1))

    assert vetted.answer.addresses == (address("192.0.2.1"),)
    assert vetted.removed == (("protected", "127.0.0.1, 169.254.169.254"),)
    assert (dict(vetted.counts), vetted.answer.ede) == ({"protected": 2}, None)
    message = view(vetted.answer)
    assert (len(message.rr), message.header.ad) == (1, 0)


def test_none_left_is_nodata_with_the_reason() -> None:
    zone = "www.example.com. 60 CNAME a.test.\n" + "\n".join(f"a.test. 60 A 127.0.0.{i}" for i in range(1, 6))

    vetted = judge(answer(zone))

    packet = reply(vetted.answer, ask(), vetted.answer.ttl, stream=False)
    message = read(packet)
    assert vetted.removed == (("protected", "127.0.0.1, 127.0.0.2, 127.0.0.3 and 2 more"),)
    assert (vetted.answer.addresses, vetted.answer.negative, vetted.answer.ttl) == ((), True, 5)
    assert (message.header.rcode, message.rr) == (0, [])
    assert [(str(r.rname), r.ttl) for r in message.auth] == [("www.example.com.", 5)]
    assert ede(packet) == (15, "protected address 127.0.0.1, 127.0.0.2, 127.0.0.3 and 2 more")


def test_ipv6_answers_are_vetted_the_same() -> None:
    packet = raw(*(rr(address(text), 28) for text in ("2001:db8::1", "::ffff:127.0.0.1")), qtype=28)

    vetted = judge(packet, ask(qtype="AAAA"))

    assert vetted.answer.addresses == (address("2001:db8::1"),)
    assert vetted.removed == (("protected", "::ffff:7f00:1"),)


@pytest.mark.parametrize("rdata", [b"\xc0\x2d", b"\xc0\x0c\0", b"\1", b""])
def test_a_malformed_link_ends_the_chain(rdata: bytes) -> None:
    vetted = judge(raw(rr(rdata, 5), rr(b"\xc0\0\2\1", owner=parse_name("a.test"))))

    assert (vetted.answer.addresses, dict(vetted.counts)) == ((), {"chain": 1, "owner": 1})


# ---- other types


@pytest.mark.parametrize(
    ("qtype", "record"),
    [
        ("TXT", 'TXT "a" "b"'),
        ("MX", "MX 10 mail.example.com."),
        ("SRV", "SRV 1 2 53 srv.example.com."),
        ("NS", "NS ns.example.com."),
        ("PTR", "PTR host.example.com."),
        ("SOA", "SOA ns.example.com. host.example.com. 1 2 3 4 5"),
        ("CNAME", "CNAME a.example.com."),
        ("CAA", 'CAA 0 issue "ca.example.com"'),
        ("NAPTR", 'NAPTR 1 2 "S" "SIP+D2U" "" _sip._udp.example.com.'),
    ],
)
def test_other_types_are_passed_with_their_names_uncompressed(qtype: str, record: str) -> None:
    packet = answer(f"www.example.com. 60 {record}", qtype=qtype)

    vetted = judge(packet, ask(qtype=qtype))

    assert shown(view(vetted.answer, ask(qtype=qtype)).rr) == shown(read(packet).rr)
    assert (vetted.answer.addresses, vetted.answer.negative, vetted.counts) == ((), False, ())


def test_names_compressed_against_records_that_go_are_written_in_full() -> None:
    mail = rr(b"\0\x0a\4mail\xc0" + bytes([12 + 17 + 4 + 0]), 15)
    foreign = rr(b"\0\1\0", 15, owner=parse_name("mx.test"))

    vetted = judge(raw(foreign, mail, qtype=15), ask(qtype="MX"))

    assert [d for _, _, d in shown(view(vetted.answer, ask(qtype="MX")).rr)] == ["10 mail.mx.test"]


def test_unknown_types_keep_every_octet() -> None:
    packet = raw(rr(b"\xc0\x0c\xff", 65280), rr(b"", 65280), qtype=65280)
    question = ask()
    question.qtype, question.section = 65280, parse_name(NAME) + pack(">HH", 65280, 1)

    vetted = judge(packet, question)

    body = reply(vetted.answer, question, 60, stream=True)
    assert vetted.counts == ()
    assert rr(b"\xc0\x0c\xff", 65280) + rr(b"", 65280) in body


def service(*parameters: tuple[int, bytes], priority: int = 1, target: str = ".") -> bytes:
    name = b"\0" if target == "." else parse_name(target)
    return pack(">H", priority) + name + b"".join(pack(">HH", k, len(v)) + v for k, v in parameters)


ALPN, PORT = (1, b"\2h2"), (3, b"\1\xbb")
HINTS = ((4, b"\xc0\0\2\1"), (5, b"ech"), (6, bytes(16)))


@pytest.mark.parametrize("qtype", [64, 65])
def test_service_records_lose_their_hints_and_keep_the_rest(qtype: int) -> None:
    packet = raw(rr(service(ALPN, PORT, *HINTS, (7, b"/dns")), qtype), qtype=qtype, flags=0x81A0)

    vetted = judge(packet, ask(qtype=QTYPE[qtype]))

    wire = reply(vetted.answer, ask(qtype=QTYPE[qtype]), 60, stream=True)
    assert rr(service(ALPN, PORT, (7, b"/dns")), qtype) in wire
    assert (dict(vetted.counts), vetted.removed, vetted.answer.addresses) == ({"hint": 1}, (), ())
    assert not wire[3] & 0x20


@pytest.mark.parametrize("key", [4, 5, 6])
def test_a_service_record_that_needs_a_hint_is_withheld(key: int) -> None:
    question = ask(qtype="HTTPS")

    vetted = judge(raw(rr(service((0, pack(">HH", 1, key)), ALPN, *HINTS), 65), qtype=65), question)

    assert vetted.removed == (("mandatory", NAME),)
    assert ede(reply(vetted.answer, question, 5, stream=False)) is not None


def test_a_service_record_with_another_mandatory_key_stays() -> None:
    vetted = judge(raw(rr(service((0, pack(">H", 1)), ALPN), 65), qtype=65), ask(qtype="HTTPS"))

    assert (vetted.answer.negative, vetted.counts) == (False, ())


@pytest.mark.parametrize("priority", [0, 1])
def test_a_service_target_must_be_allowed(priority: int) -> None:
    packet = raw(
        rr(service(priority=priority, target="Good.test"), 65),
        rr(service(priority=priority, target="bad.test"), 65),
        qtype=65,
    )

    vetted = judge(packet, ask(qtype="HTTPS"), allow=lambda name: to_text(name) == "good.test")

    assert vetted.removed == (("target", "bad.test"),)
    assert not vetted.answer.negative


@pytest.mark.parametrize(
    "rdata",
    [
        service(PORT, ALPN),
        service(ALPN, ALPN),
        service((0, b"")),
        service((0, b"\0")),
        service(ALPN)[:-1],
        service(ALPN) + b"\0",
        b"\0\1\xc0\x0c",
        b"\0",
        b"",
    ],
)
def test_a_malformed_service_record_is_dropped(rdata: bytes) -> None:
    vetted = judge(raw(rr(rdata, 65), qtype=65), ask(qtype="HTTPS"))

    assert (dict(vetted.counts), vetted.answer.negative) == ({"malformed": 1}, True)


# ---- DNSSEC

SIG = "{} 60 RRSIG {} 8 3 60 20300101000000 20200101000000 1 example.com. AAAA"


def rrsig(covered: int, signer: str = "example.com") -> bytes:
    return pack(">HBBIIIH", covered, 8, 3, 60, 2, 1, 7) + parse_name(signer) + b"signature"


def test_with_do_the_signatures_of_shown_records_stay_with_ad() -> None:
    packet = raw(rr(b"\xc0\0\2\1"), rr(rrsig(1), 46), flags=0x81A0)

    vetted = judge(packet, ask(do=True))

    message = view(vetted.answer, ask(do=True))
    assert ([r.rtype for r in message.rr], message.header.ad, vetted.counts) == ([1, 46], 1, ())


def test_signatures_of_what_is_not_shown_go() -> None:
    packet = raw(rr(b"\xc0\0\2\1"), rr(rrsig(16), 46), rr(rrsig(1), 46, owner=parse_name("x.test")), flags=0x81A0)

    vetted = judge(packet, ask(do=True))

    assert (dict(vetted.counts), len(view(vetted.answer).rr), view(vetted.answer).header.ad) == ({"signature": 2}, 1, 0)


def test_without_do_signatures_go() -> None:
    vetted = judge(raw(rr(b"\xc0\0\2\1"), rr(rrsig(1), 46)))

    assert (dict(vetted.counts), len(view(vetted.answer).rr)) == ({"type": 1}, 1)


@pytest.mark.parametrize(("do", "expected"), [(True, [6, 47, 46, 46]), (False, [6])])
def test_with_do_a_denial_keeps_its_proofs(do: bool, expected: list[int]) -> None:
    soa = b"\0\0" + pack(">IIIII", 1, 2, 3, 4, 60)
    zone = parse_name("example.com")
    authority = (
        rr(soa, 6, owner=zone),
        rr(rrsig(6), 46, owner=zone),
        rr(b"\0\0\1\x40", 47, owner=zone),
        rr(rrsig(47), 46, owner=zone),
        rr(rrsig(1), 46, owner=zone),
        rr(b"\0", 2, owner=zone),
    )

    vetted = judge(raw(authority=authority, flags=0x81A3), ask(do=do))

    message = view(vetted.answer, ask(do=do))
    assert [r.rtype for r in message.auth] == expected
    assert (message.header.ad, vetted.counts) == (1, ())


def test_with_do_a_wildcards_proof_stays_with_the_answer() -> None:
    proof = rr(b"\0\0\1\x40", 47, owner=parse_name("a.example.com"))

    vetted = judge(raw(rr(b"\xc0\0\2\1"), authority=(proof, rr(b"\0", 2))), ask(do=True))

    assert [r.rtype for r in view(vetted.answer, ask(do=True)).auth] == [47]


# ---- packets that are not answers


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (b"", "short"),
        (b"\0" * 9, "short"),
        (raw(flags=0x0180), "header"),
        (raw(flags=0x8980), "header"),
        (raw()[:4] + b"\0\2" + raw()[6:], "header"),
        (raw(name="ww.example.com"), "question"),
        (raw(qtype=28), "question"),
        (raw()[:-1] + b"\3", "question"),
        (raw(flags=0x8380), "truncated"),
        (raw(flags=0x8182), "rcode"),
        (raw(flags=0x8185), "rcode"),
        (raw(rr(b"\xc0\0\2\1"))[:-1], "malformed"),
        (raw(rr(b"\xc0\0\2\1"))[:6] + b"\xff\xff" + raw(rr(b"\xc0\0\2\1"))[8:], "malformed"),
        (raw(rr(b"\xc0\0\2\1", owner=b"\xc0\x21")), "malformed"),
        (raw(rr(b"\xc0\0\2\1", owner=b"\xc0\x60")), "malformed"),
        (raw(rr(b"\xc0\0\2\1", owner=b"\xc0\0")), "malformed"),
        (raw(rr(b"\xc0\0\2\1", owner=b"\x80")), "malformed"),
        (raw(rr(b"\xc0\0\2\1", owner=b"\1a" * 127 + b"\xc0\x0c")), "malformed"),
        (raw(authority=(rr(b"", 6)[:-1],)), "malformed"),
    ],
)
def test_a_packet_that_is_no_answer_is_refused(packet: bytes, reason: str) -> None:
    with pytest.raises(UpstreamError) as caught:
        judge(packet)

    assert caught.value.reason == reason


def test_the_question_may_come_back_in_other_letters_but_not_as_another_type() -> None:
    assert judge(answer(A1, name="WWW.example.COM")).answer.addresses
    with pytest.raises(UpstreamError):
        judge(raw(qtype=ord("a")), ask(qtype="HTTPS"))


def test_a_pointer_into_the_header_is_no_name() -> None:
    # Read from octet 11, a count of 4 and the question behind it would be a name.
    packet = bytearray(raw(rr(b"\xc0\x0b", 5), rr(b"\xc0\0\2\1", owner=b"\xc0\x2d")))
    packet[11] = 4

    with pytest.raises(UpstreamError, match="malformed"):
        judge(bytes(packet))


def test_an_answer_that_would_outgrow_a_message_is_refused() -> None:
    suffix = b"\x3f" + b"x" * 63
    long = rr(suffix * 3 + b"\0", 12)
    name_at = 12 + 17 + 4 + 12
    many = [rr(pack(">H", 0xC000 | name_at), 12) for _ in range(400)]

    with pytest.raises(UpstreamError, match="too_large"):
        judge(raw(long, *many, qtype=12), ask(qtype="PTR"))


@pytest.mark.parametrize(
    ("packet", "outcome"),
    [
        (answer(A1), Outcome.ANSWER),
        (answer(rcode=3), Outcome.ANSWER),
        (raw(flags=0x8380), Outcome.TRUNCATED),
        (raw(flags=0x8383), Outcome.TRUNCATED),
        (raw(flags=0x8181), Outcome.EDNS_REFUSED),
        (raw(flags=0x8184), Outcome.EDNS_REFUSED),
        (raw(flags=0x8182), Outcome.SERVER_FAILURE),
        (raw(flags=0x8185), Outcome.SERVER_FAILURE),
        (raw(flags=0x8181)[:10] + b"\0\1" + raw()[12:] + rr(b"", 41, owner=b"\0", ttl=0), Outcome.SERVER_FAILURE),
        (raw()[:10] + b"\0\1" + raw()[12:] + rr(b"", 41, owner=b"\0", ttl=1 << 24), Outcome.EDNS_REFUSED),
        (raw()[:10] + b"\0\1" + raw()[12:] + rr(b"", 41, owner=b"\0", ttl=0), Outcome.ANSWER),
        (b"\x99\x99\x81\x81" + bytes(8), Outcome.EDNS_REFUSED),
        (b"\x99\x99\x81", Outcome.SERVER_FAILURE),
    ],
)
def test_what_an_upstreams_message_is_good_for(packet: bytes, outcome: Outcome) -> None:
    assert classify(packet) is outcome


# ---- replies


def test_a_reply_is_the_clients_own_with_its_letters() -> None:
    given = judge(answer(CHAIN)).answer
    question = ask("wWw.eXample.com", rd=0, cd=1, edns=None)

    message = view(given, question)

    assert (message.header.id, message.header.rd, message.header.cd, message.header.ra) == (0x1234, 0, 1, 1)
    assert (str(message.q.qname), message.ar) == ("wWw.eXample.com.", [])
    assert str(message.rr[0].rname) == "wWw.eXample.com."


@pytest.mark.parametrize("do", [False, True])
def test_an_opt_is_sent_iff_one_was(do: bool) -> None:
    message = view(judge(answer(A1), ask(do=do)).answer, ask(do=do))

    assert [(r.rtype, r.edns_do, r.edns_len) for r in message.ar] == [(41, int(do), 1232)]


def test_a_reply_larger_than_the_client_takes_is_truncated_over_udp_only() -> None:
    given = judge(answer("\n".join(f"www.example.com. 60 A 192.0.2.{i}" for i in range(40)))).answer

    small, large, stream = ask(edns=None), ask(edns=1232), ask(edns=None)

    assert (view(given, small, stream=False).header.tc, view(given, small, stream=False).rr) == (1, [])
    assert len(view(given, large, stream=False).rr) == len(view(given, stream, stream=True).rr) == 40


def test_a_given_reason_is_sent_with_the_answer() -> None:
    given = judge(answer(A1)).answer

    packet = reply(given, ask(), 30, stream=False, ede=(3, "stale"))

    assert ede(packet) == (3, "stale")
    assert [r.ttl for r in read(packet).rr] == [30]


# ---- without


def test_addresses_are_taken_out_for_one_pod() -> None:
    given = judge(answer(CHAIN, ad=1)).answer

    left = without(given, {address("192.0.2.1")})

    assert left.addresses == (address("192.0.2.2"),)
    assert [d for _, _, d in shown(view(left).rr)] == ["a.cdn.test", "b.cdn.test", "192.0.2.2"]
    assert (view(left).header.ad, view(given).header.ad, left.ttl) == (0, 1, given.ttl)
    assert len(given.addresses) == 2


def test_taking_out_what_is_not_there_changes_nothing() -> None:
    given = judge(answer(CHAIN)).answer

    assert without(given, [address("192.0.2.77")]) is given


def test_nothing_left_for_a_pod_is_nodata() -> None:
    given = judge(answer(CHAIN)).answer

    left = without(given, given.addresses)

    assert (left.addresses, left.negative, left.ede, left.rcode) == ((), True, None, 0)
    assert (view(left).rr, [r.rtype for r in view(left).auth]) == ([], [6])


@pytest.mark.parametrize("packet", [answer(CHAIN), answer(authority=SOA), answer(authority=SOA, rcode=3), answer()])
def test_between_replies_with_different_ttls_only_these_octets_differ(packet: bytes) -> None:
    given = judge(packet).answer
    changed = bytearray(reply(given, ask(), 0, stream=True))

    for offset in given.ttl_offsets:
        at = 12 + len(ask().section) + offset
        changed[at : at + 4] = b"\x01\x02\x03\x04"

    assert changed == reply(given, ask(), 0x01020304, stream=True)


# ---- any bytes

LABELS = st.lists(st.binary(min_size=1, max_size=8), min_size=1, max_size=3)


def check(packet: bytes, question: Question) -> None:
    """Whatever an upstream sends: a refusal, or an answer that says what it holds and holds nothing protected."""
    classify(packet)
    guard = Protected(DEFAULT_PROTECTED)
    try:
        vetted = vet(packet, question, guard, cap=3600, allowed=lambda name: len(name) % 2 == 0)
    except UpstreamError:
        return
    given = vetted.answer
    assert 0 <= given.ttl <= 3600
    assert not any(a in guard for a in given.addresses)
    packet = reply(given, question, given.ttl, stream=True)
    check_reply(packet, question, given.addresses)
    with suppress(DNSError):  # dnslib takes no label that is not UTF-8; what it can read must be the same
        assert {bytes(r.rdata.data) for r in read(packet).rr if r.rtype in (1, 28)} == set(given.addresses)
    if given.addresses:
        assert without(given, given.addresses[:1]).addresses == given.addresses[1:]


@given(st.binary(max_size=300))
def test_any_bytes_behind_the_question_are_an_answer_or_refused(tail: bytes) -> None:
    for counts in (b"\0\1\0\0", b"\0\2\0\1"):
        check(b"\x99\x99\x81\x80\0\1" + counts + b"\0\0" + ask().section + tail, ask())


@given(st.data())
def test_any_change_to_an_answer_is_an_answer_or_refused(data: st.DataObject) -> None:
    question, packet = data.draw(
        st.sampled_from(
            [
                (ask(), answer(CHAIN, authority=SOA)),
                (ask(), answer(A1)),
                (ask(do=True), raw(rr(b"\xc0\0\2\1"), rr(rrsig(1), 46))),
                (ask(qtype="HTTPS"), raw(rr(service(ALPN, *HINTS), 65), qtype=65)),
                (ask(), answer(authority=SOA, rcode=3)),
            ]
        )
    )
    changed = bytearray(packet)
    start = 12 + len(question.section)
    for at in data.draw(st.lists(st.integers(start, len(packet) - 1), max_size=4)):
        changed[at] = data.draw(st.integers(0, 255) | st.sampled_from([0, 12, 0xC0, start]))

    check(bytes(changed[: data.draw(st.integers(start, len(packet)))]), question)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 100)), max_size=8), st.randoms())
def test_what_is_opened_stands_on_the_chain_as_an_independent_reader_sees_it(
    edges: list[tuple[int, int, int]], random: object
) -> None:
    names = [NAME, "a.test", "b.a.test", "c.example.com"]
    lines = [f"{names[a]}. {ttl} CNAME {names[b]}." for a, b, ttl in edges if ttl % 2]
    lines += [f"{names[a]}. {ttl} A 192.0.2.{b}" for a, b, ttl in edges if not ttl % 2]
    random.shuffle(lines)  # type: ignore[attr-defined]
    packet = answer("\n".join(lines))

    given = judge(packet).answer

    assert given.addresses == expected_addresses(read(packet))


def expected_addresses(message: DNSRecord) -> tuple[bytes, ...]:
    links: dict[str, str] = {}
    for record in message.rr:
        if record.rtype == QTYPE.CNAME:
            links.setdefault(str(record.rname), str(record.rdata))
    owner, seen = NAME + ".", set()
    while owner in links and owner not in seen:
        seen.add(owner)
        owner = links[owner]
    found = [bytes(r.rdata.data) for r in message.rr if r.rtype == QTYPE.A and str(r.rname) == owner]
    return tuple(dict.fromkeys(found))


def test_these_messages_speak_of_the_same_name() -> None:
    assert Name(parse_name(NAME)) == ask().name == query()[12:-15][: len(ask().name)]
