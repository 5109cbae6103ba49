"""Heads read at a glance: what is read is what a real parser reads; what is odd is left to it."""

from typing import Any

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.heads import MAX_HEAD_BYTES, MAX_KEPT, MAX_REQUEST_BYTES, Head, Heads

PATH = "/v1/classify"
BODY = b'{"inputs": "x"}'
LENGTH = b"content-length: %d" % len(BODY)


def _heads(max_body_bytes: int = 1 << 20) -> Heads:
    return Heads({PATH}, max_body_bytes=max_body_bytes)


def _request(*lines: bytes, start: bytes = b"POST /v1/classify HTTP/1.1", body: bytes = BODY) -> bytes:
    return b"\r\n".join((start, *lines, b"", body))


class Parser:
    """What a real parser reads."""

    def __init__(self) -> None:
        self.url, self.body = b"", b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.whole = 0
        self.told: tuple[bytes, str, bool, bool] | None = None
        self._parser = httptools.HttpRequestParser(self)

    def feed(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        parser = self._parser
        told = parser.get_method(), parser.get_http_version(), parser.should_keep_alive(), parser.should_upgrade()
        self.told = told

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.whole += 1


def _agrees(data: bytes) -> bool:
    """Whether it is read; then it is read as the parser reads it."""
    found = _heads().read(data)
    if found is None:
        return False
    head, body = found
    parser = Parser()
    parser.feed(data)
    assert (parser.whole, parser.told) == (1, (b"POST", "1.1", True, False))
    assert (parser.url.decode(), parser.body) == (head.path, body)
    assert (parser.headers, dict(parser.headers)) == (head.scope["headers"], head.headers)
    assert head.length == len(body)
    return True


PLAIN = [
    (LENGTH,),
    (b"Content-Length: 00015",),
    (b"Host: x", LENGTH, b"Accept: */*", b"x-tab: a\tb", b"x-none:", b"x-blank: \t", b"x-behind: a  "),
    (LENGTH, b"connection: Keep-Alive", b"Keep-Alive: 5", b"x:colon:ated"),
    (LENGTH, b"-: y"),
]
ODD = {
    "plus": (b"content-length: +15",),
    "behind": (b"content-length: 15 ",),
    "twice": (b"content-length: 15,15",),
    "two": (LENGTH, LENGTH),
    "two-cases": (LENGTH, b"Content-Length: 15"),
    "two-others": (LENGTH, b"x: y", b"X: y"),
    "hexadecimal": (b"content-length: 0xf",),
    "underscore": (b"content-length: 1_5",),
    "minus": (b"content-length: -15",),
    "no-length": (b"host: x",),
    "empty-length": (b"content-length:",),
    "arabic": ("content-length: ١٥".encode(),),
    "too-short": (b"content-length: 14",),
    "too-long": (b"content-length: 16",),
    "chunked": (b"transfer-encoding: chunked",),
    "both": (LENGTH, b"transfer-encoding: chunked"),
    "identity": (LENGTH, b"Transfer-Encoding: identity"),
    "fold": (LENGTH, b"x: y", b" z"),
    "tab-fold": (LENGTH, b"x: y", b"\tz"),
    "first-fold": (b" x: y", LENGTH),
    "bare-line-feed": (b"x: y\n" + LENGTH,),
    "bare-return": (b"x: y\r" + LENGTH,),
    "space-before-colon": (b"content-length : 15",),
    "tab-before-colon": (b"content-length\t: 15",),
    "nul": (LENGTH, b"x: a\0b"),
    "nul-name": (LENGTH, b"x\0: a"),
    "delete": (LENGTH, b"x: \x7f"),
    "latin": (LENGTH, b"x: \xe9"),
    "no-colon": (LENGTH, b"x"),
    "no-name": (LENGTH, b": y"),
    "underscored": (b"content_length: 9", LENGTH),
    "close": (LENGTH, b"connection: close"),
    "proxy-close": (LENGTH, b"proxy-connection: close"),
    "close-too": (LENGTH, b"connection: keep-alive, close"),
    "upgrade": (LENGTH, b"connection: upgrade", b"upgrade: h2c"),
    "expect": (LENGTH, b"Expect: 100-continue"),
    "compressed": (LENGTH, b"content-encoding: gzip"),
    "trailer": (LENGTH, b"trailer: x"),
}
STARTS = (
    b"GET /v1/classify HTTP/1.1",
    b"POST /v1/classify HTTP/1.0",
    b"POST /v1/classify HTTP/2.0",
    b"POST /v1/classify",
    b"POST  /v1/classify HTTP/1.1",
    b"POST /v1/classify  HTTP/1.1",
    b"POST\t/v1/classify HTTP/1.1",
    b"post /v1/classify HTTP/1.1",
    b"POST /v1/classify HTTP/1.1 ",
    b"\r\nPOST /v1/classify HTTP/1.1",
    b" POST /v1/classify HTTP/1.1",
    b"POST http://x/v1/classify HTTP/1.1",
    b"POST /v1/classify?x HTTP/1.1",
    b"POST /v1/classify? HTTP/1.1",
    b"POST /v1/classify#x HTTP/1.1",
    b"POST /v1/classify/ HTTP/1.1",
    b"POST //v1/classify HTTP/1.1",
    b"POST /v1/cl%61ssify HTTP/1.1",
    b"POST /v1/../v1/classify HTTP/1.1",
    b"POST /v1/classify\0 HTTP/1.1",
    b"POST /v1/rank HTTP/1.1",
)


@pytest.mark.parametrize("lines", PLAIN)
def test_plain_requests_are_read_as_a_parser_reads_them(lines: tuple[bytes, ...]) -> None:
    assert _agrees(_request(*lines))


@pytest.mark.parametrize("lines", ODD.values(), ids=ODD)
def test_what_is_odd_is_not_read(lines: tuple[bytes, ...]) -> None:
    assert _heads().read(_request(*lines)) is None


@pytest.mark.parametrize("start", STARTS)
def test_another_request_line(start: bytes) -> None:
    assert _heads().read(_request(LENGTH, start=start)) is None


@pytest.mark.parametrize("data", [b"", b"\r\n\r\n", b"POST", _request(LENGTH) * 2, _request(LENGTH)[:-1], BODY])
def test_what_is_not_one_whole_request(data: bytes) -> None:
    assert _heads().read(data) is None


def test_no_part_of_one_is_read() -> None:
    heads, data = _heads(), _request(b"host: x", LENGTH)
    for cut in range(len(data)):
        assert heads.read(data[:cut]) is None
    assert heads.read(data) is not None
    assert heads.read(data + b"\r\n") is None


def test_an_empty_body() -> None:
    assert _agrees(_request(b"content-length: 0", body=b""))


LINE = st.sampled_from([LENGTH, *(line for lines in (*PLAIN, *ODD.values()) for line in lines)])
WORDS = st.binary(max_size=12) | st.text("abc-XYZ: \t\r\n,019", max_size=12).map(str.encode)


@given(st.lists(LINE | st.tuples(WORDS, WORDS).map(b": ".join), max_size=4))
def test_nothing_is_read_otherwise_than_a_parser_does(lines: list[bytes]) -> None:
    _agrees(_request(LENGTH, *lines))


@given(st.data())
def test_neither_is_one_with_bytes_changed(data: Any) -> None:
    raw = bytearray(_request(b"host: x", LENGTH, b"x: y"))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(raw) - 1))
        width = data.draw(st.integers(0, 2))
        raw[place : place + width] = data.draw(st.binary(max_size=2) | st.sampled_from([b"\r\n", b" ", b"\t", b":"]))
    _agrees(bytes(raw))


@given(st.lists(st.tuples(st.text("abcDEF-", min_size=1, max_size=8), st.text("!~ \tz9:", max_size=8)), max_size=6))
def test_plain_names_and_words_are_read(pairs: list[tuple[str, str]]) -> None:
    lines = [f"x-{name}: {word}".encode() for name, word in pairs]
    alone = len({name.lower() for name, _ in pairs}) == len(pairs)
    assert _agrees(_request(*lines, LENGTH)) == alone


class TestKept:
    """A head is understood once."""

    def _read(self, heads: Heads, *lines: bytes) -> Head:
        found = heads.read(_request(LENGTH, *lines))
        assert found is not None
        return found[0]

    def test_the_same_bytes_are_the_same_head(self) -> None:
        heads = _heads()
        assert self._read(heads, b"x: y") is self._read(heads, b"x: y")
        assert self._read(heads, b"x: y") is not self._read(heads, b"x: z")

    @pytest.mark.parametrize("own", [b"x-request-id", b"TraceParent", b"x-amzn-trace-id"])
    def test_but_for_those_that_do_not_recur(self, own: bytes) -> None:
        heads = _heads()
        assert self._read(heads, own + b": 1") is not self._read(heads, own + b": 1")
        assert not heads._kept

    def test_a_kept_heads_body_is_still_measured(self) -> None:
        heads = _heads()
        self._read(heads)
        assert heads.read(_request(LENGTH) + b"x") is None

    def test_no_more_than_so_many(self) -> None:
        heads = _heads()
        for number in range(3 * MAX_KEPT):
            self._read(heads, b"x: %d" % number)
            assert len(heads._kept) <= MAX_KEPT


class TestBounds:
    """What is long goes the long road."""

    def test_of_a_head(self) -> None:
        line = b"x: " + b"y" * MAX_HEAD_BYTES
        assert _heads().read(_request(LENGTH, line)) is None
        assert _agrees(_request(LENGTH, line[: MAX_HEAD_BYTES // 2]))

    def test_of_a_request(self) -> None:
        for length, taken in ((MAX_REQUEST_BYTES // 2, True), (MAX_REQUEST_BYTES, False), (1 << 17, False)):
            assert _agrees(_request(b"content-length: %d" % length, body=b"x" * length)) == taken

    def test_of_a_body_as_the_settings_say(self) -> None:
        assert _heads(len(BODY)).read(_request(LENGTH)) is not None
        assert _heads(len(BODY) - 1).read(_request(LENGTH)) is None


def test_a_long_head_of_nonsense_is_left_at_once() -> None:
    # a pattern that backtracks would not come back
    assert _heads().read(b"POST /v1/classify HTTP/1.1\r\n" + b"a:" * 1000 + b"\n\r\n\r\n") is None
