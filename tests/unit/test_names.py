"""Names and patterns: text to wire form and back, matching, and the advice given for mistakes."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dnsguard.core.errors import InvalidNameError
from dnsguard.core.model import Name, Pattern
from dnsguard.core.names import ancestors, covers, matches, parse_name, parse_pattern, pattern_text, to_text

LABEL = st.binary(min_size=1, max_size=63).map(bytes.lower)
NAMES = st.lists(LABEL, max_size=5).filter(lambda labels: sum(len(x) + 1 for x in labels) < 255)
WIRE = NAMES.map(lambda labels: Name(b"".join(bytes((len(x),)) + x for x in labels) + b"\0"))
SHORT = st.lists(st.sampled_from([b"a", b"b", b"\1a", b"a\1b"]), max_size=4)
SMALL_WIRE = SHORT.map(lambda labels: Name(b"".join(bytes((len(x),)) + x for x in labels) + b"\0"))
SMALL_PATTERN = st.builds(Pattern, SMALL_WIRE, st.booleans())


@pytest.mark.parametrize(
    ("text", "wire"),
    [
        ("example.com", b"\7example\3com\0"),
        ("EXAMPLE.Com.", b"\7example\3com\0"),
        ("_srv._tcp.a-b.x", b"\4_srv\4_tcp\3a-b\1x\0"),
        ("localhost", b"\x09localhost\0"),
        ("4.3.2.1.in-addr.arpa", b"\0014\0013\0012\0011\7in-addr\4arpa\0"),
        (r"a\.b.c", b"\3a.b\1c\0"),
        (r"\032\000.c", b"\2 \0\1c\0"),
        (".", b"\0"),
    ],
)
def test_a_name_is_read_into_folded_wire_form(text: str, wire: bytes) -> None:
    assert parse_name(text) == wire


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("bücher.ch", "`xn--bcher-kva.ch`"),
        ("*.bücher.ch", "`*.xn--bcher-kva.ch`"),
        ("faß.de", "`xn--fa-hia.de`"),
        ("…", "A-label"),
        ("https://example.com/path?x#y", "`example.com`"),
        ("http://user:pw@example.com:8080", "`example.com`"),
        ("https://*.example.com", "`*.example.com`"),
        ("example.com/path", "`example.com`"),
        ("example.com:443", "`example.com` and put 443 under `ports`"),
        ("*.example.com:443", "`*.example.com` and put 443 under `ports`"),
        ("10.0.0.1", "`ipBlock: {cidr: 10.0.0.1/32}`"),
        ("10.0.0.1:443", "`ipBlock: {cidr: 10.0.0.1/32}`"),
        ("10.0.0.0/8", "`ipBlock: {cidr: 10.0.0.0/8}`"),
        ("fd00::1", "`ipBlock: {cidr: fd00::1/128}`"),
        ("[fd00::1]:53", "`ipBlock: {cidr: fd00::1/128}`"),
        ("fe80::1%eth0", "`ipBlock: {cidr: fe80::1/128}`"),
        ("300.1.1.1", "looks like an IP address"),
        ("*.1.2.3.4", "`ipBlock: {cidr: 1.2.3.4/32}`"),
        ("a.*.b", "`*.b`"),
        ("*a.b", "`*.b`"),
        ("**.b", "`*.b`"),
        ("*.*.b", "`*.b`"),
        ("*..b", "`*.b`"),
        ("a.*", "`*` alone"),
        ("a..b", "`a.b`"),
        (".a.b", "`*.a.b`"),
        ("..", "the name is empty"),
        ("", "the name is empty"),
        ("   ", "the name is empty"),
        (" a.b", "`a.b`"),
        ("a.b c.d", "entry of its own"),
        (".", "write `*`"),
        ("a@b", r"`\064`"),
        ("a\\", "three digits"),
        ("a\\999", "three digits"),
        ("x" * 64 + ".com", "at most 63"),
        (".".join(["x" * 60] * 5), "at most 253"),
    ],
)
def test_a_mistake_is_told_what_to_write_instead(text: str, advice: str) -> None:
    with pytest.raises(InvalidNameError) as caught:
        parse_pattern(text)

    assert advice in str(caught.value)


def test_a_pattern_where_a_name_is_wanted_is_told_apart() -> None:
    with pytest.raises(InvalidNameError, match=r"is a pattern: write one name"):
        parse_name("*.example.com")


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("*.A.b.", Pattern(Name(b"\1a\1b\0"), wildcard=True)),
        ("a.b", Pattern(Name(b"\1a\1b\0"))),
        ("*", Pattern(Name(b"\0"), wildcard=True)),
        (r"\*.b", Pattern(Name(b"\1*\1b\0"))),
        (r"*.\*.b", Pattern(Name(b"\1*\1b\0"), wildcard=True)),
    ],
)
def test_a_pattern_is_read(text: str, pattern: Pattern) -> None:
    assert parse_pattern(text) == pattern


def test_a_label_of_63_and_a_name_of_253_octets_are_the_longest() -> None:
    longest = ".".join(["x" * 63] * 3 + ["y" * 61])

    assert len(longest) == 253
    assert len(parse_name(longest)) == 255
    with pytest.raises(InvalidNameError):
        parse_name(longest + "y")


@given(WIRE)
def test_every_name_survives_its_text(name: Name) -> None:
    assume(not to_text(name).replace(".", "").isdigit())  # looks like an address, and is refused as one

    assert parse_name(to_text(name)) == name


@given(WIRE, st.booleans())
def test_every_pattern_survives_its_text(name: Name, wildcard: bool) -> None:
    assume(not to_text(name).replace(".", "").isdigit())
    pattern = Pattern(name, wildcard)
    if pattern != Pattern(Name(b"\0")):
        assert parse_pattern(pattern_text(pattern)) == pattern


@given(st.text() | st.from_regex(r"[a-zA-Z0-9.*:/\\@ü\[\]%_-]{0,40}"))
def test_any_text_is_a_pattern_or_a_documented_error(text: str) -> None:
    try:
        pattern = parse_pattern(text)
    except InvalidNameError as error:
        assert str(error).isprintable()
    else:
        assert len(pattern.name) <= 255


@given(st.from_regex(r"(https?://)?(\*\.)?([a-zü]{1,5}\.){0,2}[a-zü]{1,5}(:[0-9]{1,3})?(/[a-z]*)?", fullmatch=True))
def test_what_is_advised_can_be_written(text: str) -> None:
    for _ in range(4):
        try:
            parse_pattern(text)
            break
        except InvalidNameError as error:
            found = re.search(r"write `([^`]*)`", str(error))
            assert found and found[1] != text
            text = found[1]
    else:
        pytest.fail(text)


def test_ancestors_come_nearest_first_without_the_name_and_the_root() -> None:
    assert [to_text(n) for n in ancestors(parse_name("a.b.c.d"))] == ["b.c.d", "c.d", "d"]
    assert list(ancestors(Name(b"\0"))) == []


def test_a_wildcard_matches_below_it_and_not_itself() -> None:
    pattern = parse_pattern("*.example.com")

    assert matches(pattern, parse_name("a.example.com"))
    assert matches(pattern, parse_name("a.b.example.com"))
    assert not matches(pattern, parse_name("example.com"))
    assert not matches(pattern, parse_name("badexample.com"))


def test_a_label_that_ends_like_the_pattern_is_no_match() -> None:
    inside = Name(b"\x0ax\7example\3com\0"[:1] + b"xx\7example" + b"\3com\0")

    assert not matches(parse_pattern("*.example.com"), inside)


def test_the_star_alone_matches_everything_but_the_root() -> None:
    assert matches(parse_pattern("*"), parse_name("x"))
    assert not matches(parse_pattern("*"), Name(b"\0"))


@given(SMALL_PATTERN, SMALL_PATTERN, SMALL_WIRE)
def test_what_a_covered_pattern_matches_its_cover_matches_too(wide: Pattern, narrow: Pattern, name: Name) -> None:
    if covers(wide, narrow) and matches(narrow, name):
        assert matches(wide, name)


@pytest.mark.parametrize(
    ("wide", "narrow", "expected"),
    [
        ("*.b", "a.b", True),
        ("*.b", "*.b", True),
        ("*.b", "*.a.b", True),
        ("*", "*.a.b", True),
        ("*", "a", True),
        ("a.b", "a.b", True),
        ("*.a.b", "*.b", False),
        ("*.b", "b", False),
        ("a.b", "*.a.b", False),
    ],
)
def test_covering_is_told(wide: str, narrow: str, expected: bool) -> None:
    assert covers(parse_pattern(wide), parse_pattern(narrow)) is expected
