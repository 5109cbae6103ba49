"""Bodies: bounds while reading, and a status and a pointer for every way to be wrong."""

import json
from collections.abc import Iterable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect
from starlette.types import Message

from service.api.body import MAX_FIELDS, MAX_POINTER_CHARACTERS, json_pointer, parse, read_body
from service.api.problems import MAX_PROBLEMS
from service.api.schemas import Body, ClassifyBody, EmbedBody
from service.errors import InvalidInput, Malformed, ServiceError, TooLarge

MAX_ITEMS = 2048


class Wire:
    """A client's messages, one a call."""

    def __init__(self, messages: Iterable[Message]) -> None:
        self._messages = iter(messages)
        self.taken = 0

    async def receive(self) -> Message:
        self.taken += 1
        return next(self._messages)


def _chunk(body: bytes, *, more: bool) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


def _headers(**headers: str) -> list[tuple[bytes, bytes]]:
    return [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]


class TestRead:
    async def test_one_message(self) -> None:
        wire = Wire([_chunk(b"12345", more=False)])
        assert await read_body(_headers(content_length="5"), wire.receive, max_bytes=5) == b"12345"

    async def test_many_messages(self) -> None:
        wire = Wire([_chunk(b"12", more=True), _chunk(b"", more=True), _chunk(b"345", more=False)])
        assert await read_body(_headers(), wire.receive, max_bytes=5) == b"12345"

    @pytest.mark.parametrize("length", ["6", "9" * 19, "9" * 5000])
    async def test_a_declared_length_over_the_limit_is_refused_unread(self, length: str) -> None:
        wire = Wire([])
        with pytest.raises(TooLarge, match="larger than 5 bytes"):
            await read_body(_headers(content_length=length), wire.receive, max_bytes=5)
        assert wire.taken == 0

    async def test_a_stream_over_the_limit_is_not_read_on(self) -> None:
        wire = Wire([_chunk(b"1234", more=True), _chunk(b"56", more=True), _chunk(b"7", more=True)])
        with pytest.raises(TooLarge):
            await read_body(_headers(), wire.receive, max_bytes=5)
        assert wire.taken == 2

    async def test_one_message_over_the_limit(self) -> None:
        wire = Wire([_chunk(b"123456", more=False)])
        with pytest.raises(TooLarge):
            await read_body(_headers(), wire.receive, max_bytes=5)

    async def test_compressed(self) -> None:
        with pytest.raises(Malformed, match="content-encoding"):
            await read_body(_headers(content_encoding="gzip"), Wire([]).receive, max_bytes=5)

    async def test_identity_is_not_compressed(self) -> None:
        wire = Wire([_chunk(b"1", more=False)])
        assert await read_body(_headers(content_encoding="identity"), wire.receive, max_bytes=5) == b"1"

    @pytest.mark.parametrize("before", [[], [_chunk(b"12", more=True)]])
    async def test_a_client_that_leaves(self, before: list[Message]) -> None:
        wire = Wire([*before, {"type": "http.disconnect"}])
        with pytest.raises(ClientDisconnect):
            await read_body(_headers(), wire.receive, max_bytes=5)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b" ",
        b"{",
        b'{"inputs": "x"} more',
        b"{'inputs': 'x'}",
        b'{"inputs": NaN}',
        b'{"inputs": Infinity}',
        b'{"deadline_ms": 1e999}',
        b'{"inputs": "\\ud800"}',
        b'{"inputs": "\xff"}',
        b'{"inputs": "\xed\xa0\x80"}',
        b'{"inputs": "a\nb"}',
        b"[" * 100_000,
        b'{"inputs": ' + b"[" * 2000 + b"]" * 2000 + b"}",
        b"\xef\xbb\xbf{}",
        b"\x00",
        b"inputs=x",
    ],
)
def test_what_is_not_json_is_malformed(raw: bytes) -> None:
    with pytest.raises(Malformed):
        parse(raw, ClassifyBody, max_items=MAX_ITEMS)


def _pointers(document: Any, model: type[Body] = ClassifyBody) -> dict[str, str]:
    with pytest.raises(InvalidInput) as caught:
        parse(json.dumps(document).encode(), model, max_items=MAX_ITEMS)
    return {problem.pointer: problem.detail for problem in caught.value.errors}


@pytest.mark.parametrize("document", [None, 1, "text", [], ["inputs"], True])
def test_the_body_must_be_an_object(document: Any) -> None:
    assert _pointers(document) == {"": "must be an object"}


@pytest.mark.parametrize(
    ("document", "pointer"),
    [
        ({}, "/inputs"),
        ({"inputs": None}, "/inputs"),
        ({"inputs": 5}, "/inputs"),
        ({"inputs": {}}, "/inputs"),
        ({"inputs": []}, "/inputs"),
        ({"inputs": ["a", 5]}, "/inputs/1"),
        ({"inputs": ["a", ["b", "c"]]}, "/inputs/1"),
        ({"inputs": [["a", "b"], "c"]}, "/inputs/1"),
        ({"inputs": [5]}, "/inputs/0"),
        ({"inputs": [None]}, "/inputs/0"),
        ({"inputs": [[]]}, "/inputs/0"),
        ({"inputs": [["a"]]}, "/inputs/0"),
        ({"inputs": [["a", "b", "c"]]}, "/inputs/0"),
        ({"inputs": [["a", 1]]}, "/inputs/0/1"),
        ({"inputs": [[["a"], "b"]]}, "/inputs/0/0"),
        ({"inputs": "x", "model": 3}, "/model"),
        ({"inputs": "x", "model": "m" * 257}, "/model"),
        ({"inputs": "x", "top_k": 0}, "/top_k"),
        ({"inputs": "x", "top_k": "3"}, "/top_k"),
        ({"inputs": "x", "top_k": 1.5}, "/top_k"),
        ({"inputs": "x", "top_k": True}, "/top_k"),
        ({"inputs": "x", "top_k": 2**70}, "/top_k"),
        ({"inputs": "x", "exit": "maybe"}, "/exit"),
        ({"inputs": "x", "exit": None}, "/exit"),
        ({"inputs": "x", "exit": 0.01}, "/exit"),
        ({"inputs": "x", "exit": {}}, "/exit"),
        ({"inputs": "x", "exit": {"risk": 0.01, "x": 1}}, "/exit/x"),
        ({"inputs": "x", "exit": {"risk": 0}}, "/exit/risk"),
        ({"inputs": "x", "exit": {"risk": 1}}, "/exit/risk"),
        ({"inputs": "x", "exit": {"risk": -0.1}}, "/exit/risk"),
        ({"inputs": "x", "exit": {"risk": "0.1"}}, "/exit/risk"),
        ({"inputs": "x", "exit": {"risk": True}}, "/exit/risk"),
        ({"inputs": "x", "truncate": "middle"}, "/truncate"),
        ({"inputs": "x", "on_error": "ignore"}, "/on_error"),
        ({"inputs": "x", "deadline_ms": 0}, "/deadline_ms"),
        ({"inputs": "x", "deadline_ms": -5}, "/deadline_ms"),
        ({"inputs": "x", "deadline_ms": "50"}, "/deadline_ms"),
        ({"inputs": "x", "deadline_ms": 1e12}, "/deadline_ms"),
        ({"inputs": "x", "unknown": 1}, "/unknown"),
        ({"inputs": "x", "a/b~c": 1}, "/a~1b~0c"),
        ({"inputs": "x", "": 1}, "/"),
    ],
)
def test_a_wrong_field_is_named_by_its_pointer(document: Any, pointer: str) -> None:
    assert list(_pointers(document)) == [pointer]


def test_every_wrong_field_is_named() -> None:
    found = _pointers({"inputs": [1], "top_k": 0, "exit": "x", "zz": 1})
    assert set(found) == {"/inputs/0", "/top_k", "/exit", "/zz"}
    assert found["/zz"] == "unknown field"


def test_many_problems_are_cut_and_counted() -> None:
    found = _pointers({"inputs": "x"} | {f"f{i}": i for i in range(500)})
    assert len(found) == MAX_PROBLEMS + 1
    assert found[""] == f"and {500 - MAX_PROBLEMS} more"


def test_too_many_fields_are_not_looked_at() -> None:
    assert _pointers({f"f{i}": i for i in range(MAX_FIELDS + 1)}) == {"": f"more than {MAX_FIELDS} fields"}


@pytest.mark.parametrize("inputs", [["x"] * 4, [["x", "y"]] * 4, [1, 2, 3, 4]])
def test_too_many_inputs_are_not_looked_at(inputs: list[Any]) -> None:
    with pytest.raises(TooLarge, match="4 inputs; one request may have 3"):
        parse(orjson.dumps({"inputs": inputs, "top_k": "wrong"}), ClassifyBody, max_items=3)


def test_a_long_field_name_does_not_come_back_whole() -> None:
    (pointer,) = _pointers({"inputs": "x", "n" * 10_000: 1})
    assert len(pointer) == MAX_POINTER_CHARACTERS


def test_texts_do_not_come_back_in_errors() -> None:
    found = _pointers({"inputs": ["secret", {"secret": "secret"}], "exit": "secret", "deadline_ms": "secret"})
    assert "secret" not in "".join(found.values())


def test_embed_takes_no_pairs_and_no_top_k() -> None:
    assert "/inputs/0" in _pointers({"inputs": [["a", "b"]]}, EmbedBody)
    assert list(_pointers({"inputs": "x", "top_k": 1}, EmbedBody)) == ["/top_k"]
    assert list(_pointers({"inputs": "x", "encoding": "hex"}, EmbedBody)) == ["/encoding"]
    assert list(_pointers({"inputs": "x", "normalize": 1}, EmbedBody)) == ["/normalize"]


def test_one_text_and_a_list_of_one_are_the_same() -> None:
    assert (
        parse(b'{"inputs": "x"}', ClassifyBody, max_items=1).inputs
        == parse(b'{"inputs": ["x"]}', ClassifyBody, max_items=1).inputs
        == ("x",)
    )


def test_everything_said() -> None:
    document = {
        "model": "toy@canary",
        "inputs": [["a", "b"]],
        "exit": {"risk": 0.25},
        "truncate": "start",
        "on_error": "item",
        "deadline_ms": 20,
        "top_k": 3,
    }
    body = parse(orjson.dumps(document), ClassifyBody, max_items=MAX_ITEMS)
    assert (body.inputs, body.exit, body.truncate) == ((("a", "b"),), 0.25, "start")
    assert (body.model, body.on_error, body.deadline_ms, body.top_k) == ("toy@canary", "item", 20, 3)


def test_defaults() -> None:
    body = parse(b'{"inputs": ""}', EmbedBody, max_items=MAX_ITEMS)
    assert (body.model, body.exit, body.truncate, body.on_error, body.deadline_ms) == (
        None,
        "default",
        None,
        "fail",
        None,
    )
    assert (body.normalize, body.encoding) == (True, "float")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
FIELDS = st.sampled_from(["model", "inputs", "exit", "truncate", "on_error", "deadline_ms", "top_k", "other"])


@given(st.dictionaries(FIELDS, JSON))
def test_no_document_breaks_it(document: dict[str, Any]) -> None:
    try:
        body = parse(orjson.dumps(document), ClassifyBody, max_items=MAX_ITEMS)
    except ServiceError as error:
        assert error.status in (400, 422)
        assert all(problem.pointer == "" or problem.pointer.startswith("/") for problem in error.errors)
    else:
        assert len(body.inputs) >= 1


@given(st.binary(max_size=64))
def test_no_bytes_break_it(raw: bytes) -> None:
    with pytest.raises((Malformed, InvalidInput)):
        parse(raw, ClassifyBody, max_items=MAX_ITEMS)


def test_pointers_are_escaped() -> None:
    assert json_pointer("a/b", 0, "~") == "/a~1b/0/~0"
    assert json_pointer() == ""
