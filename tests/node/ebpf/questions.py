"""DNS questions as packets of the rig's pod, and what the kernel made of them, checked to the last octet.

A reply's checksums are made anew here, never as the program makes them: by adding up what is there.
"""

from __future__ import annotations

import struct
import time

from dnsguard.core.answers import Answer
from dnsguard.core.model import Address, Seconds
from dnsguard.core.wire import ExtendedError, Question, read_question
from dnsguard.enforce.bpf.answers import BpfAnswers
from tests.node.ebpf.rig import FAR, POD, POD6, SOURCE, SOURCE6, Rig, Verdict, address
from tests.node.nftables_lab import NODE_MAC, POD_MAC, checksum, ip, udp
from tests.unit import messages

SERVER, SERVER6 = address("10.96.0.10"), address("fd00:10:96::10")
POD_PORT = 40_000
LONG: Seconds = 60.9
"""Some time that a slow machine does not use up between two calls: the TTL shown is 60."""
DNS_IN_IP4, DNS_IN_IP6 = 28, 48
"""Where the message begins in a plain packet."""


def packet_of(message: bytes, family: int = 4) -> bytes:
    """An IP packet from the pod to the server's port 53, with its checksum."""
    source, server = (POD, SERVER) if family == 4 else (POD6, SERVER6)
    return ip(source, server, 17, udp(POD_PORT, 53, message))


def message_of(frame: bytes) -> bytes:
    """The DNS message of a reply, whose frame and headers are as they should be."""
    assert frame[:12] == POD_MAC + NODE_MAC
    packet = frame[14:]
    return _message4(packet) if frame[12:14] == b"\x08\0" else _message6(packet)


def _message4(packet: bytes) -> bytes:
    assert checksum(packet[:20]) == 0
    head, service, length, _, fragment, hops, protocol = struct.unpack_from(">BBHHHBB", packet)
    assert (head, service, length, fragment, hops, protocol) == (0x45, 0, len(packet), 0x4000, 64, 17)
    assert packet[12:20] == SERVER + POD
    if packet[26:28] != b"\0\0":
        assert datagram_sum(SERVER, POD, packet[20:]) == 0
    return _message(packet[20:])


def _message6(packet: bytes) -> bytes:
    assert struct.unpack_from(">IHBB", packet) == (6 << 28, len(packet) - 40, 17, 64)
    assert packet[8:40] == SERVER6 + POD6
    assert packet[46:48] != b"\0\0"
    assert datagram_sum(SERVER6, POD6, packet[40:]) == 0
    return _message(packet[40:])


def datagram_sum(source: Address, target: Address, datagram: bytes) -> int:
    """0 when the checksum in it is right."""
    return checksum(source + target + struct.pack(">II", len(datagram), 17) + datagram)


def _message(datagram: bytes) -> bytes:
    assert struct.unpack_from(">HHH", datagram) == (53, POD_PORT, len(datagram))
    return datagram[8:]


def vetted(zone: str, question: Question, *, authority: str = "", rcode: int = 0, ad: int = 0) -> Answer:
    """What dnsguard makes of an upstream's answer to the question."""
    name, qtype = messages.DNSRecord.parse(bytes(5) + b"\1" + bytes(6) + question.section).q.qname, question.qtype
    packet = messages.answer(zone, name=str(name), qtype=messages.QTYPE[qtype], authority=authority, rcode=rcode, ad=ad)
    return messages.vet(packet, question, messages.GUARD, cap=messages.CAP, allowed=lambda name: True).answer


def question_of(message: bytes) -> Question:
    question = read_question(message)
    assert isinstance(question, Question)
    return question


class Asking:
    """The pod asks, and the kernel answers what it was given: nothing yet. What goes up is not limited."""

    def __init__(self, rig: Rig) -> None:
        rig.query_rate(per_second=10**9, burst=1)
        rig.vouch(FAR)
        for name in ("answers", "counts"):
            rig.maps[name].delete_many(list(rig.maps[name].keys()))
        self.rig = rig
        self.answers = BpfAnswers(rig.maps["answers"], per_source=10, total=25)

    def put(
        self, answer: Answer, message: bytes, *, source: int = SOURCE, ttl: Seconds = LONG, until: Seconds = LONG
    ) -> bool:
        """Have the pod (with both addresses, unless `source` is another's) told this for so many seconds."""
        now = time.monotonic()
        question = question_of(message)
        return all(
            self.answers.put(each, question, answer, ttl_ends=now + ttl, until=now + until)
            for each in ((SOURCE, SOURCE6) if source == SOURCE else (source,))
        )

    def deny(self, message: bytes, *, rcode: int = 3, ede: ExtendedError | None = None) -> bool:
        until = time.monotonic() + LONG
        question = question_of(message)
        return all(
            self.answers.put_denial(source, question, rcode=rcode, ede=ede, until=until) for source in (SOURCE, SOURCE6)
        )

    def ask(self, message: bytes, family: int = 4) -> bytes | None:
        """The kernel's reply; None when the question went up as it came."""
        return self.send(packet_of(message, family))

    def send(self, packet: bytes) -> bytes | None:
        verdict = self.rig.from_pod(packet)
        assert verdict is not Verdict.DROP
        return message_of(self.rig.sent) if verdict is Verdict.SENT_BACK else None
