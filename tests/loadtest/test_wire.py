"""Requests as bytes, and answers read whatever way they are cut."""

import math

import pytest

from loadtest.errors import ScenarioInvalid
from loadtest.wire import LOST, Origin, ResponseReader, origin_of, request_bytes

ORIGIN = Origin("http", "h", 80, "/p")


def read(pieces, *, want_body=True):
    reader = ResponseReader()
    reader.start(want_body=want_body)
    found = [reader.feed(piece) for piece in pieces]
    assert all(each is None for each in found[:-1])
    return found[-1]


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("http://127.0.0.1:8000", Origin("http", "127.0.0.1", 8000, "")),
        ("https://host/a/b/", Origin("https", "host", 443, "/a/b")),
        ("http://[::1]:1", Origin("http", "::1", 1, "")),
    ],
)
def test_targets_are_read(url, wanted):
    assert origin_of(url) == wanted


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://host", "http://", "http://h:99999", "http://h/?q=1"])
def test_what_is_no_target_is_refused(url):
    with pytest.raises(ScenarioInvalid, match="target"):
        origin_of(url)


def test_a_request_is_whole():
    raw = request_bytes(ORIGIN, "/v1/classify", b"{}", headers={"x-priority": "high"})
    head, _, body = raw.partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"POST /p/v1/classify HTTP/1.1",
        b"host: h:80",
        b"content-type: application/json",
        b"content-length: 2",
        b"x-priority: high",
    ]
    assert body == b"{}"


def test_without_a_body_it_is_a_get():
    assert request_bytes(Origin("http", "::1", 5, ""), "/x", None) == b"GET /x HTTP/1.1\r\nhost: [::1]:5\r\n\r\n"


@pytest.mark.parametrize(("name", "value"), [("a b", "x"), ("a", "x\r\ny: z"), ("a", "é")])
def test_headers_that_cannot_be_sent_are_refused(name, value):
    with pytest.raises(ScenarioInvalid, match="header"):
        request_bytes(ORIGIN, "/", b"", headers={name: value})


WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nX-Queue-Time: 1.5\r\nx-inference-time: 2e-1\r\n\r\nabcd"


def test_an_answer_in_one_piece():
    answer = read([WHOLE])
    assert (answer.status, answer.body, answer.queue_ms, answer.run_ms) == (200, b"abcd", 1.5, 0.2)
    assert math.isnan(answer.total_ms) and not answer.closes


def test_an_answer_byte_by_byte():
    assert read([WHOLE[i : i + 1] for i in range(len(WHOLE))]).body == b"abcd"


def test_a_body_that_nobody_wants_is_not_kept():
    assert read([WHOLE], want_body=False).body is None


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n"


@pytest.mark.parametrize("trailer", [b"\r\n", b"a: b\r\n\r\n"])
def test_chunks_are_put_together(trailer):
    raw = CHUNKED + trailer
    assert read([raw]).body == b"abcde"
    assert read([raw[i : i + 1] for i in range(len(raw))]).body == b"abcde"


def test_a_chunk_size_that_is_no_number_is_not_http():
    with pytest.raises(ValueError):
        read([b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"])


@pytest.mark.parametrize("raw", [b"HTTP/2 200\r\n\r\n", b"junk\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n"])
def test_what_is_not_http_is_told(raw):
    with pytest.raises(ValueError, match="not an HTTP"):
        read([raw])


def test_no_content_has_no_body():
    answer = read([b"HTTP/1.1 204 No\r\nconnection: close\r\n\r\n"])
    assert (answer.status, answer.body, answer.closes) == (204, b"", True)


def test_interim_answers_are_passed_over():
    assert read([b"HTTP/1.1 100 Continue\r\n\r\n" + WHOLE]).status == 200
    assert read([b"HTTP/1.1 100 Continue\r\n\r\n", WHOLE]).status == 200


def test_a_close_ends_an_answer_that_does_not_say_its_length():
    reader = ResponseReader()
    reader.start(want_body=True)
    assert reader.feed(b"HTTP/1.0 200 OK\r\n\r\nabc") is None and reader.begun
    ended = reader.end()
    assert (ended.status, ended.body, ended.closes) == (200, b"abc", True)
    assert not reader.begun


@pytest.mark.parametrize("part", [b"", b"HTTP/1.1 200 OK\r\n", WHOLE[:-1], CHUNKED])
def test_a_close_in_the_middle_loses_the_answer(part):
    reader = ResponseReader()
    reader.start()
    if part:
        assert reader.feed(part) is None
    assert reader.end() == LOST or math.isnan(reader.end().queue_ms)
    assert reader.end().status == 0
