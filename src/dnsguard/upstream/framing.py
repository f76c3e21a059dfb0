"""DNS messages in a byte stream: two octets of length before each (RFC 1035, 4.2.2). Pure."""

from __future__ import annotations

LENGTH = 2


def framed(message: bytes) -> bytes:
    """The message with its length before it. Raises OverflowError beyond 65,535 octets."""
    return len(message).to_bytes(LENGTH) + message


class FrameReader:
    """Cuts a stream into messages, however it was split on the way. Holds at most one unfinished message."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that `data` completes, in order; one may be empty. Any bytes are a stream of messages."""
        held = self._held
        held += data
        messages = []
        start = 0
        while len(held) - start >= LENGTH:
            end = start + LENGTH + int.from_bytes(held[start : start + LENGTH])
            if end > len(held):
                break
            messages.append(bytes(held[start + LENGTH : end]))
            start = end
        del held[:start]
        return messages
