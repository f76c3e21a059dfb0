"""The upstream of every server under test: answers names of `benchmarks.names` from tables, far faster than they ask.

`python -m benchmarks.upstream ADDRESS [TTL]`. Any question other than an A of a known kind gets an empty answer.
"""

from __future__ import annotations

import struct
import sys

from benchmarks.batches import SIZE, SLOTS, WAITFORONE, Batch, datagram_socket
from benchmarks.names import DIGITS, POOL, Kind, addresses, name, query, wire_name

TTL = 3600
"""Longer than any run: nothing ends by itself while it is counted."""
QUESTION_END = len(query(0, Kind.ONE_A))
TYPE_A = b"\0\1\0\1"
KIND_AT = DIGITS.stop + 1
POINTER_TO_QUESTION = b"\xc0\x0c"


def _record(owner: bytes, kind: int, data: bytes, ttl: int) -> bytes:
    return owner + struct.pack("!HHIH", kind, 1, ttl, len(data)) + data


def _answers(kind: Kind, ttl: int) -> list[bytes]:
    """What stands behind the question, for each turn of the pool."""
    turns = range(POOL // kind.records)
    if kind is not Kind.CHAIN:
        return [b"".join(_record(POINTER_TO_QUESTION, 1, a, ttl) for a in addresses(n, kind)) for n in turns]
    # the target stands behind the CNAME record's own pointer and ten fixed octets
    target = struct.pack("!H", 0xC000 | QUESTION_END + 12)
    return [
        _record(POINTER_TO_QUESTION, 5, wire_name(name(n, Kind.TARGET)), ttl)
        + b"".join(_record(target, 1, a, ttl) for a in addresses(n, kind))
        for n in turns
    ]


def serve(address: str, ttl: int = TTL) -> None:
    """Answer on `address`, port 53, until killed. One loop, no branch that is not needed: it shares the load's core."""
    opened = datagram_socket()
    opened.bind((address, 53))
    descriptor, batch = opened.fileno(), Batch(peers=True)
    buffer, lengths = batch.buffer, batch.lengths
    # by the first letter of the kind: flags and counts, and what follows the question for each turn
    known = {
        ord(kind[0]): (struct.pack("!5H", 0x8580, 1, records, 0, 0), _answers(kind, ttl))
        for kind, records in ((Kind.ONE_A, 1), (Kind.CHAIN, 3), (Kind.TARGET, 2))
    }
    starts = range(0, SLOTS * SIZE, SIZE)
    while True:
        count = batch.receive(descriptor, WAITFORONE)
        for slot in range(count):
            start = starts[slot]
            end = start + QUESTION_END
            kind = known.get(buffer[start + KIND_AT])
            if kind is None or buffer[start + 12] != 9 or buffer[end - 4 : end] != TYPE_A:
                buffer[start + 2] |= 0x80
                lengths[slot] = batch.received[slot]
                continue
            head, tails = kind
            tail = tails[int(buffer[start + 14 : start + 22]) % len(tails)]
            buffer[start + 2 : start + 12] = head
            stop = end + len(tail)
            buffer[end:stop] = tail
            lengths[slot] = stop - start
        batch.send(descriptor, count)


if __name__ == "__main__":
    serve(sys.argv[1], *map(int, sys.argv[2:]))
