"""Domain names and patterns: from text to wire form and back, and which pattern matches which name.

Text comes from files and people, so every mistake that is often made gets an error that says what to write instead.
Names come out as they stand in packets (lower case, uncompressed), so the way of a query never parses text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_interface
from typing import NoReturn

from dnsguard.core.errors import InvalidNameError
from dnsguard.core.model import Name, Pattern

ROOT = Name(b"\0")
EVERYTHING = Pattern(ROOT, wildcard=True)

# One look decides for nearly every name of a large file; what it refuses is read again with care.
_PLAIN = re.compile(r"(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}\.?", re.ASCII | re.IGNORECASE).fullmatch
_ESCAPED = re.compile(r"\\([0-9]{3})|\\([!-/:-~])|([A-Za-z0-9_-])|(\.)", re.ASCII)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(?:[^/?#@]*@)?(\[[^\]]*\]|[^/?#:]*)(?::[0-9]*)?(?:[/?#].*)?", re.ASCII)
_PORT = re.compile(r"(.*?):([0-9]{1,5})")
# More than a zone file needs, so that what is printed always reads back as the same name and nothing else.
_NEEDS_ESCAPE = re.compile(rb"[^A-Za-z0-9_-]")
# IDNA 2003, which the standard library speaks, maps these to other names; IDNA 2008 keeps them.
_KEPT_BY_IDNA_2008 = frozenset("ßς\u200c\u200d")


def parse_name(text: str) -> Name:
    """The wire form of `example.com`; a trailing dot is dropped, letters are folded, RFC 1035 escapes are understood.

    Raises InvalidNameError, whose text says what to write instead.
    """
    if _PLAIN(text) and not text.replace(".", "").isdigit():
        labels = text.lower().encode().removesuffix(b".").split(b".")
    elif text == ".":
        return ROOT
    else:
        labels = _read_with_care(text, text)
    return _join(labels, text)


def parse_pattern(text: str) -> Pattern:
    """`a.b`, `*.a.b` (one or more labels under `a.b`) or `*` (every name).

    Raises InvalidNameError, whose text says what to write instead.
    """
    if not text.startswith("*"):
        if text == ".":
            raise InvalidNameError("`.` is the root of the DNS: write `*` to allow every name")
        return Pattern(parse_name(text))
    if text in ("*", "*."):
        return EVERYTHING
    rest = text[2:]
    if text[1] != "." or rest.startswith("."):
        _refuse_wildcard(text)
    if _PLAIN(rest) and not rest.replace(".", "").isdigit():
        labels = rest.lower().encode().removesuffix(b".").split(b".")
    else:
        labels = _read_with_care(rest, text)
    return Pattern(_join(labels, text), wildcard=True)


def to_text(name: Name) -> str:
    """The presentation form with RFC 1035 escapes and without a trailing dot; the root is `.`."""
    labels = []
    at = 0
    while length := name[at]:
        labels.append(_NEEDS_ESCAPE.sub(_escape, name[at + 1 : at + 1 + length]))
        at += length + 1
    return b".".join(labels).decode("ascii") if labels else "."


def pattern_text(pattern: Pattern) -> str:
    """A pattern as it is written in a file."""
    if not pattern.wildcard:
        return to_text(pattern.name)
    return "*" if pattern.name == ROOT else "*." + to_text(pattern.name)


def ancestors(name: Name) -> Iterator[Name]:
    """The proper ancestors, nearest first, without the root: `a.b.c` gives `b.c`, `c`."""
    at = 0
    while name[at]:
        at += name[at] + 1
        if name[at]:
            yield Name(name[at:])


def matches(pattern: Pattern, name: Name) -> bool:
    """True when the pattern speaks of this name."""
    if not pattern.wildcard:
        return pattern.name == name
    return (pattern.name == ROOT and name != ROOT) or pattern.name in ancestors(name)


def covers(wide: Pattern, narrow: Pattern) -> bool:
    """True when `wide` matches every name that `narrow` matches."""
    if not narrow.wildcard or not wide.wildcard:
        return wide == narrow or (not narrow.wildcard and matches(wide, narrow.name))
    return wide.name in (ROOT, narrow.name) or wide.name in ancestors(narrow.name)


def _escape(match: re.Match[bytes]) -> bytes:
    octet = match[0][0]
    return b"\\" + match[0] if 33 <= octet <= 126 else b"\\%03d" % octet


def _join(labels: list[bytes], text: str) -> Name:
    wire = b"".join([bytes((len(label),)) + label for label in labels]) + b"\0"
    if len(wire) > 255:
        raise InvalidNameError(f"{_quote(text)} is {len(wire) - 2} octets long: a name has at most 253")
    return Name(wire)


def _read_with_care(name: str, text: str) -> list[bytes]:
    """The labels of a name with escapes in it; `text` is the whole as it was written, for the errors."""
    _refuse_usual_mistakes(name, text)
    labels = [bytearray()]
    at = 0
    while at < len(name):
        match = _ESCAPED.match(name, at)
        if match is None or (match[1] and int(match[1]) > 255):
            _refuse_character(name[at], text)
        if match[4]:
            labels.append(bytearray())
        else:
            labels[-1].append(int(match[1]) if match[1] else ord(match[2] or match[3]))
        at = match.end()
    if not labels[-1] and len(labels) > 1:
        labels.pop()
    for label in labels:
        _check_label(label, text)
    return [bytes(label.lower()) for label in labels]


def _check_label(label: bytearray, text: str) -> None:
    if not label:
        fixed = re.sub(r"\.{2,}", ".", text).lstrip(".")
        raise InvalidNameError(f"{_quote(text)} has an empty label: write `{_shorten(fixed)}`")
    if len(label) > 63:
        raise InvalidNameError(f"{_quote(text)} has a label of {len(label)} octets: a label has at most 63")


def _refuse_usual_mistakes(name: str, text: str) -> None:
    """What people write where a domain name is wanted, in the order in which the advice is most useful."""
    star = "*." if text.startswith("*.") else ""
    if not name.strip(" ."):
        raise InvalidNameError("the name is empty: write a domain name such as `example.com`")
    if "\\" in name:
        return
    if any(c.isspace() for c in name):
        parts = text.split()
        advice = f"write `{_shorten(parts[0])}`" if len(parts) == 1 else "write each name as an entry of its own"
        raise InvalidNameError(f"{_quote(text)} contains a space: {advice}")
    if url := _URL.fullmatch(name):
        raise InvalidNameError(f"{_quote(text)} is a URL: write `{_shorten(star + url[1])}`")
    _refuse_address(name, text)
    if port := _PORT.fullmatch(name):
        advice = f"write `{_shorten(star + port[1])}` and put {port[2]} under `ports`"
        raise InvalidNameError(f"{_quote(text)} ends in a port: {advice}")
    if "/" in name:
        advice = f"write `{_shorten(star + name.partition('/')[0])}`"
        raise InvalidNameError(f"{_quote(text)} has a path: {advice}")
    if name.startswith(".") and not star:
        advice = f"write `*{_shorten(name)}` for the names under it"
        raise InvalidNameError(f"{_quote(text)} begins with a dot: {advice}")
    if "*" in name:
        _refuse_wildcard(text)
    if not name.isascii():
        _refuse_u_label(name, star, text)


def _refuse_address(name: str, text: str) -> None:
    bare = name.partition("%")[0].removesuffix(".")
    if bracketed := re.fullmatch(r"\[([^\]]*)\](?::[0-9]*)?", bare):
        bare = bracketed[1]
    elif bare.count(":") == 1:
        bare = bare.partition(":")[0]
    try:
        network = ip_interface(bare).network
    except ValueError:
        if re.fullmatch(r"[0-9.]+", bare) and bare.strip("."):
            advice = "write a domain name, or the address as an `ipBlock`"
            raise InvalidNameError(f"{_quote(text)} looks like an IP address: {advice}") from None
        return
    advice = f"write it as `ipBlock: {{cidr: {network}}}`"
    raise InvalidNameError(f"{_quote(text)} is an IP address, not a name: {advice}")


def _refuse_u_label(name: str, star: str, text: str) -> NoReturn:
    try:
        ascii_name = _a_labels(name)
    except UnicodeError:
        ascii_name = ""
    advice = f"write `{star}{ascii_name}`" if _PLAIN(ascii_name) else "write its A-label (`xn--...`)"
    raise InvalidNameError(f"{_quote(text)} is not in ASCII: {advice}")


def _a_labels(name: str) -> str:
    if not _KEPT_BY_IDNA_2008.isdisjoint(name):
        labels = [_a_label(label) for label in name.lower().split(".")]
        return ".".join(labels)
    return name.encode("idna").decode("ascii").lower()


def _a_label(label: str) -> str:
    return label if label.isascii() else "xn--" + label.encode("punycode").decode("ascii")


def _refuse_wildcard(text: str) -> NoReturn:
    rest = text.rpartition("*")[2].partition(".")[2].lstrip(".")
    if text == f"*.{rest}":
        raise InvalidNameError(f"{_quote(text)} is a pattern: write one name, such as `www.{_shorten(rest)}`")
    advice = f"write `*.{_shorten(rest)}`" if rest else "write `*.` and a domain, or `*` alone for every name"
    raise InvalidNameError(f"{_quote(text)}: a wildcard is the whole first label and nothing else: {advice}")


def _refuse_character(character: str, text: str) -> NoReturn:
    if character == "\\":
        raise InvalidNameError(f"{_quote(text)} has a bad escape: write `\\.` or `\\046` (three digits, at most 255)")
    allowed = "a name has letters, digits, `-` and `_`"
    if not character.isascii():
        raise InvalidNameError(f"{_quote(text)} contains a character outside ASCII: {allowed}")
    escape = f"\\{ord(character):03d}"
    shown = character if character.isprintable() else escape
    raise InvalidNameError(f"{_quote(text)} contains `{shown}`: {allowed}; write `{escape}` if it is really meant")


def _quote(text: str) -> str:
    return f"`{_shorten(text)}`"


def _shorten(text: str) -> str:
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:300])
    return shown if len(text) <= 300 else shown + "..."
