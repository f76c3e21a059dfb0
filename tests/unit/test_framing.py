"""DNS messages out of a TCP stream, in whatever pieces it comes."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dnsguard.core.framing import HEADER_LENGTH, LONGEST, FrameReader, framed

messages = st.lists(st.binary(min_size=HEADER_LENGTH, max_size=300), max_size=5)


def pieces(stream: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    return [stream[start:end] for start, end in pairwise(edges)]


@given(messages, st.lists(st.integers(min_value=0), max_size=20))
def test_messages_come_out_as_they_went_in_however_the_stream_is_cut(sent: list[bytes], cuts: list[int]) -> None:
    reader = FrameReader()
    stream = b"".join(map(framed, sent))
    assert [message for piece in pieces(stream, cuts) for message in reader.feed(piece)] == sent
    assert not reader.broken


@given(messages, st.integers(min_value=0, max_value=HEADER_LENGTH - 1), st.binary(max_size=50))
def test_what_precedes_a_message_shorter_than_a_header_is_read_and_nothing_after(
    sent: list[bytes], length: int, rest: bytes
) -> None:
    reader = FrameReader()
    assert reader.feed(b"".join(map(framed, sent)) + length.to_bytes(2, "big") + rest) == sent
    assert reader.broken
    assert reader.feed(framed(bytes(HEADER_LENGTH))) == []


@given(st.lists(st.binary(max_size=100), max_size=20))
def test_any_octets_are_read_without_an_error_and_to_the_same_effect_as_at_once(chunks: list[bytes]) -> None:
    piecewise, at_once = FrameReader(), FrameReader()
    assert [m for chunk in chunks for m in piecewise.feed(chunk)] == at_once.feed(b"".join(chunks))
    assert piecewise.broken == at_once.broken


def test_the_longest_message_is_read() -> None:
    assert FrameReader().feed(framed(bytes(65_535))) == [bytes(65_535)]


class Connection(RuleBasedStateMachine):
    """A peer that sends messages, one of them too short, and a network that brings the octets when it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.reader = FrameReader()
        self.on_the_way = b""
        self.arrived = 0
        self.ends: list[tuple[int, bytes]] = []
        """Each good message, and how many octets must have arrived for it to be whole."""
        self.sent = 0
        self.short_at: int | None = None
        self.read: list[bytes] = []

    @rule(message=st.binary(min_size=HEADER_LENGTH, max_size=40) | st.sampled_from([HEADER_LENGTH, LONGEST]).map(bytes))
    def send(self, message: bytes) -> None:
        self._put(framed(message))
        if self.short_at is None:
            self.ends.append((self.sent, message))

    @precondition(lambda self: self.short_at is None)
    @rule(length=st.integers(min_value=0, max_value=HEADER_LENGTH - 1))
    def send_one_too_short(self, length: int) -> None:
        self._put(length.to_bytes(2, "big"))
        self.short_at = self.sent
        self._put(bytes(length))

    def _put(self, octets: bytes) -> None:
        self.on_the_way += octets
        self.sent += len(octets)

    @rule(count=st.integers(min_value=0, max_value=30) | st.just(LONGEST))
    def arrive(self, count: int) -> None:
        piece, self.on_the_way = self.on_the_way[:count], self.on_the_way[count:]
        self.arrived += len(piece)
        self.read += self.reader.feed(piece)

    @invariant()
    def every_whole_message_was_read_and_nothing_else(self) -> None:
        assert self.read == [message for end, message in self.ends if end <= self.arrived]

    @invariant()
    def it_is_broken_from_the_short_message_on(self) -> None:
        assert self.reader.broken == (self.short_at is not None and self.arrived >= self.short_at)

    @invariant()
    def no_more_is_held_than_the_unfinished_message(self) -> None:
        whole = max((end for end, _ in self.ends if end <= self.arrived), default=0)
        assert len(self.reader._buffer) == (0 if self.reader.broken else self.arrived - whole)


TestConnection = Connection.TestCase
