"""Questions read from any bytes, and the replies that need no upstream."""

from __future__ import annotations

from struct import pack

import pytest
from dnslib import QTYPE, RCODE, DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from dnsguard.core.names import parse_name
from dnsguard.core.wire import (
    CD,
    RD,
    Ede,
    Qtype,
    Question,
    Rcode,
    Rejection,
    denial,
    error,
    forwarded,
    minimal_any,
    read_question,
    truncated,
    type_text,
)
from tests.unit.messages import NAME, ask, ede, query, read

OPT = b"\0\0\x29\x04\xd0\0\0\0\0\0\0"


def header(flags: int = RD, counts: tuple[int, int, int, int] = (1, 0, 0, 0)) -> bytes:
    return pack(">HHHHHH", 0x1234, flags, *counts)


def section(name: str = NAME, qtype: int = 1, qclass: int = 1) -> bytes:
    return parse_name(name) + pack(">HH", qtype, qclass)


def rejected(packet: bytes) -> Rejection:
    result = read_question(packet)
    assert isinstance(result, Rejection)
    return result


def test_a_question_is_read_with_its_letters_kept_and_its_name_folded() -> None:
    packet = query("WWW.Example.com", edns=None)

    question = read_question(packet)

    assert isinstance(question, Question)
    assert question.section == packet[12:]
    assert question.name == parse_name(NAME)
    assert (question.id, question.qtype, question.flags) == (b"\x12\x34", Qtype.A, RD)
    assert (question.size, question.edns, question.dnssec_ok, question.opt) == (512, False, False, b"")


@pytest.mark.parametrize(("announced", "size"), [(100, 512), (512, 512), (1232, 1232), (1300, 1300), (65000, 4096)])
def test_the_size_of_the_client_is_taken_between_512_and_4096(announced: int, size: int) -> None:
    assert ask(edns=announced).size == size


@pytest.mark.parametrize("size", [1232, 1333])
def test_do_and_cd_are_read_and_part_of_the_key(size: int) -> None:
    plain, secure = ask(edns=size), ask(edns=size, do=True, cd=1)

    assert (secure.dnssec_ok, secure.flags & CD) == (True, CD)
    assert len({plain.key, secure.key, ask(edns=size, do=True).key, ask(edns=size, cd=1).key}) == 4
    assert plain.key == ask("WWW.EXAMPLE.COM", edns=None).key


def test_edns_options_a_signature_and_an_ixfr_soa_are_read_over() -> None:
    cookie = b"\0\0\x29\x04\xd0\0\0\x80\0\0\x0c\0\x0a\0\x08abcdefgh"
    tsig = b"\1k\0" + pack(">HHIH", 250, 255, 0, 2) + b"xx"
    soa = b"\xc0\x0c" + pack(">HHIH", 6, 1, 0, 2) + b"xx"

    question = read_question(header(counts=(1, 0, 1, 2)) + section(qtype=251) + soa + cookie + tsig)

    assert isinstance(question, Question)
    assert (question.qtype, question.edns, question.dnssec_ok, question.size) == (Qtype.IXFR, True, True, 1232)


@pytest.mark.parametrize(
    ("packet", "reason", "rcode"),
    [
        (b"", "short", None),
        (b"\x12\x34\1\0\0\1\0\0\0\0\0", "short", None),
        (header(0x8100) + section(), "response", None),
        (header(0x2900) + section(), "opcode", Rcode.NOTIMP),
        (header(counts=(0, 0, 0, 0)), "question_count", Rcode.FORMERR),
        (header(counts=(2, 0, 0, 0)) + section() + section(), "question_count", Rcode.FORMERR),
        (header(counts=(1, 1, 0, 0)) + section(), "malformed", Rcode.FORMERR),
        (header() + section()[:-1], "malformed", Rcode.FORMERR),
        (header() + section() + b"x", "malformed", Rcode.FORMERR),
        (header() + b"\xc0\x0c\0\1\0\1", "malformed", Rcode.FORMERR),
        (header() + b"\x40" + b"a" * 64 + b"\0\0\1\0\1", "malformed", Rcode.FORMERR),
        (header() + b"\x3f" + b"a" * 63, "malformed", Rcode.FORMERR),
        (header() + b"\1a" * 127 + b"\1a\0\0\1\0\1", "malformed", Rcode.FORMERR),
        (header() + b"\1a" * 30000 + b"\0\0\1\0\1", "malformed", Rcode.FORMERR),
        (header(counts=(1, 0, 0, 1)) + section(), "malformed", Rcode.FORMERR),
        (header(counts=(1, 0, 0, 1)) + section() + OPT[:-1], "malformed", Rcode.FORMERR),
        (header(counts=(1, 0, 0, 1)) + section() + OPT[:-1] + b"\5", "malformed", Rcode.FORMERR),
        (header(counts=(1, 0, 1, 0)) + section() + OPT, "malformed", Rcode.FORMERR),
        (header(counts=(1, 0, 0, 1)) + section() + b"\1a" + OPT, "malformed", Rcode.FORMERR),
        (header(counts=(1, 0, 0, 1)) + section() + b"\x41" + OPT, "malformed", Rcode.FORMERR),
        (header(counts=(1, 0, 0, 65535)) + section() + OPT, "malformed", Rcode.FORMERR),
        (header(counts=(1, 0, 0, 2)) + section() + OPT + OPT, "opt_count", Rcode.FORMERR),
        (header() + section(qclass=3), "class", Rcode.REFUSED),
        (header() + section(qclass=255), "class", Rcode.REFUSED),
    ],
)
def test_header_abuse_is_dropped_or_refused(packet: bytes, reason: str, rcode: Rcode | None) -> None:
    result = rejected(packet)

    assert result.reason == reason
    if rcode is None:
        assert result.reply is None
    else:
        assert result.reply is not None
        reply = read(result.reply)
        assert (reply.header.id, reply.header.qr, reply.header.rcode) == (0x1234, 1, rcode)
        assert reply.header.opcode == (packet[2] >> 3 & 15)


def test_a_later_edns_version_gets_badvers_with_an_opt_of_version_0() -> None:
    result = rejected(header(counts=(1, 0, 0, 1)) + section() + OPT[:6] + b"\1" + OPT[7:])

    assert result.reason == "edns_version"
    assert result.reply is not None
    reply = read(result.reply)
    assert (reply.header.rcode, shown_question(reply)) == (0, (NAME, "A"))
    assert reply.ar[0].rtype == QTYPE.OPT
    assert reply.ar[0].ttl == 1 << 24  # the extended rcode, version 0, no flags


def test_the_longest_name_is_a_question_and_gets_a_reply() -> None:
    name = ".".join(["x" * 63] * 3 + ["y" * 61])

    question = ask(name)

    assert len(question.name) == 255
    assert read(error(question, Rcode.SERVFAIL)).header.rcode == RCODE.SERVFAIL


@pytest.mark.parametrize("do", [False, True])
@pytest.mark.parametrize("cd", [0, 1])
def test_what_is_forwarded_is_written_anew(do: bool, cd: int) -> None:
    question = ask("Www.example.com", "AAAA", do=do, cd=cd, rd=0, edns=4096)

    message = read(b"\0\0" + forwarded(question))

    assert (message.header.rd, message.header.cd, message.header.qr) == (1, cd, 0)
    assert str(message.q.qname) == "Www.example.com."
    opt = message.ar[0]
    assert (opt.edns_len, opt.edns_do, len(opt.rdata)) == (1232, int(do), 0)


def test_without_edns_nothing_of_it_is_forwarded() -> None:
    message = read(b"\0\0" + forwarded(ask(do=True, cd=1), edns=False))

    assert (message.ar, message.header.cd, message.header.rd) == ([], 1, 1)


@pytest.mark.parametrize(("rcode", "soa"), [(Rcode.NXDOMAIN, True), (Rcode.NOERROR, True), (Rcode.REFUSED, False)])
def test_a_denial_has_a_short_soa_owned_by_the_name_and_says_why(rcode: Rcode, soa: bool) -> None:
    question = ask("Denied.Example.com", do=True, cd=1)

    packet = denial(question, rcode=rcode, ede=(Ede.BLOCKED, "backend: no rule"), soa=soa)

    reply = read(packet)
    assert (reply.header.id, reply.header.rcode, reply.header.ra, reply.header.rd) == (0x1234, rcode, 1, 1)
    assert (reply.header.cd, reply.header.ad, reply.header.aa, reply.rr) == (1, 0, 0, [])
    assert shown_question(reply) == ("Denied.Example.com", "A")
    assert ede(packet) == (15, "backend: no rule")
    assert reply.ar[0].edns_do == 1
    assert [(str(r.rname), r.ttl, r.rdata.times[-1]) for r in reply.auth] == [("Denied.Example.com.", 5, 5)] * soa


def test_a_client_without_edns_gets_no_opt() -> None:
    reply = read(denial(ask(edns=None), rcode=3, ede=(15, "why"), soa=True))

    assert (reply.ar, len(reply.auth)) == ([], 1)


@given(st.text(max_size=2000), st.integers(512, 600))
def test_a_reason_is_cut_to_what_the_client_takes(text: str, size: int) -> None:
    packet = denial(ask(".".join(["x" * 60] * 4), edns=size), rcode=3, ede=(15, text), soa=True)

    assert len(packet) <= size
    found = ede(packet)
    assert found is not None
    assert text.encode("utf-8", "replace").decode().startswith(found[1])


def test_any_is_answered_minimally() -> None:
    reply = read(minimal_any(ask(qtype="ANY")))

    assert reply.header.rcode == 0
    assert [(str(r.rname), QTYPE[r.rtype], bytes(r.rdata.data)) for r in reply.rr] == [
        ("www.example.com.", "HINFO", b"\7RFC8482\0")
    ]


def test_truncated_says_so_and_holds_nothing() -> None:
    reply = read(truncated(ask()))

    assert (reply.header.tc, reply.rr, reply.auth, len(reply.ar)) == (1, [], [], 1)


def test_types_have_names() -> None:
    assert [type_text(t) for t in (1, 65, 64999)] == ["A", "HTTPS", "TYPE64999"]


@given(st.binary(max_size=600))
def test_any_bytes_are_a_question_or_a_rejection(packet: bytes) -> None:
    check_totality(packet)


@given(st.data())
def test_any_change_to_a_question_is_a_question_or_a_rejection(data: st.DataObject) -> None:
    packet = bytearray(data.draw(st.sampled_from([query(), query(edns=None), query(do=True, edns=999)])))
    for at in data.draw(st.lists(st.integers(0, len(packet) - 1), max_size=4)):
        packet[at] = data.draw(st.integers(0, 255))

    check_totality(bytes(packet[: data.draw(st.integers(0, len(packet)))]))


@given(st.lists(st.binary(min_size=1, max_size=63), max_size=3), st.integers(0, 65535), st.booleans())
def test_every_name_and_type_that_dnslib_writes_is_read(labels: list[bytes], qtype: int, edns: bool) -> None:
    wire = b"".join(bytes((len(x),)) + x for x in labels) + b"\0" + pack(">HH", qtype, 1)

    question = read_question(header(counts=(1, 0, 0, int(edns))) + wire + OPT * edns)

    assert isinstance(question, Question)
    assert (question.section, question.qtype, question.edns) == (wire, qtype, edns)
    assert question.name == wire[:-4].lower()


def check_totality(packet: bytes) -> None:
    result = read_question(packet)
    if isinstance(result, Rejection):
        assert result.reply is None or (result.reply[:2] == packet[:2] and result.reply[2] & 0x80)
    else:
        assert packet[12:].startswith(result.section)
        assert read_question(b"\0\0" + forwarded(result)).key == result.key  # type: ignore[union-attr]
        assert len(denial(result, rcode=3, ede=(15, "x" * 99), soa=True)) <= result.size


def shown_question(reply: DNSRecord) -> tuple[str, str]:
    return str(reply.q.qname).rstrip("."), QTYPE[reply.q.qtype]
