"""YAML trees with positions: what is read as what, and where."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnsguard.config.positions import (
    DEEPEST,
    Ambiguous,
    Fields,
    Items,
    Node,
    Scalar,
    Unreadable,
    parse,
    plain_value,
    resolve,
)


def tree(text: str) -> Node:
    root, found = parse(text, "f.yaml")
    assert root is not None
    assert found == []
    return root


def problems(text: str) -> list[str]:
    return [str(one) for one in parse(text, "f.yaml")[1]]


@pytest.mark.parametrize(
    "word", ["on", "On", "off", "yes", "No", "y", "1:30", "1_000", "1.2.3.4", "2026-01-01", "0x", "+", ".", "-"]
)
def test_words_that_only_old_yaml_reads_as_something_else_stay_text(word: str) -> None:
    assert resolve(Scalar(word, True, 1, 1)) == word


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("0", 0),
        ("-12", -12),
        ("0x1000", 4096),
        ("0o17", 15),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
    ],
)
def test_plain_words_are_typed_as_yaml_1_2_types_them(word: str, value: object) -> None:
    assert resolve(Scalar(word, True, 1, 1)) == value


@pytest.mark.parametrize("word", ["012", "-007", "00", "0_1", "9" * 50])
def test_numbers_that_readers_disagree_about_are_ambiguous(word: str) -> None:
    assert resolve(Scalar(word, True, 1, 1)) == Ambiguous(word)


@given(st.text(max_size=20))
def test_a_quoted_scalar_is_always_its_text(text: str) -> None:
    assert resolve(Scalar(text, False, 1, 1)) == text


def test_every_value_and_key_knows_its_line_and_column() -> None:
    root = tree("a: 1\nb:\n  - x\n  - {c: 'y'}\n")

    assert isinstance(root, Fields)
    assert root.keys == {"a": (1, 1), "b": (2, 1)}
    assert root.fields["a"] == Scalar("1", True, 1, 4)
    items = root.fields["b"]
    assert isinstance(items, Items)
    assert (items.line, items.column) == (3, 3)
    inner = items.items[1]
    assert isinstance(inner, Fields)
    assert inner.keys == {"c": (4, 6)}
    assert inner.fields["c"] == Scalar("y", False, 4, 9)


def test_columns_count_letters_not_octets() -> None:
    root = tree("a: {bücher: 1, b: 2}")

    assert isinstance(root, Fields)
    inner = root.fields["a"]
    assert isinstance(inner, Fields)
    assert inner.keys["b"] == (1, 16)


def test_a_key_written_twice_is_an_error_at_its_second_place_and_the_first_value_stays() -> None:
    root, found = parse("a: 1\nb: 2\na: 3\n", "f.yaml")

    assert root is not None
    assert plain_value(root) == {"a": 1, "b": 2}
    assert [str(one) for one in found] == ["f.yaml:3:1: error: 'a' is written twice (first in line 1); keep one"]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a: &x 1", "1:4"),
        ("a: !t 1", "1:4"),
        ("a: !!str 1", "1:4"),
        ("a: &x [1]", "1:4"),
        ("a: 1\n---\nb: 1", "2:1"),
        ("a: *x", "1:4"),
        ("a: [*.x]", "1:5"),
        ("[a]: 1", "1:1"),
        ("a: [", "2:1"),
        ("a:\n\tb: 1", "2:1"),
        ("a: 'x", "1:6"),
        ("a: \x07", "1:4"),
        ("a: b: c", "1:5"),
    ],
)
def test_what_is_refused_is_refused_at_its_place(text: str, place: str) -> None:
    found = problems(text)

    assert len(found) == 1
    assert found[0].startswith(f"f.yaml:{place}: error: ")


def test_every_unquoted_star_is_found_not_only_the_first() -> None:
    found = problems('a: [*.x.y, "*.fine", *]\nb: *c\n"quoted * star": [x]\n')

    assert [line.split(": ")[0] for line in found] == ["f.yaml:1:5", "f.yaml:1:22", "f.yaml:2:4"]


def test_a_star_inside_quotes_or_a_comment_is_left_alone() -> None:
    root = tree('a: ["* b", x] # * c\nd: ["a *", y*]\n')

    assert plain_value(root) == {"a": ["* b", "x"], "d": ["a *", "y*"]}


def test_an_underscore_at_the_beginning_of_a_value_is_no_star() -> None:
    root, found = parse("a: [_dmarc.x, *.y]", "f.yaml")

    assert root is not None
    assert plain_value(root) == {"a": ["_dmarc.x"]}
    assert len(found) == 1


def test_nesting_is_bounded() -> None:
    deep = "[" * 10_000

    found = problems(deep)

    assert found == [f"f.yaml:1:{DEEPEST + 1}: error: nested deeper than {DEEPEST} levels"]


def test_an_empty_file_has_no_tree_and_no_diagnostic() -> None:
    assert parse("# nothing\n", "f.yaml") == (None, [])


def test_unreadable_values_are_left_out_of_plain_values() -> None:
    root, _ = parse("a: *x\nb: [1, *y]\n", "f.yaml")

    assert isinstance(root, Fields)
    assert isinstance(root.fields["a"], Unreadable)
    assert plain_value(root) == {"b": [1]}


_VALUES = st.recursive(
    st.text(alphabet="abcxyz019._-", min_size=1, max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(alphabet="kqvw", min_size=1, max_size=3), inner, max_size=4)
    ),
    max_leaves=20,
)


def _written(value: object) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list):
        return "[" + ",\n ".join(_written(item) for item in value) + "]"
    assert isinstance(value, dict)
    return "{" + ",\n ".join(f"{key}: {_written(item)}" for key, item in value.items()) + "}"


@given(_VALUES)
def test_a_tree_has_the_values_that_were_written_where_they_were_written(value: object) -> None:
    text = _written(value)

    root = tree(text)

    assert plain_value(root) == value
    lines = text.split("\n")
    for scalar in _scalars(root):
        assert lines[scalar.line - 1][scalar.column - 1 :].startswith(f'"{scalar.text}"')


def _scalars(node: Node) -> list[Scalar]:
    if isinstance(node, Scalar):
        return [node]
    children = node.items if isinstance(node, Items) else list(node.fields.values()) if isinstance(node, Fields) else []
    return [scalar for child in children for scalar in _scalars(child)]


@given(st.text(alphabet="ab:,-[]{}*&!|>'\"#%@`? \n\t\\_01.", max_size=60))
def test_any_text_gives_a_tree_or_diagnostics_at_places_inside_it(text: str) -> None:
    _, found = parse(text, "f.yaml")

    for one in found:
        assert 1 <= one.origin.line <= text.count("\n") + 2
        assert one.origin.column >= 1
