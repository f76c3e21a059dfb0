"""DNS messages out of a TCP stream, in whatever pieces it comes."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from dnsguard.core.framing import HEADER_LENGTH, FrameReader, framed

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
