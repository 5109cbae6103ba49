"""The tensors of the Open Inference Protocol: read and written, and every way to be wrong."""

import json
import struct
from typing import Any

import numpy as np
import pytest

from service.api.kserve_tensors import InputTensor, Output, Texts, split, texts_of, write
from service.errors import InvalidInput, Malformed, ServiceError, TooLarge


def _frame(*texts: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def _read(*tensors: dict[str, Any], behind: bytes = b"", max_items: int = 8) -> tuple[Texts, ...]:
    plain = {"name": "text", "datatype": "BYTES"}
    inputs = [InputTensor.model_validate(plain | tensor) for tensor in tensors]
    return texts_of(inputs, memoryview(behind), max_items=max_items)


def _refused(error: type[ServiceError], *tensors: dict[str, Any], behind: bytes = b"") -> ServiceError:
    with pytest.raises(error) as raised:
        _read(*tensors, behind=behind)
    return raised.value


@pytest.mark.parametrize(
    ("shape", "data", "rows", "columns"),
    [([2], ["a", "b"], 2, 1), ([2, 1], [["a"], ["b"]], 2, 1), ([1, 2], ["a", "b"], 1, 2), ([1, 2], [["a", "b"]], 1, 2)],
)
def test_json_flat_or_in_rows(shape: list[int], data: list[Any], rows: int, columns: int) -> None:
    assert _read({"shape": shape, "data": data}) == (Texts("text", ("a", "b"), rows, columns),)


def test_binary_and_json_together() -> None:
    raw = _frame("é".encode(), b"")
    tensors = (
        {"name": "a", "shape": [2], "parameters": {"binary_data_size": len(raw)}},
        {"name": "b", "shape": [1], "data": ["z"]},
        {"name": "c", "shape": [1], "parameters": {"binary_data_size": 5}},
    )
    read = _read(*tensors, behind=raw + _frame(b"y"))
    assert [(one.name, one.texts) for one in read] == [("a", ("é", "")), ("b", ("z",)), ("c", ("y",))]


@pytest.mark.parametrize(
    ("tensor", "pointer", "said"),
    [
        ({"shape": [1], "data": ["a"], "datatype": "INT64"}, "datatype", "must be BYTES"),
        ({"shape": [0], "data": []}, "shape", "at least one"),
        ({"shape": [1, 0], "data": []}, "shape", "at least one"),
        ({"shape": [2], "data": ["a"]}, "shape", "of 2 elements, the data of 1"),
        ({"shape": [1]}, "data", "is required"),
        ({"shape": [1], "data": "a"}, "data", "must be a list"),
        ({"shape": [1], "data": [1]}, "data", "must hold texts"),
        ({"shape": [1], "parameters": {"binary_data_size": 99}}, "binary_data_size", "more than the body holds"),
    ],
)
def test_a_wrong_tensor(tensor: dict[str, Any], pointer: str, said: str) -> None:
    error = _refused(InvalidInput, tensor)
    assert (error.errors[0].pointer, said in error.detail) == (f"/inputs/0/{pointer}", True)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"\x01", "end within a length"),
        (b"\x05\0\0\0a", "longer than"),
        (_frame(b"a", b"\xff"), "element 1 is not UTF-8"),
    ],
)
def test_wrong_bytes(raw: bytes, said: str) -> None:
    error = _refused(InvalidInput, {"shape": [1], "parameters": {"binary_data_size": len(raw)}}, behind=raw)
    assert said in error.detail


def test_bytes_that_nobody_claims() -> None:
    assert "3 bytes" in _refused(InvalidInput, {"shape": [1], "data": ["a"]}, behind=b"abc").detail


def test_too_many_rows() -> None:
    assert "9 in `text`" in _refused(TooLarge, {"shape": [9], "data": ["a"] * 9}).detail


def test_a_body_is_split() -> None:
    document, behind = split(b'{"a": 1}xyz', b"8")
    assert (document, bytes(behind)) == ({"a": 1}, b"xyz")
    assert split(b'{"a": 1}', None)[0] == {"a": 1}


@pytest.mark.parametrize("length", [b"", b"0", b"-1", b"9", b"1e3", b"9" * 40])
def test_no_length(length: bytes) -> None:
    with pytest.raises(Malformed, match="inference-header-content-length"):
        split(b'{"a": 1}', length)


def test_an_answer_in_json() -> None:
    outputs = [
        Output("score", np.array([[1, 2], [3, 4]], np.float32), (2, 2)),
        Output("place", np.array([7]), (1,)),
        Output("label", ["x"], (1,)),
    ]
    body, length = write({"model_name": "m"}, outputs)
    assert length is None
    assert json.loads(body) == {
        "model_name": "m",
        "outputs": [
            {"name": "score", "datatype": "FP32", "shape": [2, 2], "data": [1, 2, 3, 4]},
            {"name": "place", "datatype": "INT64", "shape": [1], "data": [7]},
            {"name": "label", "datatype": "BYTES", "shape": [1], "data": ["x"]},
        ],
    }


def test_an_answer_with_bytes_behind() -> None:
    outputs = [
        Output("score", np.array([1.5], ">f4"), (1,), binary=True),
        Output("depth", np.array([1], np.float32), (1,)),
        Output("label", ["é"], (1,), binary=True),
    ]
    body, length = write({}, outputs)
    assert length is not None
    told = json.loads(body[:length])["outputs"]
    assert [one.get("parameters") for one in told] == [{"binary_data_size": 4}, None, {"binary_data_size": 6}]
    assert body[length:] == struct.pack("<f", 1.5) + _frame("é".encode())
