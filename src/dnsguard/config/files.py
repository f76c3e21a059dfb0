"""Reads an operator's file whole, and says in a diagnostic why it cannot be read.

Nothing here waits for another process: a FIFO, a device or a directory is refused before anything is read from it.
"""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

from dnsguard.config.diagnostics import ConfigError, Diagnostic
from dnsguard.core.model import Origin

LARGEST = 256 << 20
"""Octets. Ten times an allowlist of 50,000 pods with 20 names each."""

_KINDS = ((stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"))


def read_text(path: Path) -> str:
    """The file's text, without a byte order mark. Raises ConfigError with one diagnostic."""
    try:
        # O_NONBLOCK: opening a FIFO that nobody writes to would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        raise _refused(path, _why(error)) from error
    try:
        return decode(_content(path, descriptor), str(path))
    finally:
        os.close(descriptor)


def _why(error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file; create it, or name another with --config or --allowlist"
    if isinstance(error, PermissionError):
        return f"permission denied; make it readable for user {_user()}, and the folders above it passable"
    return f"cannot be read: {error.strerror if isinstance(error, OSError) else error}"


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _content(path: Path, descriptor: int) -> bytes:
    before = os.fstat(descriptor)
    if not stat.S_ISREG(before.st_mode):
        kind = next((words for test, words in _KINDS if test(before.st_mode)), "a device")
        raise _refused(path, f"this is {kind}; name a regular file")
    if before.st_size > LARGEST:
        raise _refused(path, f"larger than {LARGEST >> 20} MiB; group pods by CIDR, or share policies by name")
    try:
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise _refused(path, _why(error)) from error
    after = os.fstat(descriptor)
    if _version(before) != _version(after) or (before.st_size and len(content) != before.st_size):
        raise _refused(
            path, "it changed while it was read; write a new file and rename it over the old one, then load again"
        )
    return content


def _version(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def decode(content: bytes, file: str) -> str:
    """The text of a file's octets, without a byte order mark. Raises ConfigError when they are not UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # error.start counts in the text after the byte order mark, if there was one.
        head = content.removeprefix(b"\xef\xbb\xbf")[: error.start]
        line, column = head.count(b"\n") + 1, len(head.rpartition(b"\n")[2].decode("utf-8")) + 1
        octet = error.object[error.start]
        text = f"octet 0x{octet:02x} is not UTF-8; save the file in that encoding"
        raise ConfigError([Diagnostic(Origin(file, line, column), text)]) from error


def _refused(path: Path, text: str) -> ConfigError:
    return ConfigError([Diagnostic(Origin(str(path), 1, 1), text, unread=True)])
