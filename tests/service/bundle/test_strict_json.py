"""Strict JSON: what parsers let through and this does not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from service.bundle.strict_json import pointer, read_object, validated


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int = 1


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    share: float = 0.5
    inner: Inner = Inner()
    many: tuple[Inner, ...] = ()
    named: dict[str, Inner] = {}


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "not an object"),
        (b"null", "not an object"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        ('{"a": 1}'.encode("utf-16"), "not JSON"),
        (b'{"a": "\xff"}', "not JSON"),
        (b'{"a": 1, "a": 1}', "'a' occurs twice"),
        (b'{"a": {"b": 1, "c": 2, "b": 3}}', "'b' occurs twice"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"a": 1e999}', "1e999 is out of range"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not JSON"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
    ],
)
def test_refuses(raw: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_object(raw)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"share": "0.5"}, "^/share: "),
        ({"inner": {"size": "1"}}, "^/inner/size: "),
        ({"inner": {"size": 1.0}}, "^/inner/size: "),
        ({"inner": {"size": True}}, "^/inner/size: "),
        ({"many": [{}, {"else": 1}]}, "^/many/1/else: "),
        ({"named": {"a/b~c": {"size": None}}}, "^/named/a~1b~0c/size: "),
    ],
)
def test_converts_nothing_and_points_at_the_field(document: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        validated(Outer, document)


def test_ignores_unknown_fields_at_any_depth_when_told_to() -> None:
    document = {
        "new": 1,
        "inner": {"size": 2, "new": []},
        "many": [{"new": {}}, {"size": 3}],
        "named": {"a": {"new": 1}},
    }
    read = validated(Outer, document, ignore_unknown=True)
    assert read == Outer(inner=Inner(size=2), many=(Inner(), Inner(size=3)), named={"a": Inner()})
    assert "new" in document, "the caller's document is left as it was"


def test_still_refuses_wrong_fields_among_unknown_ones() -> None:
    with pytest.raises(ValueError, match=r"^/share: "):
        validated(Outer, {"share": "x", "new": 1}, ignore_unknown=True)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_object_or_a_value_error(raw: bytes) -> None:
    try:
        assert isinstance(read_object(raw), dict)
    except ValueError as error:
        assert str(error)


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner))
)
def test_any_value_in_place_of_a_document_is_read_or_a_value_error(value: object) -> None:
    for ignore_unknown in (False, True):
        try:
            validated(Outer, {"inner": value}, ignore_unknown=ignore_unknown)
        except ValueError as error:
            assert str(error).startswith("/inner") or "Invalid JSON" in str(error)


def test_pointer_of_the_whole_document_is_empty() -> None:
    assert pointer(()) == ""
