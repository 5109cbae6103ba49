"""HTTP/1.1 as bytes: requests made once and sent many times, answers read with as little work as possible. Pure."""

import math
import re
from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import SplitResult, urlsplit

from loadtest.errors import ScenarioInvalid

_HEAD_END: Final = b"\r\n\r\n"
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)")
_CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding:[^\r]*chunked")
_CLOSE: Final = re.compile(rb"\r\nconnection:[ \t]*close")
_TIMES: Final = tuple(
    re.compile(rb"\r\n" + name + rb":[ \t]*([0-9.eE+-]+)")
    for name in (b"x-queue-time", b"x-inference-time", b"x-total-time")
)
_BODILESS: Final = (204, 304)


class Answer(NamedTuple):
    """What came back.

    status: 0 where no whole answer came. queue_ms, run_ms, total_ms: from the server's headers, NaN where it sent none.
    body: only where it was wanted. closes: the server closes the connection after it.
    """

    status: int
    queue_ms: float = math.nan
    run_ms: float = math.nan
    total_ms: float = math.nan
    body: bytes | None = None
    closes: bool = False


LOST: Final = Answer(0, closes=True)


class Origin(NamedTuple):
    """Where requests go: scheme `http` or `https`, host, port, and the path that all paths are put behind."""

    scheme: str
    host: str
    port: int
    prefix: str


def origin_of(url: str) -> Origin:
    """Read a target's URL. Raises: ScenarioInvalid: it is not an http(s) URL of a host."""
    try:
        parts: SplitResult = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise ScenarioInvalid(f"target {url!r}: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ScenarioInvalid(f"target {url!r}: must be http://HOST[:PORT][/PREFIX] or https://…")
    return Origin(parts.scheme, parts.hostname, port, parts.path.rstrip("/"))


def request_bytes(origin: Origin, path: str, body: bytes | None, *, headers: Mapping[str, str] | None = None) -> bytes:
    """A whole request: POST with a JSON body, or GET where there is none.

    Args:
        origin: gives the `host` header and the prefix.
        path: begins with a slash.
        body: JSON, or None.
        headers: more of them; names and values without line breaks.
    Raises: ScenarioInvalid: a header cannot be sent.
    """
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    lines = [f"{'GET' if body is None else 'POST'} {origin.prefix}{path} HTTP/1.1", f"host: {host}:{origin.port}"]
    if body is not None:
        lines += ["content-type: application/json", f"content-length: {len(body)}"]
    for name, value in (headers or {}).items():
        if not re.fullmatch(r"[A-Za-z0-9-]+", name) or not value.isascii() or "\r" in value or "\n" in value:
            raise ScenarioInvalid(f"header {name!r}: cannot be sent")
        lines.append(f"{name}: {value}")
    return "\r\n".join([*lines, "", ""]).encode("ascii") + (body or b"")


class ResponseReader:
    """Reads one answer from pieces as they come.

    Invariant: between `start` and the answer it holds what came and was not used; afterwards nothing.
    """

    __slots__ = ("_buffer", "_want_body")

    def __init__(self) -> None:
        self.start()

    def start(self, *, want_body: bool = False) -> None:
        """Forget what came; an answer is expected."""
        self._buffer = b""
        self._want_body = want_body

    @property
    def begun(self) -> bool:
        """Whether a part of an answer has come."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> Answer | None:
        """Take a piece. Returns: the answer, once it is whole. Raises: ValueError: this is not HTTP."""
        buffer = self._buffer = self._buffer + data if self._buffer else data
        end = buffer.find(_HEAD_END)
        if end < 0:
            return None
        status = _status(buffer)
        if status < 200:
            self._buffer = b""
            return self.feed(buffer[end + 4 :]) if len(buffer) > end + 4 else None
        head = buffer[: end + 2].lower()
        length = _LENGTH.search(head)
        if length:
            stop = end + 4 + int(length[1])
            return self._answer(status, head, buffer[end + 4 : stop]) if len(buffer) >= stop else None
        if status in _BODILESS:
            return self._answer(status, head, b"")
        if _CHUNKED.search(head):
            body = dechunk(buffer, end + 4)
            return None if body is None else self._answer(status, head, body)
        return None

    def end(self) -> Answer:
        """The server closed. Returns: the answer where the close is what ends it, else `LOST`."""
        end = self._buffer.find(_HEAD_END)
        head = self._buffer[: end + 2].lower()
        if end < 0 or _LENGTH.search(head) or _CHUNKED.search(head):
            return LOST
        return self._answer(_status(self._buffer), head, self._buffer[end + 4 :])._replace(closes=True)

    def _answer(self, status: int, head: bytes, body: bytes) -> Answer:
        self._buffer = b""
        queue, run, total = (math.nan if (m := one.search(head)) is None else float(m[1]) for one in _TIMES)
        closes = _CLOSE.search(head) is not None
        return Answer(status, queue, run, total, body if self._want_body else None, closes)


def _status(buffer: bytes) -> int:
    if not buffer.startswith(b"HTTP/1.") or not buffer[9:12].isdigit():
        raise ValueError("not an HTTP/1 answer")
    return int(buffer[9:12])


def dechunk(buffer: bytes, start: int) -> bytes | None:
    """The body of a chunked answer; None while it is not whole. Raises: ValueError: a chunk's size is no number.

    >>> dechunk(b"4\\r\\nWiki\\r\\n0\\r\\n\\r\\n", 0)
    b'Wiki'
    """
    body = b""
    while (line := buffer.find(b"\r\n", start)) >= 0:
        size = int(buffer[start:line].split(b";")[0], 16)
        if size == 0:
            # a trailer, where there is one, ends with an empty line too
            return body if buffer.find(_HEAD_END, line) >= 0 else None
        body += buffer[line + 2 : line + 2 + size]
        start = line + 2 + size + 2
    return None
