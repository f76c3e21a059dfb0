"""DNS messages out of a byte stream: two octets of length, then the message (RFC 1035 section 4.2.2). Pure."""

from __future__ import annotations

HEADER_LENGTH = 12
"""A DNS header (RFC 1035 section 4.1.1); anything shorter is not a message."""
LONGEST = 65_535


class FrameReader:
    """Collects octets in whatever pieces they come. Holds at most one unfinished message."""

    __slots__ = ("_buffer", "broken")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.broken = False
        """A message shorter than a header was announced: nothing after it can be read."""

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that `data` completes, in order; none after a broken one."""
        if self.broken:
            return []
        self._buffer += data
        buffer, start, messages = self._buffer, 0, []
        while len(buffer) - start >= 2:
            length = buffer[start] << 8 | buffer[start + 1]
            if length < HEADER_LENGTH:
                self.broken = True
                start = len(buffer)
                break
            if len(buffer) - start - 2 < length:
                break
            messages.append(bytes(buffer[start + 2 : start + 2 + length]))
            start += 2 + length
        del buffer[:start]
        return messages


def framed(packet: bytes) -> bytes:
    """`packet`, at most 65,535 octets, with its length before it."""
    return len(packet).to_bytes(2, "big") + packet
