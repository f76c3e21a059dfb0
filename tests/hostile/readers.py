"""Every reader of outside bytes, with what it must do with any of them: the table that the fuzzer and the replay use.

A reader takes bytes and returns; whatever it raises is a finding, and so is taking longer than its `limit`. A room
adds its reader by a line in READERS and seeds under corpus/<name>/.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dnsguard.core.answers import DEFAULT_PROTECTED, Protected, classify, reply, vet, without
from dnsguard.core.errors import InvalidNameError, UpstreamError
from dnsguard.core.names import parse_name, parse_pattern, pattern_text, to_text
from dnsguard.core.records import Record, read_records
from dnsguard.core.wire import Question, Rejection, denial, error, forwarded, read_question
from tests.hostile import connections, control, entries, exchanges, files, kernel, streams

CAP = 3600
GUARD = Protected(DEFAULT_PROTECTED)


@dataclass(frozen=True, slots=True)
class Reader:
    """One reader of outside bytes."""

    run: Callable[[bytes], object]
    """Reads the bytes and checks what came out; raises on a finding."""
    limit: float = 0.25
    """Seconds that no input may take, on a slow machine."""
    largest: int = 65_535
    """Octets: longer input cannot arrive, or need not be tried."""
    separator: bytes = b""
    """What stands between the parts of an input, where it has any: parts are also changed as wholes."""
    words: tuple[bytes, ...] = ()
    """What the reader looks for, put in now and then."""
    files: tuple[str, ...] = ()
    """Patterns of files of the project that are inputs too."""


def question(packet: bytes) -> None:
    """A pod's packet: a question whose replies stand for themselves, or a rejection."""
    result = read_question(packet)
    if isinstance(result, Rejection):
        assert result.reply is None or (result.reply[:2] == packet[:2] and result.reply[2] & 0x80)
        return
    for edns in (True, False):
        again = read_question(b"\0\0" + forwarded(result, edns))
        assert isinstance(again, Question)
        assert again.section == result.section
    assert len(denial(result, rcode=3, ede=(15, "x" * 600), soa=True)) <= result.size
    assert error(result, 2).startswith(packet[:2])


def answer(packet: bytes) -> None:
    """An upstream's packet, as the answer to the question it holds: refused, or shown without anything protected."""
    classify(packet)
    asked = asked_by(packet)
    try:
        vetted = vet(packet, asked, GUARD, cap=CAP, allowed=lambda name: len(name) % 2 == 0)
    except UpstreamError:
        return
    given = vetted.answer
    assert 0 <= given.ttl <= CAP
    assert not any(address in GUARD for address in given.addresses)
    check_reply(reply(given, asked, given.ttl, stream=True), asked, given.addresses)
    if given.addresses:
        left = without(given, given.addresses[::2])
        assert left.addresses == tuple(a for a in given.addresses if a not in given.addresses[::2])
        check_reply(reply(left, asked, left.ttl, stream=True), asked, left.addresses)


def asked_by(packet: bytes) -> Question:
    """The question that the packet repeats, with EDNS and its DO bit taken from the ID, or else a usual one."""
    section_end = len(packet)
    for end in range(17, min(len(packet), 271) + 1):
        if packet[end - 5 : end - 4] == b"\0" and packet[end - 2 : end] == b"\0\1":
            section_end = end
            break
    edns = b"\0\0\x29\x04\xd0\0\0" + (b"\x80" if packet[:1] > b"\x7f" else b"\0") + b"\0\0\0"
    read = read_question(b"\0\0\1\0\0\1\0\0\0\0\0\1" + packet[12:section_end] + edns)
    if isinstance(read, Rejection):
        read = read_question(b"\0\0\1\0\0\1\0\0\0\0\0\1\3www\7example\3com\0\0\1\0\1" + edns)
    assert isinstance(read, Question)
    return read


def check_reply(packet: bytes, asked: Question, addresses: tuple[bytes, ...]) -> None:
    """A reply is a message of class IN that shows exactly these addresses, and nothing stands behind its records."""
    assert len(packet) <= 65_535
    counts = [int.from_bytes(packet[i : i + 2], "big") for i in (4, 6, 8, 10)]
    assert counts[0] == 1
    records, end = read_records(packet, 12 + len(asked.section), sum(counts[1:]), {})
    assert end == len(packet)
    body = [record for record in records if record.rtype != 41]
    assert {r.rclass for r in body} <= {1}
    assert len({r.ttl for r in body}) <= 1
    assert len(records) - len(body) == counts[3] == 1
    assert {rdata(packet, r) for r in body if r.rtype in (1, 28)} == set(addresses)


def rdata(packet: bytes, record: Record) -> bytes:
    return packet[record.start : record.end]


def name(data: bytes) -> None:
    """A name in a file: read and printed without loss, or refused in words that can be shown."""
    text = data.decode("utf-8", "replace")
    for parse, print_ in ((parse_name, to_text), (parse_pattern, pattern_text)):
        try:
            read = parse(text)
        except InvalidNameError as refusal:
            assert str(refusal).isprintable()
            continue
        printed = print_(read)  # type: ignore[arg-type]
        assert printed == "." or parse(printed) == read


_PARTS = streams.SEPARATOR
_NAMES = (b"\3www\7example\3com\0", b"\1a\7example\3org\0", b"\2no\7example\3org\0", b"\1a\7example\0")
_EVENTS = tuple(_PARTS + bytes((event, choice)) for event in b"qtagfwkprc" for choice in (0, 1, 8, 16, 129))
_YAML = tuple(
    word.encode()
    for word in ("*", "&a ", "!!str ", "- ", "{", "}", "[", "]", ": ", "? ", "| ", "> ", "'", '"', "#", "\t", "---\n",
                 "~", "0x10", "012", "1e9", ".inf", "true", "\u2028", "\ufeff", "*.example.com", "10.0.0.0/8", "::/0")
)  # fmt: skip
_POLICY_WORDS = tuple(
    word.encode()
    for word in ("policies:", "pods:", "egress:", "to:", "domainNames:", "ipBlock:", "except:", "cidr:", "ports:",
                 "protocol: TCP", "port: 443", "endPort: 8010", "dns: PassThrough", "name:", "[]", "10.244.0.5:")
)  # fmt: skip
_HTTP = tuple(
    word.encode()
    for word in ("GET ", "POST ", "/v1/explain?pod=a", "/v1/reload", "/v1/pods", "&", "%00", "\r\n", "\r\n\r\n",
                 "Transfer-Encoding: chunked\r\n", "Content-Length: 5\r\n", "Expect: 100-continue\r\n",
                 "Upgrade: websocket\r\nConnection: upgrade\r\n", "Connection: close\r\n", "0\r\n\r\n")
)  # fmt: skip

READERS: dict[str, Reader] = {
    "question": Reader(question),
    "answer": Reader(answer),
    "name": Reader(name, largest=4096),
    "framing": Reader(streams.framing, separator=_PARTS, words=(b"\0\x0c", b"\0\x0b", b"\xff\xff")),
    "matching": Reader(streams.matching, largest=16_384, separator=_PARTS, words=(b"?\x12\x34", b"!\x12\x34", _PARTS)),
    "connection": Reader(
        connections.connection,
        largest=16_384,
        separator=_PARTS,
        words=tuple(_PARTS + bytes((event, choice)) for event in b"?.!=x" for choice in (0, 1, 2)),
    ),
    "reports": Reader(kernel.reports, words=(b"dnsguard default\0", b"dnsguard 12\0")),
    "notifications": Reader(kernel.notifications, separator=_PARTS, words=(b"dnsguard\0",)),
    "dumps": Reader(kernel.dumps, limit=0.5, largest=16_384, separator=_PARTS, words=(b"dnsguard\0",)),
    "flows": Reader(kernel.flows, separator=_PARTS),
    "config": Reader(
        files.config,
        limit=2,
        largest=8192,
        separator=b"\n",
        words=_YAML,
        files=("config/config.yaml", "tests/broken/config-*.yaml"),
    ),
    "allowlist": Reader(
        files.policies,
        limit=2,
        largest=8192,
        separator=b"\n",
        words=_YAML + _POLICY_WORDS,
        files=("config/allowlist.yaml", "tests/broken/allowlist-*.yaml"),
    ),
    "exchange": Reader(exchanges.exchange, limit=5, largest=16_384, separator=_PARTS, words=_NAMES + _EVENTS),
    "entries": Reader(
        entries.entries,
        largest=16_384,
        separator=_PARTS,
        words=(b"\nDNSGUARD_POD=shop/b\n", b"\x1b[31m", b"\nPRIORITY\n\1\0\0\0\0\0\0\0\x30\n", "\u202e\u2028".encode()),
    ),
    "control": Reader(control.control, limit=1, largest=32_768, separator=b"\r\n", words=_HTTP),
}
