"""What the kernel answers and how, question by question through the real program: each beside one that goes up."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pytest

from dnsguard.core.answers import Answer, reply
from dnsguard.core.wire import Question, denial, error
from dnsguard.enforce.bpf import layout
from dnsguard.enforce.bpf.layout import What
from tests.node.ebpf.questions import (
    DNS_IN_IP4,
    DNS_IN_IP6,
    LONG,
    POD_PORT,
    SERVER,
    SERVER6,
    Asking,
    datagram_sum,
    packet_of,
    question_of,
    vetted,
)
from tests.node.ebpf.rig import POD, POD6, SOURCE, SOURCE6, Rig, Verdict
from tests.node.nftables_lab import checksum, ip, tcp
from tests.unit.messages import query

NAME, LONGER = "www.example.com", "wwww.example.com"
"""One puts the records at an odd offset, the other at an even one."""
A_RECORD = f"{NAME}. 300 A 192.0.2.1"
EDE = (15, "policy shop: no rule allows it")
LONGEST = f"{'a' * 63}.{'b' * 57}.com"
"""127 octets in a packet."""
PLAIN = query(edns=None)
WITH_OPT = query()
OPT = len(PLAIN)
"""Where the OPT begins in WITH_OPT."""


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    """One for all: it takes a tenth of a second to make."""
    made = Rig()
    yield made
    made.close()


@pytest.fixture
def asking(rig: Rig) -> Asking:
    return Asking(rig)


@pytest.fixture
def known(asking: Asking) -> Asking:
    """The kernel knows one address of NAME."""
    assert asking.put(vetted(A_RECORD, question_of(query())), query())
    return asking


def shown(answer: Answer, question: Question) -> bytes:
    """What user space would send."""
    return reply(answer, question, int(LONG), stream=False)


def several(count: int, name: str) -> str:
    return "\n".join(f"{name}. 300 A 192.0.2.{n}" for n in range(count))


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("edns", [None, 1232])
@pytest.mark.parametrize("name", [NAME, LONGER, LONGEST, "com"])
@pytest.mark.parametrize(
    ("qtype", "zone", "rest"),
    [
        ("A", "{0}. 300 A 192.0.2.1", {}),
        ("AAAA", "{0}. 300 AAAA 2001:db8::1", {}),
        ("A", several(16, "{0}"), {}),
        ("A", "{0}. 300 A 192.0.2.1", {"ad": 1}),
        ("A", "{0}. 300 CNAME a.example.net.\na.example.net. 9 CNAME b.example.net.\nb.example.net. 9 A 192.0.2.1", {}),
        ("A", "{0}. 300 A 127.0.0.1", {}),
        ("TXT", '{0}. 300 TXT "three"\n{0}. 300 TXT "four"', {}),
        ("A", "", {"authority": "com. 300 SOA ns.example.com. host.example.com. 1 2 3 4 60", "rcode": 3}),
        ("AAAA", "", {"authority": "com. 300 SOA ns.example.com. host.example.com. 1 2 3 4 60"}),
    ],
    ids=["A", "AAAA", "sixteen", "authentic", "chain", "protected", "odd-records", "NXDOMAIN", "NODATA"],
)
def test_an_answer_is_what_user_space_would_send(
    asking: Asking, qtype: str, zone: str, rest: dict[str, Any], *, name: str, edns: int | None, family: int
) -> None:
    message = query(name, qtype, edns=edns)
    question = question_of(message)
    answer = vetted(zone.format(name), question, **rest)
    assert asking.put(answer, message)
    assert asking.ask(message, family) == shown(answer, question)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("edns", [None, 1232])
@pytest.mark.parametrize("name", [NAME, LONGER])
@pytest.mark.parametrize("rcode", [0, 3, 5])
@pytest.mark.parametrize("ede", [None, EDE])
def test_a_denial_is_what_user_space_would_send(
    asking: Asking, rcode: int, ede: tuple[int, str] | None, *, name: str, edns: int | None, family: int
) -> None:
    message = query(name, edns=edns)
    question = question_of(message)
    assert asking.deny(message, rcode=rcode, ede=ede)
    expected = error(question, 5, ede) if rcode == 5 else denial(question, rcode=rcode, ede=ede, soa=True)
    assert asking.ask(message, family) == expected


def test_each_letter_is_echoed_as_it_was_sent(known: Asking) -> None:
    message = query("wWw.eXaMpLe.COM")
    assert known.ask(message) == shown(vetted(A_RECORD, question_of(query())), question_of(message))


def test_only_letters_have_two_cases(asking: Asking) -> None:
    for octet in range(256):
        message, other = (PLAIN[:12] + bytes([2, each, 0x5A, 0]) + PLAIN[-4:] for each in (octet, octet ^ 0x20))
        assert asking.deny(message)
        assert (asking.ask(other) is not None) == (message.lower() == other.lower())


@pytest.mark.parametrize("rd", [0, 1])
def test_the_wish_for_recursion_is_echoed(known: Asking, rd: int) -> None:
    answered = known.ask(query(rd=rd))
    assert answered is not None and answered[2] & 1 == rd


@pytest.mark.parametrize(
    ("ttl", "until", "seconds"), [(9.9, 60, 9), (1.9, 60, 1), (0.9, 60, None), (-5, 60, None), (60, -0.001, None)]
)
def test_the_ttl_is_what_is_left_and_what_has_ended_goes_up(
    asking: Asking, ttl: float, until: float, seconds: int | None
) -> None:
    question = question_of(query())
    answer = vetted(A_RECORD, question)
    asking.put(answer, query(), ttl=ttl, until=until)
    told = asking.ask(query())
    assert told == (None if seconds is None else reply(answer, question, seconds, stream=False))


@pytest.mark.parametrize("other", [query("ww.example.com"), query("www.example.org"), query(qtype="AAAA")])
def test_another_question_goes_up(known: Asking, other: bytes) -> None:
    assert known.ask(query()) is not None
    assert known.ask(other) is None


def test_what_one_source_is_told_no_other_is(asking: Asking) -> None:
    answer = vetted(A_RECORD, question_of(query()))
    asking.put(answer, query(), source=SOURCE6)
    assert asking.ask(query(), family=6) is not None
    assert asking.ask(query(), family=4) is None


TWO_LONG_TEXTS = f'{NAME}. 300 TXT "{"x" * 230}"\n{NAME}. 300 TXT "{"y" * 230}"'
LONG_REPLY = 12 + 21 + 2 * (12 + 231)
"""Octets, without an OPT."""


@pytest.mark.parametrize(
    ("edns", "answered"),
    [(None, False), (0, False), (512, False), (LONG_REPLY + 10, False), (LONG_REPLY + 11, True), (65535, True)],
)
def test_a_reply_larger_than_the_client_takes_goes_up(asking: Asking, edns: int | None, answered: bool) -> None:
    message = query(qtype="TXT", edns=edns)
    question = question_of(message)
    answer = vetted(TWO_LONG_TEXTS, question)
    assert asking.put(answer, message)
    assert asking.ask(message) == (shown(answer, question) if answered else None)


@pytest.mark.parametrize("edns", [0, 100, 511])
def test_every_client_takes_512_octets(known: Asking, edns: int) -> None:
    assert known.ask(query(edns=edns)) is not None


def changed(message: bytes, at: int, octets: bytes) -> bytes:
    return message[:at] + octets + message[at + len(octets) :]


UNUSUAL = {
    "response": changed(PLAIN, 2, b"\x81"),
    "opcode": changed(PLAIN, 2, b"\x09"),
    "authoritative": changed(PLAIN, 2, b"\x05"),
    "truncated": changed(PLAIN, 2, b"\x03"),
    "checking-disabled": changed(PLAIN, 3, b"\x10"),
    "no-question": changed(PLAIN, 4, b"\0\0"),
    "two-of-one": changed(PLAIN, 4, b"\0\2"),
    "two-questions": changed(PLAIN, 4, b"\0\2") + PLAIN[12:],
    "an-answer": changed(PLAIN, 6, b"\0\1"),
    "authority": changed(PLAIN, 8, b"\0\1"),
    "extra-missing": changed(PLAIN, 10, b"\0\1"),
    "extra-unsaid": changed(WITH_OPT, 10, b"\0\0"),
    "extra-missing-one": changed(WITH_OPT, 10, b"\0\2"),
    "two-opts": changed(WITH_OPT, 10, b"\0\2") + WITH_OPT[OPT:],
    "many-extra": changed(WITH_OPT, 10, b"\1\1"),
    "chaos": changed(PLAIN, OPT - 2, b"\0\3"),
    "any-class": changed(PLAIN, OPT - 2, b"\0\xff"),
    "trailing": PLAIN + b"\0",
    "cut": PLAIN[:-1],
    "trailing-behind-opt": WITH_OPT + b"\0",
    "cut-opt": WITH_OPT[:-1],
    "compressed": changed(PLAIN, 16, b"\xc0\x0c"),
    "long-label": changed(PLAIN, 16, b"\x40"),
    "short-name": changed(PLAIN, 12, b"\2"),
    "long-name": changed(PLAIN, 12, b"\4"),
    "unended": changed(PLAIN, OPT - 5, b"\1"),
    "no-name": PLAIN[:12],
    "no-name-but-type": PLAIN[:12] + b"\0\1\0\1",
    "cut-header": PLAIN[:11],
    "empty": b"",
    "dnssec": query(do=True),
    "cd": query(cd=1),
    "owned-opt": changed(WITH_OPT, OPT, b"\1"),
    "other-extra": changed(WITH_OPT, OPT + 1, b"\0\x2a"),
    "version": changed(WITH_OPT, OPT + 6, b"\1"),
    "option": changed(WITH_OPT, OPT + 9, b"\0\4") + b"\0\x0a\0\0",
    "option-cut": changed(WITH_OPT, OPT + 9, b"\0\1"),
}


@pytest.mark.parametrize("unusual", UNUSUAL.values(), ids=UNUSUAL)
@pytest.mark.parametrize("family", [4, 6])
def test_an_unusual_question_goes_up_as_it_came(known: Asking, unusual: bytes, family: int) -> None:
    assert known.ask(PLAIN, family) is not None
    assert known.ask(WITH_OPT, family) is not None
    assert known.ask(unusual, family) is None


@pytest.mark.parametrize(
    "harmless",
    [
        changed(PLAIN, 3, b"\x60"),
        changed(PLAIN, 0, b"\xff\xff"),
        changed(WITH_OPT, OPT + 5, b"\xff"),
        changed(WITH_OPT, OPT + 7, b"\x7f\xff"),
    ],
    ids=["header-bits", "id", "extended-rcode", "opt-flags"],
)
@pytest.mark.parametrize("name", [NAME, LONGER])
def test_what_user_space_makes_nothing_of_the_kernel_neither_does(asking: Asking, harmless: bytes, name: str) -> None:
    message = harmless.replace(b"\3www", b"\4wwww") if name == LONGER else harmless
    question = question_of(message)
    answer = vetted(f"{name}. 300 A 192.0.2.1", question)
    assert asking.put(answer, message)
    assert asking.ask(message) == shown(answer, question)


def test_a_name_of_128_octets_is_not_even_looked_for(asking: Asking) -> None:
    name = b"\x3f" + b"a" * 63 + b"\x3e" + b"b" * 62 + b"\0"
    message = PLAIN[:12] + name + PLAIN[-4:]
    assert not asking.put(vetted("", question_of(message)), message)
    asking.deny(query(LONGEST))
    ((_, value), *_) = asking.rig.maps["answers"].items()
    asking.rig.maps["answers"].update(layout.ANSWER_KEY.pack(SOURCE, 1, 128, name), value)
    assert asking.ask(query(LONGEST)) is not None
    assert asking.ask(message) is None


def ip4(datagram: bytes, *, options: bytes = b"", fragment: int = 0, behind: bytes = b"") -> bytes:
    words = 5 + len(options) // 4
    head = struct.pack(">BBHHHBBH", 0x40 | words, 0, words * 4 + len(datagram), 77, fragment, 64, 17, 0) + POD + SERVER
    head += options
    return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + datagram + behind


def ip6(datagram: bytes, *, hop_by_hop: bool = False) -> bytes:
    extension = b"\x11\0\1\4\0\0\0\0" if hop_by_hop else b""
    head = struct.pack(">IHBB", 6 << 28, len(extension + datagram), 0 if hop_by_hop else 17, 64)
    return head + POD6 + SERVER6 + extension + datagram


DATAGRAM4, DATAGRAM6 = packet_of(PLAIN)[20:], packet_of(PLAIN, 6)[40:]


UNUSUAL_PACKETS = {
    "options": (ip4(DATAGRAM4), ip4(DATAGRAM4, options=b"\1\1\1\0")),
    "fragment": (ip4(DATAGRAM4), ip4(DATAGRAM4, fragment=0x2000)),
    "frame-longer": (ip4(DATAGRAM4), ip4(DATAGRAM4, behind=b"\0")),
    "packet-longer": (ip4(DATAGRAM4), ip4(DATAGRAM4 + b"\0")),
    "datagram-shorter": (ip4(DATAGRAM4), ip4(changed(DATAGRAM4, 4, struct.pack(">H", len(DATAGRAM4) - 1)))),
    "datagram-longer": (ip4(DATAGRAM4), ip4(changed(DATAGRAM4, 4, struct.pack(">H", len(DATAGRAM4) + 1)))),
    "tcp": (ip4(DATAGRAM4), ip(POD, SERVER, 6, tcp(POD_PORT, 53, 2, PLAIN))),
    "hop-by-hop": (ip6(DATAGRAM6), ip6(DATAGRAM6, hop_by_hop=True)),
    "no-sum": (ip6(DATAGRAM6), ip6(changed(DATAGRAM6, 6, b"\0\0"))),
}


@pytest.mark.parametrize(("plain", "unusual"), UNUSUAL_PACKETS.values(), ids=UNUSUAL_PACKETS)
def test_an_unusual_packet_goes_up_as_it_came(known: Asking, plain: bytes, unusual: bytes) -> None:
    assert known.send(plain) is not None
    assert known.send(unusual) is None


def test_a_question_without_a_checksum_has_a_reply_without_one(known: Asking) -> None:
    assert known.send(ip4(changed(DATAGRAM4, 6, b"\0\0"))) is not None
    assert known.rig.sent[14 + 26 : 14 + 28] == b"\0\0"


@pytest.mark.parametrize("family", [4, 6])
def test_a_damaged_question_has_a_reply_as_damaged(known: Asking, family: int) -> None:
    at = DNS_IN_IP4 if family == 4 else DNS_IN_IP6
    damaged = changed(packet_of(PLAIN, family), at, b"\x12\x35")
    assert known.rig.from_pod(damaged) is Verdict.SENT_BACK
    datagram = known.rig.sent[14 + at - 8 :]
    source, target = (SERVER, POD) if family == 4 else (SERVER6, POD6)
    assert datagram_sum(source, target, datagram) != 0
    assert datagram_sum(source, target, changed(datagram, 8, b"\x12\x34")) == 0


def test_every_sum_that_a_question_can_have_becomes_the_right_one(known: Asking) -> None:
    """Among 65,536 IDs are those that make a sum 0, which is sent as 0xffff. The TTL goes on meanwhile."""
    sums = set()
    for ident in range(0, 1 << 16, 7):
        message = changed(PLAIN, 0, ident.to_bytes(2, "big"))
        assert known.ask(message, 4 + ident % 2 * 2) is not None
        sums.add(known.rig.sent[14 + (46 if ident % 2 else 26) :][:2])
    assert len(sums) > 8000 and b"\0\0" not in sums


def test_answers_go_on_while_nobody_vouches_for_the_daemon(known: Asking) -> None:
    known.rig.vouch(0)
    assert known.ask(query()) is not None
    assert known.rig.from_pod(packet_of(query("other.example.com"))) is Verdict.DROP


def test_what_is_told_is_counted(known: Asking) -> None:
    known.deny(query("denied.example.com"))
    known.ask(query())
    known.ask(query())
    known.ask(query("denied.example.com"))
    known.ask(query("other.example.com"))
    assert [known.rig.counted(what) for what in (What.ANSWERED, What.ANSWERED_DENIED, What.ASKED)] == [2, 1, 1]
