"""Random and damaged questions: whenever the kernel answers, user space would have sent the same octets."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Callable

import pytest

from dnsguard.core.answers import reply
from dnsguard.core.wire import Question, denial, read_question
from tests.hostile.fuzz import mutate, stored
from tests.hostile.readers import READERS
from tests.node.ebpf.questions import DNS_IN_IP4, DNS_IN_IP6, POD_PORT, SERVER, SERVER6, Asking, question_of, vetted
from tests.node.ebpf.rig import POD, POD6, Rig, Verdict
from tests.unit.messages import SOA, query

PACKETS = 100_000
LONG = 3000.0
MOST = 1400
"""Octets of a message, for one packet of a test run."""
EDE = (15, "policy shop: no rule allows it")
KNOWN = {
    "a.io": "a.io. 300 A 192.0.2.1",
    "www.example.com": "www.example.com. 300 A 192.0.2.1\nwww.example.com. 300 A 192.0.2.2",
    "wwww.example.com": "wwww.example.com. 300 CNAME a.example.net.\na.example.net. 9 A 192.0.2.1",
    f"{'a' * 63}.{'b' * 57}.com": f"{'a' * 63}.{'b' * 57}.com. 300 A 192.0.2.1",
}
NOTHING, DENIED = "nothing.example.com", "denied.example.com"

Reply = Callable[[Question, int], bytes]


@pytest.fixture
def replies(rig: Rig) -> dict[tuple[bytes, int], Reply]:
    """What user space replies, by name and type. All of it is in the kernel too."""
    asking = Asking(rig)
    known: dict[tuple[bytes, int], Reply] = {}
    for name, zone in (*KNOWN.items(), (NOTHING, "")):
        question = question_of(query(name))
        answer = vetted(zone, question, authority="" if zone else SOA)
        assert asking.put(answer, query(name), ttl=LONG, until=LONG)
        known[question.key[:2]] = lambda asked, ttl, answer=answer: reply(answer, asked, ttl, stream=False)  # type: ignore[misc]
    assert asking.deny(query(DENIED), ede=EDE)
    known[question_of(query(DENIED)).key[:2]] = lambda asked, _: denial(asked, rcode=3, ede=EDE, soa=True)
    return known


def packets(count: int, rng: random.Random) -> list[bytes]:
    """DNS messages: octets at random, questions as clients write them, and such questions damaged."""
    reader = READERS["question"]
    plain = [query(name, edns=edns) for name in (*KNOWN, NOTHING, DENIED) for edns in (None, 512, 1232)]
    pool = plain + [path.read_bytes() for path in stored("question")]
    makers = (
        lambda: rng.randbytes(rng.randrange(80)),
        lambda: varied(rng.choice(plain), rng),
        lambda: mutate(reader, varied(rng.choice(plain), rng), pool, rng),
        lambda: mutate(reader, rng.choice(pool), pool, rng),
    )
    return [makers[number % len(makers)]() for number in range(count)]


def varied(message: bytes, rng: random.Random) -> bytes:
    """The same question with another ID, some letters in upper case, and flags as they come."""
    letters = bytes(octet ^ (0x20 * (rng.random() < 0.3)) if 97 <= octet <= 122 else octet for octet in message[12:])
    return rng.randbytes(2) + bytes([rng.choice((0, 1, rng.randrange(256)))]) + message[3:12] + letters


def sent(message: bytes, family: int) -> bytes:
    """An IP packet; over IPv4 without a checksum, over IPv6 with a wrong one."""
    head = struct.pack(">HHHH", POD_PORT, 53, 8 + len(message), 0 if family == 4 else 1)
    if family == 6:
        return struct.pack(">IHBB", 6 << 28, 8 + len(message), 17, 64) + POD6 + SERVER6 + head + message
    return struct.pack(">BBHIBBH", 0x45, 0, 28 + len(message), 0, 64, 17, 0) + POD + SERVER + head + message


def test_the_kernel_never_answers_what_user_space_would_not(rig: Rig, replies: dict[tuple[bytes, int], Reply]) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    began, answered = time.monotonic(), 0
    for number, message in enumerate(packets(PACKETS, random.Random(seed))):
        family = 4 + number % 2 * 2
        if rig.from_pod(sent(message[:MOST], family)) is not Verdict.SENT_BACK:
            continue
        answered += 1
        question = read_question(message)
        assert isinstance(question, Question), message.hex()
        ttls = range(int(LONG - (time.monotonic() - began)) - 1, int(LONG) + 1)
        possible = [replies[question.key[:2]](question, ttl) for ttl in ttls]
        assert rig.sent[14 + (DNS_IN_IP4 if family == 4 else DNS_IN_IP6) :] in possible, message.hex()
    assert answered > PACKETS // 10
